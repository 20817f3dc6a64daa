"""What each stage of the fused network costs, beside the arithmetic floor: `OMP_NUM_THREADS=2 python benchmarks/stages.py`.

With `--against eager` or `--against freezing` (torch.compile with frozen weights) it also times that, round by round in turn
with the fused network, after checking that both give the same logits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import lgld_ops
from lgld_ops import _native, fused, reference


def opponent(name: str, network: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    if name == "eager":
        return network
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return torch.compile(network)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--size", type=int, default=224)
    arguments.add_argument("--batch", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=40)
    arguments.add_argument("--against", choices=["eager", "freezing"])
    given = arguments.parse_args()
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    network = reference.LGLDNet().eval()
    x = torch.rand(given.batch, 3, given.size, given.size)
    begin = time.perf_counter()
    fast = lgld_ops.fuse(network)
    with torch.no_grad():
        fast(x)
    first = time.perf_counter() - begin
    runs = {"fused": fast}
    if given.against:
        runs[given.against] = opponent(given.against, network)
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for run in runs.values():
            torch.testing.assert_close(run(x), network(x), rtol=1e-5, atol=1e-6)
        for _ in range(given.rounds):
            for name, run in runs.items():
                begin = time.perf_counter()
                run(x)
                times[name].append(time.perf_counter() - begin)
        stages = fused.stage_times(fast, x, given.rounds).median(0).values.tolist()
    peak, silus = _native.peak_mac_rate(threads=threads), _native.silu_rate(threads=threads)
    plan = fused.plan(fast, given.size, given.size)
    print(f"{_native.active_variant()}, {threads} threads, batch {given.batch}, {given.size} x {given.size} pixels")
    print(f"fuse and first call {1e3 * first:.0f} ms; peak {peak / 1e9:.1f} GMAC/s, {silus / 1e9:.2f} G SiLU/s")
    print(f"{'stage':28} {'ms':>7} {'MMAC':>7} {'M SiLU':>7} {'MB':>6} {'floor':>7} {'share':>6}")

    def row(name: str, seconds: float, macs: int, activations: int, moved: int) -> None:
        floor = macs / peak + activations / silus
        print(
            f"{name:28} {1e3 * seconds:7.3f} {macs / 1e6:7.1f} {activations / 1e6:7.2f} {moved / 1e6:6.1f} "
            f"{1e3 * floor:7.3f} {floor / seconds:6.2f}"
        )

    sums = [0, 0, 0]
    for stage, seconds in zip(plan.stages, stages, strict=True):
        figures = (stage.multiply_adds, stage.silus, stage.bytes_read + stage.bytes_written)
        sums = [total + figure for total, figure in zip(sums, figures, strict=True)]
        row(stage.name, seconds, *figures)
    row("sum", sum(stages), sums[0], sums[1], sums[2])
    for name, taken in times.items():
        median, least = 1e3 * statistics.median(taken), 1e3 * min(taken)
        print(f"{name}: median {median:.2f} ms (minimum {least:.2f}) a call, {median / given.batch:.2f} an image")


if __name__ == "__main__":
    main()
