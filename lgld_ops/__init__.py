"""lgld_ops: LGLD-Net's operators as fast torch ops.

`involution2d` is the op, `Involution2d` the layer that replaces LGLD-Net's, `LGLDNet` the network with it, `reference` the
network as published, `build_info()` what runs here.
`fuse` makes one op of a trained network, which `load` reads back from a file.
"""

from . import _native, reference
from .fused import FusedLGLDNet, fuse, load
from .info import build_info, version
from .network import LGLDNet
from .nn import Involution2d
from .ops.involution import involution2d

__all__ = ["FusedLGLDNet", "Involution2d", "LGLDNet", "build_info", "fuse", "involution2d", "load", "reference"]
__version__ = version()

# A forced instruction set that this machine lacks is an error now, not at the first call.
_native.active_variant()
