"""Involution as a torch op: shape rules, autograd, autocast, vmap, and the Python function."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import plain
from .schemas import LIBRARY, NAMESPACE

Pair = Sequence[int]
IntOrPair = int | Pair

_F = TypeVar("_F", bound=Callable[..., Any])

_ops = torch.ops.lgld_ops
_KERNEL_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _fake(name: str) -> Callable[[_F], _F]:
    """`torch.library.register_fake` with a type."""
    return cast("Callable[[_F], _F]", torch.library.register_fake(name))


# --- shapes: the same rules, in the same words, as csrc/cpu/involution2d.cpp -------------------------------------------


def _check(op: str, condition: Any, message: str) -> None:
    torch._check(condition, lambda: f"{op}: {message}")


def _check_geometry(
    op: str,
    size: Sequence[Any],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> list[Any]:
    """Raise RuntimeError where the arguments make no involution; return [Ho, Wo] for x of shape `size`."""
    for name, pair, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        _check(op, len(pair) == 2, f"{name} must be two integers, but has {len(pair)}")
        _check(
            op,
            pair[0] >= least and pair[1] >= least,
            f"{name} must be at least {least} each, but is {tuple(pair)}",
        )
        _check(op, max(pair) < 2**24, f"{name} must be less than 2^24 each, but is {tuple(pair)}")
    _check(op, groups >= 1, f"groups must be at least 1, but is {groups}")
    _check(
        op,
        size[1] >= 1 and size[2] >= 1 and size[3] >= 1,
        f"x must have at least one channel, row and column, but its size is {list(size)}",
    )
    _check(
        op,
        size[1] % groups == 0,
        f"groups must divide the number of channels, but groups is {groups} and x has {size[1]} channels",
    )
    out = []
    for axis in range(2):
        padded = size[2 + axis] + 2 * padding[axis]
        reach = (kernel_size[axis] - 1) * dilation[axis] + 1
        _check(
            op,
            padded >= reach,
            f"kernel_size {tuple(kernel_size)} with dilation {tuple(dilation)} is larger than the padded x, "
            f"{tuple(size[2 + a] + 2 * padding[a] for a in range(2))}",
        )
        out.append((padded - reach) // stride[axis] + 1)
    return out


def _check_size(op: str, name: str, t: Tensor, size: Sequence[Any], meaning: str) -> None:
    for axis in range(4):
        _check(
            op,
            t.shape[axis] == size[axis],
            f"{name} must have shape {meaning} = {list(size)}, but has {list(t.shape)}",
        )


def _check_alike(op: str, a_name: str, a: Tensor, b_name: str, b: Tensor) -> None:
    for name, t in ((a_name, a), (b_name, b)):
        _check(op, t.layout == torch.strided, f"{name} must be a dense tensor, but its layout is {t.layout}")
        _check(op, t.dim() == 4, f"{name} must have 4 dimensions, but has shape {list(t.shape)}")
        # The meta device asks no kernel, and the plain formulation takes what torch does.
        kernels = t.device.type == "cpu"
        _check(
            op,
            not kernels or t.dtype in _KERNEL_DTYPES,
            f"{name} must be float32, float64, float16 or bfloat16, but is {t.dtype}",
        )
    _check(op, a.dtype == b.dtype, f"{b_name} must have the dtype of {a_name}, {a.dtype}, but is {b.dtype}")
    _check(op, a.device == b.device, f"{b_name} must be on {a.device}, like {a_name}, but is on {b.device}")


def _memory_format(t: Tensor) -> torch.memory_format:
    """Of the results of a map like `t`: channels_last where its channels are neighbours in memory and its columns are not."""
    last = t.shape[1] > 1 and t.stride(1) == 1 and t.stride(3) != 1
    return torch.channels_last if last else torch.contiguous_format


def _empty(like: Tensor, *size: Any) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=_memory_format(like))


def _weight_size(size: Sequence[Any], kernel_size: Pair, groups: int, out: Sequence[Any]) -> list[Any]:
    return [size[0], groups * kernel_size[0] * kernel_size[1], *out]


_WEIGHT = "[batch, groups * Kh * Kw, Ho, Wo]"
_OUTPUT = "[batch, channels, Ho, Wo]"


@_fake(f"{NAMESPACE}::involution2d")
def _involution2d_fake(
    x: Tensor,
    weight: Tensor,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    op = "involution2d"
    _check_alike(op, "x", x, "weight", weight)
    out = _check_geometry(op, x.shape, kernel_size, stride, padding, dilation, groups)
    _check_size(op, "weight", weight, _weight_size(x.shape, kernel_size, groups, out), _WEIGHT)
    return _empty(x, x.shape[0], x.shape[1], *out)


@_fake(f"{NAMESPACE}::involution2d_grad_x")
def _involution2d_grad_x_fake(
    grad_y: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    op = "involution2d_grad_x"
    _check_alike(op, "grad_y", grad_y, "weight", weight)
    size = [grad_y.shape[0], grad_y.shape[1], height, width]
    out = _check_geometry(op, size, kernel_size, stride, padding, dilation, groups)
    _check_size(op, "grad_y", grad_y, [*size[:2], *out], _OUTPUT)
    _check_size(op, "weight", weight, _weight_size(size, kernel_size, groups, out), _WEIGHT)
    return _empty(grad_y, *size)


def _check_grad_y(op: str, grad_y: Tensor, x: Tensor, kernel_size: Pair, *rest: Any) -> list[Any]:
    """Raise RuntimeError where grad_y is no gradient of x's result; return the size of weight. `rest`: stride to groups."""
    _check_alike(op, "grad_y", grad_y, "x", x)
    out = _check_geometry(op, x.shape, kernel_size, *rest)
    _check_size(op, "grad_y", grad_y, [*x.shape[:2], *out], _OUTPUT)
    return _weight_size(x.shape, kernel_size, rest[-1], out)


