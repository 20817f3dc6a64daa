"""The process an opponent lives in: ``python -m lgld_ops.bench.worker --fd N``, started and stopped by the
harness.

It answers one JSON message with one JSON message over the connection it inherited, so that whatever a library
prints goes to the standard error that the harness keeps. Times are taken here, around the calls alone."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from itertools import repeat
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import opponents
from .cases import FORWARD, Mode, case_from_dict

_PR_SET_PDEATHSIG = 1
_SETTLED_SECONDS = 1e-3
_NEEDS_NO_SETTLING_SECONDS = 0.2


def _die_with_parent() -> None:
    """A stopped process reads no end-of-file, so the kernel has to kill it if the harness is killed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def _load_plugin(path: str) -> None:
    """Runs a file that registers further opponents."""
    spec = importlib.util.spec_from_file_location(f"lgld_ops_bench_plugin_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import the opponents in {path}")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@contextlib.contextmanager
def _grad_mode(mode: Mode) -> Iterator[None]:
    with torch.inference_mode() if mode == FORWARD else contextlib.nullcontext():
        yield


def _to_numpy(value: Any) -> np.ndarray[Any, Any]:
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.detach()
    # numpy has no bfloat16, and the judge's unit of rounding is that of float32.
    array: np.ndarray[Any, Any] = (value.float() if value.dtype in (torch.float16, torch.bfloat16) else value).numpy()
    return array


def kept_bytes(call: opponents.Call) -> int:
    """Bytes of the distinct storages that autograd saves for backward during one call."""
    alive: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}
    return sum(storages.values())


def _forget_peak() -> None:
    """Starts the kernel's record of the largest resident set anew. Where it may not, the record goes on from the start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int | None:
    """The largest resident set of this process since `_forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return None


class Prepared:
    """One opponent, ready to compute one case."""

    def __init__(self, entry: opponents.Opponent, mode: Mode, call: opponents.Call) -> None:
        self.entry = entry
        self.mode = mode
        self.call = call
        self.inner = 1
        self.call_seconds = 0.0

    def sample(self, inner: int) -> float:
        """Seconds per call, over ``inner`` calls in a row."""
        call = self.call
        with _grad_mode(self.mode):
            gc.disable()
            try:
                start = time.perf_counter_ns()
                for _ in repeat(None, inner):
                    call()
                end = time.perf_counter_ns()
            finally:
                gc.enable()
        return (end - start) / inner * 1e-9

    def warm_up(self, seconds: float, sample_seconds: float) -> None:
        """Runs for ``seconds``, at least one call, and chooses how many calls one sample takes."""
        taken: list[float] = []
        while sum(taken) < seconds:
            taken.append(self.sample(1))
        # The least: a busy neighbour makes calls look longer, and samples would come out too short.
        self.call_seconds = min(taken)
        self.inner = max(1, round(sample_seconds / max(self.call_seconds, 1e-9)))

    def turn(self) -> float:
        """One sample. Calls before it wake the thread pool and fill the caches that other opponents used meanwhile:
        without them OpenVINO's median for LGLD-Net on two threads was 39 ms, its minimum 29 ms."""
        if self.call_seconds < _NEEDS_NO_SETTLING_SECONDS:
            settled = 0.0
            while settled < _SETTLED_SECONDS:
                settled += self.sample(1)
        return self.sample(self.inner)


class Worker:
    """Answers messages; each method named like a message takes its fields and returns the answer's."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.prepared: dict[str, Prepared] = {}

    def prepare(self, opponent: str, case: Mapping[str, Any], inputs: str, outputs: str) -> dict[str, Any]:
        """Builds the opponent, calls it twice, and leaves the second call's results as
        ``outputs``/NAME.npy."""
        parsed = case_from_dict(case)
        entry = opponents.REGISTRY[parsed.subject, opponent]
        for requirement in entry.requires:  # in order: a later one may import what an earlier one asks for
            if (reason := requirement()) is not None:
                return {"unavailable": reason}
        if (reason := entry.refuses(parsed)) is not None:
            return {"unavailable": reason}
        # Cloned, for torch aligns to 64 bytes and numpy to 16: vector loads would cross cache lines for all opponents.
        tensors = {path.stem: torch.from_numpy(np.load(path)).clone() for path in sorted(Path(inputs).glob("*.npy"))}
        _forget_peak()
        start = time.perf_counter()
        with _grad_mode(parsed.mode):
            call = entry.build(parsed, tensors)
            if entry.role != "judge":
                call()  # compiles; a second call shows that the result does not change with that
            results = call()
            names = []
            if entry.role != "floor":
                for name, value in results.items():
                    np.save(Path(outputs) / f"{name}.npy", _to_numpy(value))
                    names.append(name)
            del results
            seconds = time.perf_counter() - start
            kept = kept_bytes(call) if entry.eager_autograd and parsed.mode != FORWARD else None
        self.prepared[opponent] = Prepared(entry, parsed.mode, call)
        return {"names": names, "seconds": seconds, "kept_bytes": kept}

    def warm(self, opponent: str, seconds: float, sample_seconds: float) -> dict[str, Any]:
        prepared = self.prepared[opponent]
        prepared.warm_up(seconds, sample_seconds)
        return {"call_seconds": prepared.call_seconds, "inner": prepared.inner}

    def turn(self, opponent: str) -> dict[str, Any]:
        return {"seconds": self.prepared[opponent].turn()}

    def release(self, opponent: str) -> dict[str, Any]:
        """Forgets an opponent's tensors and compiled code; answers with the largest resident set since it was prepared."""
        peak = peak_bytes()
        self.prepared.pop(opponent, None)
        if "torch._dynamo" in sys.modules:  # importing it only to reset it would take seconds
            torch._dynamo.reset()
        gc.collect()
        return {"peak_bytes": peak}

    def peak(self, seconds: float) -> dict[str, Any]:
        """Multiply-adds per second of the running variant's register-only loop, best of three; or why not."""
        from lgld_ops import _native

        if not _native.loaded():
            return {"unavailable": f"no native library: {_native.load_error}"}
        rates = [float(_native.peak_mac_rate("float32", seconds, self.threads)) for _ in range(3)]
        return {"multiply_adds_per_second": max(rates)}

    def stages(self, case: Mapping[str, Any], rounds: int) -> dict[str, Any]:
        from .cases import NetworkCase
        from .stages import measure

        parsed = case_from_dict(case)
        assert isinstance(parsed, NetworkCase)
        return measure(parsed, rounds, self.threads)

    def info(self) -> dict[str, Any]:
        """What the numbers depend on, as seen from inside."""
        import lgld_ops

        build_info = getattr(lgld_ops, "build_info", None)
        build = build_info() if build_info is not None else {}
        return {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "variant": (build.get("cpu") or {}).get("variant"),
            "lgld_ops": getattr(lgld_ops, "__version__", None),
        }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the harness")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--plugin", action="append", default=[], help="Python file with further opponents")
    arguments = parser.parse_args(argv)
    _die_with_parent()
    os.dup2(2, 1)
    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    for plugin in arguments.plugin:
        _load_plugin(plugin)
    worker = Worker(arguments.threads)
    with Connection(arguments.fd) as connection:
        connection.send_bytes(b'{"ready": true}')
        while True:
            try:
                message = json.loads(connection.recv_bytes())
            except EOFError:
                return
            try:
                answer = getattr(worker, message.pop("do"))(**message)
            except Exception as error:
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
            connection.send_bytes(json.dumps(answer).encode())


if __name__ == "__main__":
    main()
