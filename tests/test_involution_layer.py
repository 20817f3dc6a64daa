"""The fused involution layer's op and the switch of `Involution2d` that uses it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import lgld_ops
from lgld_ops.ops import layer as layer_ops
from lgld_ops.ops.layer import involution_layer
from lgld_ops.reference import InvolutionLayer

op = torch.ops.lgld_ops.involution_layer.default
backward = torch.ops.lgld_ops.involution_layer_backward.default


def operands(kernel_size: int = 3, dtype: torch.dtype = torch.float64, size: tuple[int, ...] = (2, 5, 6, 7)) -> list[Tensor]:
    """x, hidden weight and bias, span weight and bias, with 3 hidden channels."""
    generator = torch.Generator().manual_seed(kernel_size)
    shapes: list[tuple[int, ...]] = [size, (3, size[1]), (3,), (kernel_size**2, 3), (kernel_size**2,)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.core
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_equals_the_published_layer(kernel_size: int, channels_last: bool) -> None:
    torch.manual_seed(0)
    published = InvolutionLayer(8, kernel_size, 2).double()
    ours = lgld_ops.Involution2d(8, kernel_size, 2).double()
    ours.load_state_dict(published.state_dict())
    ours.fused = True
    x = torch.randn(2, 8, 9, 11, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    results = []
    for layer in (ours, published):
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = layer(given)
        results.append([y, *torch.autograd.grad(y.square().sum(), [given, *layer.parameters()])])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    assert results[0][0].is_contiguous(memory_format=wanted)


@pytest.mark.core
def test_gradcheck() -> None:
    given = [t.requires_grad_() for t in operands(size=(1, 2, 3, 4))]
    assert torch.autograd.gradcheck(lambda *t: involution_layer(*t, 3), given)
    assert torch.autograd.gradgradcheck(lambda *t: involution_layer(*t, 3), given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    given = operands(dtype=dtype)
    exact = involution_layer(*[t.double() for t in given], 3)
    y = involution_layer(*given, 3)
    assert y.dtype == dtype
    # The composition rounds the hidden map, the kernels and the result to `dtype`.
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=20 * torch.finfo(dtype).eps * exact.abs().max().item())


def test_opcheck() -> None:
    torch.library.opcheck(op, (*[t.requires_grad_() for t in operands()], 3))
    torch.library.opcheck(op, (*operands(5, torch.float32, (0, 5, 6, 7)), 5))
    for need_x in (True, False):
        x, *parameters = operands()
        torch.library.opcheck(backward, (x.flip(0), x, *parameters, 3, need_x))


@pytest.mark.core
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_backward_op_equals_the_formulations_gradients(kernel_size: int, channels_last: bool) -> None:
    x, *parameters = operands(kernel_size)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    leaves = [t.requires_grad_() for t in (x, *parameters)]
    grad_y = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(layer_ops._plain(*leaves, kernel_size), leaves, grad_y)
    with torch.no_grad():
        found = backward(grad_y, *leaves, kernel_size)
        without = backward(grad_y, *leaves, kernel_size, False)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(without[1:], found[1:], rtol=0, atol=0)
    assert without[0].numel() == 0
    assert found[0].is_contiguous(memory_format=torch.channels_last) == channels_last


def test_backward_op_is_used_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [t.requires_grad_() for t in operands()]

    def gradients() -> tuple[tuple[Tensor, ...], set[str]]:
        with torch.profiler.profile() as profile:
            found = torch.autograd.grad(involution_layer(*given, 3).sum(), given)
        return found, {event.key for event in profile.key_averages()}

    composed, before = gradients()
    monkeypatch.setattr(layer_ops, "chosen_backward", "fused")
    fused, after = gradients()
    torch.testing.assert_close(fused, composed)
    assert "lgld_ops::involution_layer_backward" in after - before
    monkeypatch.setattr(layer_ops, "chosen_backward", "quick")
    with pytest.raises(RuntimeError, match="LGLD_LAYER_BACKWARD must be composed, fused, or unset, but is 'quick'"):
        gradients()


@pytest.mark.parametrize("way", ["composed", "fused"])
def test_many_gradients_at_once(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.autograd.functional.jacobian does with vectorize=True."""
    monkeypatch.setattr(layer_ops, "chosen_backward", way)
    given = [t.requires_grad_() for t in operands()]
    y = involution_layer(*given, 3)
    grads = torch.randn(3, *y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(y, given, grads, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, given, grad_y, retain_graph=True) for grad_y in grads]
    torch.testing.assert_close(found, tuple(map(torch.stack, zip(*each, strict=True))))


def test_torch_func_and_compile() -> None:
    x, *parameters = operands()
    per_image = vmap(grad(lambda image: involution_layer(image[None], *parameters, 3).square().sum()))(x)
    given = x.clone().requires_grad_()
    (whole,) = torch.autograd.grad(involution_layer(given, *parameters, 3).square().sum(), given)
    torch.testing.assert_close(per_image, whole)


def test_autocast_makes_its_dtype() -> None:
    given = operands(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = involution_layer(*given, 3)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, involution_layer(*[t.bfloat16() for t in given], 3), rtol=0, atol=0)


def test_backward_keeps_the_operands_alone() -> None:
    kept: list[Tensor] = []
    given = [t.requires_grad_() for t in operands()]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        involution_layer(*given, 3)
    assert {t.data_ptr() for t in kept} <= {t.data_ptr() for t in given}


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (5, 4, "kernel_size must be 3, 5 or 7, but is 4"),
        (0, torch.zeros(5, 6, 7).double(), "x must have 4 dimensions, but has shape [5, 6, 7]"),
        (1, torch.zeros(3, 4).double(), "hidden_weight must have shape [D, C] = [3, 5], but has [3, 4]"),
        (2, torch.zeros(2).double(), "hidden_bias must have shape [D] = [3], but has [2]"),
        (3, torch.zeros(9, 3), "span_weight must have the dtype of x, torch.float64, but is torch.float32"),
        (4, torch.zeros(8).double(), "span_bias must have shape [K*K] = [9], but has [8]"),
    ],
)
def test_errors_name_the_argument(position: int, value: object, message: str) -> None:
    given: list[object] = [*operands(), 3]
    given[position] = value
    with pytest.raises(RuntimeError, match=re.escape(f"involution_layer: {message}")):
        involution_layer(*given)  # type: ignore[arg-type]


def test_errors_of_the_backward_op_name_the_argument() -> None:
    x, *parameters = operands()
    for grad_y, message in (
        (x[:1], "grad_y must have shape of x = [2, 5, 6, 7], but has [1, 5, 6, 7]"),
        (x.float(), "grad_y must have the dtype of x, torch.float64, but is torch.float32"),
    ):
        with pytest.raises(RuntimeError, match=re.escape(f"involution_layer_backward: {message}")):
            backward(grad_y, x, *parameters, 3)


def test_the_switch_refuses_what_it_cannot_fuse() -> None:
    for layer in (lgld_ops.Involution2d(8, stride=2), lgld_ops.Involution2d(8, 9), lgld_ops.Involution2d(8, groups=2)):
        assert not layer.fused
        layer.fused = True
        with pytest.raises(ValueError, match="fused must be False"):
            layer(torch.zeros(1, 8, 12, 12))
    layer = lgld_ops.Involution2d(8)
    layer.fused = True
    layer.shared_mlp[1] = torch.nn.ReLU()
    with pytest.raises(ValueError, match="fused must be False"):
        layer(torch.zeros(1, 8, 12, 12))
