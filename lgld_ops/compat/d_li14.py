"""`involution` of the paper's own repository, github.com/d-li14/involution (RedNet; MIT licence)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from .._layer import InvolutionBase, Window, check_divides, counts

__all__ = ["involution"]


class _ConvModule(nn.Module):
    """1x1 convolution, then BatchNorm and ReLU where `norm`: names, bias and initial weights of mmcv's `ConvModule`."""

    def __init__(self, in_channels: int, out_channels: int, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=not norm)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if norm:
            self.bn = nn.BatchNorm2d(out_channels)
            self.activate = nn.ReLU(inplace=True)
        else:
            nn.init.zeros_(cast("Tensor", self.conv.bias))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.activate(self.bn(x)) if hasattr(self, "bn") else x  # type: ignore[no-any-return]


class involution(InvolutionBase):
    """The paper's involution: 16 channels share a kernel, and a generator of ``channels // 4`` hidden channels makes it.

    ``kernel = conv1x1(ReLU(BN(conv1x1(pool(x)))))``, the first convolution without bias, `pool` the mean over stride x stride
    pixels; then `lgld_ops.involution2d` with ``padding = dilation * (kernel_size - 1) // 2`` (Li et al., CVPR 2021, eq. 4
    to 6). [B, channels, H, W] -> [B, channels, H // stride, W // stride]; every floating dtype that `lgld_ops.involution2d`
    takes.

    Args:
        channels: channels of input and output, a multiple of 16.
        kernel_size: rows and columns of the window, odd.
        stride: pixels between outputs. H and W have to be multiples of it: otherwise there are more windows than kernels, which
            the source reshapes wrongly or reads out of bounds, and which is a ValueError here.
        dilation: pixels between taps (the detection variant's fourth argument).

    State dict: ``conv1.conv.weight``, ``conv1.bn.*``, ``conv2.conv.weight``, ``conv2.conv.bias``.

    Raises:
        TypeError: an argument is no int.
        ValueError: an argument is out of range, or x doesn't fit.
    """

    _remedy = "; give an odd kernel_size and an image whose size the stride divides"

    def __init__(self, channels: int, kernel_size: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        channels, kernel_size, stride, dilation = counts(
            channels=channels, kernel_size=kernel_size, stride=stride, dilation=dilation
        )
        self.group_channels = 16
        check_divides("the number of channels that share a kernel", self.group_channels, "channels", channels)
        self.channels, self.kernel_size, self.stride, self.dilation = channels, kernel_size, stride, dilation
        self.groups = channels // self.group_channels
        padding = dilation * (kernel_size - 1) // 2
        self._window = Window(channels, (kernel_size,) * 2, (stride,) * 2, (padding,) * 2, (dilation,) * 2, self.groups)
        self.conv1 = _ConvModule(channels, channels // 4, norm=True)
        self.conv2 = _ConvModule(channels // 4, kernel_size**2 * self.groups, norm=False)
        if stride > 1:
            self.avgpool = nn.AvgPool2d(stride, stride)

    def _pooled(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.avgpool(x) if hasattr(self, "avgpool") else x  # type: ignore[no-any-return]

    def _kernel(self, pooled: Tensor) -> Tensor:
        return self.conv2(self.conv1(pooled))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The constructor's arguments, as nn.Module prints them."""
        return f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"
