"""The benchmark harness: fair turns, no ratio without proof, failures reported, no process left. Nothing here
is timed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import bench_opponents
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from lgld_ops.bench import report
from lgld_ops.bench.cases import (
    FORWARD,
    SHAPES,
    TRAINING,
    InvolutionCase,
    MixerCase,
    NetworkCase,
    case_from_dict,
    case_to_dict,
    parse_shape,
)
from lgld_ops.bench.equivalence import judge
from lgld_ops.bench.harness import Comparison, Harness, Settings
from lgld_ops.bench.opponents import REGISTRY, Opponent, opponents_for

PLUGIN = bench_opponents.__file__
CASE = InvolutionCase(4, 6, 5, kernel_size=3, groups=2)
SETTINGS = Settings(rounds=4, warm_seconds=1e-4, sample_seconds=1e-4, peak_seconds=0.01, turn_timeout=8.0)


def chosen(*names: str) -> list[Opponent]:
    return [REGISTRY["involution", "float64"], *(REGISTRY["involution", f"test {name}"] for name in names)]


def state(pid: int) -> str | None:
    """Letter of the process's state, None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def gone(pid: int) -> bool:
    return state(pid) in (None, "Z")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("bench") / "calls.log"
    path.touch()
    os.environ[bench_opponents.LOG_VARIABLE] = str(path)
    yield path
    del os.environ[bench_opponents.LOG_VARIABLE]


@pytest.fixture(scope="module")
def harness(log: Path) -> Iterator[Harness]:
    """One for all tests of this file: starting the workers is what takes time."""
    with Harness(1, SETTINGS, plugins=[PLUGIN]) as made:
        yield made


def printed(comparison: Comparison) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(report.comparison_table(comparison), report.summary_tables([comparison]))
    return out.getvalue()


def test_rounds_are_interleaved_and_the_others_stand_still(harness: Harness, log: Path) -> None:
    log.write_text("")
    comparison = harness.run(CASE, chosen("reference", "ours", "third"))
    assert comparison.proved, comparison.problems
    assert all(len(entry.samples) == SETTINGS.rounds for entry in comparison.contestants)
    assert comparison.speed_up(comparison.contestants[0]) == pytest.approx(
        np.median(comparison.contestants[0].samples) / np.median(comparison.contestants[1].samples)
    )
    turns = [(name, list(calls)) for name, calls in groupby(log.read_text().splitlines(), lambda line: line[:-4])]
    in_rounds = turns[-3 * SETTINGS.rounds :]
    assert [name for name, _ in in_rounds] == ["test reference", "test ours", "test third"] * SETTINGS.rounds
    for _, calls in in_rounds:
        assert {call[-3:] for call in calls} == {"TTT"}, "two other opponents and the judge must be stopped"


def test_workers_are_stopped_between_turns_and_live_on(harness: Harness, log: Path) -> None:
    harness.run(CASE, chosen("reference", "ours"))
    before = harness.pids
    assert len(before) >= 3
    assert {state(pid) for pid in before.values()} == {"T"}
    harness.run(CASE, chosen("reference", "ours"))
    assert {name: harness.pids[name] for name in before} == before


@pytest.mark.parametrize(
    ("names", "mode", "tensor"),
    [
        (("reference", "ours", "wrong pixel"), FORWARD, "output"),
        (("reference", "wrong gradient", "third"), TRAINING, "grad_weight"),
        (("reference", "ours", "NaN"), FORWARD, "output"),
    ],
)
def test_a_wrong_result_prints_no_ratio(harness: Harness, names: tuple[str, ...], mode: Any, tensor: str) -> None:
    comparison = harness.run(dataclasses.replace(CASE, mode=mode), chosen(*names))
    assert not comparison.proved
    assert len(comparison.problems) == 1
    assert f"{tensor} is off by" in comparison.problems[0]
    assert [entry.status for entry in comparison.contestants].count("wrong") == 1
    for entry in comparison.entries:
        assert entry.samples == []
        assert comparison.speed_up(entry) is None
    text = printed(comparison)
    assert "NO RATIO" in text
    assert "NOT PROVED" in text
    rows = [line for line in text.splitlines() if line.startswith("│ test")]
    assert len(rows) == 3
    for row in rows:
        assert re.fullmatch(r"│ test [\w ]+│ *(wrong)? *│ *│ *│[^│]*│\s*", row), row
    record = report.to_json({}, [comparison])["comparisons"][0]
    assert record["proved"] is False
    assert set(record["speed_up"].values()) == {None}
    assert all(entry["median_seconds"] is None for entry in record["entries"])


