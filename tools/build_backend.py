"""PEP 517 backend: setuptools, plus one question that setuptools cannot answer: which torch to compile
against.

torch is a 150 MB to 5 GB download, so it is asked for as a build requirement only where no environment in
reach has it. The search lives in `find_torch`; setup.py uses the same one.
"""

from __future__ import annotations

import itertools
import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import setuptools
from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403

MINIMUM_TORCH = (2, 10)
MINIMUM_SETUPTOOLS = 77  # the first that reads `license = "MIT"`

if int(setuptools.__version__.split(".")[0]) < MINIMUM_SETUPTOOLS:
    raise SystemExit(
        f"lgld_ops: setuptools {setuptools.__version__} is too old to build with; {MINIMUM_SETUPTOOLS} or "
        "newer is needed. Run `pip install --upgrade setuptools`, or leave out --no-build-isolation."
    )


def torch_version(folder: Path) -> str:
    """Version of the torch package in `folder`, read as text: importing torch is slow and may not work."""
    found = re.search(r"^__version__\b[^=]*=\s*['\"]([^'\"]+)", (folder / "version.py").read_text(), re.MULTILINE)
    if not found:
        raise RuntimeError(f"{folder / 'version.py'} has no __version__; is {folder} a torch installation?")
    return found[1]


def unusable(folder: Path) -> str | None:
    """Why the torch package in `folder` cannot be compiled against, in one sentence; None where it can."""
    version = torch_version(folder)
    release = re.match(r"(\d+)\.(\d+)", version)
    if not release or (int(release[1]), int(release[2])) < MINIMUM_TORCH:
        return f"torch {version} in {folder} is too old: lgld_ops needs torch 2.10 or newer."
    if not (folder / "include" / "torch" / "csrc" / "stable").is_dir():
        return f"torch {version} in {folder} came without its C++ headers (include/torch/csrc/stable)."
    return None


def _frontend_prefixes() -> Iterator[Path]:
    """Environments that the program which runs this build (pip, uv, build) knows of, and does not pass on.

    uv and build run the backend in an environment of their own; uv even points VIRTUAL_ENV at it. Their
    process still has the user's: in its `--python`, its environment variables, the folder it was started in,
    its own interpreter.
    """
    try:
        process = Path("/proc") / str(os.getppid())
        words = [os.fsdecode(word) for word in (process / "cmdline").read_bytes().split(b"\0")]
        entries = (os.fsdecode(entry).partition("=") for entry in (process / "environ").read_bytes().split(b"\0"))
        environment = {name: value for name, _, value in entries}
        started_in = (process / "cwd").readlink()
    except OSError:  # another user's process, or no /proc
        return
    named = [value for option, value in itertools.pairwise(words) if option in ("--python", "-p")]
    named += [word.partition("=")[2] for word in words if word.startswith("--python=")]
    named += [environment.get("UV_PYTHON", ""), environment.get("UV_PROJECT_ENVIRONMENT", "")]
    named += [environment.get("VIRTUAL_ENV", ""), environment.get("CONDA_PREFIX", "")]
    named += [str(folder / ".venv") for folder in (started_in, *started_in.parents)]
    named += [words[0] if "/" in words[0] else ""]
    for name in filter(None, named):
        path = started_in / name
        # An interpreter's link is not followed: it leads out of its environment.
        yield path if path.is_dir() else path.parent.parent


def _site_folders() -> Iterator[Path]:
    """Folders of installed packages, the environment that is being installed into first."""
    # Right under pip: its isolated build keeps the target's interpreter.
    yield Path(sysconfig.get_path("platlib"))
    yield Path(sysconfig.get_path("purelib"))
    prefixes = list(_frontend_prefixes())
    prefixes += [Path(prefix) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if (prefix := os.environ.get(name))]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for environment in prefixes:
        for library in ("lib", "lib64"):
            yield environment / library / version / "site-packages"
    yield from (Path(folder) for folder in sys.path if folder)
    yield Path(site.getusersitepackages())
    yield from (Path(folder) for folder in site.getsitepackages([sys.base_prefix, sys.base_exec_prefix]))


def find_torch(refused: list[str] | None = None) -> tuple[Path, str] | None:
    """The torch package to compile against and its version, or None where there is none.

    `LGLD_TORCH_DIR` (the folder that holds torch/version.py) comes first, then the environment that is being
    installed into, an active virtual environment, the build environment, the user's and the system's
    packages. Which of them it is does not matter to the result: a library built against any torch from 2.10
    on runs on every such torch.

    Args:
        refused: receives a sentence for each torch that was found but cannot be used (too old, no headers).

    Raises:
        RuntimeError: `LGLD_TORCH_DIR` names something that cannot be used.
    """
    if named := os.environ.get("LGLD_TORCH_DIR"):
        folder = Path(named)
        reason = unusable(folder) if (folder / "version.py").is_file() else "That folder has no version.py."
        if reason:
            raise RuntimeError(f"LGLD_TORCH_DIR is {named!r}; it must be the folder of a torch 2.10 or newer. {reason}")
        return folder, torch_version(folder)
    for folder in dict.fromkeys(site_folder / "torch" for site_folder in _site_folders()):
        if not (folder / "version.py").is_file():
            continue
        reason = unusable(folder)
        if not reason:
            return folder, torch_version(folder)
        if refused is not None:
            refused.append(reason)
    return None


def _torch_requirement() -> list[str]:
    try:
        return [] if find_torch() else ["torch>=2.10"]
    except RuntimeError as error:
        raise SystemExit(f"lgld_ops: {error}") from None


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """setuptools' own requirements, and torch where no environment in reach has it."""
    return [*_setuptools.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The same for editable installs."""
    return [*_setuptools.get_requires_for_build_editable(config_settings), *_torch_requirement()]
