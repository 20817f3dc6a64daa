"""LGLD-Net's Fourier feature mixer as a module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from . import reference
from ._layer import counts
from .nn import _is_plain
from .ops.ffm import fourier_feature_mixer
from .ops.involution import check_tensor


def _is_projection(module: nn.Module, stride: int) -> bool:
    """Whether `module` is a 1x1 convolution of one group without padding, with nothing attached to it."""
    return (
        isinstance(module, nn.Conv2d)
        and _is_plain(module, nn.Conv2d)
        and (module.kernel_size, module.stride, module.padding, module.groups) == ((1, 1), (stride, stride), (0, 0), 1)
    )


class FourierFeatureMixer(reference.FourierFeatureMixer):
    """Fourier feature mixer, LGLD-Net's global stem; drop-in for the published code's block.

    ``SiLU(BatchNorm(m * conv1x1(concat(x, sines and cosines of the pixel grid))))`` with a factor m per channel, as
    `lgld_ops.fourier_feature_mixer` computes it: in one pass over the image, keeping nothing but the image for backward.
    [B, in_channels, H, W] -> [B, out_channels, ceil(H/stride), ceil(W/stride)], float16, bfloat16, float32 or float64. Source:
    A. Palai, A. Dasgupta et al., ICITA 2025, DOI 10.1007/978-3-032-21174-3_28.

    Args:
        in_channels: channels of the image.
        out_channels: C, even.
        stride: pixels between neighbouring outputs, at least 1; LGLD-Net's is 2.

    State dict: ``proj.*``, ``bn.*``, ``fourier_weight_real``, ``fourier_weight_imag``, the keys of LGLD-Net's published code.
    `bn` is an `nn.BatchNorm2d` that may be configured as one is (momentum, eps, affine, track_running_stats); its buffers are
    updated as it would update them. Where somebody exchanged `proj` or `bn` for another kind of module, or hooks one, and where
    `bn` has one running statistic without the other or no positive eps, the modules are called one by one, as published.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range; the message names it, what it was and what it must be.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 64, *, stride: int = 2) -> None:
        in_channels, out_channels, stride = counts(in_channels=in_channels, out_channels=out_channels, stride=stride)
        if out_channels % 2:
            raise ValueError(f"out_channels must be even, but is {out_channels}")
        super().__init__(in_channels, out_channels)
        self.proj.stride = (stride, stride)
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def _is_as_built(self) -> bool:
        """Whether the modules can be evaluated together: nobody exchanged one or listens to one, and the op takes them."""
        bn = self.bn  # looking it up takes a microsecond each time
        return (
            _is_projection(self.proj, self.stride)
            and _is_plain(bn, nn.BatchNorm2d)
            and (bn.running_mean is None) == (bn.running_var is None)
            and 0 < bn.eps < math.inf
            and _is_plain(self.act, nn.SiLU)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, ceil(H/stride), ceil(W/stride)].

        Raises:
            TypeError: x is no tensor.
            ValueError: x has other dimensions or channels, or training on one value per channel.
        """
        check_tensor("x", x)
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must have shape [B, {self.in_channels}, H, W], but has {list(x.shape)}")
        if _has_any_global_hook() or not self._is_as_built():
            return super().forward(x)
        proj, bn = self.proj, self.bn
        training = bn.training or bn.running_mean is None
        rows, columns = (-(-extent // self.stride) for extent in x.shape[2:])
        if training and x.shape[0] * rows * columns == 1:
            return super().forward(x)  # counts the batch, then raises
        y, mean, var = fourier_feature_mixer(
            x,
            proj.weight,
            proj.bias,
            self.fourier_weight_real,
            self.fourier_weight_imag,
            bn.weight,
            bn.bias,
            None if training else bn.running_mean,
            None if training else bn.running_var,
            training,
            bn.eps,
            self.stride,
        )
        if bn.training and bn.track_running_stats:
            self._update(mean, var, x.shape[0] * rows * columns)
        return y

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Moves the running statistics as BatchNorm2d does: towards the mean and the unbiased variance of `count` values."""
        bn = self.bn
        batches, running_mean, running_var = bn.num_batches_tracked, bn.running_mean, bn.running_var
        if batches is not None:
            batches.add_(1)
        if running_mean is None or running_var is None or count == 0:
            return
        share = bn.momentum
        if share is None:  # the mean over all batches; BatchNorm2d moves nothing where they are not counted
            share = 0.0 if batches is None else 1.0 / float(batches)
        running_mean.mul_(1 - share).add_(mean.to(running_mean.dtype), alpha=share)
        running_var.mul_(1 - share).add_(var.to(running_var.dtype), alpha=share * count / (count - 1))

    def extra_repr(self) -> str:
        """The constructor's arguments, as nn.Module prints them."""
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"
