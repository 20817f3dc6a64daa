"""What the tests of the involution op share: random problems, operands as views of every kind, and the rules of comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from lgld_ops.reference import involution2d_unfold

Pair = tuple[int, int]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "offset", "expanded")


@dataclass(frozen=True)
class Problem:
    """Arguments of one involution; tensors come from `operands`."""

    batch: int = 2
    channels: int = 6
    height: int = 9
    width: int = 11
    kernel_size: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1
    dtype: torch.dtype = torch.float32
    layouts: tuple[str, str, str] = ("contiguous",) * 3
    seed: int = 0

    @property
    def out_size(self) -> Pair:
        size = (self.height, self.width)
        ho, wo = (
            (size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel_size[i] - 1) - 1) // self.stride[i] + 1
            for i in range(2)
        )
        return ho, wo

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, self.height, self.width)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.batch, self.groups * self.kernel_size[0] * self.kernel_size[1], *self.out_size)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.out_size)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Everything behind x and weight, in the op's order."""
        return (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)

    def operands(self, requires_grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """x, weight and the gradient of the result, each a leaf with its layout."""
        generator = torch.Generator().manual_seed(self.seed)
        shapes = (self.x_shape, self.weight_shape, self.out_shape)
        x, weight, grad = (
            laid_out(torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype), layout)
            for shape, layout in zip(shapes, self.layouts, strict=True)
        )
        return x.requires_grad_(requires_grad), weight.requires_grad_(requires_grad), grad


def laid_out(t: Tensor, layout: str) -> Tensor:
    """`t` as a view of another kind: equal values (save for "expanded", which repeats some), other strides.

    What lies between the elements of the view is NaN, so that a kernel that reads it shows.
    """
    b, c, h, w = t.shape
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":
        view = t.new_full((b + 1, c + 2, h + 3, 2 * w + 1), torch.nan)[1:, 1 : c + 1, 2 : h + 2, 1::2]
        return view.copy_(t)
    if layout == "offset":
        view = t.new_full((b, c, h, w + 3), torch.nan).flatten()[3:]
        return view.as_strided((b, c, h, w), (c * h * (w + 3), h * (w + 3), w + 3, 1), 3).copy_(t)
    if layout == "expanded":
        return t[:1, :, :1].expand(b, c, h, w)
    assert layout == "contiguous"
    return t


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Problem:
    """Any valid problem that is small; kernel sizes with code of their own come often enough."""
    common = draw(st.booleans())

    def pair(least: int, most: int) -> Pair:
        return draw(st.tuples(st.integers(least, most), st.integers(least, most)))

    kernel_size = draw(st.sampled_from([(3, 3), (5, 5), (7, 7)])) if common else pair(1, 7)
    stride = (1, 1) if common else pair(1, 4)
    dilation = (1, 1) if common else pair(1, 4)
    padding = pair(0, 8)
    height, width = (
        max(1, dilation[i] * (kernel_size[i] - 1) + 1 - 2 * padding[i]) + draw(st.integers(0, (9, 40)[i])) for i in range(2)
    )
    groups = draw(st.integers(1, 3))
    return Problem(
        batch=draw(st.integers(0, 3)),
        channels=groups * draw(st.one_of(st.integers(1, 5), st.integers(6, 20))),
        height=height,
        width=width,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        dtype=draw(st.sampled_from(dtypes)),
        layouts=draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 3)),
        seed=draw(st.integers(0, 2**32)),
    )


def with_gradients(function: Any, problem: Problem, operands: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The result and both gradients of `function(x, weight, *arguments)`."""
    x, weight, grad = operands
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = function(x, weight, *problem.arguments)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad)


def assert_like_reference(
    ours: tuple[Tensor, Tensor, Tensor], problem: Problem, operands: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Compare result and gradients with float64.

    Two rules, both must hold. In all dtypes but float64: at most 4 times the largest error of the unfold formulation in the
    same dtype, plus a term of the size of rounding. In each dtype: every element within n u / (1 - n u) of the sum of its n
    products' magnitudes, the bound of any order of additions with or without fusing (Higham, Accuracy and Stability of
    Numerical Algorithms, 3.1), with the u of float32 for 16-bit elements, whose sums are rounded once more.
    """
    wide = tuple(t.detach().double() for t in operands)
    exact = with_gradients(involution2d_unfold, problem, wide)
    magnitude = with_gradients(involution2d_unfold, problem, tuple(t.abs() for t in wide))
    eager = with_gradients(involution2d_unfold, problem, operands)
    taps = problem.kernel_size[0] * problem.kernel_size[1]
    terms = {"y": taps, "grad_x": taps, "grad_weight": problem.channels // problem.groups}
    narrow = problem.dtype in (torch.float16, torch.bfloat16)
    finfo = torch.finfo(problem.dtype)
    unit = (torch.finfo(torch.float32) if narrow else finfo).eps / 2
    for i, (name, n) in enumerate(terms.items()):
        assert ours[i].dtype == problem.dtype
        assert ours[i].shape == exact[i].shape, name
        if ours[i].numel() == 0:
            continue
        error = (ours[i].double() - exact[i]).abs()
        bound = (n * unit / (1 - n * unit) + n * 2**-53) * magnitude[i] * (1 + 1e-9)
        if narrow:
            # One rounding of the sum: half a unit in its last place, or of the smallest subnormal.
            bound += finfo.eps / 2 * (exact[i].abs() + bound) + finfo.smallest_normal * finfo.eps
        assert (error <= bound).all(), f"{name}: {(~(error <= bound)).sum()} elements wrong, error up to {error.max():.2e}"
        if problem.dtype != torch.float64:
            allowed = 4 * (eager[i].double() - exact[i]).abs().max() + 2 * finfo.eps * magnitude[i].max()
            assert error.max() <= allowed, f"{name}: error {error.max():.2e}, allowed {allowed:.2e}"


def far_apart(t: Tensor, axis: int) -> Tensor:
    """A view of t's values that spans more than 2^31 elements along `axis`, in memory that is reserved and barely touched."""
    strides = list(t.stride())
    strides[axis] = 2**31 // (t.shape[axis] - 1) + 64
    size = 1 + sum((n - 1) * s for n, s in zip(t.shape, strides, strict=True))
    assert size > 2**31
    try:
        return torch.empty(size, dtype=t.dtype).as_strided(t.shape, strides).copy_(t)
    except RuntimeError as error:
        pytest.skip(f"no room: {error}")
