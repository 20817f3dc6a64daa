"""The involution op's Triton kernels against float64, by the rules that hold for the CPU's (tests/oracle.py)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import interpreter
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import DTYPES, LAYOUTS, Problem, assert_like_reference, far_apart, with_gradients

import lgld_ops
from lgld_ops.reference import involution2d_unfold

involution2d = lgld_ops.involution2d
ops = torch.ops.lgld_ops

SHAPES = {
    "three": Problem(2, 5, 6, 9),
    "strided": Problem(2, 4, 7, 9, (3, 3), (2, 3), (1, 2), (2, 1), 2),
    "five": Problem(1, 4, 6, 8, (5, 5), padding=(2, 2), groups=2),
    "seven": Problem(1, 3, 6, 7, (7, 7), padding=(3, 3)),
    "even_window": Problem(1, 5, 6, 7, (2, 4), (3, 1), (0, 2), (2, 3)),
    "several_tiles": Problem(1, 2, 3, 700),
    "many_channels": Problem(1, 70, 2, 3, (3, 3)),
    "pixel": Problem(2, 3, 1, 1, (1, 1), padding=(0, 0)),
    "beyond": Problem(1, 2, 2, 3, (7, 7), padding=(3, 3)),
    "only_padding": Problem(1, 2, 1, 1, (3, 3), padding=(8, 8), dilation=(5, 5)),
    "empty_batch": Problem(0, 4, 5, 5),
}
EVERY_DTYPE = ("three", "strided", "even_window")


def check(problem: Problem) -> tuple[torch.Tensor, ...]:
    operands = problem.operands()
    before = dict(interpreter.calls)
    ours = with_gradients(involution2d, problem, operands)
    for name in ("involution2d", "involution2d_grad_x", "involution2d_grad_weight"):
        assert interpreter.calls[name] == before[name] + 1, f"{name} did not run Triton"
    assert_like_reference(ours, problem, operands)
    return ours


def cases() -> list[Any]:
    """Each shape in float32, three of them in every dtype."""
    return [pytest.param(n, d, id=f"{n}-{d}") for n in SHAPES for d in (DTYPES if n in EVERY_DTYPE else DTYPES[:1])]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("name", "dtype"), cases())
def test_chosen_shapes(name: str, layout: str, dtype: torch.dtype) -> None:
    y, grad_x, _ = check(replace(SHAPES[name], dtype=dtype, layouts=(layout,) * 3))
    if layout == "contiguous":
        assert y.is_contiguous()
        assert grad_x.is_contiguous()
    elif name == "three":
        assert y.stride(1) == grad_x.stride(1) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", range(3), ids=["x", "weight", "grad"])
def test_views(which: int, layout: str) -> None:
    check(replace(SHAPES["strided"], layouts=tuple(layout if i == which else "contiguous" for i in range(3))))


@st.composite
def small(draw: st.DrawFn) -> Problem:
    """Any valid problem, a few pixels large: the interpreter takes a fraction of a millisecond an operation."""
    kernel_size = draw(st.sampled_from([(3, 3), (1, 1), (5, 5), (2, 3), (3, 1)]))
    stride, dilation = ((draw(st.integers(1, 3)), draw(st.integers(1, 3))) for _ in range(2))
    padding = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    height, width = (
        max(1, dilation[i] * (kernel_size[i] - 1) + 1 - 2 * padding[i]) + draw(st.integers(0, 6)) for i in range(2)
    )
    groups = draw(st.integers(1, 2))
    return Problem(
        draw(st.integers(0, 2)), groups * draw(st.integers(1, 5)), height, width, kernel_size, stride, padding, dilation,
        groups, draw(st.sampled_from(DTYPES)), draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 3)), draw(st.integers(0, 2**32)),
    )  # fmt: skip


@settings(max_examples=15)
@given(small())
def test_random_problems(problem: Problem) -> None:
    check(problem)


def test_derivatives_of_derivatives() -> None:
    x, weight, _ = Problem(1, 2, 3, 3, dtype=torch.float64).operands(requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: involution2d(x, w, 3, padding=1), (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, w: involution2d(x, w, 3, padding=1), (x, weight), fast_mode=True)


@pytest.mark.parametrize(("value", "layout"), [(math.nan, "contiguous"), (math.inf, "contiguous"), (math.inf, "channels_last")])
@pytest.mark.parametrize("which", range(3), ids=["x", "weight", "grad"])
@pytest.mark.parametrize("name", ["three", "strided", "loops"])
def test_nan_and_inf_go_where_the_definition_sends_them(name: str, which: int, value: float, layout: str) -> None:
    loops = Problem(1, 4, 6, 7, (2, 4), (2, 1), (0, 2), (2, 1))
    problem = replace(SHAPES.get(name, loops), layouts=(layout,) * 3)
    operands = problem.operands()
    operands[which][tuple(n // 2 for n in operands[which].shape)] = value
    operands[which][0, 0, 0, 0] = value
    expected = with_gradients(involution2d_unfold, problem, operands)
    for ours, reference in zip(with_gradients(involution2d, problem, operands), expected, strict=True):
        assert torch.equal(ours.isnan(), reference.isnan())
        assert torch.equal(ours.isinf(), reference.isinf())
    assert not all(t.isfinite().all() for t in expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("axis", range(3), ids=["images", "channels", "rows"])
def test_offsets_beyond_2_31(axis: int, layout: str) -> None:
    """Views that span more than 2^31 elements, in memory that is reserved and barely touched: equal bits."""
    problem = Problem(3, 3, 3, 3, (3, 3), dtype=torch.float16, layouts=(layout,) * 3)
    near = problem.operands()
    arguments = problem.arguments
    x, weight, grad = near
    u, v, h = (far_apart(t, axis) for t in near)
    assert torch.equal(ops.involution2d(u, v, *arguments), ops.involution2d(x, weight, *arguments))
    assert torch.equal(ops.involution2d_grad_x(h, v, 3, 3, *arguments), ops.involution2d_grad_x(grad, weight, 3, 3, *arguments))
    assert torch.equal(ops.involution2d_grad_weight(h, u, *arguments), ops.involution2d_grad_weight(grad, x, *arguments))


def test_more_programs_than_a_launch_has_along_one_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    import lgld_ops.triton as kernels

    problem = replace(SHAPES["three"], groups=5)
    whole = check(problem)
    for module in (kernels._common, kernels.involution2d):
        monkeypatch.setattr(module, "MOST_PROGRAMS", 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, check(problem), strict=True))


def test_launches_stay_below_what_cuda_allows() -> None:
    from lgld_ops.triton._common import MOST_PROGRAMS, grid

    for programs in (1, 65536, MOST_PROGRAMS, MOST_PROGRAMS + 1, 2**36 - 1):
        launch = grid(programs)
        assert launch[0] < 2**31
        assert len(launch) == 1 or launch[1] < 65536
        assert math.prod(launch) >= programs


def test_bad_arguments() -> None:
    x, weight = torch.ones(1, 2, 4, 4), torch.ones(1, 9, 4, 4)
    with pytest.raises(RuntimeError, match="weight must have shape"):
        involution2d(x, weight[:, :8], 3, padding=1)
    with pytest.raises(RuntimeError, match=r"must be float32, float64, float16 or bfloat16, but is torch\.int32"):
        involution2d(x.int(), weight.int(), 3, padding=1)


def test_autocast_and_empty_arguments() -> None:
    x, weight, _ = SHAPES["three"].operands()
    with torch.autocast("cpu", torch.bfloat16):
        y = involution2d(x, weight, 3, padding=1)
    assert y.dtype == torch.bfloat16
    arguments: dict[str, Any] = {"kernel_size": 3}
    assert involution2d(x, weight[:, :, 1:-1, 1:-1], **arguments).shape == (2, 5, 4, 7)
