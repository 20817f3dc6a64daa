"""LGLD-Net with the ops of this package in it."""

from __future__ import annotations

from . import reference
from .nn import Involution2d


class LGLDNet(reference.LGLDNet):
    """LGLD-Net, same constructor, state-dict keys and results as `lgld_ops.reference.LGLDNet`, with `Involution2d` in its stem.

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
