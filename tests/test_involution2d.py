"""The involution op on CPU tensors: values, gradients, views, threads, extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from oracle import DTYPES, LAYOUTS, Problem, assert_like_reference, problems, with_gradients
from torch import Tensor

import lgld_ops
from lgld_ops.reference import involution2d_unfold

involution2d = lgld_ops.involution2d

# LGLD-Net's op, RedNet's (one with stride), and others on small maps.
pytestmark = pytest.mark.core

SHAPES = {
    "lgldnet": Problem(1, 64, 28, 28),
    "lgldnet_narrow": Problem(2, 70, 6, 14),
    "rednet_7": Problem(1, 32, 14, 14, (7, 7), padding=(3, 3), groups=2),
    "rednet_stride": Problem(2, 16, 15, 13, (7, 7), (2, 2), (3, 3), groups=4),
    "five": Problem(2, 9, 12, 33, (5, 5), padding=(2, 2), groups=3),
    "wide_groups_stride": Problem(2, 48, 15, 13, (7, 7), (2, 2), (3, 3), groups=2),
    "wide_groups_narrow": Problem(1, 32, 9, 7, (5, 5), padding=(2, 2), groups=2),
    "wide": Problem(1, 3, 5, 300),
    "aligned_rows": Problem(1, 8, 9, 64),  # rows of whole cache lines in every dtype: loads of their own with K 3
    "many_groups": Problem(1, 20, 6, 13, groups=10),
    "pixel": Problem(1, 1, 1, 1, (1, 1), padding=(0, 0)),
    "window_beyond_the_map": Problem(2, 4, 2, 3, (7, 7), padding=(3, 3)),
    "only_padding": Problem(1, 2, 1, 1, (3, 3), padding=(8, 8), dilation=(5, 5)),
    "even_window": Problem(1, 5, 6, 7, (2, 4), (3, 1), (0, 2), (2, 3)),
    "empty_batch": Problem(0, 4, 5, 5),
}


def bits(t: Tensor) -> bytes:
    return t.detach().contiguous().view(torch.uint8).numpy().tobytes() if t.numel() else b""


@given(problems())
def test_equals_the_definition(problem: Problem) -> None:
    operands = problem.operands()
    assert_like_reference(with_gradients(involution2d, problem, operands), problem, operands)


@pytest.mark.nightly
@settings(max_examples=600, derandomize=False)
@given(problems())
def test_equals_the_definition_at_length(problem: Problem) -> None:
    operands = problem.operands()
    assert_like_reference(with_gradients(involution2d, problem, operands), problem, operands)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_chosen_shapes(name: str, dtype: torch.dtype) -> None:
    problem = replace(SHAPES[name], dtype=dtype)
    operands = problem.operands()
    ours = with_gradients(involution2d, problem, operands)
    assert_like_reference(ours, problem, operands)
    assert all(t.is_contiguous() for t in ours)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_channels_last_throughout(name: str, dtype: torch.dtype) -> None:
    problem = replace(SHAPES[name], dtype=dtype, layouts=("channels_last",) * 3)
    operands = problem.operands()
    assert_like_reference(with_gradients(involution2d, problem, operands), problem, operands)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", range(3), ids=["x", "weight", "grad"])
@pytest.mark.parametrize("name", ["five", "rednet_stride", "wide", "wide_groups_stride"])
def test_views(name: str, which: int, layout: str, dtype: torch.dtype) -> None:
    layouts = tuple(layout if i == which else "contiguous" for i in range(3))
    problem = replace(SHAPES[name], layouts=layouts, dtype=dtype)
    operands = problem.operands()
    assert_like_reference(with_gradients(involution2d, problem, operands), problem, operands)
    if layout == "channels_last":
        return  # another kernel, another order of additions
    copies = tuple(t.detach().contiguous() for t in operands)
    for view, copy in zip(
        with_gradients(involution2d, problem, operands), with_gradients(involution2d, problem, copies), strict=True
    ):
        assert bits(view) == bits(copy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", SHAPES)
def test_channels_last(name: str, weight_layout: str, dtype: torch.dtype) -> None:
    problem = replace(SHAPES[name], layouts=("channels_last", weight_layout, "channels_last"), dtype=dtype)
    operands = problem.operands()
    ours = with_gradients(involution2d, problem, operands)
    assert_like_reference(ours, problem, operands)
    # A single pixel is laid out both ways, and counts as contiguous.
    if operands[0].stride(3) != 1:
        assert ours[0].is_contiguous(memory_format=torch.channels_last)
        assert ours[0].stride(1) == 1
    if operands[2].stride(3) != 1:
        assert ours[1].is_contiguous(memory_format=torch.channels_last)


def test_gradient_of_a_sum_arrives_expanded() -> None:
    x, weight, _ = SHAPES["five"].operands(requires_grad=True)
    arguments = SHAPES["five"].arguments
    ours = torch.autograd.grad(involution2d(x, weight, *arguments).sum(), (x, weight))
    reference = torch.autograd.grad(involution2d_unfold(x, weight, *arguments).sum(), (x, weight))
    torch.testing.assert_close(ours, reference)


def test_ints_stand_for_pairs() -> None:
    x, weight, _ = Problem(1, 4, 9, 9, (3, 3), (2, 2), (2, 2), (2, 2), 2).operands()
    pairs = involution2d(x, weight, (3, 3), (2, 2), (2, 2), (2, 2), 2)
    assert bits(involution2d(x, weight, 3, 2, 2, 2, 2)) == bits(pairs)
    assert bits(torch.ops.lgld_ops.involution2d(x, weight, 3, 2, 2, 2, 2)) == bits(pairs)
    named = involution2d(x=x, weight=weight, kernel_size=3, stride=2, padding=2, dilation=2, groups=2)
    assert bits(named) == bits(pairs)


# --- derivatives ------------------------------------------------------------------------------------------------------

SMALL = [
    Problem(2, 4, 4, 5, groups=2, dtype=torch.float64),
    Problem(1, 2, 5, 6, (3, 2), (2, 3), (2, 1), (1, 2), dtype=torch.float64),
    Problem(1, 2, 1, 2, (5, 5), padding=(2, 2), dtype=torch.float64),
]


@pytest.mark.parametrize("problem", SMALL, ids=["dense", "strided", "beyond"])
def test_gradcheck(problem: Problem) -> None:
    x, weight, _ = problem.operands(requires_grad=True)
    function: Callable[..., Tensor] = lambda x, weight: involution2d(x, weight, *problem.arguments)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


@pytest.mark.parametrize("op", ["grad_x", "grad_weight"])
def test_gradients_are_ops_with_gradients(op: str) -> None:
    problem = SMALL[1]
    x, weight, grad = problem.operands(requires_grad=True)
    grad.requires_grad_()
    if op == "grad_x":
        call = torch.ops.lgld_ops.involution2d_grad_x
        inputs, size = (grad, weight), (problem.height, problem.width)
    else:
        call, inputs, size = torch.ops.lgld_ops.involution2d_grad_weight, (grad, x), ()
    function: Callable[..., Tensor] = lambda a, b: call(a, b, *size, *problem.arguments)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("needed", ["x", "weight"])
def test_only_the_gradient_that_is_needed(needed: str) -> None:
    problem = SHAPES["five"]
    x, weight, grad = problem.operands()
    both = with_gradients(involution2d, problem, (x, weight, grad))
    (x if needed == "x" else weight).requires_grad_()
    involution2d(x, weight, *problem.arguments).backward(grad)
    one, other = (x.grad, weight.grad) if needed == "x" else (weight.grad, x.grad)
    assert one is not None
    assert bits(one) == bits(both[1 if needed == "x" else 2])
    assert other is None


def test_keeps_x_and_weight_alone() -> None:
    x, weight, _ = SHAPES["lgldnet"].operands(requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        involution2d(x, weight, *SHAPES["lgldnet"].arguments)
    assert [t.data_ptr() for t in kept] == [x.data_ptr(), weight.data_ptr()]


def test_a_changed_input_is_noticed() -> None:
    x, weight, _ = SHAPES["five"].operands(requires_grad=True)
    y = involution2d(x, weight, *SHAPES["five"].arguments)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# --- reproducibility --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lgldnet", "rednet_7", "rednet_stride", "wide"])
def test_bitwise_equal_for_every_number_of_threads(name: str) -> None:
    problem = replace(SHAPES[name], batch=3)
    operands = problem.operands()
    before = torch.get_num_threads()
    results: list[list[bytes]] = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append([bits(t) for t in with_gradients(involution2d, problem, operands)])
    finally:
        torch.set_num_threads(before)
    assert all(result == results[0] for result in results)


def test_bitwise_equal_across_processes(run_python: Callable[..., CompletedProcess[str]]) -> None:
    code = """
