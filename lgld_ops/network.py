"""LGLD-Net with the ops of this package in it."""

from __future__ import annotations

from . import reference
from .nn import Involution2d


class LGLDNet(reference.LGLDNet):
    """LGLD-Net, same constructor, state-dict keys and results as `lgld_ops.reference.LGLDNet`, with `Involution2d` in its stem.

    Args:
        in_channels: channels of the image, 3 for RGB.
        base_channels: channels of every feature map; even, at least 4.
        num_classes: length of the logits.
    """

    involution_type = Involution2d
