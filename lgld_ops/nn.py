"""Modules made of the ops: drop-in replacements that load the weights people already trained."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ._layer import InvolutionBase, Window, check_divides, counts
from ._layer import pair as _pair
from .ops.involution import IntOrPair, _transforming
from .ops.layer import KERNEL_SIZES, involution_layer


def _silu_backward(grad: Tensor, h: Tensor) -> Tensor:
    """grad times the derivative of SiLU at h, s + h s (1 - s) with s = sigmoid(h); torch's own has no derivative."""
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(grad, h)  # type: ignore[no-any-return]
    sigmoid = torch.sigmoid(h)
    return grad * (sigmoid * (1 + h * (1 - sigmoid)))


class _ActivatedPointwise(torch.autograd.Function):
    """conv1x1(SiLU(h)) that keeps h alone: SiLU(h) is computed again where the weight's gradient needs it."""

    @staticmethod
    def forward(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(F.silu(h), weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        h, weight = ctx.saved_tensors
        need_h, need_weight, need_bias = ctx.needs_input_grad
        # Under autocast the gradient is narrower than the parameters; compute in its dtype, return each in its own.
        narrow = h.to(grad.dtype)
        sigmoid = torch.sigmoid(narrow)
        grad_activated, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, narrow * sigmoid, weight.to(grad.dtype), [weight.shape[0]], [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
            [need_h, need_weight, need_bias],
        )  # fmt: skip
        # d SiLU(h) / dh = s + h s (1 - s), s = sigmoid(h)
        grad_h = grad_activated * (sigmoid * (1 + narrow * (1 - sigmoid))) if need_h else None
        return (
            grad_h.to(h.dtype) if grad_h is not None else None,
            grad_weight.to(weight.dtype) if need_weight else None,
            grad_bias.to(weight.dtype) if need_bias else None,
        )


class _GatedActivation(torch.autograd.Function):
    """SiLU(h) * gate that keeps h and gate alone. h [B, C, H, W], gate [B, C, 1, 1]."""

    @staticmethod
    def forward(h: Tensor, gate: Tensor) -> Tensor:
        return F.silu(h).mul_(gate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        h, gate = ctx.saved_tensors
        need_h, need_gate = ctx.needs_input_grad
        grad_gate = (grad * F.silu(h)).sum((-2, -1), keepdim=True) if need_gate else None
        return _silu_backward(grad * gate, h) if need_h else None, grad_gate


class _NormalizedActivation(torch.autograd.Function):
    """SiLU(h) of h = BatchNorm(x) in training that keeps x, as BatchNorm does too, in place of h; h becomes SiLU(h).

    Backward normalizes x again, which needs no running statistics but the weight and bias of the forward pass: a bias changed
    in place in between is an error there, as a changed weight is with BatchNorm.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        ctx.mark_dirty(h)
        return F.silu(h, inplace=True)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight, bias = ctx.saved_tensors
        h = F.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)
        return _silu_backward(grad, h), None, None, None, None


def _normalized_activation(norm: nn.Module, activation: nn.Module, x: Tensor) -> Tensor:
    """``activation(norm(x))``, without the map between them where it is SiLU of BatchNorm in eager training."""
    # Asked before the call, since a hook that removes itself in it may have kept its result.
    fits = _is_plain(norm, nn.BatchNorm2d) and _is_plain(activation, nn.SiLU) and norm.training and isinstance(x, Tensor)
    h: Tensor = norm(x)
    if not (fits and h.dtype == x.dtype and h.requires_grad and _recomputes()):
        return activation(h)  # type: ignore[no-any-return]
    norm = cast("nn.BatchNorm2d", norm)
    return _NormalizedActivation.apply(h, x, norm.weight, norm.bias, norm.eps)  # type: ignore[no-any-return, no-untyped-call]


def _recomputes() -> bool:
    """Whether the functions above are worth it: eager training. Compilers and tracers choose for themselves what is kept.

    Not in transforms: the functions have no forward-mode derivative.
    """
    eager = not torch.compiler.is_compiling() and torch._C._get_tracing_state() is None
    return torch.is_grad_enabled() and eager and not _transforming()


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` does what its class says and nothing else: no subclass, no hook, no forward of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is kind and not any(hooks) and "forward" not in vars(module)


def _is_pointwise(module: nn.Module) -> bool:
    """Whether `module` is a 1x1 convolution with bias, one group, stride 1, no padding, and nothing attached to it."""
    return (
        isinstance(module, nn.Conv2d)
        and _is_plain(module, nn.Conv2d)
        and (module.kernel_size, module.stride, module.padding, module.groups) == ((1, 1), (1, 1), (0, 0), 1)
        and module.bias is not None
    )


class Involution2d(InvolutionBase):
    """Involution layer that generates its kernels from its input; drop-in for LGLD-Net's `InvolutionLayer`.

    ``kernel = conv1x1(SiLU(conv1x1(conv1x1(pool(x)))))`` with `reduction` times fewer channels between the convolutions,
    then `lgld_ops.involution2d`. With a stride, `pool` is the mean over stride x stride pixels, border blocks averaging the
    pixels they have, so that every image size works. [B, channels, H, W] -> [B, channels, ceil(H/stride), ceil(W/stride)],
    float16, bfloat16, float32 or float64. Source: LGLD-Net's published code (ICITA 2025); stride and groups as in Li et al.,
    CVPR 2021.

    Args:
        channels: channels of input and output.
        kernel_size: rows and columns of the window, an int or a pair.
        reduction: the generator has ``channels // reduction`` hidden channels.
        stride: pixels between outputs, an int or a pair.
        padding: zeros around the input; None is "same": ``dilation * (kernel_size - 1) / 2``, which keeps
            ``ceil(H / stride)`` rows and likewise columns.
        dilation: pixels between the window's taps, an int or a pair.
        groups: groups of channels that share kernels; divides `channels`.

    Setting the attribute `fused` to True generates and applies the kernels in one op, `torch.ops.lgld_ops.involution_layer`,
    which on CUDA holds no map of kernels in memory (docs/gpu.md: in backward too, where asked for); it is off since no
    measurement says yet where it wins. It needs a square `kernel_size` of 3, 5 or 7, "same" padding, stride, dilation and
    groups of 1, and the generator as it was built; else calling the layer is a ValueError.

    Calling it with x of other dimensions or channels, or with a given `padding` that makes more or fewer windows than there
    are kernels, is a ValueError.

    State dict: ``reduce.*``, ``shared_mlp.0.*``, ``shared_mlp.2.*``, the keys of LGLD-Net's published code.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range; the message names it, what it was and what it must be.
    """

    _remedy = ", one per block of stride x stride pixels; padding=None makes them equal"
    fused: bool = False

    def __init__(
        self,
        channels: int,
        kernel_size: IntOrPair = 3,
        reduction: int = 4,
        *,
        stride: IntOrPair = 1,
        padding: IntOrPair | None = None,
        dilation: IntOrPair = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        channels, reduction, groups = counts(channels=channels, reduction=reduction, groups=groups)
        check_divides("groups", groups, "channels", channels)
        if channels < reduction:
            raise ValueError(f"reduction must be at most channels, {channels}, but is {reduction}")
        self.channels, self.reduction, self.groups = channels, reduction, groups
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride = _pair("stride", stride, 1)
        self.dilation = _pair("dilation", dilation, 1)
        if padding is None:
            reach = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
            if any(r % 2 for r in reach):
                raise ValueError(
                    "padding must be given where dilation * (kernel_size - 1) is odd, since none keeps the size: "
                    f"kernel_size is {kernel_size!r}, dilation is {dilation!r}"
                )
            self.padding = (reach[0] // 2, reach[1] // 2)
        else:
            self.padding = _pair("padding", padding, 0)
        self._window = Window(channels, self.kernel_size, self.stride, self.padding, self.dilation, groups)
        hidden = channels // reduction
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.shared_mlp = nn.Sequential(
            nn.Conv2d(hidden, hidden, 1),
            nn.SiLU(),
            nn.Conv2d(hidden, groups * self.kernel_size[0] * self.kernel_size[1], 1),
        )

    def _generator_is_as_built(self) -> bool:
        """Whether the generator's modules can be evaluated together: nobody exchanged one or listens to one."""
        if _has_any_global_hook() or not _is_plain(self.shared_mlp, nn.Sequential) or len(self.shared_mlp) != 3:
            return False
        mix, activation, span = self.shared_mlp
        return _is_plain(activation, nn.SiLU) and all(_is_pointwise(conv) for conv in (self.reduce, mix, span))

    def kernel(self, x: Tensor) -> Tensor:
        """The generated kernels [B, groups*Kh*Kw, ceil(H/stride), ceil(W/stride)] for x [B, C, H, W]."""
        return self._kernel(self._pooled(x))

    def _pooled(self, x: Tensor, grid: object = None) -> Tensor:
        stride = self._window.stride
        return x if stride == (1, 1) else F.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False)

    def _kernel(self, pooled: Tensor) -> Tensor:
        if not self._generator_is_as_built():
            return self.shared_mlp(self.reduce(pooled))  # type: ignore[no-any-return]
        _, activation, span = cast("tuple[nn.Conv2d, nn.SiLU, nn.Conv2d]", tuple(self.shared_mlp))
        weight, bias = self._hidden()
        hidden = F.conv2d(pooled, weight[..., None, None], bias)
        if not _recomputes():
            return F.conv2d(activation(hidden), span.weight, span.bias)
        return _ActivatedPointwise.apply(hidden, span.weight, span.bias)  # type: ignore[no-any-return, no-untyped-call]

    def _hidden(self) -> tuple[Tensor, Tensor]:
        """Weight [D, C] and bias [D] of the convolution in front of SiLU.

        Nothing stands between the first two convolutions: W1 (W0 x + b0) + b1 = (W1 W0) x + (W1 b0 + b1).
        """
        squeeze, mix = self.reduce, cast("nn.Conv2d", self.shared_mlp[0])
        w1 = mix.weight.flatten(1)
        return w1 @ squeeze.weight.flatten(1), torch.mv(w1, cast("Tensor", squeeze.bias)) + cast("Tensor", mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, ceil(H/stride), ceil(W/stride)], one pixel for each window.

        Raises:
            TypeError: x is no tensor, or its dtype is not floating-point.
            ValueError: x has other dimensions or channels, makes more or fewer windows than there are kernels, or `fused` is
                set where it cannot be.
        """
        if not self.fused:
            return super().forward(x)
        w, size = self._window, self._window.kernel_size[0]
        fusable = Window(w.channels, (size, size), (1, 1), (size // 2, size // 2), (1, 1), 1)
        if w != fusable or size not in KERNEL_SIZES or not self._generator_is_as_built():
            raise ValueError(
                "fused must be False where kernel_size is not 3, 5 or 7 and square, padding is not 'same', stride, dilation or "
                f"groups are not 1, or the generator's modules were changed, but is True for {self}"
            )
        self._checked_pool(x)
        span = cast("nn.Conv2d", self.shared_mlp[2])
        return involution_layer(x, *self._hidden(), span.weight.flatten(1), cast("Tensor", span.bias), size)

    def extra_repr(self) -> str:
        """The constructor's arguments, as nn.Module prints them."""
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, reduction={self.reduction}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}"
        )
