"""`Involution` of timm 0.4.12 (github.com/huggingface/pytorch-image-models; Apache 2.0)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .._layer import InvolutionBase, Window, check_divides, counts

__all__ = ["Involution"]


class _ConvBnAct(nn.Module):
    """1x1 convolution without bias, norm, activation: names of timm's `ConvBnAct`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm_layer: Callable[..., nn.Module],
        act_layer: Callable[..., nn.Module] | None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = norm_layer(out_channels)
        self.act = None if act_layer is None else act_layer(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.act is None else self.act(x)  # type: ignore[no-any-return]


class Involution(InvolutionBase):
    """timm's involution: the paper's layer with free group size, reduction, norm and activation.

    ``kernel = conv1x1(act(norm(conv1x1(pool(x)))))``, both convolutions without bias; then `lgld_ops.involution2d` with
    ``padding = (kernel_size - 1) // 2`` (Li et al., CVPR 2021, eq. 4 to 6). [B, channels, H, W] -> [B, channels, H // stride,
    W // stride]; every floating dtype that `lgld_ops.involution2d` takes.

    Args:
        channels: channels of input and output, a multiple of `group_size`.
        kernel_size: rows and columns of the window, odd.
        stride: pixels between outputs. The source pools at stride 2 only, so that larger strides fit no kernel map and are a
            ValueError when called, like a stride of 2 with an odd H or W.
        group_size: channels that share a kernel.
        rd_ratio: the generator has ``channels // rd_ratio`` hidden channels.
        norm_layer: called with the number of hidden channels.
        act_layer: called with ``inplace=True``; None for no activation.

    State dict: ``conv1.conv.weight``, ``conv1.bn.*``, ``conv2.weight``, and ``conv.weight``, which is ``conv2.weight`` again:
    the source registers that convolution under two names.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range, or x doesn't fit.
    """

    _remedy = "; give an odd kernel_size, and at stride 2 an even image size (the source pools at stride 2 only)"

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        group_size: int = 16,
        rd_ratio: int = 4,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        act_layer: Callable[..., nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        channels, kernel_size, stride, group_size, rd_ratio = counts(
            channels=channels, kernel_size=kernel_size, stride=stride, group_size=group_size, rd_ratio=rd_ratio
        )
        check_divides("group_size", group_size, "channels", channels)
        if not callable(norm_layer):
            raise TypeError(f"norm_layer must be a class or function that makes a module of a number, but is {norm_layer!r}")
        if channels < rd_ratio:
            raise ValueError(f"rd_ratio must be at most channels, {channels}, but is {rd_ratio}")
        self.kernel_size, self.stride, self.channels, self.group_size = kernel_size, stride, channels, group_size
        self.groups = channels // group_size
        padding = (kernel_size - 1) // 2
        self._window = Window(channels, (kernel_size,) * 2, (stride,) * 2, (padding,) * 2, (1, 1), self.groups)
        self.conv1 = _ConvBnAct(channels, channels // rd_ratio, norm_layer, act_layer)
        self.conv2 = self.conv = nn.Conv2d(channels // rd_ratio, kernel_size**2 * self.groups, 1, bias=False)
        self.avgpool: nn.Module = nn.AvgPool2d(stride, stride) if stride == 2 else nn.Identity()

    def _pooled(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.avgpool(x)  # type: ignore[no-any-return]

    def _kernel(self, pooled: Tensor) -> Tensor:
        return self.conv2(self.conv1(pooled))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The geometry, as nn.Module prints it."""
        return f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, group_size={self.group_size}"
