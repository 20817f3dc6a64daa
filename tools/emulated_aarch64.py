"""Makes an aarch64 Python 3.11 with CPU torch 2.10 that runs on an x86-64 Debian or Ubuntu machine, under
qemu-user.

    python tools/emulated_aarch64.py FOLDER

No ARM hardware, container or binfmt is involved: Debian's arm64 packages are unpacked into FOLDER/root,
torch's aarch64 wheel and what it imports into FOLDER/venv, and FOLDER/env.sh then says how to run it
($ARM_PYTHON). The processor that is emulated is the Raspberry Pi 5's, a Cortex-A76. 1 GB and a minute or two
the first time; a finished FOLDER is kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("qemu-aarch64", "mmdebstrap")
# torch 2.10 is the oldest torch that is supported, and the newest whose aarch64 wheel is CPU-only and small.
TORCH = (
    "torch==2.10.0",
    "numpy",
    "typing_extensions",
    "sympy",
    "mpmath",
    "networkx",
    "jinja2",
    "MarkupSafe",
    "fsspec",
    "filelock",
)
PLATFORMS = (
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
)
CPUINFO = """processor\t: {core}
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b

"""


def environment(folder: Path) -> dict[str, str]:
    """Environment variables under which `qemu-aarch64 FOLDER/venv/bin/python` runs."""
    return {"QEMU_LD_PREFIX": str(folder / "root"), "QEMU_CPU": "cortex-a76", "OMP_NUM_THREADS": "1"}


def make_root(root: Path) -> None:
    """Unpack Debian's aarch64 Python into `root`."""
    mode = "root" if os.geteuid() == 0 else "unshare"
    include = "--include=python3.11,libstdc++6"
    shutil.rmtree(root, ignore_errors=True)
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=extract",
        "--architectures=arm64",
        f"--mode={mode}",
        include,
    ]
    subprocess.run([*command, "bookworm", str(root)], check=True)
    # The emulator passes on the host's /proc, which tells of another processor; libraries read it.
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text("".join(CPUINFO.format(core=core) for core in range(4)))


def make_venv(folder: Path) -> None:
    """Put torch and what it imports into FOLDER/venv."""
    venv, root = folder / "venv", folder / "root"
    shutil.rmtree(venv, ignore_errors=True)
    make = ["qemu-aarch64", str(root / "usr/bin/python3.11"), "-m", "venv", "--without-pip", str(venv)]
    subprocess.run(make, check=True, env=os.environ | environment(folder))
    packages = venv / "lib/python3.11/site-packages"
    # Without dependencies: their markers would be judged by this machine's processor.
    options = ["-qq", "--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(packages)]
    options += ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none"]
    options += [f"--platform={platform}" for platform in PLATFORMS]
    env = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *TORCH], check=True, env=env)
    if sys.version_info[:2] == (
        3,
        11,
    ):  # bytecode made by the same version here halves the time that an import takes
        folders = [str(packages), str(root / "usr/lib/python3.11")]
        subprocess.run([sys.executable, "-m", "compileall", "-q", "-j", "0", *folders], stdout=subprocess.DEVNULL)


def make(folder: Path) -> None:
    """Make whatever of the emulated Python is not there yet."""
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        raise SystemExit(f"{' and '.join(missing)} not found: apt install qemu-user mmdebstrap")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "root" / ".ok").exists():
        make_root(folder / "root")
        (folder / "root" / ".ok").touch()
    if not (folder / "venv" / ".ok").exists():
        make_venv(folder)
        (folder / "venv" / ".ok").touch()
    lines = [f"export {name}={value}" for name, value in environment(folder).items()]
    lines += [f'export ARM_PYTHON="qemu-aarch64 {folder}/venv/bin/python"']
    (folder / "env.sh").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder.resolve()
    make(folder)
    print(f"source {folder}/env.sh")


if __name__ == "__main__":
    main()