@_fake(f"{NAMESPACE}::involution2d_grad_weight")
def _involution2d_grad_weight_fake(
    grad_y: Tensor,
    x: Tensor,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    op = "involution2d_grad_weight"
    return _empty(x, *_check_grad_y(op, grad_y, x, kernel_size, stride, padding, dilation, groups))


@_fake(f"{NAMESPACE}::involution2d_gradients")
def _gradients_fake(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    op = "involution2d_gradients"
    _check_alike(op, "x", x, "weight", weight)
    weight_size = _check_grad_y(op, grad_y, x, kernel_size, stride, padding, dilation, groups)
    _check_size(op, "weight", weight, weight_size, _WEIGHT)
    return _empty(grad_y, *x.shape), _empty(x, *weight_size)


# --- the plain formulation, on every device without a kernel ----------------------------------------------------------


def _plain(name: str) -> Callable[..., Tensor]:
    check, compute = globals()[f"_{name}_fake"], getattr(plain, name)
    # Where a default of the schema applies the dispatcher leaves the argument out.
    defaults: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}

    def run(first: Tensor, second: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = [a.name for a in getattr(_ops, name).default._schema.arguments][2:]
        arguments = defaults | dict(zip(names, args, strict=False)) | kwargs
        check(first, second, **arguments)
        plain.warn_once(first.device.type)
        if first.dtype in (torch.float16, torch.bfloat16):
            result = compute(first.float(), second.float(), **arguments).to(first.dtype)
        else:
            result = compute(first, second, **arguments)
        like = second if name == "involution2d_grad_weight" else first
        return result.contiguous(memory_format=_memory_format(like))  # type: ignore[no-any-return]

    return run


PLAIN = {_name: _plain(_name) for _name in ("involution2d", "involution2d_grad_x", "involution2d_grad_weight")}
for _name, _function in PLAIN.items():
    LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")


def _separate(grad_y: Tensor, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    _gradients_fake(grad_y, x, weight, *args, **kwargs)
    return (
        _ops.involution2d_grad_x.default(grad_y, weight, x.shape[2], x.shape[3], *args, **kwargs),
        _ops.involution2d_grad_weight.default(grad_y, x, *args, **kwargs),
    )


# Wherever the CUDA library does not bring its own: the two ops that are there.
LIBRARY.impl("involution2d_gradients", _separate, "CompositeExplicitAutograd")


# --- autograd. The op is trilinear in (x, weight, grad_y), so the three ops are each other's derivatives ---------------
#
#   F(x, w, g) = <g, involution2d(x, w)> = <x, grad_x(g, w)> = <w, grad_weight(g, x)>


# How backward computes two gradients: "separate", by two kernels, or "joint", by involution2d_gradients, which on CUDA is one
# kernel for some windows. No GPU has said yet which is faster.
VARIABLE = "LGLD_INVOLUTION_BACKWARD"
chosen_backward = os.environ.get(VARIABLE) or "separate"


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.arguments = inputs[-5:]


def _involution2d_backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    args = ctx.arguments
    need_x, need_weight = ctx.needs_input_grad[:2]
    if chosen_backward not in ("separate", "joint"):
        raise RuntimeError(f"{VARIABLE} must be separate, joint, or unset, but is {chosen_backward!r}")
    # The joint op is no one's derivative: where gradients are differentiated again, the separate ones are.
    if chosen_backward == "joint" and need_x and need_weight and not torch.is_grad_enabled() and not _transforming():
        return (*_ops.involution2d_gradients.default(grad_y, x, weight, *args), *[None] * 5)
    return (
        grad_x(grad_y, weight, x.shape[2], x.shape[3], *args) if need_x else None,
        grad_weight(grad_y, x, *args) if need_weight else None,
        *[None] * 5,
    )


def _grad_x_backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    grad_y, weight = ctx.saved_tensors
    args = ctx.arguments
    need_grad, need_weight = ctx.needs_input_grad[:2]
    return (
        involution2d(cotangent, weight, *args) if need_grad else None,
        grad_weight(grad_y, cotangent, *args) if need_weight else None,
        *[None] * 7,
    )


def _grad_weight_backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    grad_y, x = ctx.saved_tensors
    args = ctx.arguments
    need_grad, need_x = ctx.needs_input_grad[:2]
    return (
        involution2d(x, cotangent, *args) if need_grad else None,
        grad_x(grad_y, cotangent, x.shape[2], x.shape[3], *args) if need_x else None,
        *[None] * 5,
    )


for _name, _backward in (
    ("involution2d", _involution2d_backward),
    ("involution2d_grad_x", _grad_x_backward),
    ("involution2d_grad_weight", _grad_weight_backward),
):
    torch.library.register_autograd(f"{NAMESPACE}::{_name}", _backward, setup_context=_save)


# --- torch.func: transforms need autograd.Function; register_autograd's formulas refuse them ---------------------------


def _fold(batch_size: int, t: Tensor, dim: int | None) -> Tensor:
    """[v, B, ...] -> [v*B, ...], the mapped dimension being `dim`, or absent and then repeated."""
    moved = t.unsqueeze(0).expand(batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
    return moved.flatten(0, 1)


def _transformable(name: str, call: Callable[..., Tensor], backward: Callable[..., Any]) -> type[torch.autograd.Function]:
    """An autograd.Function of `call`, which is entered again one transform further down until none is left."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], inputs[1])
        ctx.behind = inputs[2:]

    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        # Each op is linear in its first and in its second operand.
        first, second = ctx.saved_tensors
        d_first, d_second = tangents[:2]
        terms = [] if d_first is None else [call(d_first, second, *ctx.behind)]
        terms += [] if d_second is None else [call(first, d_second, *ctx.behind)]
        return sum(terms[1:], terms[0]) if terms else None

    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        first, second = (_fold(info.batch_size, t, dim) for t, dim in zip(inputs[:2], in_dims[:2], strict=True))
        return call(first, second, *inputs[2:]).unflatten(0, (info.batch_size, -1)), 0

    members = {
        "forward": staticmethod(call),
        "setup_context": staticmethod(setup_context),
        "jvp": staticmethod(jvp),
        "backward": staticmethod(backward),
        "vmap": staticmethod(vmap),
    }
    return type(name, (torch.autograd.Function,), members)


def _transforming() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is active."""
    if torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():
            # Dynamo follows the Functions below down for ever: the transform runs in eager mode, fullgraph is an error.
            torch._dynamo.graph_break()
        return False
    # A Function's forward runs with forward-mode differentiation switched off.
    forward_mode = forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()
    return torch._C._are_functorch_transforms_active() or forward_mode


def check_tensor(name: str, value: object) -> None:
    """TypeError naming `name` where `value` is neither a tensor nor something that torch's operators take for one."""
    if not isinstance(value, Tensor) and not hasattr(value, "__torch_function__"):
        raise TypeError(f"{name} must be a torch.Tensor, but is {value!r}")


def grad_x(grad_y: Tensor, weight: Tensor, height: int, width: int, *args: Any) -> Tensor:
    """Gradient of `involution2d` with respect to x [B, C, height, width]; arguments behind as there."""
    if _transforming():
        return _GradX.apply(grad_y, weight, height, width, *args)  # type: ignore[no-any-return]
    return _ops.involution2d_grad_x.default(grad_y, weight, height, width, *args)  # type: ignore[no-any-return]


def grad_weight(grad_y: Tensor, x: Tensor, *args: Any) -> Tensor:
    """Gradient of `involution2d` with respect to weight; arguments behind as there."""
    if _transforming():
        return _GradWeight.apply(grad_y, x, *args)  # type: ignore[no-any-return]
    return _ops.involution2d_grad_weight.default(grad_y, x, *args)  # type: ignore[no-any-return]


def involution2d(
    x: Tensor,
    weight: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Tensor:
    """Involution: a weighted sum over each pixel's window, with weights of its own at every pixel.

    ``y[b,c,i,j] = sum_{u,v} weight[b, g*Kh*Kw + u*Kw + v, i, j] * x[b, c, i*sh - ph + u*dh, j*sw - pw + v*dw]`` with
    ``g = c // (C // groups)`` and x zero outside its bounds (Li et al., "Involution: Inverting the Inherence of Convolution
    for Visual Recognition", CVPR 2021, eq. 4). Every argument after `weight` is an int for both axes or a pair
    (rows, columns).

    Args:
        x: [B, C, H, W], float32, float64, float16 or bfloat16, any strides; B may be 0.
        weight: [B, groups*Kh*Kw, Ho, Wo], group-major, dtype and device of x, any strides.
        kernel_size: Kh, Kw, at least 1; 3, 5 and 7 (square, stride 1, dilation 1) are fastest.
        stride: pixels between the windows of neighbouring outputs, at least 1.
        padding: zeros around x, at least 0.
        dilation: pixels between neighbouring taps, at least 1.
        groups: groups of channels that share weights; divides C.

    Returns:
        [B, C, Ho, Wo], dtype of x, channels_last where x is (its channels are neighbours in memory), else contiguous,
        ``Ho = (H + 2*ph - dh*(Kh-1) - 1) // sh + 1`` and Wo likewise. Its gradient
        keeps x and weight alone, is a gather (bitwise the same on every run and for any number of threads), and can be
        differentiated again. float16 and bfloat16 are summed in float32 and rounded once. On the CPU, channels_last may
        leave out taps beyond the border where others multiply them by zero: an infinite weight there makes no NaN. Under
        autocast x and weight are cast to the autocast dtype.

    Raises:
        TypeError: x or weight is no tensor.
        RuntimeError: an argument's shape, dtype, device or value does not fit; the message names it, what it was and what it
            must be. On the CPU also where kernel_size, stride and dilation together need over 1 GiB of scratch a thread.
    """
    check_tensor("x", x)
    check_tensor("weight", weight)
    if _transforming():
        # A Function's backward sees the operands it was given, so autocast has to come before it.
        narrow = _autocast_dtype(x, weight)
        if narrow is not None:
            with torch.autocast(x.device.type, enabled=False):
                return involution2d(x.to(narrow), weight.to(narrow), kernel_size, stride, padding, dilation, groups)
        return _Involution2d.apply(x, weight, kernel_size, stride, padding, dilation, groups)  # type: ignore[no-any-return]
    return _ops.involution2d.default(x, weight, kernel_size, stride, padding, dilation, groups)  # type: ignore[no-any-return]


_Involution2d = _transformable("Involution2d", involution2d, _involution2d_backward)
_GradX = _transformable("Involution2dGradX", grad_x, _grad_x_backward)
_GradWeight = _transformable("Involution2dGradWeight", grad_weight, _grad_weight_backward)


# --- autocast: both operands in the autocast dtype; the kernels sum in float32 ----------------------------------------

_AUTOCAST_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
_REDUCED = (torch.float16, torch.bfloat16, torch.float32)


def _autocast_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """What autocast turns the result of these operands into, None where it leaves them alone."""
    device = x.device.type
    if device not in _AUTOCAST_KEYS or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device) if x.dtype in _REDUCED and weight.dtype in _REDUCED else None


def _autocast(device_type: str) -> Callable[..., Tensor]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _AUTOCAST_KEYS[device_type]))

    def run(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        narrow = _autocast_dtype(x, weight)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            if narrow is None:
                return _ops.involution2d.default(x, weight, *args, **kwargs)  # type: ignore[no-any-return]
            return _ops.involution2d.default(x.to(narrow), weight.to(narrow), *args, **kwargs)  # type: ignore[no-any-return]

    return run


for _device_type, _key in _AUTOCAST_KEYS.items():
    LIBRARY.impl("involution2d", _autocast(_device_type), _key)
