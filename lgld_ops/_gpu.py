"""Which kernels run on a GPU: the compiled CUDA library, Triton, or the plain torch formulation; found out, and why.

`LGLD_GPU_BACKEND` (cuda, triton or reference) forces one. It is read when the package is imported; what it asks for and is not
there is an error when a GPU is first used.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from . import _native

LIBRARY = Path(__file__).parent / "lib" / "liblgld_ops_cuda.so"
VARIABLE = "LGLD_GPU_BACKEND"
BACKENDS = ("cuda", "triton", "reference")

_BUILD = "build it with nvcc and a CUDA build of torch in reach: `pip install --no-build-isolation -e .` in the source folder"
_REMEDY = {
    "cuda": _BUILD,
    "triton": "install Triton 3.6 or newer (`pip install triton`; CUDA builds of torch for Linux bring their own)",
}


@dataclass(frozen=True)
class Choice:
    """What runs on a GPU, and a sentence that says why."""

    backend: str
    reason: str


def _load() -> str:
    """Load the CUDA library, which registers its ops; the reason why it is not in use, empty where it is."""
    if forced not in (None, "cuda"):
        return f"{VARIABLE} asks for {forced!r}"
    if not LIBRARY.is_file():
        try:
            return f"{LIBRARY.name} was not built ({_native.cuda_state()})"
        except AttributeError:  # a CPU library from before there was one for CUDA
            return f"{LIBRARY.name} was not built"
    if not torch.version.cuda:
        return f"{LIBRARY.name} was built, but torch {torch.__version__} was built without CUDA"
    try:
        torch.ops.load_library(str(LIBRARY))
    except (OSError, RuntimeError) as error:
        return f"{LIBRARY} could not be loaded by torch {torch.__version__}: {error}"
    return ""


forced: str | None = os.environ.get(VARIABLE) or None
# Loading is choosing: it registers the C++ implementations with torch's dispatcher.
library_error = _load()


@dataclass(frozen=True)
class _Triton:
    """Triton's version and our kernels with it, or the reason why there are none."""

    version: str | None
    kernels: ModuleType | None
    error: str


@functools.cache
def _import_triton() -> _Triton:
    # Whatever is wrong with a package that may be broken must not keep the reference from running.
    try:
        version: str = importlib.import_module("triton").__version__
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "triton"
        return _Triton(None, None, "triton is not installed" if missing else f"triton can't be imported: {error!r}")
    try:
        return _Triton(version, importlib.import_module("lgld_ops.triton"), "")
    except Exception as error:
        return _Triton(version, None, f"the kernels can't be imported with triton {version}: {error!r}")


def triton_version() -> str | None:
    """Version of the triton that can be imported, None without one. Imports Triton."""
    return _import_triton().version


def triton_error() -> str:
    """Why the Triton kernels can't be used; empty where they can. Imports Triton."""
    return _import_triton().error


def triton_kernels() -> ModuleType:
    """The package of Triton kernels, imported now.

    Raises:
        RuntimeError: it can't be imported.
    """
    found = _import_triton()
    if found.kernels is None:
        raise RuntimeError(f"lgld_ops has no Triton kernels here: {found.error}; {_REMEDY['triton']}")
    return found.kernels


def _chosen() -> Choice:
    if forced is not None:
        if forced not in BACKENDS:
            raise RuntimeError(f"{VARIABLE} must be one of {', '.join(BACKENDS)}, or unset, but is {forced!r}")
        missing = {"cuda": library_error, "triton": "" if forced != "triton" else triton_error(), "reference": ""}[forced]
        if missing:
            raise RuntimeError(f"{VARIABLE} is {forced!r}, but {missing}; {_REMEDY[forced]}, or unset {VARIABLE}")
        return Choice(forced, f"{VARIABLE} asks for it")
    if not library_error:
        return Choice("cuda", "the compiled CUDA library is loaded")
    if not triton_error():
        return Choice("triton", library_error)
    return Choice("reference", f"{library_error}, and {triton_error()}")


@functools.cache
def choice() -> Choice:
    """What runs on a GPU. Imports Triton unless the CUDA library is in use.

    Raises:
        RuntimeError: `LGLD_GPU_BACKEND` names something that is unknown or not there; the message says what to do.
    """
    found = _chosen()
    if forced is None and library_error and LIBRARY.is_file():
        # A library that somebody built is not passed over in silence.
        warnings.warn(f"lgld_ops runs {found.backend} on the GPU: {library_error}", RuntimeWarning, stacklevel=2)
    return found
