"""LGLD-Net's Fourier feature mixer as a torch op: shape rules, autograd, autocast, and the Python function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import plain, plain_ffm
from .involution import _fake as _fake_of
from .involution import _memory_format, _transforming, check_tensor
from .schemas import LIBRARY, NAMESPACE

_ops = torch.ops.lgld_ops
_NAME = f"{NAMESPACE}::fourier_feature_mixer"
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_PARAMETERS = 6  # weight .. bn_bias, behind x

# --- shapes: the same rules, in the same words, as csrc/cpu/ffm.cpp ----------------------------------------------------


def _check(op: str, condition: Any, message: str) -> None:
    torch._check(condition, lambda: f"{op}: {message}")


def _check_kind(op: str, name: str, t: Tensor, x: Tensor) -> None:
    _check(op, t.layout == torch.strided, f"{name} must be a dense tensor, but its layout is {t.layout}")
    _check(op, t.device == x.device, f"{name} must be on {x.device}, like x, but is on {t.device}")
    _check(op, t.dtype in _DTYPES, f"{name} must be float32, float64, float16 or bfloat16, but is {t.dtype}")


def _check_arguments(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    fourier_weight_real: Tensor,
    fourier_weight_imag: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    stride: int,
) -> list[Any]:
    """Raise RuntimeError where the arguments do not fit; return the result's size."""
    _check_kind(op, "x", x, x)
    _check(op, x.dim() == 4, f"x must have 4 dimensions, but has shape {list(x.shape)}")
    batch, inputs, height, width = x.shape
    _check(
        op,
        inputs >= 1 and height >= 1 and width >= 1,
        f"x must have at least one channel, row and column, but its size is {list(x.shape)}",
    )
    _check(op, 1 <= stride < 2**24, f"stride must be at least 1 and less than 2^24, but is {stride}")
    _check(op, 0 < eps < float("inf"), f"eps must be positive, but is {eps}")
    _check_kind(op, "weight", weight, x)
    _check(
        op,
        weight.dim() in (2, 4) and weight.shape[1] == inputs + 4 and tuple(weight.shape[2:]) in ((), (1, 1)),
        f"weight must have shape [C, {inputs + 4}] or [C, {inputs + 4}, 1, 1] for x with {inputs} channels and 4 position "
        f"terms, but has {list(weight.shape)}",
    )
    channels = weight.shape[0]
    _check(
        op,
        channels >= 2 and channels % 2 == 0,
        f"weight must have an even number of rows, at least 2, but has {channels}",
    )
    vectors = {
        "bias": (bias, channels, "C"),
        "fourier_weight_real": (fourier_weight_real, channels // 2, "C / 2"),
        "fourier_weight_imag": (fourier_weight_imag, channels // 2, "C / 2"),
        "bn_weight": (bn_weight, channels, "C"),
        "bn_bias": (bn_bias, channels, "C"),
    }
    out = [batch, channels, (height + stride - 1) // stride, (width + stride - 1) // stride]
    if training:
        _check(
            op,
            batch * out[2] * out[3] != 1,
            f"training must have more than 1 value per channel, but x of size {list(x.shape)} and stride {stride} make 1",
        )
    else:
        _check(
            op,
            running_mean is not None and running_var is not None,
            "running_mean and running_var must be given where training is False",
        )
        vectors |= {"running_mean": (running_mean, channels, "C"), "running_var": (running_var, channels, "C")}
    for name, (t, size, meaning) in vectors.items():
        if t is not None:
            _check_kind(op, name, t, x)
            _check(
                op,
                t.dim() == 1 and t.shape[0] == size,
                f"{name} must have shape [{meaning}] = [{size}], but has {list(t.shape)}",
            )
    return out


def _new_map(x: Tensor, size: list[Any]) -> Tensor:
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=_memory_format(x))


@_fake_of(_NAME)
def _fake(x: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
    args = _complete(arguments, named)
    out = _check_arguments("fourier_feature_mixer", x, *args)
    statistic = torch.float64 if x.dtype == torch.float64 else torch.float32
    given = out[1] if args[8] else 0
    mean, var = (torch.empty(given, dtype=statistic, device=x.device) for _ in range(2))
    return _new_map(x, out), mean, var


@_fake_of(f"{_NAME}_backward")
def _backward_fake(grad_y: Tensor, x: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, ...]:
    args, need_x = _complete_backward(arguments, named)
    op = "fourier_feature_mixer_backward"
    out = _check_arguments(op, x, *args)
    _check_kind(op, "grad_y", grad_y, x)
    _check(
        op,
        grad_y.dim() == 4 and all(grad_y.shape[d] == out[d] for d in range(4)),
        f"grad_y must have shape [batch, C, Ho, Wo] = {out}, but has {list(grad_y.shape)}",
    )
    _check(op, grad_y.dtype == x.dtype, f"grad_y must have the dtype of x, {x.dtype}, but is {grad_y.dtype}")
    grad_x = _new_map(x, list(x.shape)) if need_x else x.new_empty(0)
    parameters = (x.new_empty(0) if p is None else p.new_empty(p.shape) for p in args[:_PARAMETERS])
    return grad_x, *parameters


def _complete(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """Everything behind x, defaults included: where one applies the dispatcher leaves the argument out."""
    schema = _ops.fourier_feature_mixer.default._schema.arguments[1:]
    given = dict(zip((a.name for a in schema), arguments, strict=False)) | named
    return tuple(given.get(a.name, a.default_value) for a in schema)


def _complete_backward(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], bool]:
    need_x = named.pop("need_x", arguments[11] if len(arguments) > 11 else True)
    return _complete(arguments[:11], named), need_x


# --- the plain formulation, on every device without a kernel ----------------------------------------------------------


def _plain_forward(x: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
    args = _complete(arguments, named)
    _check_arguments("fourier_feature_mixer", x, *args)
    plain.warn_once(x.device.type)
    y, mean, var = plain_ffm.fourier_feature_mixer(x, *args)
    return y.contiguous(memory_format=_memory_format(x)), mean, var


def _differentiate(grad_y: Tensor, x: Tensor, args: tuple[Any, ...], need_x: bool) -> tuple[Tensor | None, ...]:
    """Gradients of the plain formulation with respect to x and the parameters; can be differentiated again."""
    operands = (x if need_x else None, *args[:_PARAMETERS])
    present = [t for t in operands if t is not None]

    def run(*given: Tensor) -> Tensor:
        rest = iter(given)
        first, *parameters = (None if t is None else next(rest) for t in operands)
        every: Any = (*parameters, *args[_PARAMETERS:])
        return plain_ffm.fourier_feature_mixer(x if first is None else first, *every)[0]

    pullback = torch.func.vjp(run, *present)[1]
    gradients = iter(pullback(grad_y))
    return tuple(None if t is None else next(gradients) for t in operands)


def _plain_backward(grad_y: Tensor, x: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, ...]:
    _backward_fake(grad_y, x, *arguments, **dict(named))
    plain.warn_once(x.device.type)
    args, need_x = _complete_backward(arguments, named)
    found = _differentiate(grad_y, x, args, need_x)
    grads = [x.new_empty(0) if g is None else g for g in found]
    return grads[0].contiguous(memory_format=_memory_format(x)) if need_x else grads[0], *grads[1:]


PLAIN: dict[str, Callable[..., Any]] = {
    "fourier_feature_mixer": _plain_forward,
    "fourier_feature_mixer_backward": _plain_backward,
}
for _op, _function in PLAIN.items():
    LIBRARY.impl(_op, _function, "CompositeExplicitAutograd")


# --- autograd ---------------------------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:9])
    ctx.behind = inputs[9:]
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_y: Tensor, *_: Any) -> tuple[Any, ...]:
    x, *parameters = ctx.saved_tensors
    args = (*parameters, *ctx.behind)
    need_x = ctx.needs_input_grad[0]
    if torch.is_grad_enabled():
        # create_graph: the kernel's gradient has no derivative of its own.
        gradients: Any = _differentiate(grad_y, x, args, need_x)
    else:
        gradients = _ops.fourier_feature_mixer_backward.default(grad_y, x, *args, need_x)
    operands = (x, *parameters[:_PARAMETERS])
    needed = zip(gradients, operands, ctx.needs_input_grad, strict=False)
    return (*(g if need and t is not None else None for g, t, need in needed), *[None] * 5)


torch.library.register_autograd(_NAME, _backward, setup_context=_save)


class FourierFeatureMixer(torch.autograd.Function):
    """The same derivative where Python itself calls the op: from there to the registered one, which is Python too, the
    dispatcher's way takes 50 us more on each call."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            output = _ops.fourier_feature_mixer.default(*inputs)
        _save(ctx, inputs, output)
        return output  # type: ignore[no-any-return]

    backward = staticmethod(_backward)


def _is_direct(operands: tuple[Any, ...]) -> bool:
    """Whether nobody stands between Python and the op who wants to see it called: no compiler, tracer, autocast, mode or
    subclass."""
    plain = all(t is None or type(t) in (Tensor, torch.nn.Parameter) for t in operands)
    plain = plain and not torch._C._len_torch_function_stack()
    eager = not torch.compiler.is_compiling() and torch._C._get_tracing_state() is None
    if not (plain and eager and torch.is_grad_enabled()):
        return False
    device = operands[0].device.type
    return device in _AUTOCAST_KEYS and not torch.is_autocast_enabled(device)


def fourier_feature_mixer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    fourier_weight_real: Tensor,
    fourier_weight_imag: Tensor,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    eps: float = 1e-5,
    stride: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:
    """LGLD-Net's Fourier feature mixer: ``SiLU(BatchNorm(m * (weight . f + bias)))`` in one pass over the image.

    ``f[i,j] = (x[:, s*i, s*j], sin(2 pi s i / H), cos(2 pi s i / H), sin(2 pi s j / W), cos(2 pi s j / W))`` with s = `stride`,
    and ``m = (fourier_weight_real, fourier_weight_imag)``, a factor per channel (A. Palai, A. Dasgupta et al., ICITA 2025, DOI
    10.1007/978-3-032-21174-3_28). No map of positions and none of the BatchNorm's input is made; gradients keep x and the
    parameters alone and are bitwise the same on every run and for any number of threads.

    Args:
        x: [B, I, H, W], float32, float64, float16 or bfloat16, any strides; 16-bit x is computed in float32.
        weight: [C, I+4] or [C, I+4, 1, 1], C even; columns as in f. This and all parameters below: any of the four dtypes.
        bias: [C] or None.
        fourier_weight_real: [C/2], factors of the first C/2 channels.
        fourier_weight_imag: [C/2], factors of the others.
        bn_weight: [C] or None, BatchNorm's factor behind normalisation.
        bn_bias: [C] or None.
        running_mean: [C], used (and then needed) where `training` is False; no gradient flows to it.
        running_var: [C], likewise.
        training: normalise with the batch's own statistics.
        eps: added to the variance.
        stride: pixels between neighbouring outputs, at least 1; LGLD-Net's is 2.

    Returns:
        The result [B, C, ceil(H/stride), ceil(W/stride)] in dtype and memory format (contiguous or channels_last) of x; the
        batch's mean [C] and its biased variance [C] of BatchNorm's input, float64 for float64 x, else float32, not
        differentiable, empty ([0]) where `training` is False. Under autocast x is cast to the autocast dtype and everything
        else stays as it is. Second derivatives and torch.func transforms are those of the plain torch formulation, which is
        slower and keeps maps.

    Raises:
        TypeError: x, weight, fourier_weight_real or fourier_weight_imag is no tensor.
        RuntimeError: an argument's shape, dtype, device or value does not fit; the message names it, what it was and what it
        must be.
    """
    check_tensor("x", x)
    check_tensor("weight", weight)
    check_tensor("fourier_weight_real", fourier_weight_real)
    check_tensor("fourier_weight_imag", fourier_weight_imag)
    args = (
        weight, bias, fourier_weight_real, fourier_weight_imag, bn_weight, bn_bias, running_mean, running_var, training, eps,
        stride,
    )  # fmt: skip
    if _transforming():
        narrow = _autocast_dtype(x)
        _check_arguments("fourier_feature_mixer", x, *args)
        with torch.autocast(x.device.type, enabled=False):
            return plain_ffm.fourier_feature_mixer(x if narrow is None else x.to(narrow), *args)
    if _is_direct((x, *args[: _PARAMETERS + 2])):
        return FourierFeatureMixer.apply(x, *args)  # type: ignore[no-any-return, no-untyped-call]
    return _ops.fourier_feature_mixer.default(x, *args)  # type: ignore[no-any-return]


# --- autocast: x in the autocast dtype, parameters and statistics as they are -----------------------------------------

_AUTOCAST_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
_REDUCED = (torch.float16, torch.bfloat16, torch.float32)


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast makes of x, None where it leaves x alone."""
    device = x.device.type
    if device not in _AUTOCAST_KEYS or not torch.is_autocast_enabled(device) or x.dtype not in _REDUCED:
        return None
    return torch.get_autocast_dtype(device)


def _autocast(device_type: str) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _AUTOCAST_KEYS[device_type]))

    def run(x: Tensor, *arguments: Any, **named: Any) -> Any:
        narrow = _autocast_dtype(x)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return _ops.fourier_feature_mixer.default(x if narrow is None else x.to(narrow), *arguments, **named)

    return run


for _device_type, _key in _AUTOCAST_KEYS.items():
    LIBRARY.impl("fourier_feature_mixer", _autocast(_device_type), _key)
