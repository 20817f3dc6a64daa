"""Opponents for the tests of the benchmark harness: well-behaved ones that log every call, and ones that
fail."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from lgld_ops.bench.cases import FORWARD, InvolutionCase, NetworkCase
from lgld_ops.bench.opponents import BOTH, ISA_VARIABLES, Call, Inputs, involution_call, module, opponent
from lgld_ops.bench.opponents.other_networks import other_network
from lgld_ops.reference import involution2d_unfold

LOG_VARIABLE = "LGLD_BENCH_TEST_LOG"
MISFITS = "test misfits"
"""One process for those that need none of their own: starting one takes seconds."""


def unfold(x: torch.Tensor, weight: torch.Tensor, case: InvolutionCase) -> torch.Tensor:
    return involution2d_unfold(x, weight, case.kernel_size, case.stride, case.padding, groups=case.groups)


def states_of_others() -> str:
    """One letter per other worker of the same harness: the state of its process, as in /proc/PID/stat."""
    states = ""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat.parent.name) != os.getpid() and int(after_name[1]) == os.getppid():
            states += after_name[0]
    return states


def logging(name: str, call: Call) -> Call:
    def logged() -> dict[str, object]:
        with open(os.environ[LOG_VARIABLE], "a") as log:
            log.write(f"{name} {states_of_others()}\n")
        return dict(call())

    return logged


def good(name: str, role: str) -> None:
    @opponent(name, "involution", role=role, modes=BOTH)
    def build(case: InvolutionCase, inputs: Inputs) -> Call:
        return logging(name, involution_call(unfold, case, inputs))


good("test reference", "reference")
good("test ours", "ours")
good("test third", "opponent")


@opponent("test wrong pixel", "involution", process=MISFITS)
def wrong_pixel(case: InvolutionCase, inputs: Inputs) -> Call:
    def off_in_one_pixel(x: torch.Tensor, weight: torch.Tensor, case: InvolutionCase) -> torch.Tensor:
        result = unfold(x, weight, case)
        nudge = torch.zeros_like(result)
        nudge[-1, -1, -1, -1] = 1e-4
        return result + nudge

    return involution_call(off_in_one_pixel, case, inputs)


@opponent("test wrong gradient", "involution", role="ours", process=MISFITS)
def wrong_gradient(case: InvolutionCase, inputs: Inputs) -> Call:
    def gradient_scaled(x: torch.Tensor, weight: torch.Tensor, case: InvolutionCase) -> torch.Tensor:
        return unfold(x, weight * 1.001 - (weight * 0.001).detach(), case)

    return involution_call(gradient_scaled, case, inputs)


@opponent("test NaN", "involution", process=MISFITS)
def not_a_number(case: InvolutionCase, inputs: Inputs) -> Call:
    return involution_call(lambda x, weight, case: unfold(x, weight, case) * float("nan"), case, inputs)


@opponent(
    "test unavailable",
    "involution",
    process=MISFITS,
    requires=(lambda: None, lambda: "needs a flux capacitor"),
)
def unavailable(case: InvolutionCase, inputs: Inputs) -> Call:
    raise AssertionError("built although a requirement is not met")


@opponent("test raises", "involution", process=MISFITS)
def raises(case: InvolutionCase, inputs: Inputs) -> Call:
    raise ValueError("no such kernel")


def failing_after(calls: int, fail: Call, case: InvolutionCase, inputs: Inputs) -> Call:
    """Works for preparation and warm-up's first calls, then fails."""
    call, left = involution_call(unfold, case, inputs), calls

    def counted() -> dict[str, object]:
        nonlocal left
        left -= 1
        return dict(call() if left >= 0 else fail())

    return counted


@opponent("test dies", "involution")
def dies(case: InvolutionCase, inputs: Inputs) -> Call:
    def fail() -> dict[str, object]:
        print("about to die", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
        return {}

    return failing_after(2, fail, case, inputs)


@opponent("test hangs", "involution")
def hangs(case: InvolutionCase, inputs: Inputs) -> Call:
    def fail() -> dict[str, object]:
        print("about to hang", file=sys.stderr, flush=True)
        time.sleep(3600)
        return {}

    return failing_after(2, fail, case, inputs)


LARGE = 400_000_000
"""Bytes that one of the opponents below takes for a moment."""


@opponent("test large", "involution")
def large(case: InvolutionCase, inputs: Inputs) -> Call:
    del_me = torch.ones(LARGE // 4)
    del del_me
    return involution_call(unfold, case, inputs)


@opponent("test limited", "involution", role="ours")
def limited(case: InvolutionCase, inputs: Inputs) -> Call:
    """Right only where the variables that limit the instruction set are those for AVX2."""
    wrong = {name: os.environ.get(name) for name, value in ISA_VARIABLES["avx2"].items() if os.environ.get(name) != value}
    if wrong:
        raise RuntimeError(f"not limited: {wrong}")
    return involution_call(unfold, case, inputs)


@opponent("test unlimited", "involution", process=MISFITS, limited_by_variables=False)
def unlimited(case: InvolutionCase, inputs: Inputs) -> Call:
    return involution_call(unfold, case, inputs)


@opponent("test missing package", "network", requires=(module("no_such_runtime"), lambda: no_such_name))  # type: ignore[name-defined] # noqa: F821
def missing_package(case: NetworkCase, inputs: Inputs) -> Call:
    raise AssertionError("built although a requirement is not met")


def scaled_alexnet(name: str, scale: float) -> None:
    judge = {"judged_by": "AlexNet, eager", "relative_error": 1e-4}

    @opponent(name, "network", role="other network", modes=(FORWARD,), process="test alexnet", **judge)
    def build(case: NetworkCase, inputs: Inputs) -> Call:
        net = other_network("AlexNet")
        return lambda: {"logits": net(inputs["x"]) * scale}


scaled_alexnet("test AlexNet, rounded", 1.0 + 2e-5)
scaled_alexnet("test AlexNet, wrong", 1.001)
