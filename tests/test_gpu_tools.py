"""The tools that compile, prove and measure the CUDA kernels, as far as a machine without a GPU can try them."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import lgld_ops  # noqa: F401  (the ops that the benchmark calls)

ROOT = Path(__file__).resolve().parent.parent

PTXAS = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z11fast_kernelv' for 'sm_75'
ptxas info    : Function properties for _Z11fast_kernelv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 1 barriers, 5120 bytes smem, 552 bytes cmem[0]
ptxas info    : Compile time = 48.009 ms
ptxas info    : Compiling entry function '_Z11fast_kernelv' for 'sm_90'
ptxas info    : Function properties for _Z11fast_kernelv
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 168 registers, used 0 barriers, 16 bytes cumulative stack size
"""


@pytest.fixture(scope="module")
def cuda_check() -> ModuleType:
    return load("tools/cuda_check.py")


@pytest.fixture(scope="module")
def gpu_benchmark() -> ModuleType:
    return load("benchmarks/gpu.py")


def load(path: str) -> ModuleType:
    """A script as a module."""
    specification = importlib.util.spec_from_file_location(f"lgld_{Path(path).stem}", ROOT / path)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def test_registers_and_spills_are_read_from_ptxas(cuda_check: ModuleType) -> None:
    first, second = cuda_check.usages(PTXAS)
    assert (first.arch, first.registers, first.shared, first.stack, first.spilled) == ("75", 30, 5120, 0, 0)
    assert (second.arch, second.registers, second.shared, second.stack, second.spilled) == ("90", 168, 0, 16, 12)
    lines = cuda_check.table([first, second]).splitlines()
    assert lines[0].split()[-2:] == ["75", "90"]
    assert lines[1].split()[-2:] == ["30,5120", "168+28"]


def make_nvcc(folder: Path, says: str) -> Path:
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{says}\nEND\n")
    nvcc.chmod(0o755)
    return nvcc


@pytest.mark.parametrize(
    ("says", "code", "sentence"),
    [
        (PTXAS, 1, "kernels spill"),
        (PTXAS.partition("ptxas info    : Compile time")[0], 0, ""),
        ("", 1, "no kernel was compiled"),
    ],
)
def test_a_spill_is_an_error(tmp_path: Path, says: str, code: int, sentence: str) -> None:
    command = [sys.executable, "tools/cuda_check.py", "--nvcc", str(make_nvcc(tmp_path, says)), "--archs", "75,90"]
    table = tmp_path / "table.txt"
    done = subprocess.run([*command, "--table", str(table)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert not says or "fast_kernel" in table.read_text()


def test_architectures_must_be_numbers(tmp_path: Path) -> None:
    command = [sys.executable, "tools/cuda_check.py", "--archs", "sm_90", "--nvcc", str(make_nvcc(tmp_path, ""))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "--archs is 'sm_90'" in done.stderr


@pytest.mark.parametrize(
    ("mode", "steps"),
    [
        ("all", ["build", "pytest-cuda", "memcheck", "racecheck", "bench"]),
        ("check", ["build", "pytest-cuda", "memcheck", "racecheck", "initcheck", "synccheck", "pytest-triton"]),
        ("bench", ["build", "bench"]),
    ],
)
def test_gpu_check_plans(mode: str, steps: list[str], tmp_path: Path) -> None:
    command = ["bash", "tools/gpu_check.sh", "--dry-run", mode, str(tmp_path / "out")]
    environment = os.environ | {"LGLD_PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=True)
    plan, _, _ = done.stdout.partition("missing here")
    assert [line.split()[0] for line in plan.splitlines()] == steps
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["check"], ["both", "out"], ["check", "out", "more"]])
def test_gpu_check_says_how_it_is_called(arguments: list[str]) -> None:
    done = subprocess.run(["bash", "tools/gpu_check.sh", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage: tools/gpu_check.sh" in done.stderr


def test_bytes_that_a_case_has_to_move(gpu_benchmark: ModuleType) -> None:
    case = gpu_benchmark.Case("lgld", "forward", "float32", False, 64, 64, 112)
    x, weight = 64 * 64 * 112 * 112, 64 * 9 * 112 * 112
    assert case.least_bytes == 4 * (2 * x + weight)
    assert gpu_benchmark.Case("lgld", "backward", "float16", False, 64, 64, 112).least_bytes == 2 * (3 * x + 2 * weight)
    layer = [gpu_benchmark.Case("layer", work, "float32", False, 64, 64, 112) for work in ("forward", "backward")]
    assert [case.least_bytes for case in layer] == [4 * 2 * x, 4 * 3 * x]
    mixer = gpu_benchmark.Case("mixer eval", "forward", "float32", False, 64, 64, 224)
    assert mixer.least_bytes == 4 * 64 * (3 * 112 * 224 + 64 * 112 * 112)


def test_benchmark_tells_wrong_results_from_right_ones(gpu_benchmark: ModuleType) -> None:
    expected = torch.randn(100, dtype=torch.float64)
    assert gpu_benchmark.error_of(expected.float(), expected) < 1e-7
    assert gpu_benchmark.error_of(expected * 1.01, expected) > 9e-3
    assert gpu_benchmark.error_of(torch.full_like(expected, torch.nan), expected) == float("inf")


@pytest.mark.parametrize("work", ["forward", "backward"])
def test_benchmark_compares_the_layer_both_ways(gpu_benchmark: ModuleType, work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where the op is composed too: what is called, and with what, is what a GPU would run."""
    monkeypatch.setattr(torch, "randn", functools.partial(on_the_cpu, torch.randn))
    case = gpu_benchmark.Case("layer", work, "float64", False, 2, 8, 6)
    given = gpu_benchmark.tensors(case, 1)[0]
    assert {"cuda", "composed"} == gpu_benchmark.contestants("cuda", case).keys()
    for make in gpu_benchmark.contestants("cuda", case).values():
        assert gpu_benchmark.check(case, make(), given) < 1e-13


def test_benchmark_compares_both_gradients_in_one_kernel(gpu_benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn", functools.partial(on_the_cpu, torch.randn))
    case = gpu_benchmark.Case("lgld", "backward", "float64", False, 2, 8, 6)
    given = gpu_benchmark.tensors(case, 1)[0]
    assert {"cuda", "joint"} == gpu_benchmark.contestants("cuda", case).keys()
    for make in gpu_benchmark.contestants("cuda", case).values():
        assert gpu_benchmark.check(case, make(), given) < 1e-13


def test_benchmark_table_names_the_other_way(gpu_benchmark: ModuleType) -> None:
    record = {"name": "layer", "dtype": "float32", "channels_last": False, "work": "backward", "share_of_copy": 0.5}
    line = gpu_benchmark.table(
        [record | {"contestant": "cuda", "seconds": 1e-3}, record | {"contestant": "composed", "seconds": 3e-3}]
    ).splitlines()[1]
    assert line.split() == ["layer", "float32", "backward", "1.0000", "50.0", "-", "-", "3.00", "-", "-"]


def on_the_cpu(random: Callable[..., torch.Tensor], *shape: int, device: str) -> torch.Tensor:
    assert device == "cuda"
    return random(*shape)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "torch sees no GPU" in done.stderr
