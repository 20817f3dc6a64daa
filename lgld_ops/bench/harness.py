"""Runs a comparison: every opponent prepared, judged, then timed in interleaved rounds (A B C, A B C,
...)."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .cases import Case, InvolutionCase, NetworkCase, case_to_dict
from .equivalence import Verdict, judge
from .opponents import ISA_VARIABLES, Opponent, opponents_for
from .processes import WorkerError, WorkerProcess

Notify: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, the steps done, and the steps of this comparison."""

Status: TypeAlias = Literal["waiting", "ok", "unavailable", "failed", "wrong"]
ESSENTIAL = ("judge", "reference", "ours")
"""Roles without which nothing is proved."""


@dataclass(frozen=True)
class Settings:
    """How long and how often. ``quick`` only marks the results; it changes nothing by itself."""

    rounds: int = 20
    warm_seconds: float = 0.3
    sample_seconds: float = 0.005
    """Calls are repeated in a sample until it takes about this long."""
    peak_seconds: float = 0.2
    prepare_timeout: float = 600.0
    turn_timeout: float = 120.0
    quick: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")


QUICK = Settings(rounds=5, warm_seconds=0.05, sample_seconds=0.002, peak_seconds=0.05, quick=True)


@dataclass
class Entry:
    """One opponent's part in a comparison."""

    opponent: Opponent
    status: Status = "waiting"
    reason: str = ""
    """Why the status is neither "waiting" nor "ok"."""
    stderr_tail: str = ""
    verdict: Verdict | None = None
    result_names: list[str] = field(default_factory=list)
    prepare_seconds: float = 0.0
    inner: int = 0
    kept_bytes: int | None = None
    peak_bytes: int | None = None
    """The largest resident set of its process from the start of building to the last round: interpreter, torch, weights,
    compilation included. The first case of a process is what a fresh process shows; later ones find memory kept."""
    samples: list[float] = field(default_factory=list)
    """Seconds per call, one sample a round."""

    @property
    def name(self) -> str:
        return self.opponent.name

    @property
    def timed(self) -> bool:
        return self.status == "ok" and bool(self.samples)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def minimum(self) -> float:
        return min(self.samples)

    def fail(self, error: WorkerError) -> None:
        self.status, self.reason, self.stderr_tail = "failed", str(error), error.stderr_tail
        self.samples.clear()


@dataclass
class Comparison:
    """What one case gave at one thread count. Without proof of equivalence it has no samples and no ratio."""

    case: Case
    threads: int
    settings: Settings
    entries: list[Entry]
    problems: list[str] = field(default_factory=list)
    """Why nothing may be concluded; empty where every result was equivalent and ours was timed."""
    peak_rate: float | None = None
    """Multiply-adds per second, measured in the same run at the same thread count."""
    peak_unavailable: str = ""
    isa: str | None = None
    """The instruction set that everybody was limited to."""

    @property
    def proved(self) -> bool:
        return not self.problems

    def by_role(self, role: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.opponent.role == role), None)

    def by_name(self, name: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.name == name), None)

    @property
    def contestants(self) -> list[Entry]:
        """Those that stand in the table: not the judge, not the floors."""
        return [entry for entry in self.entries if entry.opponent.role not in ("judge", "floor")]

    def speed_up(self, entry: Entry) -> float | None:
        """Median of ``entry`` over the median of ours; None without proof, or where either was not timed."""
        ours = self.by_role("ours")
        if not self.proved or ours is None or not ours.timed or not entry.timed:
            return None
        return entry.median / ours.median

    def _median(self, name: str) -> float | None:
        entry = self.by_name(name)
        return entry.median if self.proved and entry is not None and entry.timed else None

    @property
    def copy_floor(self) -> float | None:
        """Seconds to copy x and weight with ``copy_``, as often as the mode must pass over them."""
        seconds = self._median("copy x and weight")
        if seconds is None or not isinstance(self.case, InvolutionCase):
            return None
        return seconds * self.case.copies

    @property
    def arithmetic_floor(self) -> float | None:
        """Seconds that the multiply-adds take at the measured peak rate."""
        if self.peak_rate is None or not isinstance(self.case, InvolutionCase):
            return None
        return self.case.multiply_adds / self.peak_rate

    @property
    def factor_over_floor(self) -> float | None:
        """Median of ours over the larger of the two floors; None unless both are known."""
        ours = self.by_role("ours")
        copy, arithmetic = self.copy_floor, self.arithmetic_floor
        if ours is None or not ours.timed or copy is None or arithmetic is None:
            return None
        return ours.median / max(copy, arithmetic)

    @property
    def copies_of_x(self) -> float | None:
        """Median of ours in units of the time to copy x."""
        ours, copy = self.by_role("ours"), self._median("copy x")
        return None if ours is None or not ours.timed or copy is None else ours.median / copy

    @property
    def kept_fraction(self) -> float | None:
        """Bytes that autograd keeps with ours, over those with the reference."""
        ours, eager = self.by_role("ours"), self.by_role("reference")
        if not self.proved or ours is None or eager is None or not ours.kept_bytes or not eager.kept_bytes:
            return None
        return ours.kept_bytes / eager.kept_bytes