def test_wrong_only_in_training_passes_forward(harness: Harness) -> None:
    assert harness.run(CASE, chosen("reference", "wrong gradient", "third")).proved


def test_the_dead_the_hung_and_the_unable_are_reported_and_the_rest_goes_on(harness: Harness) -> None:
    names = ("reference", "dies", "hangs", "unavailable", "raises", "ours")
    comparison = harness.run(CASE, chosen(*names))
    entries = {name: comparison.by_name(f"test {name}") for name in names}
    statuses = {name: entry.status for name, entry in entries.items() if entry is not None}
    failed = dict.fromkeys(("dies", "hangs", "raises"), "failed")
    assert statuses == {"reference": "ok", "ours": "ok", "unavailable": "unavailable", **failed}
    assert comparison.proved, comparison.problems
    assert "SIGSEGV" in entries["dies"].reason
    assert "about to die" in entries["dies"].stderr_tail
    assert "did not answer within 8 s" in entries["hangs"].reason
    assert "about to hang" in entries["hangs"].stderr_tail
    assert entries["unavailable"].reason == "needs a flux capacitor"
    assert "no such kernel" in entries["raises"].reason
    assert comparison.speed_up(entries["dies"]) is None
    assert comparison.speed_up(entries["reference"]) is not None
    text = printed(comparison)
    for words in ("SIGSEGV", "about to die", "about to hang", "flux capacitor", "no such kernel"):
        assert words in text
    assert not {"involution: test dies", "involution: test hangs"} & set(harness.pids)


def test_without_the_reference_nothing_is_proved(harness: Harness) -> None:
    comparison = harness.run(CASE, chosen("ours", "third"))
    assert not comparison.proved
    assert "'reference'" in comparison.problems[0]
    assert all(entry.samples == [] for entry in comparison.entries)


@pytest.mark.parametrize("moment", ["preparing", "round"])
def test_no_process_is_left_after_an_interrupt(log: Path, moment: str) -> None:
    pids: dict[str, int] = {}

    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith(moment):
            pids.update(harness.pids)
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        Harness(1, SETTINGS, plugins=[PLUGIN], notify=interrupt) as harness,
    ):
        harness.run(CASE, chosen("reference", "ours"))
    assert pids
    assert all(gone(pid) for pid in pids.values())


