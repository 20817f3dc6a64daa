"""LGLD-Net's involution layer as one torch op, which generates its kernels and applies them, on a GPU without a map of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .involution import (
    _AUTOCAST_KEYS,
    _KERNEL_DTYPES,
    _autocast_dtype,
    _empty,
    _fake,
    _memory_format,
    _transforming,
    involution2d,
)
from .schemas import LIBRARY, NAMESPACE

_ops = torch.ops.lgld_ops
_NAME = f"{NAMESPACE}::involution_layer"
KERNEL_SIZES = (3, 5, 7)
Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # x, hidden weight and bias, span weight and bias

# --- shapes: the same rules, in the same words, as csrc/cuda/involution_layer.cpp --------------------------------------


def _check_operands(op: str, operands: Operands, kernel_size: int) -> None:
    x, hidden_weight, hidden_bias, span_weight, span_bias = operands

    def _check(condition: Any, message: str) -> None:
        torch._check(condition, lambda: f"{op}: {message}")

    _check(kernel_size in KERNEL_SIZES, f"kernel_size must be 3, 5 or 7, but is {kernel_size}")
    _check(x.layout == torch.strided, f"x must be a dense tensor, but its layout is {x.layout}")
    _check(x.dim() == 4, f"x must have 4 dimensions, but has shape {list(x.shape)}")
    _check(x.dtype in _KERNEL_DTYPES, f"x must be float32, float64, float16 or bfloat16, but is {x.dtype}")
    _check(
        x.shape[1] >= 1 and x.shape[2] >= 1 and x.shape[3] >= 1,
        f"x must have at least one channel, row and column, but its size is {list(x.shape)}",
    )
    _check(hidden_weight.dim() == 2, f"hidden_weight must have 2 dimensions, but has shape {list(hidden_weight.shape)}")
    hidden, taps = hidden_weight.shape[0], kernel_size * kernel_size
    _check(hidden >= 1, "hidden_weight must have at least one row, but has none")
    parameters = {
        "hidden_weight": (hidden_weight, [hidden, x.shape[1]], "[D, C]"),
        "hidden_bias": (hidden_bias, [hidden], "[D]"),
        "span_weight": (span_weight, [taps, hidden], "[K*K, D]"),
        "span_bias": (span_bias, [taps], "[K*K]"),
    }
    for name, (t, size, meaning) in parameters.items():
        _check(t.layout == torch.strided, f"{name} must be a dense tensor, but its layout is {t.layout}")
        _check(t.device == x.device, f"{name} must be on {x.device}, like x, but is on {t.device}")
        _check(t.dtype == x.dtype, f"{name} must have the dtype of x, {x.dtype}, but is {t.dtype}")
        _check(
            t.dim() == len(size) and all(t.shape[d] == size[d] for d in range(len(size))),
            f"{name} must have shape {meaning} = {size}, but has {list(t.shape)}",
        )


@_fake(_NAME)
def _involution_layer_fake(
    x: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, span_weight: Tensor, span_bias: Tensor, kernel_size: int
) -> Tensor:
    _check_operands("involution_layer", (x, hidden_weight, hidden_bias, span_weight, span_bias), kernel_size)
    return _empty(x, *x.shape)


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # of the operands; of x empty where it is not wanted


@_fake(f"{_NAME}_backward")
def _backward_fake(grad_y: Tensor, x: Tensor, *arguments: Any, need_x: bool = True) -> Gradients:
    *parameters, kernel_size = arguments[:5]
    need_x = arguments[5] if len(arguments) > 5 else need_x
    op = "involution_layer_backward"
    _check_operands(op, (x, *parameters), kernel_size)

    def check(condition: Any, must: str) -> None:
        torch._check(condition, lambda: f"{op}: grad_y must {must}")

    check(grad_y.layout == torch.strided, f"be a dense tensor, but its layout is {grad_y.layout}")
    check(grad_y.device == x.device, f"be on {x.device}, like x, but is on {grad_y.device}")
    check(grad_y.dtype == x.dtype, f"have the dtype of x, {x.dtype}, but is {grad_y.dtype}")
    check(
        grad_y.dim() == 4 and all(grad_y.shape[d] == x.shape[d] for d in range(4)),
        f"have shape of x = {list(x.shape)}, but has {list(grad_y.shape)}",
    )
    grad_x = _empty(x, *x.shape) if need_x else x.new_empty(0)
    first, second, third, fourth = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in parameters)
    return grad_x, first, second, third, fourth


# --- the readable formulation, and what runs on devices without a fused kernel -----------------------------------------


def _plain(
    x: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, span_weight: Tensor, span_bias: Tensor, kernel_size: int
) -> Tensor:
    """``involution2d(x, conv1x1(SiLU(conv1x1(x))))``, differentiable."""
    hidden = F.conv2d(x, hidden_weight[..., None, None], hidden_bias)
    kernel = F.conv2d(F.silu(hidden), span_weight[..., None, None], span_bias)
    return involution2d(x, kernel, kernel_size, padding=kernel_size // 2)


def _composed(
    x: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, span_weight: Tensor, span_bias: Tensor, kernel_size: int
) -> Tensor:
    _involution_layer_fake(x, hidden_weight, hidden_bias, span_weight, span_bias, kernel_size)
    y = _plain(x, hidden_weight, hidden_bias, span_weight, span_bias, kernel_size)
    return y.contiguous(memory_format=_memory_format(x))


# --- autograd: keeps the operands alone, and generates the kernels again -----------------------------------------------

# What backward runs on GPUs: "composed", torch's convolutions and the involution's two gradients, or "fused", the layer's own
# kernels. No GPU has said yet which is faster.
VARIABLE = "LGLD_LAYER_BACKWARD"
chosen_backward = os.environ.get(VARIABLE) or "composed"


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.kernel_size = inputs[5]


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    operands: Operands = ctx.saved_tensors
    kernel_size: int = ctx.kernel_size
    if chosen_backward not in ("composed", "fused"):
        raise RuntimeError(f"{VARIABLE} must be composed, fused, or unset, but is {chosen_backward!r}")
    if torch.is_grad_enabled():  # create_graph

        def run(x: Tensor, wide: Tensor, wide_bias: Tensor, tall: Tensor, tall_bias: Tensor) -> Tensor:
            return _plain(x, wide, wide_bias, tall, tall_bias, kernel_size)

        gradients = torch.func.vjp(run, *operands)[1](grad_y)
    elif chosen_backward == "fused":
        gradients = _ops.involution_layer_backward.default(grad_y, *operands, kernel_size, ctx.needs_input_grad[0])
    else:
        gradients = recomputed(grad_y, operands, kernel_size, need_x=ctx.needs_input_grad[0])
    return (*(g if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False)), None)


def recomputed(grad_y: Tensor, operands: Operands, kernel_size: int, *, need_x: bool) -> tuple[Tensor | None, ...]:
    """Gradients of the operands, composed. With a = SiLU(h): d a / d h = s (1 + h (1 - s)), s = sigmoid(h)."""
    x, hidden_weight, hidden_bias, span_weight, span_bias = operands
    window = ((kernel_size, kernel_size), (1, 1), (kernel_size // 2, kernel_size // 2), (1, 1), 1)
    wide, tall = hidden_weight[..., None, None], span_weight[..., None, None]
    hidden = F.conv2d(x, wide, hidden_bias)
    sigmoid = torch.sigmoid(hidden)
    activated = hidden * sigmoid
    grad_kernel = _ops.involution2d_grad_weight.default(grad_y, x, *window)

    def through(grad: Tensor, source: Tensor, weight: Tensor, *, need_source: bool) -> tuple[Tensor | None, ...]:
        return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
            grad, source, weight, [weight.shape[0]], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [need_source, True, True]
        )

    grad_activated, grad_span, grad_span_bias = through(grad_kernel, activated, tall, need_source=True)
    assert grad_activated is not None
    grad_hidden = grad_activated * (sigmoid * (1 + hidden * (1 - sigmoid)))
    grad_source, grad_wide, grad_bias = through(grad_hidden, x, wide, need_source=need_x)
    grad_x = None
    if need_x:
        kernel = F.conv2d(activated, tall, span_bias)
        grad_x = _ops.involution2d_grad_x.default(grad_y, kernel, x.shape[2], x.shape[3], *window) + grad_source
    assert grad_wide is not None
    assert grad_span is not None
    # Not flatten, which torch's vmap of a backward (is_grads_batched) refuses.
    return grad_x, grad_wide.squeeze(-1).squeeze(-1), grad_bias, grad_span.squeeze(-1).squeeze(-1), grad_span_bias


def _composed_backward(grad_y: Tensor, x: Tensor, *arguments: Any, need_x: bool = True) -> tuple[Tensor, ...]:
    _backward_fake(grad_y, x, *arguments, need_x=need_x)
    *parameters, kernel_size = arguments[:5]
    need_x = arguments[5] if len(arguments) > 5 else need_x
    grad_x, *rest = recomputed(grad_y, (x, *parameters), kernel_size, need_x=need_x)
    grad_x = x.new_empty(0) if grad_x is None else grad_x.contiguous(memory_format=_memory_format(x))
    return grad_x, *(cast("Tensor", g).contiguous() for g in rest)


PLAIN: dict[str, Callable[..., Any]] = {"involution_layer": _composed, "involution_layer_backward": _composed_backward}
for _op, _function in PLAIN.items():
    LIBRARY.impl(_op, _function, "CompositeExplicitAutograd")


torch.library.register_autograd(_NAME, _backward, setup_context=_save)


def involution_layer(
    x: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, span_weight: Tensor, span_bias: Tensor, kernel_size: int = 3
) -> Tensor:
    """LGLD-Net's involution with generated kernels: ``involution2d(x, span(SiLU(hidden(x))))``, zero padding, one group.

    ``h[d] = SiLU(sum_c hidden_weight[d,c] x[c] + hidden_bias[d])`` and ``k[t] = sum_d span_weight[t,d] h[d] + span_bias[t]`` at
    every pixel, then `lgld_ops.involution2d` with k (ICITA 2025, DOI 10.1007/978-3-032-21174-3_28; its two convolutions before
    SiLU are one, ``W1 (W0 x + b0) + b1``). With CUDA kernels, and with Triton's for K 3, the map k is never in
    memory; elsewhere this is the composition.

    Args:
        x: [B, C, H, W], float32, float64, float16 or bfloat16, any strides; B may be 0.
        hidden_weight: [D, C], like all that follow in dtype and on the device of x.
        hidden_bias: [D].
        span_weight: [K*K, D].
        span_bias: [K*K].
        kernel_size: K, 3, 5 or 7.

    Returns:
        [B, C, H, W] in dtype and memory format (contiguous or channels_last) of x. On CUDA rounded once, from sums in float32
        (float64 for float64). Its gradient keeps the operands alone and generates the kernels again.

    Raises:
        RuntimeError: an argument's shape, dtype, device or value does not fit; the message names it, what it was and what it
        must be.
    """
    arguments = (x, hidden_weight, hidden_bias, span_weight, span_bias, kernel_size)
    if _transforming():
        if _autocast_dtype(x, hidden_weight) is None:
            _involution_layer_fake(*arguments)
        return _plain(*arguments)
    return _ops.involution_layer.default(*arguments)  # type: ignore[no-any-return]


# --- autocast: all operands in the autocast dtype ----------------------------------------------------------------------


def _autocast(device_type: str) -> Callable[..., Tensor]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _AUTOCAST_KEYS[device_type]))

    def run(x: Tensor, *rest: Any) -> Tensor:
        *parameters, kernel_size = rest
        narrow = _autocast_dtype(x, parameters[0])
        operands = (x, *parameters) if narrow is None else tuple(t.to(narrow) for t in (x, *parameters))
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return _ops.involution_layer.default(*operands, kernel_size)  # type: ignore[no-any-return]

    return run


for _device_type, _key in _AUTOCAST_KEYS.items():
    LIBRARY.impl("involution_layer", _autocast(_device_type), _key)
