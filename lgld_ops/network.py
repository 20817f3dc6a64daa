"""LGLD-Net with the ops of this package in it."""

from __future__ import annotations

from . import reference
from .mixer import FourierFeatureMixer
from .nn import Involution2d


class LGLDNet(reference.LGLDNet):
    """LGLD-Net, same constructor, state-dict keys and results as `lgld_ops.reference.LGLDNet`, with this package's layers in its
    stems: `Involution2d` and `FourierFeatureMixer`.

    Args:
        in_channels: channels of the image, 3 for RGB.
        base_channels: channels of every feature map; even, at least 4.
        num_classes: length of the logits.
    """

    involution_type = Involution2d
    mixer_type = FourierFeatureMixer
