"""LGLD-Net's Fourier feature mixer, forward and forward+backward."""

from __future__ import annotations

from typing import Any

import pytest
from contest import Runner, record
from plan import Cell
from replay import CLOCK

SUBJECT = "ffm"


@pytest.mark.benchmark(timer=CLOCK)
def test_ffm(cell: Cell, contestant: str, runner: Runner, benchmark: Any) -> None:
    record(cell, contestant, runner, benchmark)
