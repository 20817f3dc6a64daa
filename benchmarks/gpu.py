"""Times the GPU kernels against the device's own copy bandwidth: CUDA, Triton, naive, eager unfold and torch.compile of it.

What can be had in another way is measured in both: the layer with its kernel generator composed of convolutions and the
involution's kernels (TF32 is off, so that both compute the same), and an involution's two gradients, K 3, in one kernel.

`python benchmarks/gpu.py --out FOLDER` writes gpu.json and gpu.csv and prints a short table last. Each backend runs in a
process of its own (LGLD_GPU_BACKEND is read at import) that measures a copy too: a share of bandwidth comes from one process.
Every result is compared with float64 on a slice of the batch before it is timed; what differs is not timed.

Times are medians over replays of a CUDA graph of several calls on different inputs, together larger than the second-level
cache; where a graph can't be captured, over the same calls between events, and the record says so.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ("cuda", "triton", "reference")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
# Relative error of norms against float64: some roundings of the result, and of sums in float32.
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "float16": 2e-3, "bfloat16": 1.5e-2}


@dataclass(frozen=True)
class Case:
    """An op at a shape; `work` is what is timed."""

    name: str
    work: str  # forward, backward (both gradients)
    dtype: str
    channels_last: bool
    batch: int
    channels: int
    size: int
    kernel: int = 3
    groups: int = 1
    stride: int = 1

    @property
    def out_size(self) -> int:
        return (self.size - 1) // self.stride + 1

    @property
    def least_bytes(self) -> int:
        """Inputs read once, results written once."""
        width = torch.empty(0, dtype=DTYPES[self.dtype]).element_size()
        if self.name.startswith("mixer"):
            # The image's even rows (whole ones: a stride of two columns leaves no sector out) and the result; backward: the
            # result's gradient in its place, and the image's gradient.
            read, out = 3 * self.size * self.size // 2, self.channels * (self.size // 2) ** 2
            image = 3 * self.size * self.size if self.work == "backward" else 0
            return self.batch * (read + out + image) * width
        if self.name == "layer":  # x and y; backward: x, the gradient of y and that of x
            return self.batch * self.channels * self.size**2 * (2 if self.work == "forward" else 3) * width
        x = self.channels * self.size**2
        y = self.channels * self.out_size**2
        weight = self.groups * self.kernel**2 * self.out_size**2
        return self.batch * (x + weight + y if self.work == "forward" else 2 * x + 2 * weight + y) * width


def cases() -> list[Case]:
    """LGLD-Net's involution and mixer in every dtype and layout, and RedNet's involutions; the most wanted first."""
    found = []
    for channels_last in (False, True):
        for dtype in DTYPES:
            for work in ("forward", "backward"):
                found.append(Case("lgld", work, dtype, channels_last, 64, 64, 112))
                found.append(Case("layer", work, dtype, channels_last, 64, 64, 112))
                if dtype != "float64":
                    found.append(Case("mixer eval", work, dtype, channels_last, 64, 64, 224))
                    found.append(Case("mixer training", work, dtype, channels_last, 64, 64, 224))
    # RedNet-50's: 16 channels a group, K 7; each later stage begins with stride 2.
    for channels, size, stride in (
        (64, 56, 1),
        (128, 28, 1),
        (256, 14, 1),
        (512, 7, 1),
        (128, 56, 2),
        (256, 28, 2),
        (512, 14, 2),
    ):
        for dtype in ("float32", "float16"):
            for work in ("forward", "backward"):
                shape = f"rednet{size}" + ("s2" if stride == 2 else "")
                found.append(Case(shape, work, dtype, False, 64, channels, size, 7, channels // 16, stride))
    return found


# --- measuring --------------------------------------------------------------------------------------------------------


def elapsed(run: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds of each of `rounds` runs, by events."""
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for begin, end in pairs:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]


