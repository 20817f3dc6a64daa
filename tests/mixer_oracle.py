"""What the tests of the Fourier feature mixer share: random problems, the published formulation, and the rule of comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from oracle import DTYPES, LAYOUTS, laid_out
from torch import Tensor

from lgld_ops.ops import plain_ffm

NAMES = ("y", "x", "weight", "bias", "fourier_weight_real", "fourier_weight_imag", "bn_weight", "bn_bias")


@dataclass(frozen=True)
class Mixing:
    """Arguments of one call; tensors come from `operands`."""

    batch: int = 2
    inputs: int = 3
    channels: int = 6
    height: int = 9
    width: int = 13
    stride: int = 2
    training: bool = True
    dtype: torch.dtype = torch.float32
    layouts: tuple[str, str] = ("contiguous", "contiguous")
    offset: float = 0.0
    spread: float = 1.0
    affine: bool = True
    seed: int = 0

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.channels, -(-self.height // self.stride), -(-self.width // self.stride))

    @property
    def values(self) -> int:
        """Values per channel."""
        return self.batch * self.out_shape[2] * self.out_shape[3]

    def operands(self) -> tuple[Tensor, list[Tensor | None], list[Tensor], Tensor]:
        """x, the parameters, the running statistics, and the gradient of the result; 16-bit x has float32 parameters."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64)

        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        c = self.channels
        x = laid_out(
            (self.offset + self.spread * normal(self.batch, self.inputs, self.height, self.width)).to(self.dtype),
            self.layouts[0],
        )
        parameters: list[Tensor | None] = [
            t.to(wide) for t in (normal(c, self.inputs + 4, 1, 1), normal(c), normal(c // 2), normal(c // 2))
        ]
        parameters += [normal(c).to(wide), normal(c).to(wide)] if self.affine else [None, None]
        running = [normal(c).to(wide), (normal(c).square() + 0.3).to(wide)]
        grad = laid_out(normal(*self.out_shape).to(self.dtype), self.layouts[1])
        return x, parameters, running, grad


# What every backend is tried with, beside shapes of its own.
SHAPES = {
    "odd": Mixing(2, 3, 6, 17, 35),
    "grey": Mixing(3, 1, 4, 20, 21),
    "stride_3": Mixing(2, 4, 2, 10, 40, stride=3),
    "one_row": Mixing(2, 3, 4, 1, 50),
    "one_column": Mixing(2, 3, 4, 50, 1),
    "two_pixels": Mixing(2, 3, 4, 1, 2, stride=1),
}


@st.composite
def mixings(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Mixing:
    """Any valid problem that is small."""
    problem = Mixing(
        batch=draw(st.integers(0, 4)),
        inputs=draw(st.one_of(st.just(3), st.integers(1, 7))),
        channels=2 * draw(st.integers(1, 5)),
        height=draw(st.integers(1, 40)),
        width=draw(st.integers(1, 70)),
        stride=draw(st.sampled_from([2, 1, 3])),
        training=draw(st.booleans()),
        dtype=draw(st.sampled_from(dtypes)),
        layouts=(draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(LAYOUTS))),
        offset=draw(st.sampled_from([0.0, 0.85])),
        affine=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32)),
    )
    # Too few different values make a variance near 0, and what is divided by it says nothing.
    values = problem.out_shape[3] if problem.layouts[0] == "expanded" else problem.values
    return Mixing(**{**vars(problem), "training": False}) if values < 4 else problem


