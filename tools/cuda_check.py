"""Compiles every CUDA kernel and its glue for several architectures: no GPU, no CUDA torch, nothing linked.

Prints registers, shared memory, stack and spills of each kernel, as ptxas states them, and fails where a kernel on the fast
paths spills or keeps an array in local memory. `tools/cuda_check.py --archs 75,90`
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCHS = "75,80,86,89,90,100"
# Kernels whose registers may overflow: for windows without a kernel of their own, and what benchmarks measure against.
# Of the last two, the mixer's on maps of any strides with one image channel spills 8 bytes on sm_75; the layer's backward in
# double with K 7, whose 49 sums take two registers each, 20 on sm_100 and 32 on sm_120.
SLOW_PATHS = ("naive_kernel", "general_", "backward_planes<float, float, 1, false>", "layer_backward_kernel<double, 7>")


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel on one architecture."""

    kernel: str
    arch: str
    registers: int
    shared: int
    stack: int
    spilled: int


def nvcc_path(named: str | None) -> str:
    """nvcc as CMake finds it: named, $CUDACXX, $CUDA_HOME, PATH, /usr/local/cuda."""
    homes = [f"{os.environ[name]}/bin/nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for candidate in (named, os.environ.get("CUDACXX"), *homes, "nvcc", "/usr/local/cuda/bin/nvcc"):
        if candidate and (found := shutil.which(candidate)):
            return found
    raise SystemExit("cuda_check: there is no nvcc; name one with --nvcc or CUDA_HOME")


def torch_folder(named: str | None) -> Path:
    """Folder of the torch whose headers the glue is compiled against."""
    if named:
        return Path(named)
    sys.path.insert(0, str(ROOT / "tools"))
    from build_backend import find_torch

    found = find_torch()
    if found is None:
        raise SystemExit("cuda_check: no torch 2.10 or newer to compile the glue against; name its folder with --torch")
    return found[0]


def commands(nvcc: str, archs: list[str], torch: Path, work: Path) -> list[tuple[str, list[str]]]:
    """(what it compiles, command) of every step; kernels once for each architecture, the newest with its PTX."""
    steps: list[tuple[str, list[str]]] = []
    common = [nvcc, "-c", "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Werror", "all-warnings", "-DNDEBUG"]
    for source in sorted((ROOT / "kernels/cuda").glob("*/*.cu")):
        name = str(source.relative_to(ROOT))
        for arch in archs:
            code = f"[sm_{arch},compute_{arch}]" if arch == archs[-1] and arch.isdigit() else f"sm_{arch}"
            target = work / f"{source.parent.name}-{source.stem}-{arch}.o"
            options = ["-Xptxas", "-v", "-gencode", f"arch=compute_{arch},code={code}", "-o", str(target)]
            steps.append((f"{name} sm_{arch}", [*common, *options, str(source)]))
    for source in sorted([*(ROOT / "csrc/cuda").glob("*.cpp"), *(ROOT / "csrc").glob("*.cpp")]):
        defines = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{ROOT}", "-isystem", str(torch / "include")]
        target = work / f"{source.parent.name}-{source.stem}.o"
        name = str(source.relative_to(ROOT))
        flags = "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"
        steps.append((name, [*common, flags, *defines, "-o", str(target), str(source)]))
    return steps


def usages(log: str) -> list[Usage]:
    """The kernels in what ptxas printed."""
    found = []
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        re.DOTALL,
    )
    for name, arch, stack, stores, loads, registers, rest in pattern.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        spilled = int(stores) + int(loads)
        found.append(Usage(name, arch, int(registers), int(shared[1]) if shared else 0, int(stack), spilled))
    return found


def readable(names: list[str]) -> dict[str, str]:
    """Kernel names as written, by symbol; symbols where there is no c++filt."""
    if not shutil.which("c++filt"):
        return dict(zip(names, names, strict=True))
    done = subprocess.run(["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True)
    plain = (re.sub(r"\(anonymous namespace\)::|lgld::cuda::|^void |\(bool\)|\(int\)", "", n) for n in done.stdout.splitlines())
    return dict(zip(names, plain, strict=True))


def table(found: list[Usage]) -> str:
    """Registers / stack+spills of every kernel, a column for each architecture."""
    archs = list(dict.fromkeys(u.arch for u in found))
    names = readable(sorted({u.kernel for u in found}))
    cells = {(u.kernel, u.arch): u for u in found}
    width = max(map(len, names.values()), default=6)
    heading = "kernel: registers, +bytes of stack and spills, static shared bytes"
    lines = [f"{heading:{width}} " + "".join(f"{arch:>10}" for arch in archs)]
    for symbol, name in sorted(names.items(), key=lambda item: item[1]):
        row = ""
        for arch in archs:
            u = cells.get((symbol, arch))
            text = "" if u is None else f"{u.registers}" + (f"+{u.stack + u.spilled}" if u.stack + u.spilled else "")
            text += f",{u.shared}" if u is not None and u.shared else ""
            row += f"{text:>10}"
        lines.append(f"{name:{width}} {row}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default=ARCHS, help=f"comma-separated numbers, the newest last (default {ARCHS})")
    parser.add_argument("--nvcc", help="nvcc 12.8 or newer")
    parser.add_argument("--torch", help="folder of the torch package whose headers are used")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table", type=Path, help="write the table here, too")
    arguments = parser.parse_args()
    archs = re.split(r"[,;]", arguments.archs)
    if not all(re.fullmatch(r"[1-9]\d+[af]?", arch) for arch in archs):
        raise SystemExit(f"cuda_check: --archs is {arguments.archs!r}; it must be numbers such as 75,90")
    nvcc, torch = nvcc_path(arguments.nvcc), torch_folder(arguments.torch)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        steps = commands(nvcc, archs, torch, Path(work))

        def run(step: tuple[str, list[str]]) -> tuple[str, int, str, float]:
            begin = time.monotonic()
            done = subprocess.run(step[1], capture_output=True, text=True)
            return step[0], done.returncode, done.stdout + done.stderr, time.monotonic() - begin

        with concurrent.futures.ThreadPoolExecutor(max(1, arguments.jobs)) as pool:
            results = list(pool.map(run, steps))
    failed = [(name, log) for name, code, log, _ in results if code]
    for name, log in failed:
        print(f"FAILED {name}\n{log}", file=sys.stderr)
    found = [usage for _, _, log, _ in results for usage in usages(log)]
    text = table(found)
    seconds = time.monotonic() - start
    slowest = max(results, key=lambda result: result[3])
    text += (
        f"\n{len(found)} kernels in {len(steps)} compilations for {', '.join(archs)}: {seconds:.0f} s with {arguments.jobs} "
        f"jobs; the longest, {slowest[0]}, took {slowest[3]:.0f} s"
    )
    print(text)
    if arguments.table:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        arguments.table.write_text(text + "\n")
    spilled = [u for u in found if u.stack + u.spilled]
    names = readable([u.kernel for u in spilled])
    spilled = [u for u in spilled if not any(slow in names[u.kernel] for slow in SLOW_PATHS)]
    for u in spilled:
        print(f"SPILLS {names[u.kernel]} sm_{u.arch}: {u.stack} bytes of stack, {u.spilled} of spills", file=sys.stderr)
    if not found:
        raise SystemExit("cuda_check: no kernel was compiled")
    if failed or spilled:
        raise SystemExit(f"cuda_check: {len(failed)} compilations failed, {len(spilled)} kernels spill")


if __name__ == "__main__":
    main()
