"""What each stage of the fused network costs beside its floor: its multiply-adds at the peak rate and its SiLUs at the rate
that the same run measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .cases import NetworkCase


def measure(case: NetworkCase, rounds: int, threads: int) -> dict[str, Any]:
    """Times the stages one after the other for the first image of the case; seconds, bytes, and rates per second.

    Raises:
        RuntimeError: the package has no compiled library.
    """
    from lgld_ops import _native, fuse, fused, reference

    from .opponents.network import network

    net = fuse(network(reference.LGLDNet, case))
    x = torch.from_numpy(case.arrays()["x"])[:1].clone()
    with torch.inference_mode():
        for _ in range(3):
            net(x)
        seconds = fused.stage_times(net, x, rounds).median(0).values.tolist()
    plan = fused.plan(net, case.size, case.size)
    macs, silus = _native.peak_mac_rate(threads=threads), _native.silu_rate(threads=threads)
    stages = []
    for stage, taken in zip(plan.stages, seconds, strict=True):
        stages.append(
            {
                "name": stage.name,
                "kernel": stage.kernel,
                "seconds": taken,
                "multiply_adds": stage.multiply_adds,
                "silus": stage.silus,
                "bytes": stage.bytes_read + stage.bytes_written,
                "floor_seconds": stage.multiply_adds / macs + stage.silus / silus,
            }
        )
    return {
        "variant": _native.active_variant(),
        "threads": threads,
        "size": case.size,
        "rounds": rounds,
        "multiply_adds_per_second": macs,
        "silus_per_second": silus,
        "workspace_bytes": plan.workspace,
        "scratch_bytes": plan.scratch,
        "packed_weight_bytes": plan.packed_weights,
        "stages": stages,
    }


def total(figures: Mapping[str, Any]) -> dict[str, Any]:
    """All stages in one row."""
    stages = figures["stages"]
    names = ("seconds", "multiply_adds", "silus", "bytes", "floor_seconds")
    return {"name": "sum", "kernel": "", **{name: sum(stage[name] for stage in stages) for name in names}}


def stage_table(figures: Mapping[str, Any]) -> RenderableType:
    """One row per stage and their sum."""
    threads = f"{figures['threads']} thread" + ("s" if figures["threads"] > 1 else "")
    size = f"{figures['size']} x {figures['size']} pixels"
    title = f"Stages of the fused network, one image of {size}, {figures['variant']}, {threads} ({figures['rounds']} rounds)"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("kernel", no_wrap=True)
    for heading in ("median ms", "M MAC", "M SiLU", "MB", "GB/s", "floor ms", "floor / time"):
        table.add_column(heading, justify="right")
    rows = [*figures["stages"], total(figures)]
    for index, row in enumerate(rows):
        seconds = row["seconds"]
        table.add_row(
            row["name"],
            row["kernel"],
            f"{1e3 * seconds:.3f}",
            f"{row['multiply_adds'] / 1e6:.1f}",
            f"{row['silus'] / 1e6:.2f}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['bytes'] / seconds / 1e9:.0f}",
            f"{1e3 * row['floor_seconds']:.3f}",
            f"{row['floor_seconds'] / seconds:.2f}",
            style="bold" if index == len(rows) - 1 else "",
            end_section=index == len(rows) - 2,
        )
    macs, silus = figures["multiply_adds_per_second"] / 1e9, figures["silus_per_second"] / 1e9
    memory = [figures[f"{name}_bytes"] / 1e6 for name in ("workspace", "scratch", "packed_weight")]
    return Group(
        table,
        Text(
            f"floor: multiply-adds at {macs:.1f} GMAC/s and SiLUs at {silus:.2f} G/s, measured in the same process", style="dim"
        ),
        Text(
            f"workspace {memory[0]:.1f} MB, scratch {memory[1]:.2f} MB a thread, packed weights {memory[2]:.1f} MB; each map, "
            "image and weight that a stage reads or writes is counted once",
            style="dim",
        ),
        Text(),
    )