def published(
    x: Tensor, weight: Tensor, bias: Tensor, real: Tensor, imag: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None,
    running_mean: Tensor | None, running_var: Tensor | None, training: bool, eps: float = 1e-5, stride: int = 2,
) -> tuple[Tensor]:  # fmt: skip
    """The published block as functions: concatenation with float32 sines, convolution, products, batch_norm, silu."""
    batch, _, height, width = x.shape
    rows = 2 * math.pi * torch.arange(height, dtype=torch.float32) / height
    columns = 2 * math.pi * torch.arange(width, dtype=torch.float32) / width
    i, j = torch.meshgrid(rows, columns, indexing="ij")
    maps = torch.stack([i.sin(), i.cos(), j.sin(), j.cos()]).to(x.dtype).expand(batch, 4, height, width)
    cast = [None if t is None else t.to(x.dtype) for t in (weight, bias, real, imag, bn_weight, bn_bias)]
    z = F.conv2d(torch.cat([x, maps], 1), cast[0], cast[1], stride=stride)
    z = z * torch.cat([cast[2], cast[3]])[:, None, None]  # type: ignore[list-item]
    if training:
        return (F.silu(F.batch_norm(z, None, None, cast[4], cast[5], True, 0.1, eps)),)
    assert running_mean is not None
    assert running_var is not None
    return (F.silu(F.batch_norm(z, running_mean.to(x.dtype), running_var.to(x.dtype), cast[4], cast[5], False, 0.1, eps)),)


def with_gradients(function: Any, problem: Mixing, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The result, the gradients of x and of every parameter there is, and the batch statistics where they are returned."""
    x, parameters, running, grad = problem.operands()
    if dtype is not None:
        x, grad = x.to(dtype), grad.to(dtype)
        parameters, running = [None if p is None else p.to(dtype) for p in parameters], [r.to(dtype) for r in running]
    x = x.detach().requires_grad_()
    parameters = [None if p is None else p.detach().requires_grad_() for p in parameters]
    y, *statistics = function(x, *parameters, *running, problem.training, 1e-5, problem.stride)
    operands = {name: t for name, t in zip(NAMES[1:], (x, *parameters), strict=True) if t is not None}
    gradients = torch.autograd.grad(y, list(operands.values()), grad)
    results = {"y": y.detach(), **dict(zip(operands, gradients, strict=True))}
    if statistics and problem.training:
        results |= {"mean": statistics[0], "var": statistics[1]}
    return results


def assert_exact_enough(ours: dict[str, Tensor], problem: Mixing) -> None:
    """Compare with the plain formulation in float64.

    The largest error is at most 4 times that of the published formulation in the same dtype, plus a term of the size of
    rounding. Parameter gradients share one scale and one error of eager's: those of the modulation and of the bias are
    differences of large numbers that cancel, and of a single number eager's error may be nothing by luck. In float64 the
    published formulation, with its float32 sines, is no measure: there 1e-11 of the scale is allowed.
    """
    exact = with_gradients(plain_ffm.fourier_feature_mixer, problem, torch.float64)
    eager = with_gradients(published, problem, None if problem.dtype.itemsize > 2 else torch.float32)
    parameters = [name for name in NAMES[2:] if name in exact]
    largest = max(exact[name].abs().max().item() for name in parameters)

    def eager_error(*names: str) -> float:
        return max((eager[name].double() - exact[name]).abs().max().item() for name in names)

    for name, value in ours.items():
        truth = exact[name]
        assert value.shape == truth.shape, name
        expected = problem.dtype if name in ("y", "x") else torch.float64 if problem.dtype == torch.float64 else torch.float32
        assert value.dtype == expected, name
        if value.numel() == 0 or problem.batch == 0:
            continue
        scale = truth.abs().max().item() if name in ("y", "x", "mean", "var") else largest
        error = (value.double() - truth).abs()
        if problem.dtype == torch.float64:
            assert error.max() <= 1e-11 * scale, f"{name}: error {error.max():.2e} of {scale:.2e}"
            continue
        rounding = 8 * 2**-24 * scale
        if name in eager:
            rounding += 4 * eager_error(*(parameters if name in parameters else (name,)))
        # A 16-bit result is the rounded one of this float32 computation.
        stored = (
            (truth.abs() * torch.finfo(value.dtype).eps / 2 + torch.finfo(value.dtype).tiny) if value.dtype.itemsize == 2 else 0
        )
        assert (error <= rounding + stored).all(), f"{name}: error {error.max():.2e}, allowed {rounding:.2e} + rounding"
