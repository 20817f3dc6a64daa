"""Is a result right? Judged against float64, with the reference's own float32 error as the yardstick.

A result passes where its largest absolute error is at most 4 times that of the eager reference in the same
run, plus a few units in the last place of the largest magnitude in the tensor. numpy alone, so that judging
starts no thread pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FACTOR = 4.0
ROUNDING_ULPS = 4.0
PARAMETER_GRADIENT = "grad."
"""Prefix of the names of parameter gradients, which share one scale: that of a bias in front of a BatchNorm
is zero but for rounding, so the tensor's own magnitude would say nothing."""

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Verdict:
    """The worst tensor of one opponent's results: the one whose error is the largest part of what it may
    be."""

    tensor: str
    error: float
    eager_error: float
    allowed: float
    problem: str | None = None
    """Why the results are wrong; None where they are equivalent."""

    @property
    def equivalent(self) -> bool:
        return self.problem is None


def largest_error(result: NDArray[Any], exact: NDArray[Any]) -> float:
    """max |result - exact|; NaN where any difference is NaN. Chunked: the arrays may be memory-mapped and
    large."""
    flat, flat_exact = result.reshape(-1), exact.reshape(-1)
    worst = 0.0
    for start in range(0, flat.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        error = float(np.max(np.abs(flat[part].astype(np.float64) - flat_exact[part])))
        if not error <= worst:
            worst = error
        if np.isnan(worst):
            break
    return worst


def _largest(array: NDArray[Any]) -> float:
    return float(np.max(np.abs(array))) if array.size else 0.0


def judge(
    results: Mapping[str, NDArray[Any]],
    eager: Mapping[str, NDArray[Any]],
    exact: Mapping[str, NDArray[Any]],
    factor: float = FACTOR,
    relative: float = 0.0,
) -> Verdict:
    """Compares one opponent's named results with the float64 ones.

    Args:
        results: of the opponent under judgement.
        eager: of the eager reference, same names and shapes, its float32 error being the yardstick.
        exact: in float64.
        factor: how many times the eager error is allowed.
        relative: which part of the largest magnitude is allowed besides.
    """
    if set(results) != set(exact):
        difference = ", ".join(sorted(set(results) ^ set(exact)))
        return Verdict("", 0.0, 0.0, 0.0, f"returned another set of results (differs in {difference})")
    worst: Verdict | None = None
    parameter_scale = max(
        (_largest(array) for name, array in exact.items() if name.startswith(PARAMETER_GRADIENT)), default=0.0
    )
    for name, expected in exact.items():
        got = results[name]
        if got.shape != expected.shape:
            return Verdict(name, 0.0, 0.0, 0.0, f"{name} has shape {got.shape}, expected {expected.shape}")
        if got.dtype != eager[name].dtype:
            kinds = f"{got.dtype}, the reference's is {eager[name].dtype}"
            return Verdict(name, 0.0, 0.0, 0.0, f"{name} is {kinds}")
        scale = parameter_scale if name.startswith(PARAMETER_GRADIENT) else _largest(expected)
        error = largest_error(got, expected)
        eager_error = largest_error(eager[name], expected)
        allowed = factor * eager_error + (ROUNDING_ULPS * float(np.finfo(got.dtype).eps) + relative) * scale
        problem = None
        if not error <= allowed:
            problem = f"{name} is off by {error:.3g}, allowed {allowed:.3g} (eager is off by {eager_error:.3g})"
        verdict = Verdict(name, error, eager_error, allowed, problem)
        if problem is not None:
            return verdict
        if worst is None or error * worst.allowed > worst.error * allowed:
            worst = verdict
    if worst is None:
        return Verdict("", 0.0, 0.0, 0.0, "returned no results, so nothing was proved")
    return worst
