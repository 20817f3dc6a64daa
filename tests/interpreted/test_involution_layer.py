"""The fused involution layer's Triton kernels against its formula in float64."""

from __future__ import annotations

import interpreter
import lgld_ops.triton as kernels
import pytest
import torch
import torch.nn.functional as F
from oracle import DTYPES, far_apart, laid_out
from torch import Tensor

from lgld_ops.ops import layer as layer_ops
from lgld_ops.ops.layer import involution_layer
from lgld_ops.reference import involution2d_unfold

op = torch.ops.lgld_ops.involution_layer
backward = torch.ops.lgld_ops.involution_layer_backward


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


# Each number of hidden channels fills its block of the kernels or leaves some of it empty; K 7 and 128 pixels are a tile.
@pytest.mark.parametrize(
    ("shape", "hidden", "k", "layout", "dtype"),
    [
        *(((2, 6, 9, 11), 4, 3, layout, dtype) for layout in ("contiguous", "channels_last", "sliced") for dtype in DTYPES),
        ((1, 3, 1, 1), 1, 3, "contiguous", torch.float32),
        ((1, 4, 5, 3), 5, 5, "contiguous", torch.float64),
        ((2, 2, 3, 60), 20, 7, "contiguous", torch.float32),
        ((1, 2, 2, 160), 3, 3, "channels_last", torch.float16),
        ((0, 4, 5, 5), 4, 3, "contiguous", torch.float32),
    ],
)
def test_gradients_equal_the_formulas(shape: tuple[int, ...], hidden: int, k: int, layout: str, dtype: torch.dtype) -> None:
    """In norm at most 4 times the error of autograd's in the same arithmetic, and one rounding."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, shape, (hidden, shape[1]), (hidden,), (k * k, hidden), (k * k,))
    grad_y, *operands = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
    operands[0] = laid_out(operands[0], layout)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def gradients(kind: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.detach().to(kind).requires_grad_() for t in operands]
        return torch.autograd.grad(layer(*leaves, k), leaves, grad_y.to(kind))

    before = interpreter.calls["involution_layer_backward"]
    ours = backward(grad_y, *operands, k)
    without = backward(laid_out(grad_y, layout), *operands, k, need_x=False)
    assert interpreter.calls["involution_layer_backward"] == before + 2
    assert without[0].numel() == 0
    assert all(torch.equal(a, b) for a, b in zip(without[1:], ours[1:], strict=True))
    for mine, theirs, exact in zip(ours, gradients(wide), gradients(torch.float64), strict=True):
        assert mine.dtype == dtype
        assert mine.shape == exact.shape
        error, scale = (mine.double() - exact).norm(), exact.norm()
        allowed = 4 * (theirs.double() - exact).norm() + 8 * torch.finfo(wide).eps * scale
        assert error <= allowed + (scale * torch.finfo(dtype).eps if wide != dtype else 0), error / scale


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", [0, 1, 3], ids=["grad_y", "x", "hidden_bias"])
def test_what_is_not_finite_goes_where_the_formulas_send_it(which: int, value: float) -> None:
    """A bias reaches the pixels of the tile that are beyond the image, too."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, 2, 9, 9), (1, 2, 9, 9), (3, 2), (3,), (9, 3), (9,))
    tensors = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    tensors[which].flatten()[0] = value
    grad_y, *operands = tensors
    leaves = [t.requires_grad_() for t in operands]
    expected = torch.autograd.grad(layer(*leaves, 3), leaves, grad_y)
    found = backward(grad_y, *(t.detach() for t in operands), 3)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.isinf(), theirs.isinf())
    assert not all(t.isfinite().all() for t in expected)


def test_programs_with_several_tiles_and_launches_that_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((3, 2, 20, 15), (3, 2, 20, 15), (3, 2), (3,), (9, 3), (9,))
    given = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    once = backward(*given, 3)
    for name in ("FEWEST_RECORDS", "MOST_RECORDS"):
        monkeypatch.setattr(kernels.involution_layer, name, 4)
    for module in (kernels._common, kernels.involution_layer):
        monkeypatch.setattr(module, "MOST_PROGRAMS", 4)
    again = backward(*given, 3)
    torch.testing.assert_close(again, once, rtol=1e-12, atol=1e-12)
    assert torch.equal(again[0], once[0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("axis", range(3), ids=["images", "channels", "rows"])
def test_offsets_beyond_2_31(axis: int, layout: str) -> None:
    """Views that span more than 2^31 elements, in memory that is reserved and barely touched: equal bits."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 2, 4, 4), (2, 2, 4, 4), (2, 2), (2,), (49, 2), (49,))
    grad_y, x, *parameters = (torch.randn(size, generator=generator).half() for size in sizes)
    grad_y, x = (laid_out(t, layout) for t in (grad_y, x))
    far_grad_y, far_x = (far_apart(t, axis) for t in (grad_y, x))
    assert torch.equal(op(far_x, *parameters, 7), op(x, *parameters, 7))
    for ours, near in zip(backward(far_grad_y, far_x, *parameters, 7), backward(grad_y, x, *parameters, 7), strict=True):
        assert torch.equal(ours, near)


def test_autograd_runs_it_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 6, 5, 7), (4, 6), (4,), (9, 4), (9,))
    operands = [torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]
    composed = torch.autograd.grad(involution_layer(*operands, 3).square().sum(), operands)
    monkeypatch.setattr(layer_ops, "chosen_backward", "fused")
    before = dict(interpreter.calls)
    fused = torch.autograd.grad(involution_layer(*operands, 3).square().sum(), operands)
    torch.testing.assert_close(fused, composed, rtol=1e-11, atol=1e-11)
    ran = {name for name, count in interpreter.calls.items() if count > before[name]}
    assert ran == {"involution_layer", "involution_layer_backward"}


def test_layers_too_wide_for_registers_are_composed() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, 2, 3, 3), (513, 2), (513,), (9, 513), (9,))
    operands = [torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]
    before = dict(interpreter.calls)
    expected = layer(*operands, 3)
    with torch.no_grad():
        torch.testing.assert_close(op(*operands, 3), expected)
        found = backward(operands[0], *operands, 3)
    torch.testing.assert_close(found, torch.autograd.grad(expected, operands, operands[0].detach()))
    ran = {name for name, count in interpreter.calls.items() if count > before[name]}
    assert {"involution2d", "involution2d_grad_x", "involution2d_grad_weight"} <= ran


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
