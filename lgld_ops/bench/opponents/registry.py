"""Who computes: a registry with one function per opponent.

An opponent is a function ``(case, inputs) -> call``. It is run once per case, in the opponent's own process,
with the thread count set; ``call`` computes once from start to end and returns its named results, which are
judged before anything is timed. In forward mode everything runs under ``torch.inference_mode()``. To add one,
write the function and decorate it::

    @opponent("shifted multiply-add, eager", "involution", eager_autograd=True)
    def shifted_eager(case, inputs): ...

Names and order here are the names and order in the tables.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from torch import Tensor

from ..cases import FORWARD, TRAINING, Case, Mode
from ..equivalence import FACTOR

Inputs: TypeAlias = dict[str, Tensor]
Call: TypeAlias = Callable[[], Mapping[str, Any]]
Build: TypeAlias = Callable[[Any, Inputs], Call]
Requirement: TypeAlias = Callable[[], str | None]
Role: TypeAlias = Literal["reference", "opponent", "ours", "ours too", "other network", "judge", "floor"]

BOTH: tuple[Mode, ...] = (FORWARD, TRAINING)

ISA_VARIABLES: dict[str, dict[str, str]] = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "LGLD_CPU_VARIANT": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",
    },
    "sse2": {
        "ATEN_CPU_CAPABILITY": "default",
        "LGLD_CPU_VARIANT": "sse2",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v2",
    },
}
"""What limits torch, oneDNN, MKL, the compiler and lgld_ops to an instruction set; the others' lowest is SSE4.1.

OpenVINO 2026.4's convolutions are oneDNN's and follow; four element-wise nodes of LGLD-Net stay in AVX-512, as its runtime
model says. ONNX Runtime and ncnn choose by the processor alone."""


@dataclass(frozen=True)
class Opponent:
    """An entry of the registry.

    ``role``: "reference" is eager float32, whose error is the yardstick; "ours" is what ratios are formed
    with; "ours too" is another way to run it; an "other network" computes something else, and its time alone is
    compared; the "judge" computes in float64 and is not timed; a "floor" is timed, but computes nothing."""

    name: str
    subject: str
    build: Build
    role: Role = "opponent"
    role_in: Mapping[Mode, Role] = field(default_factory=dict)
    """The role in a mode where it is another."""
    modes: tuple[Mode, ...] = BOTH
    requires: tuple[Requirement, ...] = ()
    """Each says what is missing on this machine, or None."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set before the process starts, e.g. ``{"ONEDNN_MAX_CPU_ISA": "AVX2"}``; excludes sharing the
    process."""
    process: str = ""
    """Opponents that name the same process share it; by default each has its own."""
    compiled: bool = False
    """Whether building takes a compiler and many seconds."""
    error_factor: float = FACTOR
    """How many times the eager error its results may be off. More than ``FACTOR`` needs a reason beside
    it."""
    relative_error: float = 0.0
    """By how much of the largest magnitude its results may be off besides. Needs a reason beside it."""
    judged_by: str = ""
    """Name of the opponent whose results stand in for the judge's and the reference's: an other network's own eager run."""
    limited_by_variables: bool = True
    """Whether environment variables limit its instruction set (`ISA_VARIABLES`)."""
    eager_autograd: bool = False
    """Whether a saved-tensors hook sees what autograd keeps."""
    takes: Callable[[Any], bool] = lambda case: True
    """Whether it has anything to say to a case."""
    refuses: Callable[[Any], str | None] = lambda case: None
    """Says why it cannot compute a case, or None."""

    def __post_init__(self) -> None:
        if self.process and self.environment:
            raise ValueError(f"process must be empty where environment is not, got {self.process!r}")
        if not self.process:
            object.__setattr__(self, "process", f"{self.subject}: {self.name}")


REGISTRY: dict[tuple[str, str], Opponent] = {}


def opponent(name: str, subject: str, **options: Any) -> Callable[[Build], Build]:
    """Registers a function as an opponent; ``options`` are the fields of ``Opponent``."""

    def register(build: Build) -> Build:
        if (subject, name) in REGISTRY:
            raise ValueError(f"name must be new among the opponents for {subject}, got {name!r} again")
        REGISTRY[subject, name] = Opponent(name, subject, build, **options)
        return build

    return register


def opponents_for(case: Case) -> list[Opponent]:
    """Those registered for the case's subject and mode that take it, in the order of registration, in their roles."""
    found = [entry for entry in REGISTRY.values() if entry.subject == case.subject and case.mode in entry.modes]
    return [replace(entry, role=entry.role_in.get(case.mode, entry.role)) for entry in found if entry.takes(case)]


def module(*names: str) -> Requirement:
    """Requires importable modules of packages of the same names."""

    def missing() -> str | None:
        absent = [name for name in names if importlib.util.find_spec(name) is None]
        packages = f"package{'s' if len(absent) > 1 else ''} {', '.join(absent)}"
        return f"needs the Python {packages}: pip install {' '.join(absent)}" if absent else None

    return missing


def cxx_compiler() -> str | None:
    """torch.compile needs a C++ compiler on a CPU."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        found = shutil.which(get_cpp_compiler())
    except Exception as error:  # torch raises a type of its own, which moved between versions
        return f"torch.compile finds no C++ compiler ({type(error).__name__})"
    return None if found else "torch.compile needs a C++ compiler; install g++"
