"""`Involution2d` of github.com/ChristophReich1996/Involution (MIT licence)."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from ..ops.involution import IntOrPair
from ._mapped import MappedInvolution

__all__ = ["Involution2d"]


class Involution2d(MappedInvolution):
    """ChristophReich1996's involution, with a projection where input and output have different channels.

    ``kernel = conv1x1(sigma(conv1x1(pool(x))))`` and ``y = involution2d(conv1x1(x), kernel)``, the last convolution only where
    ``in_channels != out_channels`` (Li et al., CVPR 2021, eq. 4 to 6). [B, in_channels, H, W] -> [B, out_channels, Ho, Wo] with
    Ho, Wo as for `lgld_ops.involution2d`; every floating dtype that it takes.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        sigma_mapping: module between the generator's convolutions; None for BatchNorm2d with momentum 0.3, then ReLU.
        kernel_size: rows and columns of the window, an int or a pair.
        stride: pixels between outputs, an int or a pair.
        groups: groups of channels that share kernels; divides in_channels and out_channels.
        reduce_ratio: the generator has ``out_channels // reduce_ratio`` hidden channels.
        dilation: pixels between the window's taps, an int or a pair.
        padding: zeros around the input, an int or a pair. As in the source it stays 3 whatever `kernel_size` is; where that
            makes more windows than kernels (padding 3 with kernel_size 3), calling the module is a ValueError.
        bias: whether the 1x1 convolutions have a bias; the involution itself has none.
        force_shape_match: pool x to one pixel per window, adaptively, so that every size and padding has its kernels. With a
            stride the source pools twice and then fails; here the second pooling is left out. It stays an error where the
            source would broadcast a single row or column of kernels.
        kwargs: ignored with a warning; the source ignores them silently.

    State dict: ``sigma_mapping.0.*`` (BatchNorm), ``initial_mapping.*`` where there is a projection, ``reduce_mapping.*``,
    ``span_mapping.*``.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range, or x doesn't fit.
    """

    _remedy = "; give padding = dilation * (kernel_size - 1) / 2 and sizes the stride divides, or force_shape_match=True"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        sigma_mapping: nn.Module | None = None,
        kernel_size: IntOrPair = (7, 7),
        stride: IntOrPair = (1, 1),
        groups: int = 1,
        reduce_ratio: int = 1,
        dilation: IntOrPair = (1, 1),
        padding: IntOrPair = (3, 3),
        bias: bool = False,
        force_shape_match: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if not isinstance(force_shape_match, bool):
            raise TypeError(f"force_shape_match must be a bool, but is {force_shape_match!r}")
        if kwargs:
            warnings.warn(f"Involution2d ignores {', '.join(sorted(kwargs))}", stacklevel=2)
        self.force_shape_match = force_shape_match
        self._build(
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            sigma_mapping=sigma_mapping,
            reduce_ratio=reduce_ratio,
        )
