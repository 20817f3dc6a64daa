"""``lgld-ops bench``: is it right and how fast is it, on the machine at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lgld_ops.bench.cases import Case, Mode
    from lgld_ops.bench.harness import Comparison, Settings
    from lgld_ops.bench.opponents import Opponent

DEFAULT_SHAPES = ("lgld", "rednet56")


def _counts(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """A comma-separated list of positive whole numbers."""
    if value is None:
        return None
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise click.BadParameter(f"must be positive whole numbers separated by commas, got {value!r}")
    return counts


def _plan(
    what: str, shapes: str | None, batches: Sequence[int], mode: str | None, dtype: str, channels_last: bool
) -> list[Case]:
    """The cases that the options ask for; without any, what says most within two minutes."""
    from lgld_ops.bench.cases import FORWARD, SHAPES, TRAINING, MixerCase, NetworkCase, involution_cases, parse_shape

    modes: dict[str | None, tuple[Mode, ...]] = {"training": (TRAINING,), "both": (FORWARD, TRAINING)}
    chosen_modes = modes.get(mode, (FORWARD,))
    cases: list[Case] = []
    if what in ("op", "all"):
        if shapes is None:
            parsed = [SHAPES[name] for name in DEFAULT_SHAPES]
        elif shapes == "all":
            parsed = list(SHAPES.values())
        else:
            try:
                parsed = [parse_shape(text) for text in shapes.split(",")]
            except ValueError as error:
                raise click.BadParameter(str(error), param_hint="'--shapes'") from None
        op_cases = involution_cases(parsed, batches, chosen_modes)
        if mode is None and shapes is None:
            op_cases.insert(1, replace(op_cases[0], mode=TRAINING))
        cases += [replace(case, dtype=dtype, channels_last=channels_last) for case in op_cases]
    if what in ("ffm", "all"):
        cases += [MixerCase(batch=batch, mode=entry) for entry in chosen_modes for batch in batches]
    if what in ("network", "all"):
        cases += [NetworkCase(batch=batch, mode=entry) for entry in chosen_modes for batch in batches]
    return cases


def _chosen(case: Case, patterns: Sequence[str], compiled: bool) -> list[Opponent]:
    """Those in the comparison: the essential ones and the floors always, the others as the options say."""
    from lgld_ops.bench.harness import ESSENTIAL
    from lgld_ops.bench.opponents import opponents_for

    def wanted(entry: Opponent) -> bool:
        if entry.role in (*ESSENTIAL, "floor"):
            return True
        named = not patterns or any(pattern.lower() in entry.name.lower() for pattern in patterns)
        return named and (compiled or not entry.compiled)

    return [entry for entry in opponents_for(case) if wanted(entry)]


def _run(
    cases: Sequence[Case], threads: Sequence[int], settings: Settings, patterns: Sequence[str], compiled: bool
) -> tuple[dict[str, Any], list[Comparison]]:
    """Runs every case at every thread count, printing each table as it is there."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from lgld_ops.bench import report
    from lgld_ops.bench.harness import Harness

    out = Console()
    comparisons: list[Comparison] = []
    where: dict[str, Any] = {}
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("starting", total=len(cases) * len(threads))

        def show(what: str, done: int, total: int) -> None:
            progress.update(bar, completed=len(comparisons) + done / total, description=what)

        for count in threads:
            with Harness(count, settings, notify=show) as harness:
                if not where:
                    info = harness.info()
                    if "error" in info:
                        raise click.ClickException(f"no worker process runs: {info['error']}")
                    where = report.surroundings(info)
                    out.print(report.header(where, threads), highlight=False, soft_wrap=True)
                    if settings.quick:
                        out.print("QUICK run: few rounds, not a measurement of record", style="yellow")
                    if (busy := report.busy(where)) is not None:
                        out.print(busy, style="yellow", soft_wrap=True)
                    out.print()
                for case in cases:
                    comparison = harness.run(case, _chosen(case, patterns, compiled))
                    comparisons.append(comparison)
                    out.print(report.comparison_table(comparison), highlight=False)
    return where, comparisons


@click.command()
@click.option("--what", type=click.Choice(["op", "ffm", "network", "all"]), default="all", show_default=True)
@click.option(
    "--mode",
    type=click.Choice(["forward", "training", "both"]),
    help="Forward alone, forward+backward, or both.  [default: forward, and training at the first shape]",
)
@click.option("--threads", callback=_counts, help="Thread counts, e.g. 1,2.  [default: torch's own choice]")
@click.option("--batch", callback=_counts, default="1", show_default=True, help="Batch sizes, e.g. 1,8,32.")
@click.option(
    "--shapes",
    help="Shapes of the op, separated by commas: lgld, rednet56, rednet14, rednet56s2, CxHxW:kK[:gG][:sS]; "
    f"or all.  [default: {','.join(DEFAULT_SHAPES)}]",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32", show_default=True, help="Of the op."
)
@click.option("--channels-last", is_flag=True, help="The op's operands in the memory format channels_last.")
@click.option("--rounds", type=click.IntRange(min=1), help="Interleaved rounds.  [default: 20; with --quick 5]")
@click.option("--quick", is_flag=True, help="Few rounds, no torch.compile: no measurement of record.")
@click.option("--compile/--no-compile", "compiled", default=None, help="With the torch.compile opponents or without.")
@click.option("--opponent", "patterns", multiple=True, help="Only opponents whose name contains this; may be repeated.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write all samples here.",
)
def bench(
    what: str,
    mode: str | None,
    threads: tuple[int, ...] | None,
    batch: tuple[int, ...],
    shapes: str | None,
    dtype: str,
    channels_last: bool,
    rounds: int | None,
    quick: bool,
    compiled: bool | None,
    patterns: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Check and time the fast code against the reference on this machine.

    Each opponent runs in a process of its own, stopped except in its turn. All results are compared with
    float64 before anything is timed; where one is wrong, no ratio is printed and the exit status is 1. It
    needs no data."""
    import torch

    from lgld_ops.bench.harness import QUICK, Settings
    from lgld_ops.bench.report import to_json

    settings = QUICK if quick else Settings()
    if rounds is not None:
        settings = replace(settings, rounds=rounds)
    cases = _plan(what, shapes, batch, mode, dtype, channels_last)
    counts = threads or (torch.get_num_threads(),)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise click.BadParameter(f"folder {json_file.absolute().parent} must exist", param_hint="'--json'")
    where, comparisons = _run(cases, counts, settings, patterns, (not quick) if compiled is None else compiled)
    if json_file is not None:
        json_file.write_text(json.dumps(to_json(where, comparisons), indent=1) + "\n")
        click.echo(f"wrote {json_file}", err=True)
    if not all(comparison.proved for comparison in comparisons):
        raise click.ClickException("equivalence was not proved everywhere: see NO RATIO above")