def measure(calls: list[Callable[[], Any]], graph: bool) -> tuple[float, str]:
    """Median seconds of one call, and how it was measured."""

    def every() -> None:
        for call in calls:
            call()

    for _ in range(3):
        every()
    torch.cuda.synchronize()
    run, how = every, "events"
    if graph:
        try:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                every()
            run, how = captured.replay, "graph"
        except RuntimeError:
            torch.cuda.synchronize()
    once = statistics.median(elapsed(run, 5))
    rounds = max(10, min(200, int(0.15 / max(once, 1e-6))))
    return statistics.median(elapsed(run, rounds)) / len(calls), how


def copy_bandwidth() -> float:
    """Bytes a second that a copy on the device reads and writes together."""
    a = torch.empty(2**30, dtype=torch.float32, device="cuda").normal_()
    b = torch.empty_like(a)
    seconds, _ = measure([lambda: b.copy_(a)], graph=True)
    return 2 * a.nbytes / seconds


# --- what is measured -------------------------------------------------------------------------------------------------


def error_of(found: Tensor, expected: Tensor) -> float:
    """Relative error in norm; infinite where something is not finite."""
    error = (found.double() - expected).norm() / expected.norm().clamp_min(1e-300)
    return float(error) if torch.isfinite(error) else float("inf")


def tensors(case: Case, sets: int) -> list[dict[str, Tensor]]:
    """Inputs of `sets` calls, all different."""
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    made = []

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda").to(DTYPES[case.dtype]).contiguous(memory_format=layout)

    for _ in range(sets):
        out = case.size // 2 if case.name.startswith("mixer") else case.out_size
        t = {"g": random(case.batch, case.channels, out, out)}
        if case.name.startswith("mixer"):
            t["x"] = random(case.batch, 3, case.size, case.size)
        else:
            t["x"] = random(case.batch, case.channels, case.size, case.size)
        if case.name not in ("layer", "mixer eval", "mixer training"):
            t["w"] = random(case.batch, case.groups * case.kernel**2, out, out)
        made.append(t)
    return made


