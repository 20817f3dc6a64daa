"""What the tests on a GPU share: they run the backend that `LGLD_GPU_BACKEND` names or that is chosen without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mixer_oracle
import oracle
import pytest
import torch
from torch import Tensor

import lgld_ops

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")


def to_gpu(t: Tensor) -> Tensor:
    """The same view of the same storage, there: `.cuda()` would make some views contiguous."""
    storage = t.detach().untyped_storage().cuda()
    return torch.empty(0, dtype=t.dtype, device="cuda").set_(storage, t.storage_offset(), t.shape, t.stride())


def check_involution(problem: oracle.Problem) -> tuple[Tensor, ...]:
    operands = problem.operands()
    ours = oracle.with_gradients(lgld_ops.involution2d, problem, tuple(map(to_gpu, operands)))
    oracle.assert_like_reference(tuple(t.cpu() for t in ours), problem, operands)
    return ours


def mix(problem: mixer_oracle.Mixing) -> dict[str, Tensor]:
    """Result, gradients and batch statistics, on the CPU."""
    x, parameters, running, grad = problem.operands()
    leaves = [None if t is None else to_gpu(t).requires_grad_() for t in (x, *parameters)]
    y, *statistics = lgld_ops.fourier_feature_mixer(*leaves, *map(to_gpu, running), problem.training, 1e-5, problem.stride)
    present = {name: t for name, t in zip(mixer_oracle.NAMES[1:], leaves, strict=True) if t is not None}
    gradients = torch.autograd.grad(y, list(present.values()), to_gpu(grad))
    results = {"y": y.detach(), **dict(zip(present, gradients, strict=True))}
    if problem.training:
        results |= dict(zip(("mean", "var"), statistics, strict=True))
    return {name: t.cpu() for name, t in results.items()}


def check_mixer(problem: mixer_oracle.Mixing) -> dict[str, Tensor]:
    ours = mix(problem)
    mixer_oracle.assert_exact_enough(ours, problem)
    return ours


def need_memory(gigabytes: float) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of GPU memory, {free:.0f} are free")


def passes() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Each op with arguments on the GPU, by name."""
    ops = torch.ops.lgld_ops
    problem = oracle.Problem(2, 12, 20, 23, groups=3)
    x, weight, grad = map(to_gpu, problem.operands())
    image, parameters, running, grad_mixed = mixer_oracle.Mixing(3, 3, 8, 37, 42).operands()
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 12, 20, 23), (4, 12), (4,), (9, 4), (9,))
    layer = [torch.randn(size, generator=generator).cuda() for size in sizes]
    mixed = [to_gpu(t) for t in (image, *parameters, *running) if t is not None]
    return {
        "involution2d": (ops.involution2d, (x, weight, *problem.arguments)),
        "involution2d_grad_x": (ops.involution2d_grad_x, (grad, weight, 20, 23, *problem.arguments)),
        "involution2d_grad_weight": (ops.involution2d_grad_weight, (grad, x, *problem.arguments)),
        "involution2d_gradients": (ops.involution2d_gradients, (grad, x, weight, *problem.arguments)),
        "involution_layer": (ops.involution_layer, (*layer, 3)),
        "involution_layer_backward": (ops.involution_layer_backward, (layer[0].flip(0), *layer, 3)),
        "fourier_feature_mixer": (ops.fourier_feature_mixer, (*mixed, True)),
        "fourier_feature_mixer_inference": (ops.fourier_feature_mixer, (*mixed, False)),
        "fourier_feature_mixer_backward": (ops.fourier_feature_mixer_backward, (to_gpu(grad_mixed), *mixed, True)),
    }


PASSES = (
    "involution2d", "involution2d_grad_x", "involution2d_grad_weight", "involution2d_gradients", "involution_layer",
    "involution_layer_backward", "fourier_feature_mixer", "fourier_feature_mixer_inference", "fourier_feature_mixer_backward",
)  # fmt: skip


def tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)
