"""What was built and what it leans on: symbols, includes, imports, and the package without its compiled library."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import lgld_ops
from lgld_ops import _native

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (".h", ".cpp", ".cu", ".cuh", ".hpp")


def sources(folder: str) -> list[Path]:
    found = [path for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES]
    assert found, folder
    return found


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """(kind, name) of each symbol, kinds as nm prints them."""
    if not shutil.which("nm"):
        pytest.skip("no nm on this machine")
    lines = subprocess.run(["nm", "-P", *options, str(path)], check=True, capture_output=True, text=True).stdout.splitlines()
    return [(fields[1], fields[0]) for fields in map(str.split, lines) if len(fields) > 1]


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sources("kernels"), ids=lambda path: str(path.relative_to(ROOT)))
def test_kernels_know_neither_torch_nor_python_nor_the_glue(path: Path) -> None:
    for name in includes(path):
        assert not re.match(r"(torch|ATen|c10|csrc|caffe2|pybind11)(/|$)|Python\.h|lgld_ops/|omp\.h", name), name
        assert ".." not in name or (path.parent / name).resolve().is_relative_to(ROOT / "kernels"), name


@pytest.mark.parametrize("path", sources("csrc"), ids=lambda path: str(path.relative_to(ROOT)))
def test_glue_keeps_to_the_stable_abi(path: Path) -> None:
    testing = "testing" in path.parts
    for name in includes(path):
        assert not re.match(r"(ATen|c10|caffe2)(/|$)", name), name
        if name.startswith("torch/"):
            assert name.startswith(("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/")), name
            assert not testing, "the test module is free of torch"
        assert testing or not re.match(r"pybind11|Python\.h", name), name


def test_no_code_for_the_building_machine_alone() -> None:
    files = [ROOT / "CMakeLists.txt", ROOT / "CMakePresets.json", ROOT / "setup.py", *(ROOT / "cmake").iterdir()]
    for path in files:
        code = "\n".join(line.split("#")[0] for line in path.read_text().splitlines())
        assert not re.search(r"-m(arch|cpu|tune)=native|-ffast-math|-Ofast|-fopenmp", code), path


def test_kernels_keep_to_themselves() -> None:
    """No allocation, no threads, no environment: the caller brings all of it."""
    for path in sources("kernels"):
        code = re.sub(r"//.*", "", path.read_text())
        assert not re.search(
            r"\b(new|malloc|aligned_alloc|free|getenv|printf|throw|std::(thread|vector|mutex|string))\b", code
        ), path


# --- objects ----------------------------------------------------------------------------------------------------------

OBJECTS = sorted(
    path
    for path in (ROOT / "build").glob("cmake-*/CMakeFiles/lgld_cpu_*.dir/**/kernels.cpp.o")
    if "lgld_cpu_kernels.dir" not in path.parts
)


@pytest.mark.skipif(not OBJECTS, reason="no object files: the package was not built in this folder")
def test_instruction_sets_do_not_leak() -> None:
    """A function compiled for one instruction set and merged by name by the linker could run where that set does not exist."""
    for path in OBJECTS:
        variant = re.search(r"lgld_cpu_(\w+)\.dir", str(path))
        assert variant
        op = path.parent.name
        # Defined symbols that other objects can see: upper case, or weak, common and unique ones in lower case.
        visible = [name for kind, name in symbols(path, "--defined-only") if kind.isupper() or kind in "uvwi"]
        table = f"_ZN4lgld{len(op) + 1 + len(variant[1])}{op}_{variant[1]}E"
        assert visible == [table], path


@pytest.mark.skipif(not _native.loaded(), reason="no compiled library")
def test_the_library_imports_only_stable_symbols() -> None:
    undefined = [name.split("@")[0] for _, name in symbols(_native.LIBRARY, "-D", "--undefined-only")]
    assert any(name.startswith("aoti_torch_") for name in undefined)
    for name in undefined:
        assert not re.match(r"Py|_Py", name), name
        # Whatever is mangled belongs to the C++ runtime: std:: and its streams, operator new and delete, type information.
        if name.startswith("_Z"):
            assert not re.search(r"(2at|3c10|5torch|6caffe2)\d", name), name
        elif "torch" in name:
            assert name.startswith(("aoti_torch_", "torch_")), name


@pytest.mark.skipif(not _native.loaded(), reason="no compiled library")
def test_the_library_exports_only_its_own_functions() -> None:
    exported = [name.split("@")[0] for kind, name in symbols(_native.LIBRARY, "-D", "--defined-only") if kind in "TDBR"]
    ours = {name for name in exported if not name.startswith(("_edata", "_end", "__bss_start", "_init", "_fini"))}
    assert "lgld_active_cpu_variant" in ours
    assert all(name.startswith("lgld_") for name in ours), ours


@pytest.mark.skipif(not _native.loaded() or not shutil.which("readelf"), reason="no compiled library, or no readelf")
def test_the_library_needs_no_second_runtime() -> None:
    dynamic = subprocess.run(["readelf", "-d", str(_native.LIBRARY)], check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*?)\]", dynamic))
    allowed = r"lib(torch_cpu|stdc\+\+|gcc_s|c|m)\.so(\.\d+)?|ld-linux[\w.-]*"
    assert all(re.fullmatch(allowed, name) for name in needed), needed
    assert not re.search(r"RPATH|RUNPATH", dynamic)


# --- imports ----------------------------------------------------------------------------------------------------------


def test_importing_the_package_is_light(run_python: Callable[..., CompletedProcess[str]]) -> None:
    code = """
import sys, torch
before = set(sys.modules)
import lgld_ops
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    loaded = set(run_python(code).stdout.split())
    assert "lgld_ops" in loaded
    assert not loaded & {"click", "rich", "PIL", "safetensors", "fvcore", "pytest", "hypothesis", "scipy", "pandas"}


