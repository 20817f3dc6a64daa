"""Fixtures that several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# Triton's interpreter is chosen when Triton is imported: tests/test_triton.py runs these in processes of their own.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]

# Idle threads of torch sleep: two test processes have more threads than there are processors, and those that spin at a barrier
# keep those that work from it. Read when OpenMP's library is loaded, with torch, by processes that tests start, too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# torch keeps compiled graphs between runs under a key that knows nothing of our ops' shape rules: it would test old ones.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

# `pytest --hypothesis-profile=thorough` searches longer, and elsewhere each time.
settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `pytest -n`: a process that has done its share takes over some of another's."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, minutes of Triton's interpreter: at the end nobody could share them."""
    items.sort(key=lambda item: item.path.name != "test_triton.py")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with golden numbers and real cell images; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("LGLD_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no golden numbers at {folder} (set LGLD_SHARED to their folder)")
    return folder


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a piece of Python in a fresh interpreter: `run_python(code, folder=..., check=True, LGLD_CPU_VARIANT="scalar")`."""

    def run(code: str, *, folder: Path = ROOT, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {key: value for key, value in os.environ.items() if not key.startswith("LGLD_")}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env=variables | {"PYTHONPATH": str(folder)} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return run
