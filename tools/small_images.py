"""Error and time of the fused network by image size: how much of it is Winograd's, and where tap by tap is better.

    python tools/small_images.py [--sizes 1,4,8,...] [--networks 12] [--threads 2]

Errors are norms of the logits' differences from float64 over norms of the logits, largest and root mean square over networks
whose weights let the image reach the logits; beside them plain torch's. Times are of one image.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import lgld_ops
from lgld_ops import fused, reference
from lgld_ops.bench.cases import NetworkCase
from lgld_ops.bench.opponents.network import network

SIZES = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 48, 64, 96)


def relative(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).norm() / exact.norm())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    networks = [network(reference.LGLDNet, NetworkCase(), seed) for seed in range(options.networks)]
    exact = [copy.deepcopy(net).double() for net in networks]
    fast = [lgld_ops.fuse(net) for net in networks]
    table = Table("image", "kernels", "ms (minimum)", "largest error", "eager's", "root mean square", "eager's")
    for size in track(list(map(int, options.sizes.split(","))), transient=True):
        errors: tuple[list[float], list[float]] = ([], [])
        for seed, (net, truth, ours) in enumerate(zip(networks, exact, fast, strict=True)):
            x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed))
            logits = truth(x.double())
            for run, found in zip((ours, net), errors, strict=True):
                found.append(relative(run(x), logits))
        seconds = []
        for _ in range(200):
            start = time.perf_counter()
            fast[0](x)
            seconds.append(time.perf_counter() - start)
        worst = [f"{max(e):.1e}" for e in errors]
        mean = [f"{statistics.fmean(v * v for v in e) ** 0.5:.1e}" for e in errors]
        kernels = ", ".join(s.kernel for s in fused.plan(fast[0], size, size).stages if s.name.startswith("context"))
        milliseconds = f"{1e3 * statistics.median(seconds):.3f} ({1e3 * min(seconds):.3f})"
        table.add_row(str(size), kernels, milliseconds, worst[0], worst[1], mean[0], mean[1])
    Console().print(table)


if __name__ == "__main__":
    main()
