"""What a run found, as tables for the terminal, as Markdown, and as JSON."""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..info import cpu_model
from .cases import FORWARD, case_to_dict
from .harness import Comparison, Entry

JSON_VERSION = 1


# Where and when.


def commit() -> str | None:
    """Short hash of the checkout this package lies in, "+" after it where files differ; None where it is no
    checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def surroundings(info: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures depend on; ``info`` is what ``Harness.info`` returned."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": info.get("torch"),
        "lgld_ops": info.get("lgld_ops"),
        "variant": info.get("variant"),
        "commit": commit(),
        "load": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def header(where: Mapping[str, Any], threads: Iterable[int]) -> str:
    """One line: CPU, threads, torch, variant, commit, date."""
    parts = [
        f"{where['cpu']}, {where['cores']} cores",
        "threads " + ", ".join(str(count) for count in threads),
        f"torch {where['torch']}",
        f"variant {where['variant']}",
        f"commit {where['commit']}" if where["commit"] else f"lgld_ops {where['lgld_ops']}",
        str(where["date"]),
    ]
    return " | ".join(parts)


def busy(where: Mapping[str, Any]) -> str | None:
    """A warning where other processes kept the machine busy in the minute before, else None."""
    if where["load"] < 0.5 * where["cores"]:
        return None
    load = f"load {where['load']:.1f} on {where['cores']} cores"
    return f"other processes were busy ({load}): figures will be noisy"


# Words for numbers.


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def times(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def error_text(entry: Entry) -> str:
    """The largest error against float64, and how many times the eager error that is."""
    verdict = entry.verdict
    if verdict is None or not verdict.tensor:
        return ""
    factor = f" ({times(verdict.error / verdict.eager_error)}x)" if verdict.eager_error > 0 else ""
    return f"{verdict.error:.1e}{factor}"


def floor_lines(comparison: Comparison) -> list[str]:
    """Floors, the factor over them and what autograd keeps, one sentence each; empty without proof."""
    lines = []
    copy, arithmetic = comparison.copy_floor, comparison.arithmetic_floor
    if copy is not None:
        passes = "" if comparison.case.mode == FORWARD else ", twice"
        line = f"floor: copying x and weight{passes} {milliseconds(copy)} ms"
        if arithmetic is not None and comparison.peak_rate is not None:
            rate = comparison.peak_rate / 1e9
            line += f"; multiply-adds at {rate:.0f} GMAC/s {milliseconds(arithmetic)} ms"
        elif comparison.peak_unavailable:
            line += f"; peak rate not measured: {comparison.peak_unavailable}"
        lines.append(line)
        if comparison.factor_over_floor is not None:
            line = f"ours is {times(comparison.factor_over_floor)} times the larger floor"
            if comparison.copies_of_x is not None:
                line += f", {times(comparison.copies_of_x)} copies of x"
            if comparison.factor_over_floor < 1:
                line += " (below the floor: the run was disturbed)"
            lines.append(line)
    fraction = comparison.kept_fraction
    if fraction is not None:
        ours, eager = comparison.by_role("ours"), comparison.by_role("reference")
        assert ours is not None
        assert eager is not None
        kept = f"{(ours.kept_bytes or 0) / 1e6:.2f} of {(eager.kept_bytes or 0) / 1e6:.2f} MB"
        lines.append(f"autograd keeps {100 * fraction:.1f} % of what it keeps for {eager.name} ({kept})")
    return lines


def title(comparison: Comparison) -> str:
    threads = f"{comparison.threads} thread" + ("s" if comparison.threads > 1 else "")
    quick = "QUICK, " if comparison.settings.quick else ""
    rounds = f"{quick}{comparison.settings.rounds} rounds"
    limit = f", limited to {comparison.isa.upper()}" if comparison.isa is not None else ""
    return f"{comparison.case.heading} {comparison.case.label}, {threads}{limit} ({rounds})"


# Tables for the terminal.


def comparison_table(comparison: Comparison) -> RenderableType:
    """One row per opponent. Where equivalence was not proved, the reasons instead of times and ratios."""
    table = Table(title=title(comparison), title_justify="left", title_style="bold", expand=False)
    table.add_column("", no_wrap=True)
    with_peak = any(entry.peak_bytes is not None for entry in comparison.contestants)
    for heading in ("median ms", "min ms", "ours x", "error (x eager's)", *(["peak MB"] if with_peak else [])):
        table.add_column(heading, justify="right")
    for entry in comparison.contestants:
        role = entry.opponent.role
        name = Text(entry.name, style="bold green" if role == "ours" else "")
        if comparison.proved and entry.timed:
            ratio = "1" if role == "ours" else times(comparison.speed_up(entry))
            peak = [] if entry.peak_bytes is None else [f"{entry.peak_bytes / 1e6:.0f}"]
            table.add_row(name, milliseconds(entry.median), milliseconds(entry.minimum), ratio, error_text(entry), *peak)
        else:
            status = "" if entry.status in ("ok", "waiting") else entry.status
            table.add_row(name, Text(status, style="red"), "", "", error_text(entry))
    lines: list[RenderableType] = [table, *(Text(line, style="dim") for line in floor_lines(comparison))]
    for entry in comparison.entries:
        if entry.reason and entry.status in ("unavailable", "failed"):
            lines.append(Text(f"{entry.name}: {entry.reason}", style="yellow"))
            if entry.stderr_tail and entry.status == "failed":
                lines.append(Text(entry.stderr_tail, style="dim"))
    lines += [Text(f"NO RATIO: {problem}", style="bold red") for problem in comparison.problems]
    return Group(*lines, Text())


def _summary_rows(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: one row per comparison, one column per opponent, with the ratio of medians."""
    names: dict[str, None] = {}
    for comparison in comparisons:
        for entry in comparison.contestants:
            if entry.opponent.role != "ours":
                names.setdefault(entry.name)
    with_floor = any(comparison.copy_floor is not None for comparison in comparisons)
    headings = [
        "case",
        "threads",
        "ours, ms (minimum)",
        *(["x floor", "copies of x"] if with_floor else []),
        *names,
    ]
    rows = []
    for comparison in comparisons:
        ours = comparison.by_role("ours")
        limit = f" {comparison.isa.upper()}" if comparison.isa is not None else ""
        row = [comparison.case.label + limit, str(comparison.threads)]
        if not comparison.proved or ours is None or not ours.timed:
            rows.append([*row, "NOT PROVED", *[""] * (len(headings) - 3)])
            continue
        row.append(f"{milliseconds(ours.median)} ({milliseconds(ours.minimum)})")
        if with_floor:
            row += [times(comparison.factor_over_floor), times(comparison.copies_of_x)]
        found = [comparison.by_name(name) for name in names]
        row += ["-" if one is None else times(comparison.speed_up(one)) or one.status for one in found]
        rows.append(row)
    return headings, rows


