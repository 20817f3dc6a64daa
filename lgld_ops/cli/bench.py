"""``lgld-ops bench``: is it right and how fast is it, on the machine at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lgld_ops.bench.cases import Case, Mode, NetworkCase
    from lgld_ops.bench.harness import Comparison, Settings
    from lgld_ops.bench.opponents import Opponent

DEFAULT_SHAPES = ("lgld", "rednet56")
WIDTH = 110


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
    what: str, shapes: str | None, batches: Sequence[int], mode: str | None, dtype: str, channels_last: bool, size: int
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
        cases += [MixerCase(batch, size, mode=entry) for entry in chosen_modes for batch in batches]
    if what in ("network", "all"):
        cases += [NetworkCase(batch, size, mode=entry) for entry in chosen_modes for batch in batches]
    return cases


@dataclass(frozen=True)
class Choice:
    """Who takes part: the essential ones and the floors always, the others as the options say."""

    patterns: Sequence[str]
    compiled: bool
    other_networks: bool


def _chosen(case: Case, choice: Choice) -> list[Opponent]:
    from lgld_ops.bench.harness import ESSENTIAL
    from lgld_ops.bench.opponents import opponents_for

    def wanted(entry: Opponent) -> bool:
        if entry.role in (*ESSENTIAL, "floor"):
            return True
        if entry.role == "other network" and not choice.other_networks:
            return False
        named = not choice.patterns or any(pattern.lower() in entry.name.lower() for pattern in choice.patterns)
        return named and (choice.compiled or not entry.compiled)

    chosen = [entry for entry in opponents_for(case) if wanted(entry)]
    judges = {entry.judged_by for entry in chosen}
    return [entry for entry in opponents_for(case) if entry in chosen or entry.name in judges]


def _run(
    cases: Sequence[Case],
    threads: Sequence[int],
    settings: Settings,
    choice: Choice,
    isa: str | None,
    stages: Sequence[NetworkCase],
) -> tuple[dict[str, Any], list[Comparison], list[dict[str, Any]]]:
    """Runs every case at every thread count, and the stages of the fused network, printing each table as it is there."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from lgld_ops.bench import report
    from lgld_ops.bench.harness import Harness
    from lgld_ops.bench.processes import WorkerError
    from lgld_ops.bench.stages import stage_table

    out = Console()
    if out.width < WIDTH:  # a table wrapped by a narrow terminal can be read, cut figures can't
        out = Console(width=WIDTH)
    comparisons: list[Comparison] = []
    figures: list[dict[str, Any]] = []
    where: dict[str, Any] = {}
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("starting", total=(len(cases) + len(stages)) * len(threads))

        def show(what: str, done: int, total: int) -> None:
            progress.update(bar, completed=len(comparisons) + len(figures) + done / total, description=what)

        for count in threads:
            with Harness(count, settings, notify=show, isa=isa) as harness:
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
                    comparison = harness.run(case, _chosen(case, choice))
                    comparisons.append(comparison)
                    out.print(report.comparison_table(comparison), highlight=False)
                for stage_case in stages:
                    try:
                        figures.append(harness.stages(stage_case, settings.rounds))
                    except WorkerError as error:
                        raise click.ClickException(f"the stages were not measured: {error}\n{error.stderr_tail}") from None
                    out.print(stage_table(figures[-1]), highlight=False)
    return where, comparisons, figures


def _check_plot(file: Path, stages: bool) -> None:
    """Before minutes of measuring rather than after."""
    from lgld_ops.bench.plot import FORMATS, MATPLOTLIB

    if stages:
        raise click.BadParameter("draws comparisons, and --stages makes none", param_hint="'--plot'")
    if file.suffix.lower() not in FORMATS:
        raise click.BadParameter(f"must end in .svg or .png, got {str(file)!r}", param_hint="'--plot'")
    if (missing := MATPLOTLIB()) is not None:
        raise click.ClickException(f"--plot {missing}")


def _check_stages(context: click.Context) -> None:
    """They are the fused network's, for one image: what chooses something else is not silently ignored."""
    taken = {"size", "threads", "rounds", "quick", "isa", "stages", "json_file", "plot_file"}
    for option in context.command.params:
        name = option.name or ""
        if name not in taken and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--stages takes no {option.opts[0]}: it measures one image of the fused network")


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
@click.option(
    "--size", type=click.IntRange(min=1), default=224, show_default=True, help="Image side, of the mixer and network."
)
@click.option("--rounds", type=click.IntRange(min=1), help="Interleaved rounds.  [default: 20; with --quick 5]")
@click.option("--quick", is_flag=True, help="Few rounds, no torch.compile: no measurement of record.")
@click.option("--compile/--no-compile", "compiled", default=None, help="With the torch.compile opponents or without.")
@click.option(
    "--other-networks/--no-other-networks",
    default=None,
    help="With AlexNet and ResNet18 or without.  [default: with, for --what network without --quick]",
)
@click.option("--opponent", "patterns", multiple=True, help="Only opponents whose name contains this; may be repeated.")
@click.option(
    "--isa",
    type=click.Choice(["avx2", "sse2"]),
    help="Limit everybody to this x86 instruction set; LGLD_CPU_VARIANT=avx2 limits ours alone.",
)
@click.option(
    "--stages", is_flag=True, help="Instead: time, multiply-adds, bytes and floor of each stage of the fused network."
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write all samples here.",
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw medians and minima, as .svg or .png; needs matplotlib.",
)
@click.pass_context
def bench(
    context: click.Context,
    what: str,
    mode: str | None,
    threads: tuple[int, ...] | None,
    batch: tuple[int, ...],
    shapes: str | None,
    dtype: str,
    channels_last: bool,
    size: int,
    rounds: int | None,
    quick: bool,
    compiled: bool | None,
    other_networks: bool | None,
    patterns: tuple[str, ...],
    isa: str | None,
    stages: bool,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Check and time the fast code against the reference on this machine.

    Each opponent runs in a process of its own, stopped except in its turn. All results are compared with
    float64 before anything is timed; where one is wrong, no ratio is printed and the exit status is 1. It
    needs no data."""
    import torch

    from lgld_ops.bench.cases import NetworkCase
    from lgld_ops.bench.harness import QUICK, Settings
    from lgld_ops.bench.report import to_json

    if stages:
        _check_stages(context)
    settings = QUICK if quick else Settings()
    if rounds is not None:
        settings = replace(settings, rounds=rounds)
    cases = [] if stages else _plan(what, shapes, batch, mode, dtype, channels_last, size)
    counts = threads or (torch.get_num_threads(),)
    for option, file in (("--json", json_file), ("--plot", plot_file)):
        if file is not None and not file.absolute().parent.is_dir():
            raise click.BadParameter(f"folder {file.absolute().parent} must exist", param_hint=f"'{option}'")
    if plot_file is not None:
        _check_plot(plot_file, stages)
    choice = Choice(
        patterns,
        (not quick) if compiled is None else compiled,
        (what == "network" and not quick) if other_networks is None else other_networks,
    )
    where, comparisons, figures = _run(cases, counts, settings, choice, isa, [NetworkCase(size=size)] if stages else [])
    if json_file is not None:
        json_file.write_text(json.dumps(to_json(where, comparisons, figures), indent=1) + "\n")
        click.echo(f"wrote {json_file}", err=True)
    if plot_file is not None:
        from lgld_ops.bench.plot import write_plot

        write_plot(plot_file, where, comparisons)
        click.echo(f"wrote {plot_file}", err=True)
    if not all(comparison.proved for comparison in comparisons):
        raise click.ClickException("equivalence was not proved everywhere: see NO RATIO above")
