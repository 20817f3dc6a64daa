"""LGLD-Net as a whole: logits in eval mode, and the gradients of a training step."""

from __future__ import annotations

from typing import Any

import pytest
from contest import Runner, record
from plan import Cell
from replay import CLOCK

SUBJECT = "network"


@pytest.mark.benchmark(timer=CLOCK)
def test_network(cell: Cell, contestant: str, runner: Runner, benchmark: Any) -> None:
    record(cell, contestant, runner, benchmark)
