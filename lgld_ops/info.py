"""What was built, what runs, and why not more."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import _gpu, _native


def version() -> str:
    """Version of the package; "0+unknown" in a source tree that was never installed."""
    try:
        return metadata.version("lgld_ops")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def cpu_model() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" in fields:
        return fields["model name"]
    if "CPU part" in fields:  # Arm: numbers that only a table turns into a name
        return f"{platform.machine()}, implementer {fields.get('CPU implementer')}, part {fields['CPU part']}"
    return platform.processor() or platform.machine()


def _cpu() -> dict[str, Any]:
    forced = os.environ.get("LGLD_CPU_VARIANT", "")
    if not _native.loaded():
        return {"library": None, "variant": None, "reason": _native.load_error, "variants": {}}
    reason = "LGLD_CPU_VARIANT asks for it" if forced else "the fastest that this processor has"
    return {
        "library": str(_native.LIBRARY),
        "variant": _native.active_variant(),
        "reason": reason,
        "variants": {
            v.name: "runs" if v.supported else f"built, but this processor lacks {v.needs}" for v in _native.variants()
        },
        "test_module": importlib.util.find_spec("lgld_ops._testing") is not None,
    }


def _cuda() -> dict[str, Any]:
    kernels = not _gpu.library_error
    return {
        "kernels": kernels,
        "library": str(_gpu.LIBRARY) if _gpu.LIBRARY.is_file() else None,
        "available": torch.cuda.is_available(),
        "torch_cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "reason": "loaded" if kernels else _gpu.library_error,
    }


def _triton() -> dict[str, Any]:
    error = _gpu.triton_error()
    version = _gpu.triton_version()
    return {
        "kernels": not error,
        "installed": version is not None,
        "version": version,
        "reason": error or f"the kernels run with triton {version}",
    }


def _on_gpu() -> dict[str, Any]:
    """What runs on CUDA tensors, and why; the backend is None where `LGLD_GPU_BACKEND` asks for what is not there."""
    try:
        chosen = _gpu.choice()
    except RuntimeError as error:
        return {"backend": None, "reason": str(error)}
    return {"backend": chosen.backend, "reason": chosen.reason}


def build_info() -> dict[str, Any]:
    """Versions, compiler, variants built, the variant in use and why, what runs on a GPU and why; all values are JSON types.

    Raises:
        RuntimeError: `LGLD_CPU_VARIANT` names a variant that this machine can't run.
    """
    return {
        "lgld_ops": version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": cpu_model(),
        "threads": torch.get_num_threads(),
        "built_with": _native.built_with(),
        "cpu": _cpu(),
        "gpu": _on_gpu(),
        "cuda": _cuda(),
        "triton": _triton(),
        "executable": sys.executable,
    }
