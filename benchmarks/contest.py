"""What all benchmarks share: the runner of cells, and the body of the tests."""

from __future__ import annotations

from typing import Any

import pytest
from plan import Cell
from replay import CLOCK

from lgld_ops.bench import report
from lgld_ops.bench.harness import Comparison, Harness, Settings


class Runner:
    """Runs each cell once, when its first test asks; keeps the workers of one thread count at a time."""

    def __init__(self, settings: Settings) -> None:
        self.comparisons: dict[Cell, Comparison] = {}
        self.where: dict[str, Any] = {}
        self._settings = settings
        self._harness: Harness | None = None

    def comparison(self, cell: Cell) -> Comparison:
        if cell not in self.comparisons:
            if self._harness is None or self._harness.threads != cell.threads:
                self.close()
                self._harness = Harness(cell.threads, self._settings)
            if not self.where:
                info = self._harness.info()
                if "error" in info:
                    raise RuntimeError(f"no worker process runs: {info['error']}")
                self.where = report.surroundings(info)
            self.comparisons[cell] = self._harness.run(cell.case, cell.opponents)
        return self.comparisons[cell]

    def close(self) -> None:
        if self._harness is not None:
            self._harness.close()
            self._harness = None


def record(cell: Cell, contestant: str, runner: Runner, benchmark: Any) -> None:
    """Asserts that the cell's results are equivalent, then records this contestant's samples."""
    comparison = runner.comparison(cell)
    entry = comparison.by_name(contestant)
    assert entry is not None
    if entry.status == "unavailable":
        benchmark.skipped = True
        pytest.skip(f"{entry.name}: {entry.reason}")
    if not comparison.proved:
        pytest.fail("equivalence not proved, so nothing is recorded: " + "; ".join(comparison.problems), pytrace=False)
    if not entry.timed:
        pytest.fail(f"{entry.status}: {entry.reason}\n{entry.stderr_tail}", pytrace=False)
    assert entry.verdict is not None
    benchmark.group = cell.id
    benchmark.extra_info.update(
        threads=cell.threads,
        quick=comparison.settings.quick,
        error=entry.verdict.error,
        eager_error=entry.verdict.eager_error,
        calls_per_sample=entry.inner,
        speed_up_of_ours=comparison.speed_up(entry),
        **{key: value for key, value in runner.where.items() if key != "cores"},
    )
    CLOCK.feed(benchmark, entry.samples)
