"""The Triton kernels without a GPU: what they compute, in Triton's interpreter, and that they compile."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.parametrize("name", sorted(path.stem for path in (TESTS / "interpreted").glob("test_*.py")))
def test_in_the_interpreter(name: str) -> None:
    """The ops, autograd included, on CPU tensors."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "interpreted" / f"{name}.py")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LGLD_", "PYTEST_"))}
    done = subprocess.run(
        words, cwd=TESTS.parent, env=environment | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    print(done.stdout.splitlines()[-1])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton brings NVIDIA's assembler for x86-64 alone")
def test_kernels_compile() -> None:
    """For an H200, in float32. The full list is `tools/compile_triton.py`."""
    words = [sys.executable, str(TESTS.parent / "tools" / "compile_triton.py"), "--quick", "--arch", "90"]
    # An array that falls out of the registers takes hundreds of bytes; a value or two depends on the assembler's release.
    words += ["--most-spilled", "16"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    expected = {"_weighted_sum", "_channel_sum", "_forward", "_backward", "_grad_x", "_layer", "_layer_sums", "_layer_grad_x"}
    assert expected <= set(done.stdout.split())
