"""Proves that one build of the extension serves every torch from 2.10 on: built on the newest, run on 2.10,
and back.

    python tools/check_abi.py [--emulated FOLDER]

Compiles the extension for this machine and, with the cross compiler, for 64-bit ARM, each against the headers
of the running Python's torch and against those of torch 2.10; compares the torch functions that each library
needs with those that torch 2.10 exports; and runs the op, forward and backward, under this Python and under
an emulated aarch64 Python with torch 2.10, which tools/emulated_aarch64.py makes in FOLDER. (torch's headers
do not depend on the processor, and 2.10 for aarch64 is the one copy of it that is small.) The kernels come
from the CMake presets `native` and `aarch64`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import emulated_aarch64
from build_backend import torch_version

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "liblgld_ops_cpu.so"
RUNS = """
import torch, torch.nn.functional as F, lgld_ops
def plain(x, k, kernel, dilation, groups):
    b, c, h, w = x.shape
    windows = F.unfold(x, kernel, dilation, padding=dilation)
    windows = windows.view(b, groups, c // groups, kernel * kernel, h, w)
    return (windows * k.view(b, groups, 1, kernel * kernel, h, w)).sum(3).view(b, c, h, w)
torch.manual_seed(0)
worst = 0.0
for dtype in (torch.float32, torch.float64):
    x = torch.randn(2, 6, 9, 11, dtype=dtype, requires_grad=True)
    k = torch.randn(2, 2 * 9, 9, 11, dtype=dtype, requires_grad=True)
    g = torch.randn(2, 6, 9, 11, dtype=dtype)
    ours = lgld_ops.involution2d(x, k, 3, padding=2, dilation=2, groups=2)
    wide = [t.detach().double().requires_grad_() for t in (x, k)]
    expected = plain(*wide, 3, 2, 2)
    gradients = torch.autograd.grad(ours, (x, k), g)
    expected_gradients = torch.autograd.grad(expected, wide, g.double())
    for actual, reference in zip((ours, *gradients), (expected, *expected_gradients)):
        error = (actual.double() - reference).abs().max().item() / reference.abs().max().item()
        assert actual.dtype == dtype and error < 4 * torch.finfo(dtype).eps, (dtype, error)
        worst = max(worst, error / torch.finfo(dtype).eps)
try:
    lgld_ops.involution2d(x, k[:, :5], 3)
except (ValueError, RuntimeError) as error:
    assert "weight" in str(error), error
else:
    raise AssertionError("a weight of the wrong shape was accepted")
info = lgld_ops.build_info()["cpu"]
assert info["library"], info
print(f"torch {torch.__version__}, {info['variant']}, worst error {worst:.1f} eps")
"""


@dataclass(frozen=True)
class Target:
    """A processor to compile for, and a Python there that runs what was compiled."""

    machine: str
    preset: str
    nm: str
    python: list[str]
    env: dict[str, str]


def output(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """What a command prints; SystemExit with all of it where it fails."""
    words = [str(word) for word in command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    result = subprocess.run(words, cwd=cwd, env=os.environ | (env or {}), **pipes)  # type: ignore[call-overload]
    if result.returncode:
        raise SystemExit(f"{result.stdout}\n{' '.join(words[:6])} ... failed, see above")
    return str(result.stdout)


def compile_against(target: Target, headers: Path, libraries: Path, package: Path) -> Path:
    """Compile the extension for `target` against one torch's headers, into a copy of the package."""
    with tempfile.TemporaryDirectory(prefix="lgld-torch-") as folder:
        torch = Path(folder)
        (torch / "include").symlink_to(headers / "include")
        (torch / "lib").symlink_to(libraries / "lib")
        options = [f"-DLGLD_TORCH_DIR={torch}", f"-DLGLD_TORCH_VERSION={torch_version(headers)}"]
        output("cmake", "--preset", target.preset, *options)
        output("cmake", "--build", "--preset", target.preset, "--target", "lgld_ops_cpu")
    ignore = shutil.ignore_patterns("lib", "*.so", "__pycache__")
    shutil.copytree(ROOT / "lgld_ops", package / "lgld_ops", ignore=ignore)
    library = package / "lgld_ops" / "lib" / LIBRARY
    library.parent.mkdir()
    shutil.move(ROOT / "build" / target.preset / LIBRARY, library)
    return library


def needed_from_torch(library: Path, nm: str) -> set[str]:
    """The functions that a library expects torch to define: undefined, and of no versioned system library."""
    lines = output(nm, "--dynamic", "--undefined-only", library).splitlines()
    return {name for kind, name in (line.split()[-2:] for line in lines) if kind == "U" and "@" not in name}


def exported(torch: Path, nm: str) -> set[str]:
    """Every function that a torch's libraries define."""
    names: set[str] = set()
    for library in ("libtorch_cpu.so", "libc10.so"):
        lines = output(nm, "--dynamic", "--defined-only", torch / "lib" / library).splitlines()
        names |= {line.split()[-1].partition("@")[0] for line in lines}
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lgld_ops" / "aarch64"
    parser.add_argument("--emulated", type=Path, default=cache, help="where the emulated Python is or shall be (%(default)s)")
    folder = parser.parse_args().emulated.resolve()
    if platform.machine() != "x86_64":
        raise SystemExit("check_abi: the emulated half of this check is made for x86-64 machines")
    emulated_aarch64.make(folder)
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise SystemExit("check_abi: the running Python has no torch")
    new, old = Path(found.origin).parent, folder / "venv/lib/python3.11/site-packages/torch"
    emulator = ["qemu-aarch64", str(folder / "venv/bin/python")]
    targets = (
        (Target("x86_64", "native", "nm", [sys.executable], {}), new),
        (
            Target("aarch64", "aarch64", "aarch64-linux-gnu-nm", emulator, emulated_aarch64.environment(folder)),
            old,
        ),
    )
    offered = exported(old, "aarch64-linux-gnu-nm")
    if "torch_call_dispatcher" not in offered or "no_such_function" in offered:
        raise SystemExit(f"check_abi: {old} does not look like torch 2.10")
    newer = {name for name in exported(new, "nm") - offered if name.startswith(("torch_", "aoti_torch_"))}
    print(f"torch {torch_version(new)} offers {len(newer)} C functions that {torch_version(old)} lacks")
    print(f"{'for':8} {'built on':12} {'needs of torch':15} seconds  ran on")
    wrong = []
    for target, runtime in targets:
        for headers in (new, old):
            start = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="lgld-abi-") as package:
                library = compile_against(target, headers, runtime, Path(package))
                needed = needed_from_torch(library, target.nm)
                if absent := ", ".join(sorted(needed - offered)):
                    wrong.append(f"{target.machine}, built on {torch_version(headers)}: 2.10 lacks {absent}")
                env = target.env | {"PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1"}
                ran = output(*target.python, "-c", RUNS, cwd=Path(package), env=env).strip().splitlines()[-1]
            built = f"{target.machine:8} {torch_version(headers):12} {len(needed):3} functions"
            print(f"{built}   {time.monotonic() - start:7.1f}  {ran}", flush=True)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
