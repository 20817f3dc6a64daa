"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with golden numbers and real cell images; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("LGLD_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no golden numbers at {folder} (set LGLD_SHARED to their folder)")
    return folder
