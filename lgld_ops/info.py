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

from . import _native


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
    state = f"torch was built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch was built without CUDA"
    return {
        "kernels": False,
        "available": torch.cuda.is_available(),
        "reason": f"this version has no CUDA kernels; on a GPU the ops run their plain torch formulation ({state})",
    }


def _triton() -> dict[str, Any]:
    installed = importlib.util.find_spec("triton") is not None
    return {
        "kernels": False,
        "installed": installed,
        "reason": f"this version has no Triton kernels (triton is {'' if installed else 'not '}installed)",
    }


def build_info() -> dict[str, Any]:
    """Versions, compiler, variants built, the variant in use and why, CUDA and Triton state; all values are JSON types.

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
        "cuda": _cuda(),
        "triton": _triton(),
        "executable": sys.executable,
    }
