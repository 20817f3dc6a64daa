"""The fused involution layer's Triton kernel against its formula in float64."""

from __future__ import annotations

import interpreter
import lgld_ops.triton as kernels
import pytest
import torch
import torch.nn.functional as F
from oracle import DTYPES, laid_out
from torch import Tensor

from lgld_ops.ops.layer import involution_layer
from lgld_ops.reference import involution2d_unfold


def layer(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, k: int) -> Tensor:
    h = F.silu(F.conv2d(x, w1[:, :, None, None], b1))
    return involution2d_unfold(x, F.conv2d(h, w2[:, :, None, None], b2), (k, k), (1, 1), (k // 2, k // 2), (1, 1), 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize(
    ("shape", "hidden", "k"),
    [((2, 6, 9, 11), 4, 3), ((1, 3, 1, 1), 1, 3), ((1, 4, 5, 3), 5, 5), ((1, 2, 2, 160), 3, 3), ((0, 4, 5, 5), 4, 3)],
)
def test_equals_the_formula(shape: tuple[int, ...], hidden: int, k: int, layout: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (hidden, shape[1]), (hidden,), (k * k, hidden), (k * k,))
    x, *parameters = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
    x = laid_out(x, layout)
    y = torch.empty_like(x.contiguous() if layout == "sliced" else x)
    kernels.involution_layer.forward(x, *parameters, k, y)
    exact = layer(x.double(), *(t.double() for t in parameters), k)
    # The same in the op's arithmetic, by torch: at most 4 times its error, and one rounding to the result's dtype.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    theirs = layer(x.to(wide), *(t.to(wide) for t in parameters), k)
    if not y.numel():
        return
    error, scale = (y.double() - exact).abs(), exact.abs()
    allowed = 4 * (theirs.double() - exact).abs().max() + 8 * torch.finfo(wide).eps * scale.max()
    rounding = scale * torch.finfo(dtype).eps / 2 + torch.finfo(dtype).tiny if wide != dtype else 0
    assert (error <= allowed + rounding).all(), error.max()


def test_the_op_runs_it_and_its_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 6, 5, 7), (4, 6), (4,), (9, 4), (9,))
    operands = [torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]
    before = dict(interpreter.calls)
    y = involution_layer(*operands, 3)
    expected = layer(*operands, 3)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(result, operands, grad) for result in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    ran = {name for name, count in interpreter.calls.items() if count > before[name]}
    assert ran == {"involution_layer", "involution2d_grad_x", "involution2d_grad_weight"}
