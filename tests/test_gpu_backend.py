"""Which kernels a GPU would run, and what is said about it; nothing here needs a GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

import lgld_ops
from lgld_ops import _gpu
from lgld_ops.ops import gpu, plain

RunPython = Callable[..., "CompletedProcess[str]"]

# Runs an op as the dispatcher would for a CUDA tensor, where there is none.
FIRST_USE = """
import warnings, torch, lgld_ops
from lgld_ops.ops import gpu
x, w = torch.ones(1, 2, 4, 4), torch.ones(1, 9, 4, 4)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        try:
            gpu._implementation("involution2d")
            print(lgld_ops.build_info()["gpu"]["backend"])
        except RuntimeError as error:
            print("error:", error)
print(*(w.message for w in caught), sep="\\n")
"""

# A triton that can't be imported, in front of one that may be there.
NO_TRITON = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
sys.meta_path.insert(0, Hide())
"""


def has_triton() -> bool:
    return not _gpu.triton_error()


def test_importing_the_package_imports_no_triton(run_python: RunPython) -> None:
    out = run_python("import sys, lgld_ops; print('triton' in sys.modules, 'lgld_ops.triton' in sys.modules)").stdout
    assert out.split() == ["False", "False"]


@pytest.mark.parametrize("name", gpu.TRITON)
def test_ops_are_registered_for_cuda_tensors(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lgld_ops::{name}", "CUDA")


def test_every_op_with_a_plain_formulation_has_kernels() -> None:
    assert gpu.TRITON.keys() == gpu.REFERENCE.keys()


@pytest.mark.skipif(_gpu.LIBRARY.is_file(), reason="the CUDA library is built")
def test_a_forced_library_that_is_not_there_is_an_error_at_first_use(run_python: RunPython) -> None:
    out = run_python(FIRST_USE, LGLD_GPU_BACKEND="cuda").stdout
    found = re.findall(r"error: LGLD_GPU_BACKEND is 'cuda', but liblgld_ops_cuda\.so was not built.*; build it with nvcc", out)
    assert len(found) == 2
    assert "or unset LGLD_GPU_BACKEND" in out


def test_forced_triton_that_is_not_there_is_an_error_at_first_use(run_python: RunPython) -> None:
    out = run_python(NO_TRITON + FIRST_USE, LGLD_GPU_BACKEND="triton").stdout
    assert out.count("error: LGLD_GPU_BACKEND is 'triton', but triton is not installed; install Triton") == 2


def test_an_unknown_backend_is_an_error_at_first_use(run_python: RunPython) -> None:
    out = run_python(FIRST_USE, LGLD_GPU_BACKEND="opencl").stdout
    assert out.count("error: LGLD_GPU_BACKEND must be one of cuda, triton, reference, or unset, but is 'opencl'") == 2


@pytest.mark.skipif(not has_triton(), reason="triton is not installed")
@pytest.mark.parametrize("forced", ["", "triton"])
def test_triton_where_the_library_is_not_built(run_python: RunPython, forced: str) -> None:
    if not _gpu.library_error and not forced:
        pytest.skip("the CUDA library is in use")
    assert run_python(FIRST_USE, LGLD_GPU_BACKEND=forced).stdout.split()[:2] == ["triton", "triton"]


def test_the_reference_can_be_asked_for(run_python: RunPython) -> None:
    assert run_python(FIRST_USE, LGLD_GPU_BACKEND="reference").stdout.split()[:2] == ["reference", "reference"]


@pytest.mark.skipif(_gpu.LIBRARY.is_file(), reason="the CUDA library is built")
def test_the_reference_runs_with_one_warning_where_there_is_nothing_else(run_python: RunPython) -> None:
    code = """
import warnings, torch, lgld_ops
from lgld_ops.ops import plain
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    plain.warn_once("cuda"), plain.warn_once("cuda")
print(lgld_ops.build_info()["gpu"])
print(*(w.message for w in caught), sep="\\n")
"""
    lines = run_python(NO_TRITON + code).stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert re.search(r"liblgld_ops_cuda\.so was not built.*, and triton is not installed", line)
    assert "runs its plain torch formulation on 'cuda', which is slower" in lines[1]


def test_a_library_that_does_not_load_is_told_not_hidden(run_python: RunPython, tmp_path: Path) -> None:
    """The package by symbolic links, with a CUDA library that is no library, in a torch that says it has CUDA."""
    package = tmp_path / "lgld_ops"
    (package / "lib").mkdir(parents=True)
    for path in Path(lgld_ops.__file__).parent.iterdir():
        if path.name not in ("lib", "__pycache__"):
            (package / path.name).symlink_to(path)
    # Modules are found beside the file that the link names, so the one that looks for the library is copied.
    (package / "_gpu.py").unlink()
    (package / "_gpu.py").write_text(Path(_gpu.__file__).read_text())
    (package / "lib" / "liblgld_ops_cuda.so").write_text("not a library")
    pretend = "import torch; torch.version.cuda = '13.0'\n"
    out = run_python(pretend + FIRST_USE, folder=tmp_path).stdout
    assert f"{package}/lib/liblgld_ops_cuda.so could not be loaded by torch {torch.__version__}" in out
    assert out.count("on the GPU: ") == 1
    forced = run_python(pretend + FIRST_USE, folder=tmp_path, LGLD_GPU_BACKEND="cuda").stdout
    assert "error: LGLD_GPU_BACKEND is 'cuda', but" in forced
    assert "could not be loaded" in forced
    without = run_python("import torch; torch.version.cuda = None\n" + FIRST_USE, folder=tmp_path).stdout
    assert "was built, but torch" in without
    assert "without CUDA" in without


def test_build_info_says_what_a_gpu_runs_and_why(run_python: RunPython) -> None:
    facts = lgld_ops.build_info()
    assert facts["gpu"]["backend"] in (*_gpu.BACKENDS, None)
    assert facts["gpu"]["reason"]
    assert facts["cuda"]["kernels"] is not bool(_gpu.library_error)
    assert facts["triton"]["kernels"] is has_triton()
    json.dumps(facts)
    code = "import json, lgld_ops; print(json.dumps(lgld_ops.build_info()))"
    wrong = json.loads(run_python(code, LGLD_GPU_BACKEND="x").stdout)
    assert wrong["gpu"]["backend"] is None
    assert "LGLD_GPU_BACKEND must be one of" in wrong["gpu"]["reason"]


def test_info_command_says_what_a_gpu_runs(run_python: RunPython) -> None:
    code = "import lgld_ops.cli, sys; sys.argv = ['lgld-ops', 'info']; lgld_ops.cli.main()"
    out = run_python(code, LGLD_GPU_BACKEND="reference").stdout
    assert "GPU kernels" in out
    assert "LGLD_GPU_BACKEND asks for it" in " ".join(out.split())


def test_arguments_left_out_by_the_dispatcher_are_completed() -> None:
    x, w = torch.ones(1, 2, 4, 4), torch.ones(1, 9, 4, 4)
    assert gpu.complete("involution2d", (x, w, [3, 3]), {"padding": [2, 2]})[2:] == ([3, 3], [1, 1], [2, 2], [1, 1], 1)
    assert gpu.complete("fourier_feature_mixer_backward", (), {})[-3:] == (1e-5, 2, True)


def test_other_devices_are_told_that_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_warned", set())
    with pytest.warns(RuntimeWarning, match="this version has no kernels for 'xpu'"):
        plain.warn_once("xpu")
