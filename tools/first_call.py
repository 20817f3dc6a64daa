"""What the first image costs, in a fresh process each time: making the network, its first and a later call, peak memory.

    python tools/first_call.py [--size 224] [--threads 2] [--runs 5]

"eager" is the published network in plain torch, "fused" what `lgld_ops.fuse` makes of it: its time to make holds the fusing,
its first call planning, folding of the weights and the workspace. Times in ms, median (largest); the peak resident set in MB.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

COLUMNS = {"import": "import lgld_ops", "make": "make", "first": "first call", "later": "later call", "peak": "peak MB"}


def measure(kind: str, size: int, threads: int) -> dict[str, float]:
    """Milliseconds of each step and the peak resident set in MB, of this process."""
    import torch

    torch.set_num_threads(threads)
    start = time.perf_counter()
    import lgld_ops

    took = {"import": time.perf_counter() - start}
    torch.manual_seed(0)
    network, x = lgld_ops.reference.LGLDNet().eval(), torch.rand(1, 3, size, size)
    with torch.inference_mode():
        start = time.perf_counter()
        model = network if kind == "eager" else lgld_ops.fuse(network)
        took["make"] = time.perf_counter() - start
        for step in ("first", *10 * ["later"]):
            start = time.perf_counter()
            model(x)
            took[step] = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {step: 1e3 * seconds for step, seconds in took.items()} | {"peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (("size", 224), ("threads", 2), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kind", choices=["eager", "fused"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        print(json.dumps(measure(arguments.kind, arguments.size, arguments.threads)))
        return
    print(f"{'':8}" + "".join(f"{title:>18}" for title in COLUMNS.values()))
    options = [f"--size={arguments.size}", f"--threads={arguments.threads}"]
    for kind in ("eager", "fused"):
        command = [sys.executable, __file__, *options, f"--kind={kind}"]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(arguments.runs)
        ]
        cells = ""
        for step in COLUMNS:
            values = [run[step] for run in runs]
            cells += f"{f'{statistics.median(values):.1f} ({max(values):.1f})':>18}"
        print(f"{kind:8}{cells}")


if __name__ == "__main__":
    main()
