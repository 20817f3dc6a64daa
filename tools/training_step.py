"""Time and peak memory of LGLD-Net's training step, the published network and this package's, each in a fresh process.

    python tools/training_step.py [--batch 8] [--size 224] [--steps 5] [--threads 2]

Memory is the process's peak resident set above what it was when the network and its batch were made, twice: as it is, which
has in it what glibc keeps of freed blocks and scatters from run to run; and in a process of its own where blocks of over 1 MiB
go back to the system when they are freed (MALLOC_MMAP_THRESHOLD_), so that the peak is what was in use at one time.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time


def measure(kind: str, batch: int, size: int, steps: int, threads: int) -> tuple[float, float, float]:
    """Median seconds of a step after the first one, the peak in MB above the start, and the first step's loss."""
    import torch
    import torch.nn.functional as F

    import lgld_ops

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = lgld_ops.LGLDNet() if kind == "lgld_ops" else lgld_ops.reference.LGLDNet()
    for part in network.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0  # so that the losses can be compared
    torch.manual_seed(1)
    x, labels = torch.rand(batch, 3, size, size), torch.randint(0, 4, (batch,))

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before, seconds, losses = peak(), [], []
    for _ in range(steps + 1):
        start = time.perf_counter()
        network.zero_grad()
        loss = F.cross_entropy(network(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[steps // 2], peak() - before, losses[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (("batch", 8), ("size", 224), ("steps", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kind", choices=["reference", "lgld_ops"], help=argparse.SUPPRESS)
    arguments = vars(parser.parse_args())
    if kind := arguments.pop("kind"):
        print(*measure(kind, **arguments))
        return
    found = {}
    for kind in ("reference", "lgld_ops"):

        def run(kind: str = kind, **environment: str) -> tuple[float, ...]:
            given = arguments | ({"steps": 2} if environment else {})
            options = [f"--{name}={value}" for name, value in given.items()]
            command = [sys.executable, __file__, *options, f"--kind={kind}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment)
            return tuple(map(float, done.stdout.split()))

        seconds, resident, loss = run()
        _, used, _ = run(MALLOC_MMAP_THRESHOLD_=str(1 << 20))
        found[kind] = seconds, resident, used, loss
        print(f"{kind:10} {1e3 * seconds:8.1f} ms a step, memory in use at most {used:6.0f} MB, resident {resident:6.0f} MB")
    (slow, large, most, loss), (fast, small, least, ours) = found["reference"], found["lgld_ops"]
    # Same seed, so same weights and images: float32 rounding of a loss near 1 is some 1e-6.
    if abs(ours - loss) > 1e-5:
        raise SystemExit(f"the losses differ, {ours} and {loss}: no ratio")
    print(f"lgld_ops is {slow / fast:.2f} times as fast, in {least / most:.0%} of the memory (resident: {small / large:.0%})")


if __name__ == "__main__":
    main()
