"""lgld_ops: LGLD-Net's operators as fast torch ops.

`involution2d` and `fourier_feature_mixer` are the ops, `Involution2d` and `FourierFeatureMixer` the layers that replace
LGLD-Net's, `LGLDNet` the network with them, `reference` the network as published, `build_info()` what runs here.
`accelerate(model)` puts the ops into anybody's model, `compat` holds drop-ins for the public implementations of involution,
`export_onnx` and `decompositions` lead to runtimes without the package.
`fuse` makes one op of a trained network, which `load` reads back from a file.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _native, reference
from .fused import FusedLGLDNet, fuse, load
from .info import build_info, version
from .mixer import FourierFeatureMixer
from .network import LGLDNet
from .nn import Involution2d
from .ops import gpu as _gpu_ops  # noqa: F401 (registers what CUDA tensors run)
from .ops.ffm import fourier_feature_mixer
from .ops.involution import involution2d

if TYPE_CHECKING:
    from . import compat
    from .acceleration import Report, accelerate
    from .export import decompositions, export_onnx

__all__ = [
    "FourierFeatureMixer",
    "FusedLGLDNet",
    "Involution2d",
    "LGLDNet",
    "Report",
    "accelerate",
    "build_info",
    "compat",
    "decompositions",
    "export_onnx",
    "fourier_feature_mixer",
    "fuse",
    "involution2d",
    "load",
    "reference",
]
__version__ = version()

# A forced instruction set that this machine lacks is an error now, not at the first call. The command, which imports this
# before any code of its own runs, says it in one sentence; argv[0] is "-m" while `python -m lgld_ops` does.
try:
    _native.active_variant()
except RuntimeError as _error:
    if Path(sys.argv[0]).name in ("lgld-ops", "-m"):
        raise SystemExit(f"Error: {_error}") from None
    raise

# What `import lgld_ops` leaves for its first use: the module that defines each name.
_LAZY = {
    "Report": ".acceleration",
    "accelerate": ".acceleration",
    "compat": ".compat",
    "decompositions": ".export",
    "export_onnx": ".export",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name], __name__)
    value = globals()[name] = getattr(module, name, module)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
