"""The compiled library: found beside this file, loaded by path, asked through plain C functions."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).parent / "lib" / "liblgld_ops_cpu.so"


@dataclass(frozen=True)
class CpuVariant:
    """One compiled instruction set: its name, the processor features it needs, whether this machine has them."""

    name: str
    needs: str
    supported: bool


def _load() -> tuple[ctypes.CDLL | None, str]:
    if not LIBRARY.is_file():
        return None, f"{LIBRARY} does not exist: the package was not built (run `pip install -e .` in its source folder)"
    try:
        torch.ops.load_library(str(LIBRARY))
        return ctypes.CDLL(str(LIBRARY)), ""
    except OSError as error:
        return None, f"{LIBRARY} could not be loaded: {error}"


_library, load_error = _load()


def loaded() -> bool:
    """Whether the compiled CPU library is in use."""
    return _library is not None


def library() -> ctypes.CDLL:
    """The compiled library.

    Raises:
        RuntimeError: there is none.
    """
    if _library is None:
        raise RuntimeError(load_error)
    return _library


def active_variant() -> str | None:
    """Name of the instruction set that the CPU ops run, None without a compiled library.

    Raises:
        RuntimeError: `LGLD_CPU_VARIANT` names one that is unknown, not built, or that this machine lacks, or there is no
            compiled library to force one in.
    """
    if _library is None:
        if forced := os.environ.get("LGLD_CPU_VARIANT"):
            raise RuntimeError(f"LGLD_CPU_VARIANT is {forced!r}, but there is no compiled library: {load_error}")
        return None
    error = ctypes.create_string_buffer(512)
    _library.lgld_active_cpu_variant.restype = ctypes.c_char_p
    name: bytes | None = _library.lgld_active_cpu_variant(error, ctypes.c_int(len(error)))
    if name is None:
        raise RuntimeError(error.value.decode())
    return name.decode()


def variants() -> list[CpuVariant]:
    """All compiled instruction sets, the fastest first."""
    found: list[CpuVariant] = []
    if _library is None:
        return found
    name, needs, supported = ctypes.c_char_p(), ctypes.c_char_p(), ctypes.c_int()
    row: tuple[Any, ...] = (ctypes.byref(name), ctypes.byref(needs), ctypes.byref(supported))
    while _library.lgld_cpu_variant(ctypes.c_int(len(found)), *row):
        found.append(CpuVariant((name.value or b"").decode(), (needs.value or b"").decode(), bool(supported.value)))
    return found


def built_with() -> dict[str, str]:
    """Compiler and torch version that the library was built with."""
    if _library is None:
        return {}
    _library.lgld_compiler.restype = ctypes.c_char_p
    _library.lgld_built_with_torch.restype = ctypes.c_char_p
    return {"compiler": _library.lgld_compiler().decode(), "torch": _library.lgld_built_with_torch().decode()}


def cuda_state() -> str:
    """Why the CUDA library was not built along with this one, as a sentence's end; empty where it was."""
    if _library is None:
        return load_error
    _library.lgld_cuda_state.restype = ctypes.c_char_p
    state: bytes = _library.lgld_cuda_state()
    return state.decode()


def peak_mac_rate(dtype: str = "float32", seconds: float = 0.2, threads: int = 1, variant: str | None = None) -> float:
    """Multiply-adds per second that `threads` threads reach together in registers: the arithmetic floor of benchmarks.

    Args:
        dtype: "float32" or "float64".
        seconds: how long to measure; the best rate in that time counts.
        threads: threads that run at once.
        variant: an instruction set; the active one by default.

    Raises:
        ValueError: `dtype` or `threads` is out of range.
        RuntimeError: no compiled library, or the machine lacks the variant.
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64', but is {dtype!r}")
    probe = library().lgld_peak_multiply_adds
    probe.restype = ctypes.c_double
    return _together(threads, variant, lambda name: probe(name, ctypes.c_int(dtype == "float64"), ctypes.c_double(seconds)))


def silu_rate(seconds: float = 0.2, threads: int = 1, variant: str | None = None) -> float:
    """SiLUs per second that `threads` threads reach together in the first-level cache, as the fused network computes them.

    Raises:
        ValueError: `threads` is out of range.
        RuntimeError: no compiled library, or the machine lacks the variant.
    """
    probe = library().lgld_peak_silus
    probe.restype = ctypes.c_double
    return _together(threads, variant, lambda name: probe(name, ctypes.c_double(seconds)))


def _together(threads: int, variant: str | None, probe: Callable[[bytes], float]) -> float:
    """Sum of the rates that `threads` threads find at the same time."""
    if threads < 1:
        raise ValueError(f"threads must be at least 1, but is {threads}")
    name = variant or active_variant()
    rates = [0.0] * threads

    def measure(index: int) -> None:
        # ctypes releases the interpreter lock for the time of the call.
        rates[index] = probe(str(name).encode())

    workers = [threading.Thread(target=measure, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if min(rates) == 0.0:
        raise RuntimeError(f"variant {name!r} does not run on this machine")
    return sum(rates)
