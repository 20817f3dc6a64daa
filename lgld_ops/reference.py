"""LGLD-Net as published, block by block, in plain PyTorch.

A. Palai, A. Dasgupta et al., "LGLD-Net", ICITA 2025, DOI 10.1007/978-3-032-21174-3_28.

This file is the specification that everything else in the package is compared with: no custom op, no folding,
no rearranged algebra. Module and parameter names are those of the published code, so published state dicts
load with ``strict=True``.

Shapes below: an image is ``[B, in_channels, H, W]`` with values in [0, 1]; ``C`` is ``base_channels``; every
feature map behind the two stems is ``[B, C, ceil(H/2), ceil(W/2)]``. Any floating-point dtype works, and any
height and width from 1 on.

With 4 classes the network has 152,975 parameters (the paper says 161 K, which the published code does not
have) and does 1,878,792,704 multiply-adds for a 224 x 224 image as fvcore counts them, which skips the
involution itself (7.2 M). The paper's "1.88 GFLOPs" are these multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import ClassVar, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "GCE",
    "IPS",
    "LFA",
    "LGFM",
    "FourierFeatureMixer",
    "InvolutionLayer",
    "LGLDNet",
    "involution2d_unfold",
]


def _pair(name: str, value: int | Sequence[int], minimum: int) -> tuple[int, int]:
    """``value`` as (vertical, horizontal), each an int of at least ``minimum``."""
    given = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(given) != 2:
        raise ValueError(f"{name} must be one int or two, got {value!r}")
    for item in given:
        if isinstance(item, bool) or not isinstance(item, SupportsIndex):
            raise TypeError(f"{name} must be one int or two, got {value!r}")
        if item < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return index(given[0]), index(given[1])


def _count(name: str, value: int, minimum: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return index(value)


def involution2d_unfold(
    x: Tensor,
    weight: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Involution by its definition: unfold ``x``, multiply by the kernel map, sum over the window.

    With ``T = Kh*Kw`` taps, ``t = u*Kw + v``, and channel c in group ``g = c // (C // groups)``::

        out[b, c, i, j] = sum_t weight[b, g*T + t, i, j] * x[b, c, i*sh - ph + u*dh, j*sw - pw + v*dw]

    where ``x`` is zero outside the image (D. Li et al., "Involution", CVPR 2021). The products of all taps
    are held at once, T times the size of the output, so this is the oracle and not a product.

    Args:
        x: ``[B, C, H, W]``, floating point; strides are free.
        weight: ``[B, groups*Kh*Kw, Ho, Wo]``, group-major. Mixed dtypes promote as in ``x * weight``.
        kernel_size: one int or (Kh, Kw), pixels, at least 1.
        stride: one int or (sh, sw), at least 1.
        padding: zeros on each side, one int or (ph, pw), at least 0.
        dilation: distance between taps, one int or (dh, dw), at least 1.
        groups: how many groups of channels have a kernel of their own; divides C.

    Returns:
        ``[B, C, Ho, Wo]`` with ``Ho = (H + 2*ph - dh*(Kh-1) - 1) // sh + 1``, and ``Wo`` likewise.

    Raises:
        TypeError: ``x`` or ``weight`` is no floating-point tensor, or another argument is not made of ints.
        ValueError: an argument is out of range, the window exceeds the padded image, or ``weight`` has
            another shape.
    """
    for name, tensor in (("x", x), ("weight", weight)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions, got shape {tuple(tensor.shape)}")
    kh, kw = _pair("kernel_size", kernel_size, 1)
    sh, sw = _pair("stride", stride, 1)
    ph, pw = _pair("padding", padding, 0)
    dh, dw = _pair("dilation", dilation, 1)
    groups = _count("groups", groups)
    batch, channels, height, width = x.shape
    if channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of x, got {groups}")
    ho = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    wo = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    if ho < 1 or wo < 1:
        raise ValueError(
            f"kernel_size {(kh, kw)} with dilation {(dh, dw)} must fit into x of {height} x {width} with padding {(ph, pw)}"
        )
    taps = kh * kw
    expected = (batch, groups * taps, ho, wo)
    if tuple(weight.shape) != expected:
        raise ValueError(f"weight must have shape {expected}, got {tuple(weight.shape)}")
    windows = F.unfold(x, (kh, kw), (dh, dw), (ph, pw), (sh, sw))
    windows = windows.view(batch, groups, channels // groups, taps, ho, wo)
    product = windows * weight.reshape(batch, groups, 1, taps, ho, wo)
    return product.sum(dim=3).reshape(batch, channels, ho, wo)


class InvolutionLayer(nn.Module):
    """Involution with one kernel per pixel, made from the pixel itself and shared by all channels.

    ``kernel = conv1x1(SiLU(conv1x1(conv1x1(x))))`` with C, C/reduction, C/reduction and K*K channels, all
    with bias; then the weighted sum over the K x K window with zero padding. ``[B, channels, H, W]`` in and
    out.

    Args:
        channels: C, at least ``reduction``.
        kernel_size: K, odd.
        reduction: ratio of C to the hidden channels.
    """

    def __init__(self, channels: int, kernel_size: int = 3, reduction: int = 4) -> None:
        super().__init__()
        reduction = _count("reduction", reduction)
        channels = _count("channels", channels, minimum=reduction)
        kernel_size = _count("kernel_size", kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd (the output keeps the size of the input), got {kernel_size}")
        hidden = channels // reduction
        self.kernel_size = kernel_size
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.shared_mlp = nn.Sequential(
            nn.Conv2d(hidden, hidden, 1),
            nn.SiLU(),
            nn.Conv2d(hidden, kernel_size**2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.shared_mlp(self.reduce(x))
        return involution2d_unfold(x, kernel, self.kernel_size, padding=self.kernel_size // 2)


class IPS(nn.Module):
    """Involution patch stem, ``[B, in_channels, H, W] -> [B, C, ceil(H/2), ceil(W/2)]``.

    ``SiLU(BN(involution(conv3x3 stride 2 (x))))``.

    Args:
        in_channels: channels of the image.
        out_channels: C.
        involution_type: the layer to use, called with C; its state-dict keys must be those of
            ``InvolutionLayer``.
    """

    def __init__(self, in_channels: int, out_channels: int, *, involution_type: type[nn.Module] = InvolutionLayer) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.invo = involution_type(out_channels)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.invo(self.conv(x))))
        return out


class FourierFeatureMixer(nn.Module):
    """Global stem, ``[B, in_channels, H, W] -> [B, C, ceil(H/2), ceil(W/2)]``.

    Appends the four maps sin(2 pi i/H), cos(2 pi i/H), sin(2 pi j/W), cos(2 pi j/W) to the image, mixes
    pointwise with stride 2, scales the lower half of the channels by ``fourier_weight_real`` and the upper
    half by ``fourier_weight_imag`` (both ``[C/2]``), then BN and SiLU.

    The angles and their sines are computed in float32 whatever the dtype of ``x``, as in the published code;
    a float64 evaluation therefore agrees with exact sines to about 5e-7 only.

    Args:
        in_channels: channels of the image.
        out_channels: C, even.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        out_channels = _count("out_channels", out_channels)
        if out_channels % 2:
            raise ValueError(f"out_channels must be even, got {out_channels}")
        self.proj = nn.Conv2d(in_channels + 4, out_channels, 1, stride=2)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.SiLU()
        self.fourier_weight_real = nn.Parameter(torch.randn(out_channels // 2))
        self.fourier_weight_imag = nn.Parameter(torch.randn(out_channels // 2))

    @staticmethod
    def position_maps(x: Tensor) -> Tensor:
        """The four sinusoids of the pixel grid of ``x``: ``[B, 4, H, W]`` in the dtype of ``x``."""
        batch, _, height, width = x.shape
        rows = 2 * math.pi * torch.arange(height, device=x.device, dtype=torch.float32) / height
        columns = 2 * math.pi * torch.arange(width, device=x.device, dtype=torch.float32) / width
        i, j = torch.meshgrid(rows, columns, indexing="ij")
        maps = torch.stack([i.sin(), i.cos(), j.sin(), j.cos()])
        return maps.to(x.dtype).expand(batch, 4, height, width)

    def forward(self, x: Tensor) -> Tensor:
        z = self.proj(torch.cat([x, self.position_maps(x)], dim=1))
        lower, upper = z.chunk(2, dim=1)
        real = self.fourier_weight_real.view(1, -1, 1, 1)
        imag = self.fourier_weight_imag.view(1, -1, 1, 1)
        out: Tensor = self.act(self.bn(torch.cat([lower * real, upper * imag], dim=1)))
        return out


class LFA(nn.Module):
    """Local feature aggregation, ``[B, C, h, w]`` in and out.

    ``a = SiLU(conv1x1(depthwise3x3(x)))``, ``b = SiLU(conv1x1(depthwise5x5(x)))``, result
    ``SiLU(x + conv1x1(concat(a, b)))``; the last convolution has no bias, the others have.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

        def branch(kernel_size: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels),
                nn.Conv2d(channels, channels, 1),
                nn.SiLU(),
            )

        self.dw3 = branch(3)
        self.dw5 = branch(5)
        self.project = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x + self.project(torch.cat([self.dw3(x), self.dw5(x)], dim=1)))
        return out


class GCE(nn.Module):
    """Global context extraction, ``[B, C, h, w]`` in and out.

    Three dense 3x3 convolutions with dilations 2, 4 and 8, concatenated and compressed to C channels with
    SiLU (``p``), then squeeze-and-excite: ``p * sigmoid(conv1x1(SiLU(conv1x1(mean(p)))))`` with C/4 channels
    between.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        channels = _count("channels", channels, minimum=4)
        hidden = channels // 4
        self.dil2 = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)
        self.dil4 = nn.Conv2d(channels, channels, 3, padding=4, dilation=4)
        self.dil8 = nn.Conv2d(channels, channels, 3, padding=8, dilation=8)
        self.compress = nn.Conv2d(3 * channels, channels, 1)
        self.act = nn.SiLU()
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.SiLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        p: Tensor = self.act(self.compress(torch.cat([self.dil2(x), self.dil4(x), self.dil8(x)], dim=1)))
        gate: Tensor = self.se(p)
        return p * gate


class LGFM(nn.Module):
    """Local-global fusion, two ``[B, C, h, w]`` maps into one.

    ``w = softmax(Linear(mean(concat(local, global))))``, result ``w[0] * local + w[1] * global`` per image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * channels, 2),
            nn.Softmax(dim=1),
        )

    def forward(self, local_map: Tensor, global_map: Tensor) -> Tensor:
        w: Tensor = self.fc(torch.cat([local_map, global_map], dim=1))
        return w[:, 0].view(-1, 1, 1, 1) * local_map + w[:, 1].view(-1, 1, 1, 1) * global_map