def test_the_reference_is_an_attribute() -> None:
    assert lgld_ops.reference.LGLDNet is not lgld_ops.LGLDNet
    assert set(lgld_ops.__all__) <= set(dir(lgld_ops))


def test_build_info_is_plain_data() -> None:
    info = lgld_ops.build_info()
    assert json.loads(json.dumps(info)) == info
    assert {"lgld_ops", "torch", "python", "built_with", "cpu", "cuda", "triton"} <= info.keys()
    assert info["cpu"]["variant"] in info["cpu"]["variants"]
    assert info["lgld_ops"] == lgld_ops.__version__


@pytest.mark.skipif(not _native.loaded(), reason="no compiled library")
def test_the_build_says_why_there_is_no_cuda_library() -> None:
    built = _native.LIBRARY.with_name("liblgld_ops_cuda.so").exists()
    assert bool(_native.cuda_state()) != built


def test_an_active_virtual_environment_is_searched_for_torch(
    run_python: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    pytest.importorskip("setuptools", minversion="77")
    site = tmp_path / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/torch"
    (site / "include/torch/csrc/stable").mkdir(parents=True)
    (site / "version.py").write_text("__version__ = '2.11.0+test'\n")
    code = """
import sys
sys.path.insert(0, "tools")
import build_backend
build_backend.sysconfig.get_path = lambda name: "/nowhere"  # the environment of the build itself has no torch
build_backend._frontend_prefixes = lambda: iter(())
print(*build_backend.find_torch())
"""
    assert run_python(code, VIRTUAL_ENV=str(tmp_path)).stdout.split() == [str(site), "2.11.0+test"]
    # A folder that is named comes before all others.
    named = tmp_path / "named"
    shutil.copytree(site, named)
    (named / "version.py").write_text("__version__: str = '2.10.1'\n")
    run = run_python(code, VIRTUAL_ENV=str(tmp_path), LGLD_TORCH_DIR=str(named))
    assert run.stdout.split() == [str(named), "2.10.1"]


# --- without the compiled library -------------------------------------------------------------------------------------

FALLBACK = """
import json, warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import lgld_ops
    at_import = len(caught)
    torch.manual_seed(0)
    for stride, groups in ((1, 1), (2, 2)):
        x = torch.randn(2, 4, 7, 6, dtype=torch.float64, requires_grad=True)
        size = [(n + stride - 1) // stride for n in (7, 6)]
        w = torch.randn(2, 9 * groups, *size, dtype=torch.float64, requires_grad=True)
        y = lgld_ops.involution2d(x, w, 3, stride, 1, 1, groups)
        reference = lgld_ops.reference.involution2d_unfold(x, w, 3, stride, 1, 1, groups)
        g = torch.randn_like(y)
        for a, b in zip((y, *torch.autograd.grad(y, (x, w), g)), (reference, *torch.autograd.grad(reference, (x, w), g))):
            torch.testing.assert_close(a, b)
    f = lambda x, w: lgld_ops.involution2d(x, w, 3, stride, 1, 1, groups)
    assert torch.autograd.gradcheck(f, (x, w)) and torch.autograd.gradgradcheck(f, (x, w))
    lgld_ops.LGLDNet(base_channels=8).eval()(torch.rand(1, 3, 16, 16))
    try:
        lgld_ops.involution2d(x, w[:, :5], 3, stride, 1, 1, groups)
    except RuntimeError as error:
        message = str(error)
    info = lgld_ops.build_info()["cpu"]
ours = [w for w in caught if "lgld_ops" in str(w.message)]
print(json.dumps([lgld_ops.__file__, at_import, [(w.category.__name__, str(w.message)) for w in ours], info, message]))
"""


@pytest.mark.parametrize("library", ["absent", "broken"])
def test_without_the_library_ops_run_and_say_so_once(
    library: str, run_python: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    package = tmp_path / "lgld_ops"
    shutil.copytree(ROOT / "lgld_ops", package, ignore=shutil.ignore_patterns("lib", "__pycache__", "_testing*"))
    if library == "broken":
        (package / "lib").mkdir()
        (package / "lib" / _native.LIBRARY.name).write_bytes(b"\x7fELF but no more than that")
    done = run_python(FALLBACK, folder=tmp_path)
    path, at_import, warned, info, message = json.loads(done.stdout.splitlines()[-1])
    assert Path(path).is_relative_to(tmp_path)
    assert at_import == 0
    assert len(warned) == 1, warned
    category, text = warned[0]
    assert category == "RuntimeWarning"
    assert "slower" in text
    assert ("does not exist" if library == "absent" else "could not be loaded") in text
    assert info["variant"] is None
    assert info["library"] is None
    assert _native.LIBRARY.name in info["reason"]
    assert "weight must have shape" in message


def test_forcing_a_variant_without_the_library_is_an_error(
    run_python: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "lgld_ops", tmp_path / "lgld_ops", ignore=shutil.ignore_patterns("lib", "__pycache__", "_testing*"))
    done = run_python("import lgld_ops", folder=tmp_path, check=False, LGLD_CPU_VARIANT="scalar")
    assert done.returncode != 0
    assert "LGLD_CPU_VARIANT" in done.stderr.strip().splitlines()[-1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_safe_after_fork(run_python: Callable[..., CompletedProcess[str]]) -> None:
    code = """
import os, torch, lgld_ops
torch.set_num_threads(1)
x, w = torch.randn(1, 4, 9, 9), torch.randn(1, 9, 9, 9)
expected = lgld_ops.involution2d(x, w, 3, padding=1)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(lgld_ops.involution2d(x, w, 3, padding=1), expected) else 7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(code).stdout.strip() == "0"
