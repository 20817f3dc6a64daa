"""Builds the sdist, from it the wheel, and checks what both promise; then imports the wheel's content and
runs the op.

    python tools/check_wheel.py [--keep FOLDER]

One wheel serves every Python from 3.10 on: its tag is py3-none-<platform>, nothing in it is a CPython
extension and its library needs no symbol of Python's. Needs pip and `build` (the `dev` extra) in the running
Python.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from check_install import ROOT, RUNS, copy_sources

IN_SDIST = (
    "CMakeLists.txt",
    "LICENSE",
    "README.md",
    "cmake/cpu_kernels.cmake",
    "csrc/cpu/involution2d.cpp",
    "kernels/cpu/involution2d/kernels.cpp",
    "kernels/triton/involution2d.py",
    "lgld_ops/py.typed",
    "tests/conftest.py",
    "tools/build_backend.py",
)


def output(*command: str | Path) -> str:
    """What a command prints; SystemExit with all of it where it fails."""
    result = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise SystemExit(f"{result.stdout}\n{' '.join(map(str, command))} failed, see above")
    return result.stdout


def check_library(library: Path) -> list[str]:
    """What is wrong with a shared library that must run anywhere: sentences, none where all is well."""
    dynamic, symbols = (
        output("readelf", "--dynamic", "--wide", library),
        output("readelf", "--dyn-syms", "--wide", library),
    )
    wrong = []
    if search_path := re.search(r"\((RPATH|RUNPATH)\).*", dynamic):
        wrong.append(f"{library.name} has a {search_path[0]}")
    if python := sorted(set(re.findall(r"UND (_?Py\w+)", symbols))):
        wrong.append(f"{library.name} needs Python's {', '.join(python)}")
    if re.search(r"\blibpython", dynamic):
        wrong.append(f"{library.name} links libpython")
    if ".symtab" in output("readelf", "--section-headers", "--wide", library):
        wrong.append(f"{library.name} is not stripped")
    aligned = [int(word, 16) for word in re.findall(r"^\s+LOAD\s.*(0x[0-9a-f]+)$", output("readelf", "-lW", library), re.M)]
    if "AArch64" in output("readelf", "--file-header", library) and min(aligned) < 0x10000:
        wrong.append(f"{library.name} is aligned to {min(aligned)} bytes; kernels with 64 KiB pages cannot load it")
    return wrong


def check_wheel(wheel: Path, unpacked: Path) -> list[str]:
    """What is wrong with the wheel's name, tag and content."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
        names = archive.namelist()
    wrong = []
    if not re.fullmatch(r"lgld_ops-[\d.]+\w*-py3-none-(linux|manylinux\w*)_(x86_64|aarch64)\.whl", wheel.name):
        wrong.append(f"the wheel is called {wheel.name}; it must be tagged py3-none-<platform>")
    if extensions := [name for name in names if re.search(r"\.(cpython|abi3)[^/]*\.so$", name)]:
        wrong.append(f"the wheel holds {extensions}, which belong to one Python")
    if foreign := sorted({name.split("/")[0] for name in names if not re.match(r"lgld_ops(-[^/]*\.dist-info)?/", name)}):
        wrong.append(f"the wheel installs {foreign} beside lgld_ops")
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("lgld_ops/**/*.py")}
    modules |= {f"lgld_ops/triton/{path.name}" for path in ROOT.glob("kernels/triton/*.py")}
    if missing := sorted({*modules, "lgld_ops/py.typed", "lgld_ops/lib/liblgld_ops_cpu.so"} - set(names)):
        wrong.append(f"the wheel lacks {missing}")
    for library in unpacked.glob("**/*.so"):
        wrong += check_library(library)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="where to leave the sdist and the wheel")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lgld-wheel-") as folder:
        work = Path(folder)
        copy_sources(work / "source")
        output(sys.executable, "-m", "build", "--sdist", "--outdir", work, work / "source")
        (sdist,) = work.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        wrong = [f"the sdist lacks {name}" for name in IN_SDIST if name not in names]
        wrong += [f"the sdist holds {name}" for name in names if re.search(r"\.(so|pyc|o)$|(^|/)build/", name)]
        output(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", work, sdist)
        (wheel,) = work.glob("*.whl")
        wrong += check_wheel(wheel, work / "unpacked")
        if wrong:
            raise SystemExit("\n".join(wrong))
        # -S -E would hide torch; a path in front of the others hides an installed lgld_ops.
        ran = output(sys.executable, "-c", f"import sys; sys.path.insert(0, {str(work / 'unpacked')!r})\n{RUNS}").strip()
        print(f"{sdist.name}: {sdist.stat().st_size / 1024:.0f} KiB, {len(names)} entries")
        print(f"{wheel.name}: {wheel.stat().st_size / 1024:.0f} KiB, built from the sdist; ran with {ran}")
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            for product in (sdist, wheel):
                shutil.copy2(product, arguments.keep)


if __name__ == "__main__":
    main()
