"""Time of the involution op in each dtype and memory format, in units of float32's in NCHW, all in one interleaved run.

    python tools/formats.py [--batch 1,8] [--rounds 40] [--threads 2]

Forward, and forward with both gradients, on LGLD-Net's and RedNet's shapes: the median over the rounds of one round's ratio,
whose calls follow each other, and in brackets the ratio of the fastest calls. Each result is compared
with float64 first.

The C library is told to keep freed memory. Left alone, it hands large results back to the system or not depending on what was
freed before, so that in one run float32's are new pages at every call and the other dtypes' are not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import lgld_ops  # noqa: F401  (registers the ops)

# Channels, side, kernel, groups, stride.
SHAPES = (
    (64, 112, 3, 1, 1),
    (64, 56, 7, 4, 1),
    (128, 56, 7, 8, 2),
    (128, 28, 7, 8, 1),
    (256, 28, 7, 16, 2),
    (256, 14, 7, 16, 1),
    (512, 14, 7, 32, 2),
    (512, 7, 7, 32, 1),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
KEEPS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
_ops = torch.ops.lgld_ops
Call = Callable[[], tuple[Tensor, ...]]


def calls(batch: int, shape: tuple[int, ...]) -> dict[tuple[str, str, str], Call]:
    """What is timed, by mode, format and dtype, its results already compared with those of float64."""
    channels, side, k, groups, stride = shape
    out = -(-side // stride)
    arguments = ((k, k), (stride, stride), (k // 2, k // 2), (1, 1), groups)
    torch.manual_seed(0)
    operands = [
        torch.randn(batch, c, n, n, dtype=torch.float64) for c, n in ((channels, side), (groups * k * k, out), (channels, out))
    ]

    def run(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return (
            _ops.involution2d(x, weight, *arguments),
            _ops.involution2d_grad_x(grad, weight, side, side, *arguments),
            _ops.involution2d_grad_weight(grad, x, *arguments),
        )

    found: dict[tuple[str, str, str], Call] = {}
    for name, memory_format in FORMATS.items():
        for dtype in DTYPES:
            x, weight, grad = (t.to(dtype).contiguous(memory_format=memory_format) for t in operands)
            exact = run(x.double(), weight.double(), grad.double())
            for ours, truth in zip(run(x, weight, grad), exact, strict=True):
                error = float((ours.double() - truth).abs().max() / truth.abs().max())
                # Of the largest result: a rounding of it, and float32's of each of its products.
                if error > torch.finfo(dtype).eps + max(k * k, channels // groups) * 2.0**-24:
                    raise SystemExit(f"{shape} {name} {dtype}: wrong by {error:.1e}, no ratio")
            short = str(dtype).removeprefix("torch.")

            def forward(x: Tensor = x, weight: Tensor = weight) -> tuple[Tensor, ...]:
                return (_ops.involution2d(x, weight, *arguments),)

            found["forward", name, short] = forward
            found["forward+backward", name, short] = partial(run, x, weight, grad)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if not KEEPS_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEPS_MEMORY})
    torch.set_num_threads(options.threads)
    for batch in map(int, options.batch.split(",")):
        for shape in SHAPES:
            contest = calls(batch, shape)
            seconds: dict[tuple[str, str, str], list[float]] = {key: [] for key in contest}
            with torch.inference_mode():
                for _ in range(options.rounds):
                    for key, call in contest.items():
                        call()
                        start = time.perf_counter()
                        call()
                        seconds[key].append(time.perf_counter() - start)
            c, side, k, groups, stride = shape
            print(f"[{batch},{c},{side},{side}] K{k} G{groups} s{stride}")
            for mode in ("forward", "forward+backward"):
                base = seconds[mode, "NCHW", "float32"]
                line = f"  {mode:17}{1e3 * statistics.median(base):7.3f} ms"
                for key, times in seconds.items():
                    if key[0] == mode and key[1:] != ("NCHW", "float32"):
                        ratio = statistics.median(t / b for t, b in zip(times, base, strict=True))
                        line += f"  {key[1]} {key[2]} {ratio:.2f} ({min(times) / min(base):.2f})"
                print(line, flush=True)


if __name__ == "__main__":
    main()
