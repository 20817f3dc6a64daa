"""Options, the runner that all benchmarks share, and the table at the end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plan
import pytest
from contest import Runner
from rich.console import Console

from lgld_ops.bench import report
from lgld_ops.bench.harness import QUICK, Settings

RESULTS = Path(__file__).resolve().parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    options = parser.getgroup("lgld_ops benchmarks")
    options.addoption("--quick", action="store_true", help="few cells, few rounds: a smoke test for CI")
    options.addoption("--everything", action="store_true", help="every cell against every opponent: an hour or more")
    options.addoption("--record", metavar="NAME", help="write NAME.json and NAME.md to benchmarks/results")


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--record", None)
    if name is not None and not re.fullmatch(r"[\w.-]+", name):
        raise pytest.UsageError(f"--record must be made of letters, digits, '.', '_' and '-', got {name!r}")
    if config.getoption("--quick", False) and config.getoption("--everything", False):
        raise pytest.UsageError("--quick and --everything exclude each other")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test per cell and contestant, those of a cell one after another."""
    if "cell" not in metafunc.fixturenames:
        return
    config = metafunc.config
    quick, everything = config.getoption("--quick"), config.getoption("--everything")
    cells = plan.quick() if quick else plan.everything() if everything else plan.default()
    subject = metafunc.module.SUBJECT
    parameters = [
        pytest.param(
            cell,
            contestant.name,
            id=f"{cell.id}-{contestant.name}",
            marks=pytest.mark.benchmark(group=cell.id),
        )
        for cell in cells
        if cell.case.subject == subject
        for contestant in cell.contestants
    ]
    metafunc.parametrize(("cell", "contestant"), parameters)


_RUNNER = pytest.StashKey[Runner]()


@pytest.fixture(scope="session")
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    settings = QUICK if request.config.getoption("--quick") else Settings()
    made = Runner(settings)
    request.config.stash[_RUNNER] = made
    try:
        yield made
    finally:
        made.close()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    made = config.stash.get(_RUNNER, None)
    if made is None or not made.comparisons:
        return
    comparisons = list(made.comparisons.values())
    terminalreporter.section("lgld_ops: ours against the opponents")
    console = Console(file=terminalreporter._tw._file, width=max(160, terminalreporter._tw.fullwidth))
    console.print(report.header(made.where, sorted({one.threads for one in comparisons})), highlight=False)
    if comparisons[0].settings.quick:
        console.print("QUICK run: few rounds, not a measurement of record")
    if (busy := report.busy(made.where)) is not None:
        console.print(busy)
    console.print(report.summary_tables(comparisons), highlight=False)
    name = config.getoption("--record")
    if name is not None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(report.to_json(made.where, comparisons), indent=1) + "\n")
        (RESULTS / f"{name}.md").write_text(report.to_markdown(made.where, comparisons))
        terminalreporter.write_line(f"recorded as {RESULTS / name}.json and .md")
