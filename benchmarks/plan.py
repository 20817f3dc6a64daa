"""Which cases ``pytest benchmarks/`` runs, at how many threads, against whom."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from lgld_ops.bench.cases import (
    FORWARD,
    LGLD,
    SHAPES,
    TRAINING,
    Case,
    MixerCase,
    NetworkCase,
    involution_cases,
)
from lgld_ops.bench.harness import ESSENTIAL
from lgld_ops.bench.opponents import Opponent, opponents_for

BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class Cell:
    """One case at one thread count: with the torch.compile opponents or without, with the other networks or without, or only
    with some opponents."""

    case: Case
    threads: int
    compiled: bool = True
    other_networks: bool = False
    only: tuple[str, ...] = ()
    """Names of the opponents where not all take part; ours, the judge and the reference do in any case."""

    @property
    def contestants(self) -> list[Opponent]:
        return [one for one in self.opponents if one.role not in ("judge", "floor")]

    @property
    def opponents(self) -> list[Opponent]:
        def wanted(one: Opponent) -> bool:
            if one.role in (*ESSENTIAL, "floor"):
                return True
            listed = one.name in self.only if self.only else self.other_networks or one.role != "other network"
            return listed and (self.compiled or not one.compiled)

        return [one for one in opponents_for(self.case) if wanted(one)]

    @property
    def id(self) -> str:
        return f"{self.case.label}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def thread_counts() -> tuple[int, ...]:
    """One and two, as far as this machine has them; two first."""
    return (2, 1) if len(os.sched_getaffinity(0)) > 1 else (1,)


def quick() -> list[Cell]:
    """A smoke test: everything is built, judged and timed once, in a minute and a half."""
    threads = thread_counts()[0]
    return [
        Cell(LGLD, threads),
        Cell(replace(LGLD, mode=TRAINING), threads, compiled=False),
        *(Cell(shape, threads, compiled=False) for shape in SHAPES.values() if shape != LGLD),
        Cell(replace(LGLD, dtype="bfloat16", channels_last=True), threads, compiled=False),
        *(Cell(MixerCase(mode=mode), threads, compiled=False) for mode in (FORWARD, TRAINING)),
        Cell(NetworkCase(), threads, compiled=False),
    ]


def default() -> list[Cell]:
    """What takes about 25 minutes on two cores; compiling is what takes them, so not every cell has it."""
    most = thread_counts()[0]
    shapes = list(SHAPES.values())
    cells = [Cell(case, most, compiled=case.batch < 32) for case in involution_cases(shapes, BATCHES, (FORWARD,))]
    cells += [Cell(case, most, compiled=case.batch == 1) for case in involution_cases(shapes, (1, 8), (TRAINING,))]
    cells += [
        # Against plain torch; tools/formats.py compares them with one another.
        Cell(replace(shape, dtype=dtype, channels_last=last), most, compiled=False)
        for dtype, last in (("float32", True), ("bfloat16", False), ("float16", False), ("bfloat16", True))
        for shape in shapes
    ]
    cells += [Cell(MixerCase(batch, mode=mode), most) for mode in (FORWARD, TRAINING) for batch in (1, 8)]
    cells.append(Cell(NetworkCase(1), most, other_networks=True))
    cells.append(Cell(NetworkCase(8), most))
    # The opponents in float32; of torch.compile's two the faster one.
    float32 = ("reference, eager channels_last", "reference, torch.compile + freezing", "ONNX Runtime", "OpenVINO f32", "ncnn")
    cells.append(Cell(NetworkCase(32), most, only=float32))
    cells.append(Cell(NetworkCase(8, mode=TRAINING), most, compiled=False))
    if most > 1:
        cells += [Cell(case, 1) for case in involution_cases(shapes, (1,), (FORWARD,))]
        cells += [
            Cell(case, 1, compiled=False)
            for case in (
                *involution_cases(shapes, (8,), (FORWARD,)),
                *involution_cases([LGLD], (1,), (TRAINING,)),
            )
        ]
        cells.append(Cell(NetworkCase(), 1))
    return cells


def everything() -> list[Cell]:
    """Every shape, batch size, mode and thread count against every opponent: an hour or more."""
    return [
        Cell(case, threads, other_networks=True)
        for threads in thread_counts()
        for case in (
            *involution_cases(SHAPES.values(), BATCHES, (FORWARD, TRAINING)),
            *(MixerCase(batch, mode=mode) for mode in (FORWARD, TRAINING) for batch in BATCHES),
            *(NetworkCase(batch) for batch in BATCHES),
            NetworkCase(8, mode=TRAINING),
        )
    ]
