"""Builds the compiled parts with CMake; everything declarative is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from build_backend import find_torch  # noqa: E402


def refuse_foreign_platform() -> None:
    """Raise SystemExit on systems the kernels were never tried on."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in ("x86_64", "aarch64"):
        hint = " On Windows, WSL 2 is such a Linux." if system == "Windows" else ""
        raise SystemExit(f"lgld_ops runs on 64-bit Linux (x86-64 and aarch64) only; this is {system} on {machine}.{hint}")
    if sys.maxsize < 2**32:
        raise SystemExit(f"lgld_ops runs on 64-bit Linux only; this Python is a 32-bit program on {machine}.")


def tool(name: str, package: str) -> str:
    """Path of a build tool; a sentence that says what to install where it is missing."""
    beside_python = Path(sys.executable).with_name(name)
    found = shutil.which(name) or (str(beside_python) if beside_python.exists() else None)
    if not found:
        raise SystemExit(f"lgld_ops: no {name} found. Install it with `pip install {name}` or `apt install {package}`.")
    return found


def check_compiler() -> None:
    """Raise SystemExit with what to install where there is no C++ compiler."""
    named = os.environ.get("CXX")
    if named and not shutil.which(named.split()[0]):
        raise SystemExit(
            f"lgld_ops: CXX is {named!r}, but there is no such program. It must name a C++17 compiler; "
            "unset it to use the system's, which `apt install g++` brings."
        )
    if not named and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise SystemExit(
            "lgld_ops: no C++ compiler was found. Install one with `apt install g++` (or your system's "
            "package of it), or name yours in CXX."
        )


def torch_folder() -> tuple[Path, str]:
    """The torch to compile against and its version; SystemExit with what to do where there is none."""
    refused: list[str] = []
    try:
        found = find_torch(refused)
    except RuntimeError as error:
        raise SystemExit(f"lgld_ops: {error}") from None
    if found is None:
        raise SystemExit(
            f"lgld_ops: no torch to build against. {' '.join([*refused, ''])}Run `pip install 'torch>=2.10'` "
            "first (--no-build-isolation installs nothing for you), or set LGLD_TORCH_DIR to its folder."
        )
    return found


def fresh_if_changed(work: Path) -> None:
    """Drop a build folder made with another compiler or other flags: CMake would keep the old ones."""
    names = ("CXX", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CMAKE_TOOLCHAIN_FILE", "CUDACXX", "CUDA_HOME", "LGLD_CUDA_ARCHS")
    now = "".join(f"{name}={os.environ.get(name, '')}\n" for name in names)
    record = work / "lgld_environment.txt"
    if work.exists() and (not record.exists() or record.read_text() != now):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    record.write_text(now)


def configure(command: list[str]) -> None:
    """Run CMake's configuration step; where it fails, its reason becomes the message."""
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    print(result.stderr, end="", file=sys.stderr, flush=True)
    if result.returncode:
        found = re.search(r"CMake Error[^\n]*?:\s*\n(.*?)(?=\nCall Stack|\n\s*\n\s*\n|\Z)", result.stderr, re.DOTALL)
        reason = " ".join(found[1].split()) if found else f"CMake stopped with exit code {result.returncode} (see above)."
        raise SystemExit(f"lgld_ops: {reason}")


class build_cmake(Command):
    """Run CMake; its products go into the package, in place for editable installs, else into build_lib."""

    description = "build the compiled parts with CMake"
    user_options: list[tuple[str, str | None, str]] = []  # noqa: RUF012
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        check_compiler()
        folder, version = torch_folder()
        work = ROOT / "build" / f"cmake-{platform.machine()}"
        options = {
            "CMAKE_INSTALL_PREFIX": str(self.package_folder()),
            "CMAKE_MAKE_PROGRAM": tool("ninja", "ninja-build"),
            "LGLD_TORCH_DIR": str(folder),
            "LGLD_TORCH_VERSION": version,
            "LGLD_CUDA": os.environ.get("LGLD_CUDA", "auto"),
            "LGLD_TEST_MODULE": "OFF",
            "Python_EXECUTABLE": sys.executable,
        }
        if archs := os.environ.get("LGLD_CUDA_ARCHS"):
            options["LGLD_CUDA_ARCHS"] = archs
        # The test module is a CPython extension: no wheel may hold one, so only editable builds have it.
        if self.editable_mode and importlib.util.find_spec("pybind11"):
            import pybind11

            options |= {
                "LGLD_TEST_MODULE": "ON",
                "pybind11_DIR": pybind11.get_cmake_dir(),
            }
        elif self.editable_mode:
            print("lgld_ops: no pybind11 installed: building without lgld_ops._testing, which some tests need.")
        cmake = tool("cmake", "cmake")
        fresh_if_changed(work)
        configure(
            [
                cmake,
                "-S",
                str(ROOT),
                "-B",
                str(work),
                "-G",
                "Ninja",
                *(f"-D{k}={v}" for k, v in options.items()),
            ]
        )
        # What an earlier build left would be loaded, though this one was asked for none.
        (self.package_folder() / "lib" / "liblgld_ops_cuda.so").unlink(missing_ok=True)
        result = subprocess.run([cmake, "--build", str(work), "--target", "install"])
        if result.returncode:
            raise SystemExit(
                f"lgld_ops: the build failed (exit code {result.returncode}); the first error above says "
                "why. A C++17 compiler is needed (gcc 9 or clang 10 or newer: `apt install g++`), and about "
                "1 GB of memory for each parallel job (CMAKE_BUILD_PARALLEL_LEVEL=1 runs one at a time). "
                f"{work} may be deleted to start afresh."
            )

    def package_folder(self) -> Path:
        """Where the package's compiled files go."""
        return ROOT / "lgld_ops" if self.editable_mode else Path(self.build_lib or "").resolve() / "lgld_ops"

    def get_outputs(self) -> list[str]:
        folder = self.package_folder()
        return [str(path) for path in (*folder.glob("lib/*.so"), *folder.glob("_testing*.so"))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []  # MANIFEST.in names them


class lgld_build(build):
    """setuptools' build with the CMake step in it."""

    sub_commands = [*build.sub_commands, ("build_cmake", None)]  # noqa: RUF012

    def run(self) -> None:
        # setuptools packs whatever an earlier build left here, files since deleted included.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class py3_wheel(bdist_wheel):
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
if __name__ == "__main__":  # false where a test imports the functions above
    setup(
        # Only lgld_ops is ever installed; lgld_ops/lib holds compiled files and is no package.
        packages=[*find_packages(str(ROOT), include=["lgld_ops", "lgld_ops.*"]), "lgld_ops.triton"],
        package_dir={"lgld_ops.triton": "kernels/triton"},
        distclass=BinaryDistribution,
        cmdclass={"build": lgld_build, "build_cmake": build_cmake, "bdist_wheel": py3_wheel},
    )
