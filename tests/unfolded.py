"""The public implementations of involution as their sources compute it, with `unfold`: oracles, and models to accelerate.

Written from the formula and from what is public about each source: names of children and attributes, defaults, layers. Each
fails where its source fails. LGLD-Net's own is `lgld_ops.reference.InvolutionLayer`.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair


def weighted(kernel: Tensor, windows: Tensor, groups: int, channels: int, taps: int) -> Tensor:
    """Sum over the taps of windows [B, C*taps, L] times kernel [B, groups*taps, h, w]."""
    batch, _, height, width = kernel.shape
    windows = windows.view(batch, groups, channels // groups, taps, height, width)
    return (kernel.view(batch, groups, 1, -1, height, width) * windows).sum(3).flatten(1, 2)


class ConvModule(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, norm: bool, *, kernel_size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=not norm)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.bn = nn.BatchNorm2d(out_channels) if norm else None
        self.activate = nn.ReLU(inplace=True) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.bn is None else self.activate(self.bn(x))


class DLi14(nn.Module):
    """d-li14's, the detection variant with dilation."""

    def __init__(self, channels: int, kernel_size: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.channels = kernel_size, stride, channels
        self.group_channels, self.groups = 16, channels // 16
        self.conv1 = ConvModule(channels, channels // 4, True)
        self.conv2 = ConvModule(channels // 4, kernel_size**2 * self.groups, False)
        if stride > 1:
            self.avgpool = nn.AvgPool2d(stride, stride)
        self.unfold = nn.Unfold(kernel_size, dilation, dilation * (kernel_size - 1) // 2, stride)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.conv2(self.conv1(x if self.stride == 1 else self.avgpool(x)))
        return weighted(kernel, self.unfold(x), self.groups, self.channels, self.kernel_size**2)


class TimmConvBnAct(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, norm_layer: Any, act_layer: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = norm_layer(out_channels)
        self.act = act_layer(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Timm(nn.Module):
    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        group_size: int = 16,
        rd_ratio: int = 4,
        norm_layer: Any = nn.BatchNorm2d,
        act_layer: Any = nn.ReLU,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.channels, self.group_size = kernel_size, stride, channels, group_size
        self.groups = channels // group_size
        self.conv1 = TimmConvBnAct(channels, channels // rd_ratio, norm_layer, act_layer)
        self.conv2 = self.conv = nn.Conv2d(channels // rd_ratio, kernel_size**2 * self.groups, 1, bias=False)
        self.avgpool = nn.AvgPool2d(stride, stride) if stride == 2 else nn.Identity()
        self.unfold = nn.Unfold(kernel_size, 1, (kernel_size - 1) // 2, stride)

    def forward(self, x: Tensor) -> Tensor:
        return weighted(
            self.conv2(self.conv1(self.avgpool(x))), self.unfold(x), self.groups, self.channels, self.kernel_size**2
        )


class ChristophReich1996(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        sigma_mapping: nn.Module | None = None,
        kernel_size: Any = (7, 7),
        stride: Any = (1, 1),
        groups: int = 1,
        reduce_ratio: int = 1,
        dilation: Any = (1, 1),
        padding: Any = (3, 3),
        bias: bool = False,
        force_shape_match: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.dilation, self.padding = _pair(dilation), _pair(padding)
        self.force_shape_match = force_shape_match
        hidden = out_channels // reduce_ratio
        self.sigma_mapping = sigma_mapping or nn.Sequential(nn.BatchNorm2d(hidden, momentum=0.3), nn.ReLU())
        self.initial_mapping = (
            nn.Conv2d(in_channels, out_channels, 1, bias=bias) if in_channels != out_channels else nn.Identity()
        )
        self.o_mapping = nn.AvgPool2d(self.stride, self.stride)
        self.reduce_mapping = nn.Conv2d(in_channels, hidden, 1, bias=bias)
        self.span_mapping = nn.Conv2d(hidden, self.kernel_size[0] * self.kernel_size[1] * groups, 1, bias=bias)
        self.unfold = nn.Unfold(self.kernel_size, self.dilation, self.padding, self.stride)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        grid = [
            (size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel_size[i] - 1) - 1) // self.stride[i] + 1
            for i in range(2)
        ]
        taps = self.kernel_size[0] * self.kernel_size[1]
        windows = self.unfold(self.initial_mapping(x)).view(
            x.shape[0], self.groups, self.out_channels // self.groups, taps, *grid
        )
        if getattr(self, "force_shape_match", False):
            x = F.adaptive_avg_pool2d(x, grid)
        kernel = self.span_mapping(self.sigma_mapping(self.reduce_mapping(self.o_mapping(x))))
        return (kernel.view(x.shape[0], self.groups, 1, taps, *kernel.shape[2:]) * windows).sum(3).flatten(1, 2)


class Shikishima(ChristophReich1996):
    """The same layer with another order of arguments (the source computes it in C++)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any = 7,
        stride: Any = 1,
        padding: Any = 3,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = False,
        sigma_mapping: nn.Module | None = None,
        reduce_ratio: int = 1,
    ) -> None:
        super().__init__(
            in_channels, out_channels, sigma_mapping, kernel_size, stride, groups, reduce_ratio, dilation, padding, bias
        )
        del self.force_shape_match


class Holocron(nn.Module):
    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        padding: int = 0,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        reduction_ratio: float = 1,
    ) -> None:
        super().__init__()
        self.groups, self.k_size = groups, kernel_size
        self.pool = nn.AvgPool2d(stride, stride) if stride > 1 else None
        hidden = int(in_channels // reduction_ratio)
        self.reduce = nn.Conv2d(in_channels, hidden, 1)
        self.span = nn.Conv2d(hidden, kernel_size**2 * groups, 1)
        self.unfold = nn.Unfold(kernel_size, dilation, padding, stride)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.span(self.reduce(x if self.pool is None else self.pool(x)))
        # The source leaves the number of taps to the reshape, too.
        return weighted(kernel, self.unfold(x), self.groups, x.shape[1], -1)


# --- RedNet (D. Li et al., CVPR 2021, section 4.1 and table 1): ResNet bottlenecks whose 3x3 convolution is an involution -----


class Bottleneck(nn.Module):
    def __init__(self, in_channels: int, middle: int, stride: int, involution: Any) -> None:
        super().__init__()
        out_channels = 4 * middle
        self.conv1 = nn.Conv2d(in_channels, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = involution(middle, 7, stride)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
            if stride != 1 or in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class RedNet(nn.Module):
    """RedNet-26 by default: one, two, four and one bottleneck, K = 7; stem convolution, involution (K = 3), convolution."""

    def __init__(
        self, blocks: tuple[int, ...] = (1, 2, 4, 1), width: int = 64, num_classes: int = 1000, involution: Any = DLi14
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvModule(3, width // 2, True, kernel_size=3, stride=2),
            involution(width // 2, 3, 1),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(inplace=True),
            ConvModule(width // 2, width, True, kernel_size=3),
            nn.MaxPool2d(3, 2, 1),
        )
        channels, stages = width, []
        for i, depth in enumerate(blocks):
            middle = width * 2**i
            for j in range(depth):
                stages.append(Bottleneck(channels, middle, 2 if i > 0 and j == 0 else 1, involution))
                channels = 4 * middle
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))
