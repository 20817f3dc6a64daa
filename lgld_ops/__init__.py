"""lgld_ops: LGLD-Net's operators as fast torch ops.

`involution2d` and `fourier_feature_mixer` are the ops, `Involution2d` and `FourierFeatureMixer` the layers that replace
LGLD-Net's, `LGLDNet` the network with them, `reference` the network as published, `build_info()` what runs here.
"""

from . import _native, reference
from .info import build_info, version
from .mixer import FourierFeatureMixer
from .network import LGLDNet
from .nn import Involution2d
from .ops.ffm import fourier_feature_mixer
from .ops.involution import involution2d

__all__ = [
    "FourierFeatureMixer",
    "Involution2d",
    "LGLDNet",
    "build_info",
    "fourier_feature_mixer",
    "involution2d",
    "reference",
]
__version__ = version()

# A forced instruction set that this machine lacks is an error now, not at the first call.
_native.active_variant()
