"""Installs the package into fresh environments in every way that is promised, times each, and runs the op
there.

    python tools/check_install.py                         all cases
    python tools/check_install.py --torch torch==2.13.0 offline uv

Cases: `empty` is `pip install -e .` in an empty virtual environment; `torch` the same where torch is
installed (it must be the one that is compiled against: no second one is fetched); `uv` and `uv-named` are `uv
pip install -e .`, with the environment active and named by `--python`; `offline` is `pip install --no-build-
isolation -e .` without network. Every case builds from a copy of the working tree, so that nothing is left
from an earlier build.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CASES = ("empty", "torch", "uv", "uv-named", "offline")
FETCHED = re.compile(r"(?:Downloading|Processing|Using cached) \S*\btorch-\d\S*\.whl")
RUNS = """
import torch, lgld_ops
out = lgld_ops.involution2d(torch.ones(1, 2, 4, 4), torch.ones(1, 9, 4, 4), 3, padding=1)
assert out[0, 0].tolist()[1] == [6.0, 9.0, 9.0, 6.0], out
info = lgld_ops.build_info()
assert info["cpu"]["library"], info
print("torch", torch.__version__, "variant", info["cpu"]["variant"])
"""


def copy_sources(target: Path) -> None:
    """Copy what a clean checkout of the working tree would hold."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


class Environment:
    """A virtual environment under `folder`, with torch in it where `torch` names a requirement."""

    def __init__(self, folder: Path, torch: str | None) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        self.python = folder / "bin" / "python"
        if torch:
            self.pip("install", torch)

    def pip(self, *words: str) -> None:
        """Run pip quietly, as preparation of a case."""
        subprocess.run([self.python, "-m", "pip", "-qq", *words], check=True)


def build_requirements() -> list[str]:
    """What must be there for `--no-build-isolation`: build requirements and the package's dependencies."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:requires|dependencies) = \[(.*)\]$", text, re.MULTILINE)
    if len(lists) != 2:
        raise SystemExit("pyproject.toml: expected `requires` and `dependencies`, each on one line")
    return [name for entry in lists for name in re.findall(r'"([^"]+)"', entry) if not name.startswith("torch")]


def cut_network() -> list[str]:
    """Words that run a command without network; none where the system does not let us."""
    words = ["unshare", "--map-root-user", "--net"]
    possible = shutil.which("unshare") and subprocess.run([*words, "true"], capture_output=True).returncode == 0
    return words if possible else []


def processor_seconds() -> float:
    """Processor time of all finished child processes: the cost of an installation on a busy machine too."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_case(case: str, work: Path, environment: Environment, constraint: Path | None) -> tuple[float, float, str]:
    """Install in one way; seconds on the clock, of processor time, what then ran. SystemExit on failure."""
    source = work / case
    copy_sources(source)
    hidden = ("LGLD_", "VIRTUAL_ENV", "CONDA_PREFIX", "UV_", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    if constraint:
        # A constraint reaches pip's and uv's isolated build environments as well.
        env |= {
            "PIP_CONSTRAINT": str(constraint),
            "UV_CONSTRAINT": str(constraint),
            "UV_BUILD_CONSTRAINT": str(constraint),
        }
    if links := env.get("PIP_FIND_LINKS"):
        env["UV_FIND_LINKS"] = ",".join(links.split())
    command = [str(environment.python), "-m", "pip", "install", "--verbose", "-e", "."]
    if case.startswith("uv"):
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        command = [uv, "pip", "install", "--verbose", "-e", "."]
        if case == "uv":
            env["VIRTUAL_ENV"] = str(environment.folder)
        else:
            command += ["--python", str(environment.python)]
    elif case == "offline":
        environment.pip("install", *build_requirements())
        env["PIP_NO_INDEX"] = "1"
        command = [*cut_network(), *command, "--no-build-isolation"]
    start, processor = time.monotonic(), processor_seconds()
    result = subprocess.run(command, cwd=source, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds, processor = time.monotonic() - start, processor_seconds() - processor
    if result.returncode:
        raise SystemExit(f"{result.stdout}\n{case}: the installation failed, see above")
    built = "".join(path.read_text() for path in source.glob("build/cmake-*/CMakeCache.txt"))
    torch_used = re.search(r"^LGLD_TORCH_DIR:\w+=(.*)$", built, re.MULTILINE)
    inside = torch_used is not None and Path(torch_used[1]).is_relative_to(environment.folder)
    fetched = FETCHED.findall(result.stdout)
    if case != "empty" and (not inside or fetched):
        where = torch_used[1] if torch_used else "nothing"
        raise SystemExit(f"{result.stdout}\n{case}: built against {where}, fetched {fetched}: the environment had a torch")
    ran = subprocess.run([environment.python, "-c", RUNS], cwd=work, env=env, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{ran.stdout}{ran.stderr}\n{case}: it was installed but does not run, see above")
    environment.pip("uninstall", "--yes", "lgld_ops")
    return seconds, processor, ran.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--torch", default="torch>=2.10", help="the torch to install, as a requirement")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds that an installation may take")
    arguments = parser.parse_args()
    cases = arguments.cases or list(CASES)
    if unknown := set(cases) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    with tempfile.TemporaryDirectory(prefix="lgld-install-") as folder:
        work = Path(folder)
        constraint = work / "constraint.txt" if "==" in arguments.torch else None
        if constraint:
            constraint.write_text(arguments.torch + "\n")
        with_torch = Environment(work / "with-torch", arguments.torch) if set(cases) - {"empty"} else None
        late = []
        for case in sorted(cases, key=CASES.index):  # `offline` adds packages that the others must do without
            environment = with_torch if with_torch and case != "empty" else Environment(work / "empty-venv", None)
            seconds, processor, ran = run_case(case, work, environment, constraint)
            print(f"{case:10} {seconds:6.1f} s, {processor:6.1f} s of processor time   {ran}", flush=True)
            if seconds > arguments.limit:
                late.append(case)
        if late:
            raise SystemExit(f"{', '.join(late)}: longer than {arguments.limit:.0f} s")


if __name__ == "__main__":
    main()