def mixer_arguments(case: Case) -> tuple[Any, ...]:
    """Everything behind x; float32 parameters."""
    torch.manual_seed(1)
    c = case.channels
    weight, bias, real, imag, gain, shift, mean = (
        0.3 * torch.randn(*shape, device="cuda") for shape in ((c, 7), (c,), (c // 2,), (c // 2,), (c,), (c,), (c,))
    )
    variance = torch.rand(c, device="cuda") + 0.5
    return weight, bias, real, imag, gain + 1, shift, mean, variance, case.name == "mixer training", 1e-5, 2


@functools.cache
def layer_parameters(case: Case) -> list[Tensor]:
    """Hidden weight and bias, span weight and bias, with a quarter of the channels between them, as LGLD-Net has."""
    torch.manual_seed(1)
    c, d, taps = case.channels, case.channels // 4, case.kernel**2
    return [
        (torch.randn(*shape, device="cuda") / shape[-1] ** 0.5).to(DTYPES[case.dtype])
        for shape in ((d, c), (d,), (taps, d), (taps,))
    ]


Run = Callable[[dict[str, Tensor]], Any]


def ours(case: Case) -> Run:
    """The op's kernels, called as autograd calls them."""
    ops: Any = torch.ops.lgld_ops
    if case.name.startswith("mixer"):
        arguments = mixer_arguments(case)
        if case.work == "forward":
            return lambda t: ops.fourier_feature_mixer.default(t["x"], *arguments)[0]
        return lambda t: ops.fourier_feature_mixer_backward.default(t["g"], t["x"], *arguments, True)
    if case.name == "layer":
        parameters = layer_parameters(case)
        if case.work == "forward":
            return lambda t: ops.involution_layer.default(t["x"], *parameters, case.kernel)
        return lambda t: ops.involution_layer_backward.default(t["g"], t["x"], *parameters, case.kernel)
    window = ([case.kernel] * 2, [case.stride] * 2, [case.kernel // 2] * 2, [1, 1], case.groups)
    if case.work == "forward":
        return lambda t: ops.involution2d.default(t["x"], t["w"], *window)
    return lambda t: (
        ops.involution2d_grad_x.default(t["g"], t["w"], case.size, case.size, *window),
        ops.involution2d_grad_weight.default(t["g"], t["x"], *window),
    )


def joint(case: Case) -> Run:
    """An involution's two gradients by one kernel."""
    op: Any = torch.ops.lgld_ops.involution2d_gradients.default
    window = ([case.kernel] * 2, [case.stride] * 2, [case.kernel // 2] * 2, [1, 1], case.groups)
    return lambda t: op(t["g"], t["x"], t["w"], *window)


def composed(case: Case) -> Run:
    """The layer of torch's convolutions and the involution's own kernels: what autograd runs unless it is told otherwise."""
    from lgld_ops.ops import layer

    parameters = layer_parameters(case)
    if case.work == "forward":
        return lambda t: layer._plain(t["x"], *parameters, case.kernel)
    return lambda t: layer.recomputed(t["g"], (t["x"], *parameters), case.kernel, need_x=True)


def formulation(case: Case) -> Callable[..., Tensor]:
    """The op in plain torch: unfold for the involution."""
    if case.name.startswith("mixer"):
        from lgld_ops.ops import plain_ffm

        arguments = mixer_arguments(case)
        return lambda x: plain_ffm.fourier_feature_mixer(x, *arguments)[0]
    from lgld_ops.reference import involution2d_unfold

    if case.name == "layer":

        def layer(x: Tensor, wide: Tensor, wide_bias: Tensor, tall: Tensor, tall_bias: Tensor) -> Tensor:
            hidden = F.silu(F.conv2d(x, wide[..., None, None], wide_bias))
            kernels = F.conv2d(hidden, tall[..., None, None], tall_bias)
            return involution2d_unfold(x, kernels, case.kernel, 1, case.kernel // 2, 1, 1)

        return layer
    return lambda x, w: involution2d_unfold(x, w, case.kernel, case.stride, case.kernel // 2, 1, case.groups)


def operands(case: Case, t: dict[str, Tensor]) -> list[Tensor]:
    if case.name == "layer":
        return [t["x"], *layer_parameters(case)]
    return [t["x"]] if case.name.startswith("mixer") else [t["x"], t["w"]]


def expected_of(case: Case, t: dict[str, Tensor]) -> list[Tensor]:
    """Result, or gradients of all operands, in float64."""
    inputs = [v.detach().double().requires_grad_(case.work == "backward") for v in operands(case, t)]
    y = formulation(case)(*inputs)
    return [y] if case.work == "forward" else list(torch.autograd.grad(y, inputs, t["g"].double()))


def check(case: Case, run: Run, t: dict[str, Tensor]) -> float:
    """Largest relative error against float64.

    Raises:
        RuntimeError: it is larger than the dtype's tolerance.
    """
    few = {name: v[:2].contiguous(memory_format=_format(v)) for name, v in t.items()}
    found = run(few)
    expected = expected_of(case, few)
    found = [found] if isinstance(found, Tensor) else list(found)
    worst = max(error_of(a, b) for a, b in zip(found, expected, strict=False))
    limit = TOLERANCE[case.dtype] * (20 if case.name.startswith("mixer") else 4 if case.name == "layer" else 1)
    if not worst <= limit:
        raise RuntimeError(f"differs from float64 by {worst:.2e}, and {limit:.0e} is allowed")
    return worst


def _format(t: Tensor) -> torch.memory_format:
    last = t.shape[1] > 1 and t.stride(1) == 1 and t.stride(3) != 1
    return torch.channels_last if last else torch.contiguous_format


def naive(case: Case) -> Run:
    """One thread an output: torch.ops.lgld_ops_baseline.involution2d_naive, which the CUDA library brings."""
    op: Any = torch.ops.lgld_ops_baseline.involution2d_naive.default
    window = ([case.kernel] * 2, [case.stride] * 2, [case.kernel // 2] * 2, [1, 1], case.groups)
    return lambda t: op(t["x"], t["w"], *window)


def plain(case: Case, compiled: bool) -> Run:
    """The plain formulation, eager or compiled; backward is the gradients alone, from a result kept for it."""
    forward = formulation(case)
    if compiled:
        torch._dynamo.reset()
        forward = torch.compile(forward, fullgraph=True, dynamic=False)
    if case.work == "forward":
        return lambda t: forward(*operands(case, t))
    kept: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def backward(t: dict[str, Tensor]) -> Any:
        if id(t) not in kept:
            inputs = [v.detach().requires_grad_() for v in operands(case, t)]
            kept[id(t)] = forward(*inputs), inputs
        y, inputs = kept[id(t)]
        return torch.autograd.grad(y, inputs, t["g"], retain_graph=True)

    return backward


# --- a backend's process ----------------------------------------------------------------------------------------------


def contestants(worker: str, case: Case) -> dict[str, Callable[[], Run]]:
    if worker != "reference":
        found: dict[str, Callable[[], Run]] = {worker: lambda: ours(case)}
        if worker == "triton" and case.name == "layer" and case.work == "backward":
            return {}  # Triton's backward of the layer is composed
        if worker == "cuda" and case.name == "layer":
            found["composed"] = lambda: composed(case)
        elif worker == "cuda" and case.name == "lgld" and case.work == "backward":
            found["joint"] = lambda: joint(case)
        elif worker == "cuda" and case.work == "forward" and not case.name.startswith("mixer"):
            found["naive"] = lambda: naive(case)
        return found
    if case.dtype == "float64" or case.channels_last:
        return {}
    return {"eager": lambda: plain(case, False), "torch.compile": lambda: plain(case, True)}


def work(worker: str, seconds: float, out: Path) -> None:
    """Measure everything this backend takes part in, and write it to `out`."""
    deadline = time.monotonic() + seconds
    if worker == "cuda":
        library = torch.library.Library("lgld_ops_baseline", "DEF")
        library.define(
            "involution2d_naive(Tensor x, Tensor weight, int[2] kernel_size, int[2] stride=1, int[2] padding=0,"
            " int[2] dilation=1, int groups=1) -> Tensor"
        )
    import lgld_ops

    torch.backends.cudnn.allow_tf32 = False
    bandwidth = copy_bandwidth()
    records: list[dict[str, Any]] = []
    for case in cases():
        for name, make in contestants(worker, case).items():
            record: dict[str, Any] = {**asdict(case), "contestant": name}
            records.append(record)
            if time.monotonic() > deadline:
                record["skipped"] = "out of time"
                continue
            if worker == "triton" and case.dtype == "float64":
                record["skipped"] = "no float64"
                continue
            try:
                sets = max(1, min(8, -(-200_000_000 // case.least_bytes)))  # three times the L2 of the GPUs of today
                inputs = tensors(case, sets)
                run = make()
                record["error"] = check(case, run, inputs[0])
                bound = [functools.partial(run, t) for t in inputs]
                record["seconds"], record["timing"] = measure(bound, graph=worker != "reference" or case.work == "forward")
                record["bytes"] = case.least_bytes
                record["share_of_copy"] = case.least_bytes / record["seconds"] / bandwidth
            except Exception as error:  # one that fails must not hide the others
                record["failed"] = f"{type(error).__name__}: {error}"[:400]
                torch.cuda.synchronize()
            torch.cuda.empty_cache()
    facts = {"copy_bytes_per_second": bandwidth, "build": lgld_ops.build_info(), "records": records}
    out.write_text(json.dumps(facts, indent=1))


# --- all of it --------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    def output(*command: str) -> str | None:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    return {
        "device": torch.cuda.get_device_name(),
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": output("git", "describe", "--always", "--dirty") or os.environ.get("LGLD_COMMIT"),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def table(records: list[dict[str, Any]]) -> str:
    """A line for each case: share of copy bandwidth of ours, and how many times as long each other takes.

    `other` is the layer composed, or both gradients in one kernel.
    """
    names = f"{'triton':>7} {'naive':>7} {'other':>8} {'eager':>7} {'compile':>8}"
    lines = [f"{'case':42} {'ms':>8} {'% copy':>7} {names}   times as long as CUDA"]
    grouped: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for r in records:
        key = (r["name"], r["dtype"], r["channels_last"], r["work"])
        grouped.setdefault(key, {})[r["contestant"]] = r
    for (name, dtype, channels_last, work_name), by in grouped.items():
        mine = by.get("cuda", {})
        label = f"{name} {dtype}{' channels_last' if channels_last else ''} {work_name}"
        if "seconds" not in mine:
            lines.append(f"{label:42} {mine.get('failed', mine.get('skipped', 'not measured'))[:80]}")
            continue
        cells = []
        by["other"] = by.get("composed", by.get("joint", {}))
        for other, width in (("triton", 7), ("naive", 7), ("other", 8), ("eager", 7), ("torch.compile", 8)):
            r = by.get(other, {})
            text = f"{r['seconds'] / mine['seconds']:.2f}" if "seconds" in r else "failed" if "failed" in r else "-"
            cells.append(f"{text:>{width}}")
        lines.append(f"{label:42} {mine['seconds'] * 1e3:8.4f} {100 * mine['share_of_copy']:7.1f} {' '.join(cells)}")
    return "\n".join(lines)


def plan() -> str:
    lines = []
    for worker in WORKERS:
        names = [f"{name}: {c.name} {c.dtype} {c.work}" for c in cases() for name in contestants(worker, c)]
        lines.append(f"{worker}: {len(names)} measurements, first {names[0]}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for gpu.json and gpu.csv")
    parser.add_argument("--seconds", type=float, default=450, help="time for everything; what comes last is skipped")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.dry_run:
        print(plan())
        return
    if arguments.out is None:
        parser.error("--out is needed: the folder for gpu.json and gpu.csv")
    if not torch.cuda.is_available():
        raise SystemExit("gpu.py: torch sees no GPU")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.worker:
        work(arguments.worker, arguments.seconds, arguments.out / f"{arguments.worker}.part")
        return
    begin, records, facts, failed = time.monotonic(), [], machine(), []
    # Shares of the time: compiling the plain formulation takes most.
    for worker, share in zip(WORKERS, (0.3, 0.5, 1.0), strict=True):
        left = arguments.seconds - (time.monotonic() - begin) - 5
        command = [sys.executable, __file__, "--worker", worker, "--out", str(arguments.out)]
        command += ["--seconds", f"{max(1.0, left * share - 10):.0f}"]
        part = arguments.out / f"{worker}.part"
        try:
            code = subprocess.run(command, env=os.environ | {"LGLD_GPU_BACKEND": worker}, timeout=max(20.0, left)).returncode
        except subprocess.TimeoutExpired:
            code = 124
        if code or not part.exists():
            failed.append(f"{worker}: exit code {code}")
            continue
        found = json.loads(part.read_text())
        part.unlink()
        facts[worker] = {key: found[key] for key in ("copy_bytes_per_second", "build")}
        records += found["records"]
    (arguments.out / "gpu.json").write_text(
        json.dumps({"machine": facts, "records": records, "failed": failed}, indent=1) + "\n"
    )
    columns = list(dict.fromkeys(key for record in records for key in record))
    with (arguments.out / "gpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(records)
    wrong = [r for r in records if "failed" in r]
    for r in wrong:
        print(f"FAILED {r['contestant']} {r['name']} {r['dtype']} {r['work']}: {r['failed']}")
    copies = ", ".join(f"{facts[w]['copy_bytes_per_second'] / 1e12:.2f}" for w in WORKERS if w in facts)
    print(f"{facts['device']}, driver {facts['driver']}, torch {facts['torch']}, commit {facts['commit']}; copy {copies} TB/s")
    print(table(records))
    if failed or any(r["contestant"] in ("cuda", "triton") for r in wrong):
        raise SystemExit(f"gpu.py: {', '.join(failed) or 'a kernel failed'}")


if __name__ == "__main__":
    main()