import hashlib, torch, lgld_ops
torch.set_num_threads(THREADS)
torch.manual_seed(1)
x, w = torch.randn(2, 8, 30, 31, requires_grad=True), torch.randn(2, 9, 30, 31, requires_grad=True)
y = lgld_ops.involution2d(x, w, 3, padding=1)
y.square().sum().backward()
print(torch.get_num_threads(), *(hashlib.sha1(t.detach().numpy().tobytes()).hexdigest() for t in (y, x.grad, w.grad)))
"""
    runs = [run_python(code.replace("THREADS", threads)).stdout.split() for threads in ("1", "3")]
    assert [run[0] for run in runs] == ["1", "3"]
    assert runs[0][1:] == runs[1][1:]


def test_several_python_threads_at_once() -> None:
    problem = replace(SHAPES["lgldnet"], batch=2)
    operands = problem.operands()
    alone = [bits(t) for t in with_gradients(involution2d, problem, operands)]
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: [bits(t) for t in with_gradients(involution2d, problem, operands)], range(24)))
    assert all(run == alone for run in runs)


def test_runs_under_deterministic_algorithms() -> None:
    problem = SHAPES["five"]
    operands = problem.operands()
    before = [bits(t) for t in with_gradients(involution2d, problem, operands)]
    torch.use_deterministic_algorithms(True)
    try:
        assert [bits(t) for t in with_gradients(involution2d, problem, operands)] == before
    finally:
        torch.use_deterministic_algorithms(False)


# --- special values and extremes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", range(3), ids=["x", "weight", "grad"])
@pytest.mark.parametrize("name", ["five", "rednet_stride", "lgldnet", "wide_groups_stride"])
def test_nan_and_inf_go_where_the_definition_sends_them(name: str, which: int, value: float) -> None:
    problem = SHAPES[name]
    operands = problem.operands()
    place = tuple(n // 2 for n in operands[which].shape)
    operands[which][place] = value
    operands[which][0, 0, 0, 0] = value
    operands[1 - which // 2][0, 0, 1, 1] = 0.0  # inf * 0 is NaN
    expected = with_gradients(involution2d_unfold, problem, operands)
    for ours, reference in zip(with_gradients(involution2d, problem, operands), expected, strict=True):
        assert torch.equal(ours.isnan(), reference.isnan())
        assert torch.equal(ours.isinf(), reference.isinf())
        assert torch.equal(ours[ours.isinf()], reference[reference.isinf()])
    assert not all(t.isfinite().all() for t in expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["five", "lgldnet", "rednet_7", "rednet_stride"])
def test_nan_and_inf_in_channels_last_gradients_of_weights(name: str, value: float) -> None:
    problem = replace(SHAPES[name], layouts=("channels_last",) * 3)
    operands = problem.operands()
    for place in ((0, 0, 0, 0), (0, 1, 5, 6), (-1, -1, -1, -1)):
        operands[2][place] = value
    ours, reference = (with_gradients(f, problem, operands)[2] for f in (involution2d, involution2d_unfold))
    assert torch.equal(ours.isnan(), reference.isnan())
    assert torch.equal(ours[ours.isinf()], reference[reference.isinf()])
    assert not reference.isfinite().all()


def test_zero_signs_and_tiny_numbers() -> None:
    x = torch.full((1, 1, 3, 3), 2.0**-120)
    weight = torch.full((1, 9, 3, 3), 2.0**-20)  # products are subnormal: 2^-140
    y = involution2d(x, weight, 3, padding=1)
    assert y[0, 0, 1, 1].item() == 9 * 2.0**-140


EXTREMES: dict[str, dict[str, Any]] = {
    "huge_stride": {"stride": 2**23},
    "huge_stride_one_axis": {"stride": (1, 2**23), "padding": (1, 0)},
    "huge_dilation_and_padding": {"dilation": 200, "padding": 200, "stride": 200},
    "padding_wider_than_a_tile": {"padding": (1, 300)},
    "far_dilation_one_axis": {"dilation": (1, 100_000), "padding": (1, 100_000), "stride": (1, 100_000)},
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_arguments(name: str) -> None:
    arguments = {"stride": 1, "padding": 0, "dilation": 1} | EXTREMES[name]
    pairs = {k: v if isinstance(v, tuple) else (v, v) for k, v in arguments.items()}
    problem = Problem(1, 4, 6, 7, (3, 3), **pairs)
    operands = problem.operands()
    assert_like_reference(with_gradients(involution2d, problem, operands), problem, operands)


def test_windows_that_need_too_much_scratch_are_refused() -> None:
    """3 x 3 taps 2000 pixels apart, 12 GB of padding a thread: an error that names the arguments, not the system's killer."""
    problem = Problem(1, 4, 6, 7, (3, 3), (2000, 2000), (2000, 2000), (2000, 2000))
    x, weight, _ = problem.operands()
    with pytest.raises(RuntimeError, match=r"kernel_size, stride and dilation need \d+ bytes .* at most 1073741824"):
        involution2d(x, weight, *problem.arguments)


