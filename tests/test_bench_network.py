"""The benchmarks of the whole network: who takes part, how missing and failing runtimes are told, stages and plots. Nothing
here is timed for its own sake."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import bench_opponents
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_bench import printed

from lgld_ops import fuse, fused, reference
from lgld_ops.bench import plot, report
from lgld_ops.bench.cases import TRAINING, InvolutionCase, NetworkCase
from lgld_ops.bench.equivalence import judge
from lgld_ops.bench.harness import Comparison, Entry, Harness, Settings
from lgld_ops.bench.opponents import REGISTRY, Opponent, module, opponents_for
from lgld_ops.bench.opponents.classifiers import AlexNet, ResNet18

CASE = NetworkCase(size=64)
SETTINGS = Settings(rounds=2, warm_seconds=1e-4, sample_seconds=1e-4, peak_seconds=0.01)
PLUGIN = bench_opponents.__file__
ESSENTIAL = ("float64", "reference, eager", "lgld_ops, fused")


def chosen(*names: str) -> list[Opponent]:
    return [one for one in opponents_for(CASE) if one.name in (*ESSENTIAL, *names)]


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness(1, SETTINGS, plugins=[PLUGIN]) as made:
        yield made


def test_who_takes_part() -> None:
    names = {one.name: one for one in opponents_for(NetworkCase())}
    assert {name for name, one in names.items() if one.role == "ours"} == {"lgld_ops, fused"}
    assert names["lgld_ops, eager"].role == "ours too"
    assert {"ONNX Runtime", "OpenVINO f32", "OpenVINO bf16", "ncnn", "reference, torch.compile + freezing"} <= names.keys()
    for network in ("AlexNet", "ResNet18"):
        runners = [one for one in names.values() if one.name.startswith(network)]
        assert {one.name.split(", ")[1] for one in runners} == {
            "eager",
            "torch.compile + freezing",
            "ONNX Runtime",
            "OpenVINO f32",
        }
        assert {(one.role, one.judged_by) for one in runners} == {("other network", f"{network}, eager")}
    processes = [one.process for one in names.values() if one.role != "judge" and not one.name.startswith("test ")]
    assert len(set(processes)) == len(processes), "each in a process of its own"
    training = {one.name for one in opponents_for(NetworkCase(mode=TRAINING)) if one.role == "ours"}
    assert training == {"lgld_ops, eager"}


def test_the_other_networks_have_the_published_sizes() -> None:
    assert sum(p.numel() for p in AlexNet().parameters()) == 61_100_840
    assert sum(p.numel() for p in ResNet18().parameters()) == 11_689_512
    with torch.inference_mode():
        for kind, maps in ((AlexNet, [2, 256, 6, 6]), (ResNet18, [2, 512, 7, 7])):
            net = kind(10).eval()
            body = net.features if isinstance(net, AlexNet) else torch.nn.Sequential(net.stem, net.blocks)
            x = torch.rand(2, 3, 224, 224)
            assert list(body(x).shape) == maps
            assert list(net(x).shape) == [2, 10]


def test_multiply_adds_of_the_other_networks() -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    for kind, expected in ((AlexNet, 714_188_480), (ResNet18, 1_814_073_344)):
        count = fvcore.FlopCountAnalysis(kind().eval(), torch.rand(1, 3, 224, 224))
        operators = count.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
        assert operators["conv"] + operators["linear"] == expected


def test_runtimes_compute_the_network(harness: Harness) -> None:
    """Whichever are installed here; the others are unavailable and say what to install."""
    packages = {"ONNX Runtime": "onnxruntime", "OpenVINO f32": "openvino", "OpenVINO bf16": "openvino", "ncnn": "ncnn"}
    needed = {"ncnn": ("ncnn", "pnnx")}
    comparison = harness.run(CASE, chosen(*packages))
    assert comparison.proved, comparison.problems
    for name, package in packages.items():
        entry = comparison.by_name(name)
        assert entry is not None
        wanted = needed.get(name, ("onnx", "onnxscript", package))
        missing = [one for one in wanted if importlib.util.find_spec(one) is None]
        if missing:
            assert entry.status == "unavailable"
            assert f"pip install {missing[0]}" in entry.reason
        elif entry.status != "unavailable":  # bfloat16 asks for a processor that has it
            assert entry.status == "ok", (entry.reason, entry.stderr_tail)
            assert entry.verdict is not None
            assert entry.verdict.error > 0.0, "another program than the judge"
            assert len(entry.samples) == SETTINGS.rounds
        else:
            assert (name, entry.reason) == ("OpenVINO bf16", "needs a processor with bfloat16 arithmetic")


def test_a_missing_package_is_named(harness: Harness) -> None:
    comparison = harness.run(CASE, chosen("test missing package"))
    assert comparison.proved, comparison.problems
    entry = comparison.by_name("test missing package")
    assert entry is not None
    assert entry.status == "unavailable"
    assert entry.reason == "needs the Python package no_such_runtime: pip install no_such_runtime"
    text = printed(comparison)
    assert re.search(r"│ test missing package *│ *unavailable", text)
    assert "test missing package: needs the Python package no_such_runtime: pip install no_such_runtime" in text
    assert module("torch")() is None


def test_all_missing_packages_are_named_at_once() -> None:
    missing = module("torch", "no_such_runtime", "no_such_exporter")()
    assert (
        missing == "needs the Python packages no_such_runtime, no_such_exporter: pip install no_such_runtime no_such_exporter"
    )


def test_an_image_too_small_for_alexnet(harness: Harness) -> None:
    comparison = harness.run(NetworkCase(size=62), chosen("AlexNet, eager"))
    assert comparison.proved, comparison.problems
    entry = comparison.by_name("AlexNet, eager")
    assert entry is not None
    assert (entry.status, entry.reason) == ("unavailable", "needs images of at least 63 x 63 pixels")
    with pytest.raises(RuntimeError, match="too small"), torch.inference_mode():
        AlexNet().eval()(torch.rand(1, 3, 62, 63))
    with torch.inference_mode():
        assert AlexNet().eval()(torch.rand(1, 3, 63, 63)).shape == (1, 1000)


def test_other_networks_are_judged_by_their_own_eager_run(harness: Harness) -> None:
    comparison = harness.run(CASE, chosen("AlexNet, eager", "test AlexNet, rounded"))
    assert comparison.proved, comparison.problems
    eager, rounded = comparison.by_name("AlexNet, eager"), comparison.by_name("test AlexNet, rounded")
    assert eager is not None
    assert rounded is not None
    assert comparison.speed_up(eager) == pytest.approx(eager.median / comparison.by_name("lgld_ops, fused").median)  # type: ignore[union-attr]
    assert rounded.verdict is not None
    assert rounded.verdict.error > 0.0

    comparison = harness.run(CASE, chosen("AlexNet, eager", "test AlexNet, wrong"))
    assert not comparison.proved
    assert "test AlexNet, wrong is not equivalent: logits is off by" in comparison.problems[0]

    comparison = harness.run(CASE, chosen("test AlexNet, rounded"))
    alone = comparison.by_name("test AlexNet, rounded")
    assert alone is not None
    assert (alone.status, alone.reason) == ("failed", "AlexNet, eager, which it is judged by, did not run")


def test_the_rule_for_other_precisions() -> None:
    exact = {"y": np.array([1.0, -4.0])}
    eager = {"y": np.float32([1.0, -4.0])}
    off = {"y": np.float32([1.0, -4.0 + 0.1])}
    assert not judge(off, eager, exact).equivalent
    assert judge(off, eager, exact, relative=0.03).equivalent
    assert not judge(off, eager, exact, relative=0.02).equivalent
    assert not judge({"y": np.float32([np.nan, -4.0])}, eager, exact, relative=0.03).equivalent


INVOLUTION = InvolutionCase(4, 6, 5, kernel_size=3, groups=2)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bench_opponents.LOG_VARIABLE, str(tmp_path / "calls.log"))


def test_the_peak_is_that_of_the_process(log: None) -> None:
    names = ("test reference", "test ours", "test large")
    entries = [REGISTRY["involution", name] for name in ("float64", *names)]
    with Harness(1, SETTINGS, plugins=[PLUGIN]) as harness:
        comparison = harness.run(INVOLUTION, entries)
    assert comparison.proved, comparison.problems
    peaks = {entry.name: entry.peak_bytes for entry in comparison.contestants}
    assert all(peak is not None and peak > 30_000_000 for peak in peaks.values())
    more = (peaks["test large"] or 0) - (peaks["test reference"] or 0)
    assert 0.8 * bench_opponents.LARGE < more < 1.2 * bench_opponents.LARGE
    assert f"{(peaks['test large'] or 0) / 1e6:.0f}" in printed(comparison)
    record = report.to_json({}, [comparison])["comparisons"][0]["entries"]
    assert {entry["name"]: entry["peak_bytes"] for entry in record if entry["role"] != "judge"} == peaks


def test_limits_reach_the_workers_and_who_cannot_be_limited_is_told(log: None) -> None:
    entries = [REGISTRY["involution", name] for name in ("float64", "test reference", "test limited", "test unlimited")]
    with Harness(1, SETTINGS, plugins=[PLUGIN], isa="avx2") as harness:
        comparison = harness.run(INVOLUTION, entries)
    assert comparison.proved, comparison.problems
    unlimited = comparison.by_name("test unlimited")
    assert unlimited is not None
    assert (unlimited.status, unlimited.reason) == ("unavailable", "nothing limits it to AVX2")
    assert "limited to AVX2" in printed(comparison)
    with Harness(1, SETTINGS, plugins=[PLUGIN]) as harness:
        comparison = harness.run(INVOLUTION, entries)
    assert "not limited" in comparison.problems[0]
    with pytest.raises(ValueError, match="isa must be one of avx2, sse2"):
        Harness(1, isa="avx3")


def synthetic() -> Comparison:
    """Times and failures made up, to be printed and drawn."""
    comparison = Comparison(CASE, 2, SETTINGS, [Entry(one) for one in chosen("OpenVINO f32", "ncnn", "ResNet18, eager")])
    times = {"reference, eager": 40e-3, "lgld_ops, fused": 10e-3, "ResNet18, eager": 25e-3}
    for entry in comparison.entries:
        if entry.name in times:
            entry.status, entry.samples = "ok", [times[entry.name], 0.9 * times[entry.name], 1.1 * times[entry.name]]
    failed, missing = comparison.by_name("ncnn"), comparison.by_name("OpenVINO f32")
    assert failed is not None
    assert missing is not None
    failed.status, failed.reason = "failed", "worker 'ncnn' was killed by SIGSEGV"
    missing.status, missing.reason = "unavailable", "needs the Python package openvino: pip install openvino"
    return comparison


WHERE = {
    "cpu": "some CPU",
    "cores": 2,
    "torch": "2",
    "variant": "avx2",
    "commit": None,
    "lgld_ops": "0",
    "date": "today",
    "load": 0,
}


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    comparison = synthetic()
    unproved = synthetic()
    unproved.problems.append("ncnn is not equivalent")
    svg, png = tmp_path / "plot.svg", tmp_path / "plot.png"
    plot.write_plot(svg, WHERE, [comparison, unproved])
    plot.write_plot(png, WHERE, [comparison])
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    for words in (
        "reference, eager",
        "40.0 ms  (4.00 x)",
        "10.0 ms",
        "25.0 ms  (2.50 x)",
        ">failed<",
        ">unavailable<",
        "some CPU",
    ):
        assert text.count(words) >= 1, words
    assert text.count("40.0 ms") == 1, "no time where nothing was proved"
    assert text.count(">not proved<") == len(unproved.contestants)


def test_plots_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lgld_ops.cli.bench import bench

    with pytest.raises(ValueError, match=r"path must end in \.svg or \.png"):
        plot.write_plot(tmp_path / "plot.pdf", WHERE, [synthetic()])
    with pytest.raises(ValueError, match="must not be empty"):
        plot.write_plot(tmp_path / "plot.svg", WHERE, [])
    monkeypatch.setattr(plot, "MATPLOTLIB", module("no_such_matplotlib"))
    with pytest.raises(RuntimeError, match="pip install no_such_matplotlib"):
        plot.write_plot(tmp_path / "plot.svg", WHERE, [synthetic()])
    result = CliRunner().invoke(bench, ["--plot", str(tmp_path / "plot.svg")])
    assert result.exit_code == 1
    assert "pip install no_such_matplotlib" in result.output
    assert CliRunner().invoke(bench, ["--plot", str(tmp_path / "plot.pdf")]).exit_code == 2
    assert CliRunner().invoke(bench, ["--plot", str(tmp_path / "no" / "plot.png")]).exit_code == 2


def test_the_stages(tmp_path: Path) -> None:
    from lgld_ops.cli.bench import bench

    file = tmp_path / "stages.json"
    result = CliRunner().invoke(
        bench, ["--stages", "--size", "48", "--threads", "1", "--rounds", "3", "--quick", "--json", str(file)]
    )
    assert result.exit_code == 0, result.output
    data = json.loads(file.read_text())
    assert data["comparisons"] == []
    (figures,) = data["stages"]
    plan = fused.plan(fuse(reference.LGLDNet().eval()), 48, 48)
    assert [stage["name"] for stage in figures["stages"]] == [stage.name for stage in plan.stages]
    for row, stage in zip(figures["stages"], plan.stages, strict=True):
        assert (row["multiply_adds"], row["silus"]) == (stage.multiply_adds, stage.silus)
        assert row["bytes"] == stage.bytes_read + stage.bytes_written
        assert row["seconds"] > 0.0
        floor = row["multiply_adds"] / figures["multiply_adds_per_second"] + row["silus"] / figures["silus_per_second"]
        assert row["floor_seconds"] == pytest.approx(floor)
        assert f"│ {stage.name}" in result.output
    total = sum(stage.multiply_adds for stage in plan.stages) / 1e6
    assert re.search(rf"│ sum .*│ *{total:.1f} │", result.output)
    assert "…" not in result.output


@pytest.mark.parametrize("options", [["--batch", "1"], ["--what", "network"], ["--mode", "forward"], ["--opponent", "ncnn"]])
def test_the_stages_take_no_options_of_others(options: list[str]) -> None:
    from lgld_ops.cli.bench import bench

    result = CliRunner().invoke(bench, ["--stages", *options])
    assert result.exit_code == 2
    assert f"--stages takes no {options[0]}: it measures one image of the fused network" in " ".join(result.output.split())


def benchmark_plan() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "plan.py"
    spec = importlib.util.spec_from_file_location("lgld_ops_plan", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has no cells for two threads")
def test_the_plan_of_the_network() -> None:
    plan = benchmark_plan()
    cells = {(cell.case, cell.threads): cell for cell in plan.default() if isinstance(cell.case, NetworkCase)}
    names = {key: {one.name for one in cell.opponents} for key, cell in cells.items()}
    runtimes = {"ONNX Runtime", "OpenVINO f32", "OpenVINO bf16", "ncnn"}
    float32 = {"reference, eager channels_last", "reference, torch.compile + freezing", *runtimes - {"OpenVINO bf16"}}
    for key in ((NetworkCase(), 2), (NetworkCase(), 1), (NetworkCase(8), 2), (NetworkCase(32), 2)):
        assert {*float32, *ESSENTIAL} <= names[key]
    assert "AlexNet, torch.compile + freezing" in names[NetworkCase(), 2]
    assert not any(one.role == "other network" for one in cells[NetworkCase(8), 2].opponents)
    assert "OpenVINO bf16" in names[NetworkCase(), 2]
    assert replace(NetworkCase(8), mode=TRAINING) in {case for case, _ in cells}
