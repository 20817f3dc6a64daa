"""Builds the compiled parts with CMake; everything declarative is in pyproject.toml."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from build_backend import find_torch  # noqa: E402


def refuse_foreign_platform() -> None:
    """Raise SystemExit on systems the kernels were never tried on."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise SystemExit(
            f"lgld_ops runs on 64-bit Linux (x86-64 and aarch64) only; this is {platform.system()} on {platform.machine()}. "
            "On Windows, WSL 2 is such a Linux."
        )


def tool(name: str, package: str) -> str:
    """Path of a build tool; a sentence that says what to install where it is missing."""
    beside_python = Path(sys.executable).with_name(name)
    found = shutil.which(name) or (str(beside_python) if beside_python.exists() else None)
    if not found:
        raise SystemExit(f"lgld_ops: no {name} found. Install it with `pip install {name}` or `apt install {package}`.")
    return found


class build_cmake(Command):  # noqa: N801 (setuptools names its commands so)
    """Run CMake and put its products into the package: in place for editable installs, into build_lib for wheels."""

    description = "build the compiled parts with CMake"
    user_options: list[tuple[str, str | None, str]] = []
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        compiler = os.environ.get("CXX", "c++")
        if not shutil.which(compiler.split()[0]):
            raise SystemExit(
                f"lgld_ops: the C++ compiler {compiler!r} was not found. Install one (`apt install g++`) or name yours in CXX."
            )
        torch = find_torch()
        if torch is None:
            raise SystemExit(
                "lgld_ops: no torch to build against. Run `pip install 'torch>=2.10'` first (with --no-build-isolation nothing "
                "is installed for you), or set LGLD_TORCH_DIR to its folder."
            )
        folder, version = torch
        target = self.package_folder()
        work = ROOT / "build" / f"cmake-{platform.machine()}-{'editable' if self.editable_mode else 'wheel'}"
        options = {
            "CMAKE_INSTALL_PREFIX": str(target),
            "CMAKE_MAKE_PROGRAM": tool("ninja", "ninja-build"),
            "LGLD_TORCH_DIR": str(folder),
            "LGLD_TORCH_VERSION": version,
            "LGLD_CUDA": os.environ.get("LGLD_CUDA", "auto"),
            "LGLD_TEST_MODULE": "OFF",
        }
        if self.editable_mode:
            import pybind11  # only editable builds have the test module

            options |= {"LGLD_TEST_MODULE": "ON", "Python_EXECUTABLE": sys.executable, "pybind11_DIR": pybind11.get_cmake_dir()}
        cmake = tool("cmake", "cmake")
        try:
            subprocess.run(
                [cmake, "-S", ROOT, "-B", work, "-G", "Ninja", *(f"-D{key}={value}" for key, value in options.items())],
                check=True,
            )
            subprocess.run([cmake, "--build", work, "--target", "install"], check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"lgld_ops: the build failed (command above, exit code {error.returncode}). The first error in the output says "
                f"why; it needs a C++17 compiler (gcc 9 or newer, clang 10 or newer), and {work} can be deleted to start afresh."
            ) from None

    def package_folder(self) -> Path:
        """Where the package's compiled files go."""
        return ROOT / "lgld_ops" if self.editable_mode else Path(self.build_lib or "").resolve() / "lgld_ops"

    def get_outputs(self) -> list[str]:
        folder = self.package_folder()
        return [str(path) for path in (*folder.glob("lib/*.so"), *folder.glob("_testing*.so"))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        patterns = ("csrc/**/*", "kernels/**/*", "cmake/*", "CMakeLists.txt", "CMakePresets.json", "tests/native/*")
        files = (path for pattern in patterns for path in ROOT.glob(pattern))
        return sorted(str(path.relative_to(ROOT)) for path in files if path.is_file() and "__pycache__" not in path.parts)


class lgld_build(build):  # noqa: N801
    """setuptools' build with the CMake step in it."""

    sub_commands = [*build.sub_commands, ("build_cmake", None)]


class py3_wheel(bdist_wheel):  # noqa: N801
    """No file of the wheel belongs to one Python: libraries are loaded by path, so py3-none-<platform>."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    """Says that the wheel is for one platform although no extension module is declared."""

    def has_ext_modules(self) -> bool:
        return True


refuse_foreign_platform()
setup(
    distclass=BinaryDistribution,
    cmdclass={"build": lgld_build, "build_cmake": build_cmake, "bdist_wheel": py3_wheel},
)
