"""The ops on a GPU, by the backend that `LGLD_GPU_BACKEND` names or that is chosen without it; skipped without a GPU."""

from __future__ import annotations

import pytest
import torch

import lgld_ops


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.skip(reason="no GPU that torch can use"))


@pytest.fixture(autouse=True, scope="session")
def _backend() -> None:
    """Fails where the backend that was asked for is not there, and says which one runs."""
    chosen = lgld_ops.build_info()["gpu"]
    assert chosen["backend"], chosen["reason"]
    print(f"GPU backend: {chosen['backend']} ({chosen['reason']})")


@pytest.fixture(autouse=True)
def _release_memory() -> None:
    torch.cuda.empty_cache()
