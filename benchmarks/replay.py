"""Hands samples that were measured inside the workers to pytest-benchmark, whose statistics then are theirs.

pytest-benchmark times calls in its own process, one benchmark after the other. Here every opponent lives in a
process of its own and the rounds are interleaved, so the samples exist before the fixture runs: a clock that
advances by one sample with each call makes it record exactly those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


class ReplayClock:
    """A timer for pytest-benchmark, and the function it times."""

    def __init__(self) -> None:
        self._now = 0.0
        self._samples: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self._now

    def _advance(self) -> None:
        # From zero each time, so that the difference of two readings is the sample to the last bit.
        self._now = next(self._samples)

    def _rewind(self) -> None:
        self._now = 0.0

    def feed(self, benchmark: Any, samples: Sequence[float]) -> None:
        """Records ``samples``, in seconds, in the ``benchmark`` fixture."""
        self._samples = iter(samples)
        benchmark.pedantic(self._advance, setup=self._rewind, rounds=len(samples), iterations=1, warmup_rounds=0)


CLOCK = ReplayClock()