def test_scratch_that_does_not_fit_is_an_error(run_python: Callable[..., CompletedProcess[str]]) -> None:
    """A window that spans 2^20 x 2^20 pixels: either the right result or an error, within 4 GiB of memory."""
    code = """
import resource, torch, lgld_ops
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
far = 1 << 20
x, w = torch.ones(1, 1, 2, 2, requires_grad=True), torch.ones(1, 9, 2, 2, requires_grad=True)
try:
    y = lgld_ops.involution2d(x, w, 3, padding=far, dilation=far)
    y.sum().backward()
    assert torch.equal(y, x) and torch.equal(x.grad, torch.ones_like(x)), (y, x.grad)
except RuntimeError as error:
    message = str(error)
    assert "dilation" in message and "memory" in message, message
print("done")
"""
    assert run_python(code).stdout.strip() == "done"


def test_more_taps_than_memory_is_an_error(run_python: Callable[..., CompletedProcess[str]]) -> None:
    """2^46 taps in an expanded weight: every size computed from them must stay inside 64 bits."""
    code = """
import torch, lgld_ops
k = 1 << 23
x = torch.ones(1, 1, 1, 1)
w = torch.ones(1, 1, 1, 1).expand(1, k * k, 1, 1)
ops = torch.ops.lgld_ops
g, gw = torch.ones(1, 1, 2, 2), w.expand(1, k * k, 2, 2)
for call in (lambda: ops.involution2d(x, gw, k, padding=k // 2),
             lambda: ops.involution2d_grad_x(g, gw, 1, 1, k, padding=k // 2),
             lambda: ops.involution2d_grad_weight(g, x, k, padding=k // 2)):
    try:
        call()
        raise SystemExit("no error")
    except RuntimeError as error:
        print(error)
"""
    lines = run_python(code).stdout.splitlines()
    assert len(lines) == 3
    assert all("kernel_size" in line or "weight" in line for line in lines), lines
