"""LGLD-Net with the ops of this package in it."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .blocks import GCE, IPS, LFA, LGFM, Head
from .mixer import FourierFeatureMixer
from .nn import Involution2d
from .ops.involution import _transforming, check_tensor


class LGLDNet(reference.LGLDNet):
    """LGLD-Net, same constructor, state-dict keys and results as `lgld_ops.reference.LGLDNet`, with this package's layers in
    its stems (`Involution2d`, `FourierFeatureMixer`) and its blocks arranged as in `lgld_ops.blocks`.

    On the CPU its blocks run on channels_last maps, on which torch's convolutions take half the time.

    Images [B, in_channels, H, W] in [0, 1], any H and W, float32 or float64 -> logits [B, num_classes]. Source: A. Palai,
    A. Dasgupta et al., ICITA 2025, DOI 10.1007/978-3-032-21174-3_28.

    Args:
        in_channels: channels of the image, 3 for RGB.
        base_channels: channels of every feature map; even, at least 4.
        num_classes: length of the logits.

    Raises:
        TypeError: an argument is no int.
        ValueError: an argument is out of range; the message names it, what it was and what it must be.
    """

    involution_type = Involution2d
    ips_type = IPS
    mixer_type = FourierFeatureMixer
    lfa_type = LFA
    gce_type = GCE
    lgfm_type = LGFM
    head_type = Head

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> logits [B, num_classes].

        Raises:
            TypeError: x is no tensor.
            ValueError: x has other than 4 dimensions.
        """
        check_tensor("x", x)
        if x.dim() != 4:
            raise ValueError(f"x must be images [B, in_channels, H, W], but has shape {list(x.shape)}")
        local_map, global_map = self.local_stem(x), self.global_stem(x)
        # vmap knows no memory formats.
        if x.device.type == "cpu" and not _transforming():
            local_map, global_map = (m.contiguous(memory_format=torch.channels_last) for m in (local_map, global_map))
        fused = self.lgfm(self.lfa(local_map), self.gce(global_map))
        # BatchNorm's backward takes several times as long on channels_last maps.
        logits: Tensor = self.head(fused.contiguous())
        return logits
