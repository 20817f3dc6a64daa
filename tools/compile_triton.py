"""Compiles every Triton kernel for NVIDIA GPUs without one, and prints what each takes; fails where a kernel does not compile.

    python tools/compile_triton.py [--arch 80 90] [--dtype float16] [--quick] [--most-spilled BYTES]

The interpreter shows that kernels compute the right thing, this that they are kernels: it runs the ops on CPU tensors with
every launch replaced by a compilation to machine code by the ptxas that Triton brings. Columns: registers a thread, bytes
that a thread spills, bytes of shared memory a program, warps a program.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Nothing read from an earlier run, and nothing of ours left behind.
_CACHE = tempfile.TemporaryDirectory(prefix="lgld-triton-")
os.environ["TRITON_CACHE_DIR"] = _CACHE.name
os.environ.pop("TRITON_INTERPRET", None)

import torch  # noqa: E402

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Kernels over parameters and sums of tasks: a few programs, microseconds.
SMALL = ("_prepare", "_statistics", "_fold", "_gradients")


class _Target:
    """What Triton asks of a GPU's driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # kernels are kept per device

    def get_current_stream(self, device: int) -> int:
        return 0


def cases(dtypes: list[torch.dtype], quick: bool) -> list[tuple[str, Any]]:
    """(name, call): an op's passes at LGLD-Net's and RedNet's sizes, each dtype and layout."""
    import lgld_ops.triton as kernels

    def layout(t: torch.Tensor, last: bool) -> torch.Tensor:
        return t.contiguous(memory_format=torch.channels_last) if last else t

    def involution(dtype: torch.dtype, last: bool, channels: int, size: int, k: int, stride: int, groups: int) -> Any:
        out = (size - 1) // stride + 1
        x, y = (layout(torch.zeros(2, channels, n, n, dtype=dtype), last) for n in (size, out))
        weight = layout(torch.zeros(2, groups * k * k, out, out, dtype=dtype), last)
        arguments = ((k, k), (stride, stride), (k // 2, k // 2), (1, 1), groups)

        def run() -> None:
            kernels.involution2d.forward(x, weight, y, *arguments)
            kernels.involution2d.grad_x(y, weight, x, *arguments)
            kernels.involution2d.grad_weight(y, x, weight, *arguments)

        return run

    def mixer(dtype: torch.dtype, last: bool, training: bool) -> Any:
        x, y = (layout(torch.zeros(2, c, n, n, dtype=dtype), last) for c, n in ((3, 224), (64, 112)))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        c, half = torch.zeros(64, dtype=wide), torch.zeros(32, dtype=wide)
        parameters = (torch.zeros(64, 7, 1, 1, dtype=wide), c, half, half, c, c, c, c, training, 1e-5, 2)

        def run() -> None:
            kernels.ffm.forward(x, *parameters, y, c, c)
            kernels.ffm.backward(y, x, *parameters, True, (x, parameters[0], c, half, half, c, c))

        return run

    def layer(dtype: torch.dtype, last: bool, k: int) -> Any:
        x = layout(torch.zeros(2, 64, 112, 112, dtype=dtype), last)
        parameters = [torch.zeros(size, dtype=dtype) for size in ((16, 64), (16,), (k * k, 16), (k * k,))]

        def run() -> None:
            kernels.involution_layer.forward(x, *parameters, k, x)
            for need_x in (True, False):
                kernels.involution_layer.backward(x, x, *parameters, k, need_x, (x, *parameters))

        return run

    found: list[tuple[str, Any]] = []
    for dtype in dtypes:
        for last in (False, True):
            tag = f"{str(dtype)[6:]} {'channels_last' if last else 'contiguous'}"
            shapes = ((64, 112, 3, 1, 1), (256, 56, 7, 1, 16), (64, 28, 7, 2, 4), (64, 1, 3, 1, 1), (48, 30, 4, 1, 1))
            for shape in shapes[:1] if quick else shapes:
                name = "involution {0}x{1}x{1} K{2} s{3}".format(*shape) + f" {tag}"
                found.append((name, involution(dtype, last, *shape)))
            found += [(f"involution layer K{k} {tag}", layer(dtype, last, k)) for k in ((3,) if quick else (3, 5, 7))]
            found += [(f"mixer {'training' if t else 'inference'} {tag}", mixer(dtype, last, t)) for t in (True, False)]
    return found


def resources(ptx: str, capability: int) -> tuple[int, int]:
    """Registers and spilled bytes a thread, by ptxas."""
    from triton.backends.nvidia.compiler import get_ptxas

    program = get_ptxas(capability).path  # of the two that Triton brings, the one it wrote the PTX for
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        target = re.search(r"^\.target (\w+)", ptx, re.M)
        assert target
        words = [program, "-v", f"--gpu-name={target[1]}", str(source), "-o", str(Path(folder) / "kernel.cubin")]
        done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spilled = re.search(r"(\d+) bytes spill stores", done.stderr)
    assert registers, done.stderr
    return int(registers[1]), int(spilled[1]) if spilled else 0


def compile_all(capability: int, todo: list[tuple[str, Any]]) -> Iterator[tuple[str, str, int, int, int, int]]:
    """Rows (case, kernel, registers, spilled bytes, shared bytes, warps), each machine code once."""
    from triton.runtime import driver, jit

    driver.set_active(_Target(capability))
    compiled: list[Any] = []
    original = jit.KernelInterface.__getitem__
    jit.KernelInterface.__getitem__ = lambda self, grid: (
        lambda *a, **k: compiled.append(self.run(*a, grid=(1,), warmup=True, **k))
    )
    seen = set()
    try:
        for case, run in todo:
            compiled.clear()
            run()
            for kernel in compiled:
                if kernel.hash not in seen:
                    seen.add(kernel.hash)
                    about = kernel.metadata
                    yield case, about.name, *resources(kernel.asm["ptx"], capability), about.shared, about.num_warps
    finally:
        jit.KernelInterface.__getitem__ = original


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], help="compute capabilities, as 90 for sm_90")
    parser.add_argument("--dtype", nargs="+", default=[str(d)[6:] for d in DTYPES], choices=[str(d)[6:] for d in DTYPES])
    parser.add_argument("--quick", action="store_true", help="float32 and one involution alone")
    parser.add_argument("--most-spilled", type=int, help="fail where a kernel over maps spills more")
    arguments = parser.parse_args()
    dtypes = DTYPES[:1] if arguments.quick else [getattr(torch, name) for name in arguments.dtype]
    worst = 0
    for capability in arguments.arch:
        print(f"sm_{capability}\n{'case':52} {'kernel':16} registers spilled shared warps")
        for case, kernel, registers, spilled, shared, warps in compile_all(capability, cases(list(dtypes), arguments.quick)):
            print(f"{case:52} {kernel:16} {registers:9} {spilled:7} {shared:6} {warps:5}", flush=True)
            worst = max(worst, 0 if kernel in SMALL else spilled)
    if arguments.most_spilled is not None and worst > arguments.most_spilled:
        sys.exit(f"a kernel spills {worst} bytes a thread; at most {arguments.most_spilled} are allowed")


if __name__ == "__main__":
    main()
