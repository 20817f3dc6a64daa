"""Bar charts of a run: medians with their minima, one panel per comparison. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .harness import Comparison, Entry
from .opponents import Requirement, module
from .report import header, milliseconds, times, title

FORMATS = (".svg", ".png")

MATPLOTLIB: Requirement = module("matplotlib")

_COLOURS = {"ours": "#0b6e4f", "ours too": "#6fb98f", "reference": "#44546a", "opponent": "#8497b0", "other network": "#d9a05b"}
_LEGEND = {
    "ours": "lgld_ops, which the ratios are formed with",
    "ours too": "lgld_ops, another way",
    "reference": "reference",
    "opponent": "opponents",
    "other network": "other networks",
}


def _note(comparison: Comparison, entry: Entry) -> str:
    if not comparison.proved:
        return "not proved"
    if not entry.timed:
        return entry.status
    ratio = "" if entry.opponent.role == "ours" else f"  ({times(comparison.speed_up(entry))} x)"
    return f"{milliseconds(entry.median)} ms{ratio}"


def write_plot(path: Path, where: Mapping[str, Any], comparisons: Sequence[Comparison]) -> None:
    """A panel per comparison: a bar to the median of each contestant, a tick at its minimum, and the ratio to ours beside it.
    Who was not timed has his status there.

    Args:
        path: ends in .svg or .png.

    Raises:
        ValueError: another ending, or nothing to draw.
        RuntimeError: matplotlib is missing.
        OSError: the file cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"path must end in .svg or .png, got {str(path)!r}")
    if not comparisons:
        raise ValueError("comparisons must not be empty")
    if (missing := MATPLOTLIB()) is not None:
        raise RuntimeError(f"a plot {missing}")
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    counts = [len(comparison.contestants) for comparison in comparisons]
    figure = Figure(figsize=(10.0, 1.2 + sum(0.9 + 0.3 * count for count in counts)), layout="constrained")
    panels = figure.subplots(len(comparisons), 1, squeeze=False, height_ratios=[2 + count for count in counts])[:, 0]
    roles: dict[str, None] = {}
    for axes, comparison in zip(panels, comparisons, strict=True):
        entries = comparison.contestants
        shown = [comparison.proved and entry.timed for entry in entries]
        medians = [1e3 * entry.median if timed else 0.0 for entry, timed in zip(entries, shown, strict=True)]
        for row, (entry, timed, median) in enumerate(zip(entries, shown, medians, strict=True)):
            roles.setdefault(entry.opponent.role)
            axes.barh(row, median, height=0.7, color=_COLOURS[entry.opponent.role])
            if timed:
                axes.plot([1e3 * entry.minimum] * 2, [row - 0.35, row + 0.35], color="black", linewidth=1.5)
            note = _note(comparison, entry)
            axes.annotate(note, (median, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(entries)), [entry.name for entry in entries], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0.0, 1.25 * max(*medians, 1e-6))
        axes.set_title(title(comparison), loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("ms a call", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    handles: list[Any] = [Patch(color=_COLOURS[role], label=_LEGEND[role]) for role in _COLOURS if role in roles]
    handles.append(Line2D([], [], color="black", linewidth=1.5, label="minimum (bar: median)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    threads = sorted({comparison.threads for comparison in comparisons})
    figure.suptitle(header(where, threads), fontsize=8, x=0.01, ha="left")
    with rc_context({"svg.fonttype": "none"}):  # text that can be searched
        figure.savefig(path, dpi=150)
