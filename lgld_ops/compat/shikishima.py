"""`Involution2d` of github.com/shikishima-TasakiLab/Involution-PyTorch (C++/CUDA; MIT licence)."""

from __future__ import annotations

from torch import nn

from ..ops.involution import IntOrPair
from ._mapped import MappedInvolution

__all__ = ["Involution2d"]


class Involution2d(MappedInvolution):
    """shikishima-TasakiLab's involution: ChristophReich1996's layer with another order of arguments.

    ``kernel = conv1x1(sigma(conv1x1(pool(x))))`` and ``y = involution2d(conv1x1(x), kernel)``, the last convolution only where
    ``in_channels != out_channels`` (Li et al., CVPR 2021, eq. 4 to 6). [B, in_channels, H, W] -> [B, out_channels, Ho, Wo] with
    Ho, Wo as for `lgld_ops.involution2d`; every floating dtype that it takes.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: rows and columns of the window, an int or a pair.
        stride: pixels between outputs, an int or a pair.
        padding: zeros around the input, an int or a pair. As in the source it stays 3 whatever `kernel_size` is; where that
            makes more windows than kernels (padding 3 with kernel_size 3), calling the module is a ValueError.
        dilation: pixels between the window's taps, an int or a pair.
        groups: groups of channels that share kernels; divides in_channels and out_channels.
        bias: whether the 1x1 convolutions have a bias; the involution itself has none.
        sigma_mapping: module between the generator's convolutions; None for BatchNorm2d with momentum 0.3, then ReLU.
        reduce_ratio: the generator has ``out_channels // reduce_ratio`` hidden channels.

    State dict: ``sigma_mapping.0.*`` (BatchNorm), ``initial_mapping.*`` where there is a projection, ``reduce_mapping.*``,
    ``span_mapping.*``.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range, or x doesn't fit.
    """

    _remedy = "; give padding = dilation * (kernel_size - 1) / 2 and sizes the stride divides"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair = 7,
        stride: IntOrPair = 1,
        padding: IntOrPair = 3,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = False,
        sigma_mapping: nn.Module | None = None,
        reduce_ratio: int = 1,
    ) -> None:
        super().__init__()
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