class LGLDNet(nn.Module):
    """The dual-stream classifier, ``[B, in_channels, H, W] -> logits [B, num_classes]``.

    ``head(lgfm(lfa(local_stem(x)), gce(global_stem(x))))``.

    Args:
        in_channels: channels of the image.
        base_channels: C, even and at least 4.
        num_classes: at least 1.

    A subclass that sets ``involution_type`` to another layer with the state-dict keys of ``InvolutionLayer``
    is the same network with that layer in the local stem; likewise `ips_type`, `mixer_type`, `lfa_type`, `gce_type`,
    `lgfm_type` and `head_type` for the blocks that they are here.
    """

    involution_type: ClassVar[type[nn.Module]] = InvolutionLayer
    ips_type: ClassVar[type[nn.Module]] = IPS
    mixer_type: ClassVar[type[nn.Module]] = FourierFeatureMixer
    lfa_type: ClassVar[type[nn.Module]] = LFA
    gce_type: ClassVar[type[nn.Module]] = GCE
    lgfm_type: ClassVar[type[nn.Module]] = LGFM
    head_type: ClassVar[type[nn.Sequential]] = nn.Sequential

    def __init__(self, in_channels: int = 3, base_channels: int = 64, num_classes: int = 4) -> None:
        super().__init__()
        in_channels = _count("in_channels", in_channels)
        num_classes = _count("num_classes", num_classes)
        base_channels = _count("base_channels", base_channels, minimum=4)
        if base_channels % 2:
            raise ValueError(f"base_channels must be even, got {base_channels}")
        self.local_stem = self.ips_type(in_channels, base_channels, involution_type=self.involution_type)
        self.global_stem = self.mixer_type(in_channels, base_channels)
        self.lfa = self.lfa_type(base_channels)
        self.gce = self.gce_type(base_channels)
        self.lgfm = self.lgfm_type(base_channels)
        self.head = self.head_type(
            nn.Conv2d(base_channels, base_channels, 1),
            nn.BatchNorm2d(base_channels),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(base_channels, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        local_map = self.lfa(self.local_stem(x))
        global_map = self.gce(self.global_stem(x))
        logits: Tensor = self.head(self.lgfm(local_map, global_map))
        return logits
