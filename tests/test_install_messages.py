"""What an installation says where it cannot go on: a clear sentence, with what to do. Nothing is built."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("setuptools", minversion="77")


@pytest.fixture
def setup_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py's functions, without running it."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    specification = importlib.util.spec_from_file_location("lgld_setup", ROOT / "setup.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch, setup_script: ModuleType) -> ModuleType:
    """The build backend, in a world without any torch."""
    backend = sys.modules["build_backend"]
    monkeypatch.delenv("LGLD_TORCH_DIR", raising=False)
    monkeypatch.setattr(backend, "_site_folders", lambda: iter(()))
    return backend


def make_torch(folder: Path, version: str, headers: bool = True) -> Path:
    """A folder that looks like an installed torch; returns the site folder that holds it."""
    torch = folder / "torch"
    torch.mkdir(parents=True)
    (torch / "version.py").write_text(f"from typing import Optional\n__all__ = []\n__version__ = '{version}'\ndebug = False\n")
    if headers:
        (torch / "include/torch/csrc/stable").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("system", "machine", "word"),
    [("Windows", "AMD64", "WSL 2"), ("Darwin", "arm64", "Darwin on arm64"), ("Linux", "riscv64", "riscv64")],
)
def test_other_systems_are_refused(
    setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, machine: str, word: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(SystemExit, match="64-bit Linux") as raised:
        setup_script.refuse_foreign_platform()
    assert word in str(raised.value)


def test_a_32_bit_python_is_refused(setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    with pytest.raises(SystemExit, match="32-bit"):
        setup_script.refuse_foreign_platform()


def test_missing_compiler(setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler was found.*apt install g\+\+"):
        setup_script.check_compiler()


def test_compiler_in_cxx_does_not_exist(setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(SystemExit, match="CXX is 'no-such-compiler -m64'"):
        setup_script.check_compiler()


def test_missing_build_tool(setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SystemExit, match="pip install ninja"):
        setup_script.tool("ninja", "ninja-build")


def test_no_torch_to_build_against(setup_script: ModuleType, no_torch: ModuleType) -> None:
    assert no_torch._torch_requirement() == ["torch>=2.10"]
    with pytest.raises(SystemExit, match="no torch to build against") as raised:
        setup_script.torch_folder()
    assert "pip install 'torch>=2.10'" in str(raised.value)


def test_torch_too_old_or_without_headers(
    setup_script: ModuleType, no_torch: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = [
        make_torch(tmp_path / "old", "2.9.1+cpu"),
        make_torch(tmp_path / "bare", "2.11.0", headers=False),
    ]
    monkeypatch.setattr(no_torch, "_site_folders", lambda: iter(folders))
    with pytest.raises(SystemExit, match=r"torch 2\.9\.1\+cpu in .* is too old") as raised:
        setup_script.torch_folder()
    assert "without its C++ headers" in str(raised.value)
    # One that can be used is found behind those that cannot, and then no other is asked for.
    folders.append(make_torch(tmp_path / "good", "2.10.0a0+git1"))
    assert no_torch.find_torch() == (tmp_path / "good" / "torch", "2.10.0a0+git1")
    assert no_torch._torch_requirement() == []


def test_named_torch_folder_is_wrong(no_torch: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LGLD_TORCH_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match="LGLD_TORCH_DIR is"):
        no_torch._torch_requirement()
    folder = make_torch(tmp_path / "old", "1.13.0") / "torch"
    monkeypatch.setenv("LGLD_TORCH_DIR", str(folder))
    with pytest.raises(RuntimeError, match=r"1\.13\.0 in .* is too old"):
        no_torch.find_torch()


def test_old_setuptools() -> None:
    pretend = "import setuptools; setuptools.__version__ = '66.1.1'; import build_backend"
    result = subprocess.run([sys.executable, "-c", pretend], cwd=ROOT / "tools", capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("lgld_ops: setuptools 66.1.1 is too old")
    assert "Traceback" not in result.stderr


def test_target_environment_is_found_from_the_frontend(tmp_path: Path) -> None:
    """A program that hides the environment it installs into, as uv does, is asked for it."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    make_torch(tmp_path / "target/lib" / version / "site-packages", "2.99.0")
    backend = f"""
import os, sys, sysconfig
os.environ["VIRTUAL_ENV"] = "/nonexistent"
sys.path.insert(0, {str(ROOT / "tools")!r})
import build_backend
build_backend.sysconfig.get_path = lambda name: "/nonexistent"
print(build_backend.find_torch()[1])
"""
    frontend = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {backend!r}]).returncode)"
    env = {name: value for name, value in os.environ.items() if name != "LGLD_TORCH_DIR"}
    by_variable = [sys.executable, "-c", frontend], env | {"VIRTUAL_ENV": str(tmp_path / "target")}, None
    by_option = [sys.executable, "-c", frontend, "--python", str(tmp_path / "target/bin/python")], env, None
    (tmp_path / "target").rename(tmp_path / ".venv")
    by_place = [sys.executable, "-c", frontend], env | {"VIRTUAL_ENV": ""}, tmp_path
    assert subprocess.check_output(by_place[0], env=by_place[1], cwd=by_place[2], text=True).strip() == "2.99.0"
    (tmp_path / ".venv").rename(tmp_path / "target")
    for command, variables, folder in (by_variable, by_option):
        assert subprocess.check_output(command, env=variables, cwd=folder, text=True).strip() == "2.99.0"


