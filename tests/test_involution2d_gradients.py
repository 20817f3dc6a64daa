"""Both gradients of the involution as one op, and when autograd calls it."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from oracle import Problem, problems
from torch import Tensor

from lgld_ops.ops import involution

both = torch.ops.lgld_ops.involution2d_gradients.default


@given(problems())
def test_equals_the_two_ops(problem: Problem) -> None:
    x, weight, grad_y = problem.operands()
    found = both(grad_y, x, weight, *problem.arguments)
    ops = torch.ops.lgld_ops
    expected = (
        ops.involution2d_grad_x(grad_y, weight, *x.shape[2:], *problem.arguments),
        ops.involution2d_grad_weight(grad_y, x, *problem.arguments),
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.stride() == theirs.stride()


def test_opcheck() -> None:
    x, weight, grad_y = Problem().operands()
    torch.library.opcheck(both, (grad_y, x, weight, [3, 3], [1, 1], [1, 1]))


def test_errors_name_the_argument() -> None:
    x, weight, grad_y = Problem().operands()
    for arguments, message in (
        ((grad_y[:1], x, weight), "grad_y must have shape"),
        ((grad_y, x, weight[:, :8]), "weight must have shape"),
        ((grad_y.double(), x, weight), "must have the dtype"),
    ):
        with pytest.raises(RuntimeError, match=f"involution2d_gradients: .*{re.escape(message)}"):
            both(*arguments, [3, 3], [1, 1], [1, 1])


def test_autograd_calls_it_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, _ = (t.requires_grad_() for t in Problem(dtype=torch.float64).operands())

    def gradients(x: Tensor) -> tuple[tuple[Tensor, ...], set[str]]:
        leaves = [t for t in (x, weight) if t.requires_grad]
        with torch.profiler.profile() as profile:
            found = torch.autograd.grad(involution.involution2d(x, weight, 3, padding=1).square().sum(), leaves)
        return found, {event.key for event in profile.key_averages()}

    separate, before = gradients(x)
    monkeypatch.setattr(involution, "chosen_backward", "joint")
    joint, after = gradients(x)
    assert all(torch.equal(a, b) for a, b in zip(separate, joint, strict=True))
    assert "lgld_ops::involution2d_gradients" in after - before
    assert "lgld_ops::involution2d_gradients" not in gradients(x.detach())[1]  # one of them alone
    assert torch.autograd.gradgradcheck(lambda x, w: involution.involution2d(x, w, 3, padding=1), (x, weight), fast_mode=True)
    monkeypatch.setattr(involution, "chosen_backward", "both")
    with pytest.raises(RuntimeError, match="LGLD_INVOLUTION_BACKWARD must be separate, joint, or unset, but is 'both'"):
        gradients(x)
