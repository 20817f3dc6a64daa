"""The Fourier feature mixer's Triton kernels against float64, by the rules that hold for the CPU's (tests/mixer_oracle.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import interpreter
import mixer_oracle
import pytest
import torch
from hypothesis import given, settings
from mixer_oracle import DTYPES, Mixing, assert_exact_enough, mixings, with_gradients
from oracle import LAYOUTS, far_apart

import lgld_ops
from lgld_ops.ops import plain_ffm

mixer = lgld_ops.fourier_feature_mixer
ops = torch.ops.lgld_ops

SHAPES = mixer_oracle.SHAPES | {
    "ten_channels": Mixing(1, 10, 2, 5, 6),
    "stride_1": Mixing(2, 3, 4, 12, 33, stride=1),
    "several_tiles": Mixing(2, 3, 2, 6, 1100),
    "several_blocks": Mixing(1, 3, 70, 5, 6),
    "bright": Mixing(2, 3, 8, 40, 42, offset=0.85, spread=0.02),
}
EVERY_DTYPE = ("odd", "bright")


def check(problem: Mixing) -> dict[str, torch.Tensor]:
    before = dict(interpreter.calls)
    ours = with_gradients(mixer, problem)
    for name in ("fourier_feature_mixer", "fourier_feature_mixer_backward"):
        assert interpreter.calls[name] == before[name] + 1, f"{name} did not run Triton"
    assert_exact_enough(ours, problem)
    return ours


def cases() -> list[Any]:
    """Each shape in float32, two of them in every dtype."""
    return [pytest.param(n, d, id=f"{n}-{d}") for n in SHAPES for d in (DTYPES if n in EVERY_DTYPE else DTYPES[:1])]


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(("name", "dtype"), cases())
def test_chosen_shapes(name: str, dtype: torch.dtype, training: bool) -> None:
    check(replace(SHAPES[name], dtype=dtype, training=training))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    check(Mixing(layouts=(layout, "contiguous"), dtype=torch.bfloat16))
    check(Mixing(layouts=("contiguous", layout)))


@pytest.mark.parametrize("name", ["odd", "several_blocks"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_channels_last(name: str, dtype: torch.dtype) -> None:
    check(replace(SHAPES[name], dtype=dtype, layouts=("channels_last",) * 2))


@settings(max_examples=10)
@given(mixings())
def test_random_problems(problem: Mixing) -> None:
    check(problem)


def test_statistics_of_a_bright_image() -> None:
    """0.85 +- 0.02: moments that are not centred, or summed in float32, are off by 1e-3."""
    x, parameters, running, _ = Mixing(2, 3, 4, 120, 124, offset=0.85, spread=0.02).operands()
    _, mean, var = mixer(x, *parameters, *running, True)
    _, exact_mean, exact_var = plain_ffm.fourier_feature_mixer(x.double(), *parameters, *running, True)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=3e-7, atol=1e-7)
    torch.testing.assert_close(var.double(), exact_var, rtol=3e-7, atol=0)


def test_many_runs_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than runs: a run adds several up."""
    import lgld_ops.triton as kernels

    for module in (kernels.ffm, kernels._ffm_fold):
        monkeypatch.setattr(module, "MOST_TASKS", 3)
    check(Mixing(11, 3, 2, 9, 10))


def test_only_the_gradients_that_are_needed() -> None:
    x, parameters, running, g = Mixing().operands()
    full = ops.fourier_feature_mixer_backward(g, x, *parameters, *running, True)
    less = ops.fourier_feature_mixer_backward(g, x, *parameters, *running, True, need_x=False)
    assert less[0].shape == (0,)
    assert all(torch.equal(a, b) for a, b in zip(full[1:], less[1:], strict=True))


def test_without_optional_parameters() -> None:
    x, parameters, running, g = Mixing(dtype=torch.float64).operands()
    arguments = (parameters[0], None, *parameters[2:4], None, None, *running, True)
    got = ops.fourier_feature_mixer_backward(g, x, *arguments)
    assert [got[i].numel() for i in (2, 5, 6)] == [0, 0, 0]
    y, *_ = plain_ffm.fourier_feature_mixer(x.requires_grad_(), *arguments)
    torch.testing.assert_close(mixer(x, *arguments)[0], y, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(got[0], torch.autograd.grad(y, x, g)[0], rtol=1e-10, atol=1e-10)


def test_empty_batch() -> None:
    for training in (True, False):
        results = with_gradients(mixer, Mixing(batch=0, training=training))
        assert results["y"].shape == (0, 6, 5, 7)
        assert all((results[name] == 0).all() for name in ("weight", "bias", "bn_weight", "bn_bias"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_stay_where_they_are_in_inference(value: float) -> None:
    x, parameters, running, _ = Mixing(height=40, width=40).operands()
    x[1, 1, 20, 6] = value
    odd = ~mixer(x, *parameters, *running)[0].isfinite()
    odd[1, :, 10, 3] = False
    assert not odd.any()


def test_more_programs_than_a_launch_has_along_one_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    import lgld_ops.triton as kernels

    whole = check(SHAPES["odd"])
    for module in (kernels._common, kernels.ffm, kernels._ffm_fold):
        monkeypatch.setattr(module, "MOST_PROGRAMS", 1)
    again = check(SHAPES["odd"])
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("axis", range(3), ids=["images", "channels", "rows"])
def test_offsets_beyond_2_31(axis: int, layout: str) -> None:
    """Views that span more than 2^31 elements, in memory that is reserved and barely touched."""
    x, parameters, running, g = Mixing(3, 3, 4, 5, 4, dtype=torch.float16, layouts=(layout, layout)).operands()
    far = [far_apart(t, axis) for t in (x, g)]
    arguments = (*parameters, *running, True)
    for a, b in zip(mixer(x, *arguments), mixer(far[0], *arguments), strict=True):
        assert torch.equal(a, b)
    backward = ops.fourier_feature_mixer_backward
    # Where the view is channels_last no more, sums are in another order.
    for a, b in zip(backward(g, x, *arguments), backward(far[1], far[0], *arguments), strict=True):
        torch.testing.assert_close(a, b)