def test_workers_end_with_a_killed_harness(log: Path) -> None:
    script = (
        "import json, sys, time\n"
        "from lgld_ops.bench.harness import Harness\n"
        "harness = Harness(1)\n"
        "harness.info()\n"
        "print(json.dumps(harness.pids), flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            pids = json.loads(process.stdout.readline())
            assert {state(pid) for pid in pids.values()} == {"T"}
        finally:
            process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not all(gone(pid) for pid in pids.values()):
        assert time.monotonic() < deadline, "a stopped worker outlived the harness"
        time.sleep(0.05)


def arrays(**values: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.asarray(value) for name, value in values.items()}


def test_the_rule_of_equivalence() -> None:
    exact = arrays(y=[1.0, 2.0, -4.0])
    ulps = float(np.finfo(np.float32).eps) * 4.0
    eager = arrays(y=np.float32([1.0, 2.0, -4.0 + 1e-4]))
    error = float(abs(eager["y"][2] - -4.0))

    def verdict(shift: float) -> bool:
        shifted = exact["y"].copy()
        shifted[1] += shift
        return judge(arrays(y=shifted), arrays(y=eager["y"].astype(float)), exact).equivalent

    assert verdict(0.0)
    assert verdict(3.9 * error)
    assert not verdict(4.1 * error)
    assert judge(eager, eager, exact).equivalent
    exact_eager = arrays(y=np.float32([1.0, 2.0, -4.0]))
    assert judge(arrays(y=np.float32([1.0, 2.0 + ulps, -4.0])), exact_eager, exact).equivalent
    assert not judge(arrays(y=np.float32([1.0, 2.0 + 8 * ulps, -4.0])), exact_eager, exact).equivalent
    for bad in (np.float32([1.0, np.nan, -4.0]), np.float32([1.0, np.inf, -4.0]), np.float32([1.0, 2.0])):
        assert not judge(arrays(y=bad), eager, exact).equivalent
    assert not judge(arrays(y=exact["y"]), eager, exact).equivalent, "float64 where float32 was asked"
    assert not judge(arrays(z=eager["y"]), eager, exact).equivalent
    assert not judge({}, {}, {}).equivalent


def test_parameter_gradients_share_a_scale() -> None:
    exact = {"grad.weight": np.array([10.0]), "grad.bias": np.array([1e-17])}
    eager = {"grad.weight": np.float32([10.0]), "grad.bias": np.float32([1e-9])}
    ours = {"grad.weight": np.float32([10.0]), "grad.bias": np.float32([-9e-9])}
    assert judge(ours, eager, exact).equivalent
    assert not judge({**ours, "grad.bias": np.float32([1e-4])}, eager, exact).equivalent


def test_cases_describe_themselves() -> None:
    for case in (
        CASE,
        dataclasses.replace(CASE, mode=TRAINING),
        NetworkCase(2, mode=TRAINING),
        MixerCase(2, mode=TRAINING),
        *SHAPES.values(),
    ):
        assert case_from_dict(json.loads(json.dumps(case_to_dict(case)))) == case
    strided = SHAPES["rednet56s2"]
    inputs = strided.arrays()
    assert inputs["x"].shape == (1, 128, 56, 56)
    assert inputs["weight"].shape == (1, 8 * 49, 28, 28)
    assert strided.multiply_adds == 128 * 49 * 28 * 28
    assert np.array_equal(inputs["x"], strided.arrays()["x"])
    assert parse_shape("128x56x56:k7:g8:s2") == strided
    for text in ("banana", "64x56:k3", "64x56x56:k4", "64x56x56:k3:g5", "0x1x1:k3"):
        with pytest.raises(ValueError, match=r"shape|kernel_size|groups|channels"):
            parse_shape(text)


def test_every_subject_has_what_a_proof_needs() -> None:
    mixers = (MixerCase(), MixerCase(mode=TRAINING))
    for case in (CASE, dataclasses.replace(CASE, mode=TRAINING), *mixers, NetworkCase(), NetworkCase(mode=TRAINING)):
        own = [one for one in opponents_for(case) if not one.name.startswith("test ")]
        roles = [one.role for one in own]
        assert [roles.count(role) for role in ("judge", "reference", "ours")] == [1, 1, 1]
        assert roles.count("opponent") >= 1


def test_the_command(tmp_path: Path) -> None:
    from lgld_ops.cli.bench import bench

    file = tmp_path / "out.json"
    options = ["--quick", "--what", "op", "--shapes", "4x6x5:k3:g2", "--threads", "1", "--mode", "both"]
    result = CliRunner().invoke(bench, [*options, "--json", str(file), "--opponent", "shifted"])
    assert result.exit_code == 0, result.output
    assert "QUICK" in result.output
    assert "threads 1 | torch" in result.output
    assert "lgld_ops" in result.output
    data = json.loads(file.read_text())
    assert [one["proved"] for one in data["comparisons"]] == [True, True]
    assert data["where"]["variant"]
    forward, training = data["comparisons"]
    names = {entry["name"] for entry in forward["entries"]}
    assert {"unfold, eager", "shifted multiply-add, eager", "lgld_ops", "copy x and weight"} <= names
    assert not any("compile" in name for name in names)
    assert forward["factor_over_floor"] > 0
    assert 0 < training["kept_fraction"] < 1
    for arguments in (
        ["--shapes", "banana"],
        ["--threads", "0"],
        ["--json", str(tmp_path / "no" / "file.json")],
    ):
        assert CliRunner().invoke(bench, arguments).exit_code == 2


def _replay() -> Any:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "replay.py"
    spec = importlib.util.spec_from_file_location("lgld_ops_replay", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REPLAY = _replay()


@pytest.mark.benchmark(timer=REPLAY.CLOCK)
def test_pytest_benchmark_records_the_samples_of_the_workers(benchmark: Any) -> None:
    samples = [3.1e-4, 2.9e-4, 7.7e-3, 1e-9]
    REPLAY.CLOCK.feed(benchmark, samples)
    if benchmark.enabled:
        assert benchmark.stats.stats.data == samples


def test_closing_twice_is_fine(log: Path) -> None:
    with contextlib.closing(Harness(1, SETTINGS)) as harness:
        harness.close()