def make_nvcc(folder: Path, version: str) -> Path:
    """A program that calls itself nvcc of that version."""
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.0'\n")
    nvcc.chmod(0o755)
    return nvcc


@pytest.mark.parametrize(
    ("value", "version", "archs", "sentence"),
    [
        ("maybe", None, "90", "it must be auto, on, off or check"),
        ("on", None, "90", "there is no nvcc"),
        ("check", None, "90", "there is no nvcc"),
        ("on", "12.4", "90", "is version '12.4', and 12.8 or newer is needed"),
        ("on", "13.0", "90", "torch 2.99 was built without CUDA"),
        ("on", "13.0", "sm_90", "LGLD_CUDA_ARCHS is 'sm_90'; it must be numbers such as 80,90"),
    ],
)
def test_cuda_request_that_cannot_be_met(
    setup_script: ModuleType, tmp_path: Path, value: str, version: str | None, archs: str, sentence: str
) -> None:
    cmake = shutil.which("cmake") or pytest.skip("needs cmake")
    nvcc = make_nvcc(tmp_path, version) if version else tmp_path / "absent"
    options = [f"-DLGLD_CUDA={value}", f"-DLGLD_NVCC={nvcc}", f"-DLGLD_CUDA_ARCHS={archs}", "-DLGLD_TORCH_VERSION=2.99"]
    with pytest.raises(SystemExit) as raised:
        setup_script.configure([cmake, "-S", str(ROOT), "-B", str(tmp_path / "build"), *options])
    assert str(raised.value).startswith("lgld_ops: LGLD_CUDA")
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "Call Stack" not in str(raised.value)


def test_cuda_is_left_out_with_a_reason(setup_script: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cmake = shutil.which("cmake") or pytest.skip("needs cmake")
    setup_script.configure([cmake, "-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DLGLD_NVCC={tmp_path / 'absent'}"])
    assert "No CUDA kernels: there is no nvcc" in capfd.readouterr().out


def test_compiler_that_cannot_compile(setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cmake = shutil.which("cmake") or pytest.skip("needs cmake")
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(SystemExit, match="not able to compile a simple test program"):
        setup_script.configure([cmake, "-S", str(ROOT), "-B", str(tmp_path / "build")])


def test_build_folder_of_another_compiler_is_dropped(
    setup_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = tmp_path / "build"
    setup_script.fresh_if_changed(work)
    (work / "object.o").touch()
    setup_script.fresh_if_changed(work)
    assert (work / "object.o").exists()
    monkeypatch.setenv("CXXFLAGS", "-O1")
    setup_script.fresh_if_changed(work)
    assert not (work / "object.o").exists()