def _results(folder: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}


class Harness:
    """The workers of one thread count. A context manager: every worker is gone when it is left, however it is
    left.

    Workers start when first needed, live from one case to the next, and a new one replaces one that died.

    Args:
        threads: for torch and OpenMP in every worker.
        settings: see ``Settings``.
        plugins: Python files that register further opponents in the workers.
        notify: see ``Notify``.
        isa: limits every worker to this instruction set, "avx2" or "sse2"; opponents that cannot be limited are unavailable.
    """

    def __init__(
        self,
        threads: int,
        settings: Settings | None = None,
        *,
        plugins: Sequence[str] = (),
        notify: Notify | None = None,
        isa: str | None = None,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        if isa is not None and isa not in ISA_VARIABLES:
            raise ValueError(f"isa must be one of {', '.join(ISA_VARIABLES)}, or None, got {isa!r}")
        self.isa = isa
        self.threads = threads
        self.settings = settings or Settings()
        self._plugins = [os.path.abspath(plugin) for plugin in plugins]
        self._notify = notify or (lambda what, done, total: None)
        self._scratch = tempfile.TemporaryDirectory(prefix="lgld-bench-")
        self._workers: dict[str, WorkerProcess] = {}
        self._peak: dict[str, Any] | None = None
        self._done = self._total = 0

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends every worker. May be called again."""
        while self._workers:
            self._workers.popitem()[1].close()
        self._scratch.cleanup()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the living workers, by the name of the process."""
        return {name: worker.pid for name, worker in self._workers.items() if worker.alive}

    def info(self) -> dict[str, Any]:
        """What the workers run with: torch version, threads, instruction-set variant."""
        try:
            worker = self._worker("judge and floors", {})
            return worker.request({"do": "info"}, self.settings.prepare_timeout)
        except WorkerError as error:
            return {"error": f"{error}\n{error.stderr_tail}"}

    def stages(self, case: NetworkCase, rounds: int) -> dict[str, Any]:
        """What each stage of the fused network costs, as `stages.measure` returns it.

        Raises:
            WorkerError: it could not be measured.
        """
        worker = self._worker("network: stages", {})
        message = {"do": "stages", "case": case_to_dict(case), "rounds": rounds}
        return worker.request(message, self.settings.prepare_timeout)

    def run(self, case: Case, opponents: Sequence[Opponent] | None = None) -> Comparison:
        """Prepares, judges, and times every opponent on one case. Opponents that cannot run are reported, not
        raised."""
        chosen = opponents_for(case) if opponents is None else opponents
        comparison = Comparison(case, self.threads, self.settings, [Entry(entry) for entry in chosen], isa=self.isa)
        entries = comparison.entries
        for entry in entries:
            if self.isa is not None and not entry.opponent.limited_by_variables:
                entry.status, entry.reason = "unavailable", f"nothing limits it to {self.isa.upper()}"
        self._done, self._total = 0, 2 * len(entries) + self.settings.rounds
        with tempfile.TemporaryDirectory(dir=self._scratch.name) as folder:
            try:
                self._prepare_all(case, entries, Path(folder))
                self._judge_all(comparison, Path(folder))
                if comparison.proved:
                    self._warm_all(entries)
                    if isinstance(case, InvolutionCase):
                        self._measure_peak(comparison)
                    self._rounds(entries)
                    self._require_essential(comparison)
            finally:
                self._release_all(entries)
        return comparison

    def _worker(self, process: str, environment: Any) -> WorkerProcess:
        worker = self._workers.get(process)
        if worker is None or not worker.alive:
            if worker is not None:
                worker.close()
            scratch = Path(self._scratch.name)
            limits = ISA_VARIABLES[self.isa] if self.isa is not None else {}
            worker = WorkerProcess(process, self.threads, {**limits, **environment}, self._plugins, scratch)
            self._workers[process] = worker
        return worker

    def _step(self, what: str) -> None:
        self._done += 1
        self._notify(what, self._done, self._total)

    def _prepare_all(self, case: Case, entries: Sequence[Entry], folder: Path) -> None:
        """Starts, builds and compiles, as many at once as there are cores: nothing is timed yet."""
        inputs = folder / "inputs"
        inputs.mkdir()
        for name, array in case.arrays().items():
            np.save(inputs / f"{name}.npy", array)
        # Compilers first: they take longest. The order of the table and of the rounds stays.
        waiting = [item for item in enumerate(entries) if item[1].status == "waiting"]
        queue = sorted(waiting, key=lambda item: not item[1].opponent.compiled)
        running: dict[str, tuple[WorkerProcess, Entry, float]] = {}
        while queue or running:
            for index, entry in list(queue):
                process = entry.opponent.process
                if len(running) >= (os.cpu_count() or 1):
                    break
                if process in running:
                    continue
                queue.remove((index, entry))
                outputs = folder / str(index)
                outputs.mkdir()
                message = {"do": "prepare", "opponent": entry.name, "case": case_to_dict(case)}
                message |= {"inputs": str(inputs), "outputs": str(outputs)}
                try:
                    worker = self._worker(process, entry.opponent.environment)
                    worker.send(message)
                except WorkerError as error:
                    entry.fail(error)
                else:
                    running[process] = (worker, entry, time.monotonic() + self.settings.prepare_timeout)
            self._collect(running)

    def _collect(self, running: dict[str, tuple[WorkerProcess, Entry, float]]) -> None:
        """Waits until some running preparation answers, fails or is overdue."""
        if not running:
            return
        nearest = min(deadline for _, _, deadline in running.values())
        names = ", ".join(entry.name for _, entry, _ in running.values())
        self._notify(f"preparing {names}", self._done, self._total)
        readable = wait([worker.connection for worker, _, _ in running.values()], max(0.0, nearest - time.monotonic()))
        for process, (worker, entry, deadline) in list(running.items()):
            try:
                if worker.connection in readable:
                    answer = worker.receive()
                    if answer is None:
                        continue
                    self._take_preparation(entry, answer)
                elif time.monotonic() >= deadline:
                    raise worker.hang(self.settings.prepare_timeout)
                else:
                    continue
            except WorkerError as error:
                entry.fail(error)
            del running[process]
            worker.pause()
            self._step(f"prepared {entry.name}")

    @staticmethod
    def _take_preparation(entry: Entry, answer: dict[str, Any]) -> None:
        if "unavailable" in answer:
            entry.status, entry.reason = "unavailable", answer["unavailable"]
        else:
            entry.prepare_seconds = answer["seconds"]
            entry.kept_bytes = answer["kept_bytes"]
            entry.result_names = answer["names"]

    def _judge_all(self, comparison: Comparison, folder: Path) -> None:
        self._require_essential(comparison)
        if not comparison.proved:
            return
        indices = {id(entry): index for index, entry in enumerate(comparison.entries)}

        def results(entry: Entry) -> dict[str, NDArray[Any]]:
            return _results(folder / str(indices[id(entry)]), entry.result_names)

        exact_entry, eager_entry = comparison.by_role("judge"), comparison.by_role("reference")
        assert exact_entry is not None
        assert eager_entry is not None
        exact, eager = results(exact_entry), results(eager_entry)
        for entry in comparison.contestants:
            if entry.status != "waiting":
                continue
            yardsticks = eager, exact
            if entry.opponent.judged_by:
                own = comparison.by_name(entry.opponent.judged_by)
                if own is None or own.status != "waiting":
                    entry.status, entry.reason = "failed", f"{entry.opponent.judged_by}, which it is judged by, did not run"
                    continue
                yardsticks = results(own), results(own)
            entry.verdict = judge(results(entry), *yardsticks, entry.opponent.error_factor, entry.opponent.relative_error)
            if not entry.verdict.equivalent:
                entry.status, entry.reason = "wrong", entry.verdict.problem or ""
                comparison.problems.append(f"{entry.name} is not equivalent: {entry.reason}")

    @staticmethod
    def _require_essential(comparison: Comparison) -> None:
        for role in ESSENTIAL:
            entry = comparison.by_role(role)
            if entry is None:
                comparison.problems.append(f"nobody has the role {role!r}, so nothing is proved")
            elif entry.status not in ("waiting", "ok"):
                comparison.problems.append(f"{entry.name} ({role}): {entry.status}: {entry.reason}")

    def _turn(self, entry: Entry, message: dict[str, Any]) -> dict[str, Any] | None:
        """One entry's worker runs, all others stand still."""
        try:
            worker = self._workers[entry.opponent.process]
            return worker.request({"opponent": entry.name, **message}, self.settings.turn_timeout)
        except WorkerError as error:
            entry.fail(error)
            return None

    def _warm_all(self, entries: Sequence[Entry]) -> None:
        settings = self.settings
        message = {"do": "warm", "seconds": settings.warm_seconds, "sample_seconds": settings.sample_seconds}
        for entry in entries:
            self._step(f"warming up {entry.name}")
            if entry.status == "waiting" and entry.opponent.role != "judge":
                answer = self._turn(entry, message)
                if answer is not None:
                    entry.status, entry.inner = "ok", answer["inner"]

    def _rounds(self, entries: Sequence[Entry]) -> None:
        for round_number in range(1, self.settings.rounds + 1):
            for entry in entries:
                if entry.status == "ok":
                    answer = self._turn(entry, {"do": "turn"})
                    if answer is not None:
                        entry.samples.append(answer["seconds"])
            self._step(f"round {round_number} of {self.settings.rounds}")

    def _measure_peak(self, comparison: Comparison) -> None:
        if self._peak is None:
            try:
                worker = self._worker("judge and floors", {})
                message = {"do": "peak", "seconds": self.settings.peak_seconds}
                self._peak = worker.request(message, self.settings.turn_timeout)
            except WorkerError as error:
                self._peak = {"unavailable": str(error)}
        comparison.peak_rate = self._peak.get("multiply_adds_per_second")
        comparison.peak_unavailable = self._peak.get("unavailable", "")

    def _release_all(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            worker = self._workers.get(entry.opponent.process)
            if worker is not None and worker.alive and entry.status != "unavailable":
                try:
                    answer = worker.request({"do": "release", "opponent": entry.name}, self.settings.turn_timeout)
                    entry.peak_bytes = answer["peak_bytes"] if entry.timed else None
                except WorkerError:
                    worker.close()
