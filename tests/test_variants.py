"""Every compiled instruction set that this machine runs: results, choice, memory bounds."""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from oracle import Problem, assert_like_reference, with_gradients

import lgld_ops
from lgld_ops import _native

_testing = pytest.importorskip("lgld_ops._testing", reason="the test module is built by editable installs only")

Array = npt.NDArray[Any]
BUILT = {"x86_64": ["avx512", "avx2", "sse2", "scalar"], "aarch64": ["neon", "scalar"]}[platform.machine()]
NEEDS = {"avx512": {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"}, "avx2": {"avx2", "fma", "f16c"}}
PASSES = ("forward", "grad_x", "grad_weight")


def processor_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.split(":", 1)[1].split())
    return set()


RUNS = [name for name in BUILT if NEEDS.get(name, set()) <= processor_flags()]

PROBLEMS = {
    "lgldnet": Problem(1, 64, 14, 28),
    "five": Problem(2, 10, 11, 19, (5, 5), padding=(2, 2), groups=2),
    "seven": Problem(1, 17, 9, 33, (7, 7), padding=(3, 3)),
    "stride": Problem(2, 12, 13, 20, (7, 7), (2, 2), (3, 3), groups=3),
    "dilation": Problem(1, 9, 12, 17, (3, 2), (1, 3), (2, 1), (3, 2)),
    "several_tiles": Problem(1, 3, 21, 270),
    "one_pixel": Problem(2, 3, 1, 1),
    "tiles_of_padding": Problem(1, 8, 3, 5, (2, 2), padding=(0, 200)),
}


def test_the_variants_that_run_are_those_the_processor_has() -> None:
    assert dict(_testing.variants()) == {name: name in RUNS for name in BUILT}
    assert {v.name: v.supported for v in _native.variants()} == dict(_testing.variants())
    assert [v.name for v in _native.variants()] == BUILT
    if "avx512vl" in processor_flags():
        assert len(RUNS) == 4


# --- results ----------------------------------------------------------------------------------------------------------


def shape_of(problem: Problem) -> dict[str, Any]:
    fields = ("batch", "channels", "groups", "height", "width", "kernel_size", "stride", "padding", "dilation")
    return {name: getattr(problem, name) for name in fields} | {
        "out_height": problem.out_size[0],
        "out_width": problem.out_size[1],
    }


class Guarded:
    """An array in memory that touches a page which may not be touched: before its start or behind its end."""

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike, end: str, alignment: int = 1) -> None:
        page = mmap.PAGESIZE
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        inner = max(page, -(-size // page) * page)
        self.memory = mmap.mmap(-1, inner + 2 * page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (address, address + page + inner):
            assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
        offset = page + (0 if end == "start" else (inner - size) // alignment * alignment)
        # All bits set is a NaN: what a kernel leaves unwritten shows.
        ctypes.memset(address + page, 0xFF, inner)
        self.array: Array = np.frombuffer(self.memory, dtype, size // np.dtype(dtype).itemsize, offset).reshape(shape)


class Tensors(NamedTuple):
    x: Array
    weight: Array
    grad: Array


def run_pass(variant: str, pass_name: str, problem: Problem, t: Tensors, *, pieces: int = 1, end: str = "end") -> Array:
    """One pass of one variant; result and scratch in guarded memory."""
    plan = _testing.plan(variant, pass_name, shape_of(problem), t.x.dtype.name)
    first, second, shape = {
        "forward": (t.x, t.weight, problem.out_shape),
        "grad_x": (t.grad, t.weight, problem.x_shape),
        "grad_weight": (t.grad, t.x, problem.weight_shape),
    }[pass_name]
    out = Guarded(shape, t.x.dtype, end)
    scratch = Guarded((plan["scratch_bytes"],), np.uint8, end, 64)
    bounds = np.linspace(0, plan["tasks"], pieces + 1).astype(int)
    for begin, stop in reversed(list(itertools.pairwise(bounds))):
        arguments = (variant, pass_name, first, second, out.array, scratch.array, shape_of(problem), begin, stop)
        _testing.involution2d(*arguments)
    return out.array


def tensors(problem: Problem, dtype: npt.DTypeLike) -> Tensors:
    return Tensors(*(t.numpy().astype(dtype) for t in problem.operands()))


def terms(problem: Problem, pass_name: str) -> int:
    taps = problem.kernel_size[0] * problem.kernel_size[1]
    return problem.channels // problem.groups if pass_name == "grad_weight" else taps


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("variant", RUNS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_scalar_and_float64(name: str, variant: str, dtype: npt.DTypeLike) -> None:
    problem = PROBLEMS[name]
    t = tensors(problem, dtype)
    wide = tuple(torch.from_numpy(a.astype(np.float64)) for a in t)
    operands = tuple(torch.from_numpy(a) for a in t)
    results = {pass_name: run_pass(variant, pass_name, problem, t) for pass_name in PASSES}
    typed = Problem(**{**vars(problem), "dtype": operands[0].dtype})
    assert_like_reference(tuple(torch.from_numpy(results[p].copy()) for p in PASSES), typed, operands)  # type: ignore[arg-type]
    magnitude = with_gradients(lgld_ops.reference.involution2d_unfold, problem, tuple(a.abs() for a in wide))
    for pass_name, bound in zip(PASSES, magnitude, strict=True):
        scalar = run_pass("scalar", pass_name, problem, t)
        # Each is within n u of the sum of magnitudes, so they are within 2 n u of each other.
        allowed = 2.01 * terms(problem, pass_name) * np.finfo(dtype).eps / 2 * bound.numpy()
        assert (np.abs(results[pass_name] - scalar) <= allowed).all(), pass_name


@pytest.mark.parametrize("variant", RUNS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_tasks_may_be_shared_out_in_any_way(name: str, variant: str) -> None:
    problem = PROBLEMS[name]
    t = tensors(problem, np.float32)
    for pass_name in PASSES:
        whole = run_pass(variant, pass_name, problem, t)
        assert not np.isnan(whole).any()
        for pieces, end in ((2, "start"), (5, "end"), (40, "start")):
            again = run_pass(variant, pass_name, problem, t, pieces=pieces, end=end)
            assert whole.tobytes() == again.tobytes(), (pass_name, pieces)


@pytest.mark.parametrize("variant", RUNS)
def test_the_plan_does_not_depend_on_threads(variant: str) -> None:
    before = torch.get_num_threads()
    plans = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            plans.append([_testing.plan(variant, p, shape_of(PROBLEMS["lgldnet"])) for p in PASSES])
    finally:
        torch.set_num_threads(before)
    assert plans[0] == plans[1] == plans[2]


# --- choice -----------------------------------------------------------------------------------------------------------

REPORT = """
import json, torch, lgld_ops
torch.manual_seed(5)
x, w = torch.randn(1, 6, 9, 21, requires_grad=True), torch.randn(1, 18, 9, 21, requires_grad=True)
y = lgld_ops.involution2d(x, w, 3, padding=1, groups=2)
y.backward(torch.ones_like(y))
info = lgld_ops.build_info()["cpu"]
print(json.dumps([info["variant"], info["reason"], *(t.flatten().tolist() for t in (y.detach(), x.grad, w.grad))]))
"""


@pytest.mark.parametrize("variant", RUNS)
def test_forcing_a_variant(variant: str, run_python: Callable[..., CompletedProcess[str]]) -> None:
    name, reason, *results = json.loads(run_python(REPORT, LGLD_CPU_VARIANT=variant).stdout)
    assert name == variant
    assert "LGLD_CPU_VARIANT" in reason
    # The op ran that variant: equal bits to the torch-free module's, which names the variant that it runs.
    torch.manual_seed(5)
    problem = Problem(1, 6, 9, 21, groups=2)
    x, weight = torch.randn(problem.x_shape), torch.randn(problem.weight_shape)
    t = Tensors(x.numpy(), weight.numpy(), np.ones(problem.out_shape, np.float32))
    for pass_name, values in zip(PASSES, results, strict=True):
        expected = run_pass(variant, pass_name, problem, t).flatten()
        assert np.array_equal(np.array(values, np.float32), expected), pass_name


def test_the_best_variant_runs_unasked(run_python: Callable[..., CompletedProcess[str]]) -> None:
    for environment in ({}, {"LGLD_CPU_VARIANT": ""}):
        name, reason, *_ = json.loads(run_python(REPORT, **environment).stdout)
        assert name == RUNS[0]
        assert "LGLD_CPU_VARIANT" not in reason


@pytest.mark.parametrize("wanted", ["mmx", "AVX2", "neon" if platform.machine() == "x86_64" else "avx2"])
def test_a_variant_that_was_not_built_is_an_error(wanted: str, run_python: Callable[..., CompletedProcess[str]]) -> None:
    done = run_python("import lgld_ops", check=False, LGLD_CPU_VARIANT=wanted)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0
    assert last.startswith("RuntimeError: ")
    assert all(part in last for part in ("LGLD_CPU_VARIANT", repr(wanted), *RUNS)), last


def test_the_command_says_so_in_one_sentence(tmp_path: Path) -> None:
    script = tmp_path / "lgld-ops"
    script.write_text("from lgld_ops.cli import main\nmain()\n")
    environment = os.environ | {"LGLD_CPU_VARIANT": "mmx", "PYTHONPATH": str(Path(__file__).parent.parent)}
    for command in (["-m", "lgld_ops"], [str(script)]):
        done = subprocess.run([sys.executable, *command, "info"], env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: LGLD_CPU_VARIANT is 'mmx'")
        assert all(name in line for name in BUILT)


@pytest.mark.skipif(len(RUNS) == len(BUILT), reason="this processor has every instruction set of the build")
def test_a_variant_that_the_processor_lacks_is_an_error(run_python: Callable[..., CompletedProcess[str]]) -> None:
    wanted = next(name for name in BUILT if name not in RUNS)
    done = run_python("import lgld_ops", check=False, LGLD_CPU_VARIANT=wanted)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: ")
    assert "lacks" in last
    assert all(part in last for part in ("LGLD_CPU_VARIANT", wanted, *RUNS)), last
    with pytest.raises(ValueError, match=wanted):
        _testing.plan(wanted, "forward", shape_of(PROBLEMS["lgldnet"]))


def test_the_module_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="mmx"):
        _testing.plan("mmx", "forward", shape_of(PROBLEMS["lgldnet"]))
    with pytest.raises(ValueError, match="sideways"):
        _testing.plan("scalar", "sideways", shape_of(PROBLEMS["lgldnet"]))


# --- memory bounds through the real op --------------------------------------------------------------------------------

GUARDED = {
    "lgldnet": Problem(1, 64, 14, 28),
    "odd_width": Problem(2, 5, 9, 13),
    "five": Problem(1, 6, 7, 37, (5, 5), padding=(2, 2), groups=2),
    "seven": Problem(1, 4, 8, 17, (7, 7), padding=(3, 3)),
    "stride": Problem(2, 9, 11, 15, (7, 7), (2, 2), (3, 3), groups=3),
    "dilation": Problem(1, 3, 9, 19, (3, 4), (1, 2), (1, 2), (2, 3)),
    "no_padding": Problem(1, 3, 5, 18, padding=(0, 0)),
    "pixel": Problem(1, 1, 1, 1),
    "tiles_of_padding": Problem(1, 3, 2, 5, padding=(1, 200)),
}


@pytest.mark.parametrize("end", ["start", "end"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", GUARDED)
def test_the_op_reads_its_inputs_and_nothing_else(name: str, dtype: npt.DTypeLike, end: str) -> None:
    problem = Problem(**{**vars(GUARDED[name]), "dtype": torch.float32 if dtype == np.float32 else torch.float64})
    copies = problem.operands()
    guarded = []
    for copy in copies:
        memory = Guarded(tuple(copy.shape), dtype, end)
        memory.array[...] = copy.numpy()
        guarded.append(memory)
    operands = tuple(torch.from_numpy(memory.array) for memory in guarded)
    assert all(t.data_ptr() == m.array.ctypes.data for t, m in zip(operands, guarded, strict=True))
    ours = with_gradients(lgld_ops.involution2d, problem, operands)
    plain = with_gradients(lgld_ops.involution2d, problem, copies)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_guard_pages_guard(run_python: Callable[..., CompletedProcess[str]]) -> None:
    code = """
import numpy as np
from test_variants import Guarded
memory = Guarded((5,), np.float32, "{end}")
np.lib.stride_tricks.as_strided(memory.array, (6,), ({step},))[5]
"""
    folder = Path(__file__).parent
    for end, step in (("end", 4), ("start", -4)):
        done = run_python(code.format(end=end, step=step), folder=folder, check=False, PYTHONPATH=f"{folder}:{folder.parent}")
        assert done.returncode == -11, done