def _by_subject(comparisons: Sequence[Comparison]) -> list[list[Comparison]]:
    subjects: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        subjects.setdefault(comparison.case.subject, []).append(comparison)
    return list(subjects.values())


CAPTION = "columns of opponents: how many times as fast ours is, as the ratio of medians; -: not run"


def summary_tables(comparisons: Sequence[Comparison]) -> RenderableType:
    """One table per subject."""
    tables: list[RenderableType] = []
    for group in _by_subject(comparisons):
        headings, rows = _summary_rows(group)
        table = Table(title=group[0].case.heading, title_justify="left", title_style="bold")
        for index, heading in enumerate(headings):
            table.add_column(heading, justify="right" if index > 1 else "left")
        for row in rows:
            table.add_row(*map(escape, row))
        tables.append(table)
    problems = [
        Text(f"NO RATIO for {title(comparison)}: {problem}", style="bold red")
        for comparison in comparisons
        for problem in comparison.problems
    ]
    return Group(*tables, Text(CAPTION), *problems)


# Records.


def _entry_to_dict(entry: Entry) -> dict[str, Any]:
    verdict = entry.verdict
    return {
        "name": entry.name,
        "role": entry.opponent.role,
        "status": entry.status,
        "reason": entry.reason,
        "stderr_tail": entry.stderr_tail,
        "error": None if verdict is None else verdict.error,
        "eager_error": None if verdict is None else verdict.eager_error,
        "allowed_error": None if verdict is None else verdict.allowed,
        "worst_tensor": None if verdict is None else verdict.tensor,
        "kept_bytes": entry.kept_bytes,
        "peak_bytes": entry.peak_bytes,
        "calls_per_sample": entry.inner,
        "median_seconds": entry.median if entry.timed else None,
        "minimum_seconds": entry.minimum if entry.timed else None,
        "samples_seconds": entry.samples,
    }


def to_json(
    where: Mapping[str, Any], comparisons: Sequence[Comparison], stages: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Everything that was measured, every sample included; ``speed_up`` is None where nothing was proved. ``stages`` are what
    `Harness.stages` returned."""
    return {
        "version": JSON_VERSION,
        "where": dict(where),
        "stages": [dict(one) for one in stages],
        "comparisons": [
            {
                "case": case_to_dict(comparison.case),
                "label": f"{comparison.case.heading} {comparison.case.label}",
                "threads": comparison.threads,
                "isa": comparison.isa,
                "rounds": comparison.settings.rounds,
                "quick": comparison.settings.quick,
                "proved": comparison.proved,
                "problems": comparison.problems,
                "peak_multiply_adds_per_second": comparison.peak_rate,
                "copy_floor_seconds": comparison.copy_floor,
                "arithmetic_floor_seconds": comparison.arithmetic_floor,
                "factor_over_floor": comparison.factor_over_floor,
                "copies_of_x": comparison.copies_of_x,
                "kept_fraction": comparison.kept_fraction,
                "speed_up": {entry.name: comparison.speed_up(entry) for entry in comparison.contestants},
                "entries": [_entry_to_dict(entry) for entry in comparison.entries],
            }
            for comparison in comparisons
        ],
    }


def to_markdown(where: Mapping[str, Any], comparisons: Sequence[Comparison]) -> str:
    """The header line and the summary tables."""
    threads = sorted({comparison.threads for comparison in comparisons})
    lines = [header(where, threads), ""]
    if (warning := busy(where)) is not None:
        lines += [f"{warning[0].upper()}{warning[1:]}.", ""]
    if any(comparison.settings.quick for comparison in comparisons):
        lines += ["Quick run: few rounds, not a measurement of record.", ""]
    for group in _by_subject(comparisons):
        headings, rows = _summary_rows(group)
        lines += [
            f"**{group[0].case.heading}**",
            "",
            "| " + " | ".join(headings) + " |",
            "|---|---" + "|--:" * (len(headings) - 2) + "|",
        ]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    lines += [CAPTION + ".", ""]
    for comparison in comparisons:
        details = [*floor_lines(comparison), *(f"NO RATIO: {problem}" for problem in comparison.problems)]
        if details:
            lines += [f"- {title(comparison)}: " + "; ".join(details)]
    return "\n".join(lines) + "\n"
