"""PEP 517 backend: setuptools, plus one question that setuptools cannot answer: which torch to compile against.

torch is a 150 MB to 5 GB download, so it is asked for as a build requirement only where the environment being installed into
has none. The search lives in `find_torch`; setup.py uses the same one.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403

MINIMUM_TORCH = (2, 10)


def torch_version(folder: Path) -> str:
    """Version of the torch package in `folder`, read as text: importing torch takes seconds and may not work here."""
    for line in (folder / "version.py").read_text().splitlines():
        name, _, value = line.partition("=")
        if name.split(":")[0].strip() == "__version__":
            return value.strip().strip("'\"")
    raise RuntimeError(f"{folder / 'version.py'} has no __version__; is {folder} a torch installation?")


def _site_folders() -> list[Path]:
    """Folders of installed packages, the environment that is being installed into first."""
    folders = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if prefix := os.environ.get(variable):
            folders += [f"{prefix}/lib/{version}/site-packages", f"{prefix}/lib64/{version}/site-packages"]
    folders += sys.path
    folders.append(site.getusersitepackages())
    folders += site.getsitepackages()
    return [Path(folder) for folder in folders if folder]


def find_torch() -> tuple[Path, str] | None:
    """The torch package to compile against and its version, or None where there is none.

    `LGLD_TORCH_DIR` (the folder that holds torch/version.py) comes first, then the environment that is being installed
    into, an active virtual environment, the build environment, the user's and the system's packages. A torch older than
    2.10 raises RuntimeError rather than being passed over: it is the one that would be imported later.
    """
    named = os.environ.get("LGLD_TORCH_DIR")
    candidates = [Path(named)] if named else [folder / "torch" for folder in _site_folders()]
    for folder in candidates:
        if not (folder / "version.py").is_file() or not (folder / "include" / "torch" / "csrc" / "stable").is_dir():
            if named:
                raise RuntimeError(
                    f"LGLD_TORCH_DIR is {named!r}, which is no torch package with headers; it must be the folder that holds "
                    "torch's version.py and include/torch/csrc/stable (torch 2.10 or newer)."
                )
            if (folder / "version.py").is_file():
                raise RuntimeError(
                    f"torch {torch_version(folder)} in {folder} is too old: lgld_ops needs torch 2.10 or newer. "
                    "Upgrade it, or install into a fresh virtual environment."
                )
            continue
        version = torch_version(folder)
        if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < MINIMUM_TORCH:
            raise RuntimeError(
                f"torch {version} in {folder} is too old: lgld_ops needs torch 2.10 or newer. "
                "Upgrade it, or install into a fresh virtual environment."
            )
        return folder, version
    return None


def _torch_requirement() -> list[str]:
    return [] if find_torch() else ["torch>=2.10"]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """setuptools' own requirements, and torch where no environment in reach has it."""
    return _setuptools.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The same for editable installs."""
    return _setuptools.get_requires_for_build_editable(config_settings) + _torch_requirement()
