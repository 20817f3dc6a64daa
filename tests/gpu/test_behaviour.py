"""How the ops behave on a GPU: streams, graphs, devices, reproducibility, what is kept."""

from __future__ import annotations

import os

import pytest
import torch
from device import NEEDS_GPU, PASSES, passes, tensors, to_gpu
from mixer_oracle import Mixing
from oracle import Problem

import lgld_ops

pytestmark = NEEDS_GPU


@pytest.fixture(autouse=True)
def _kernels_alone() -> None:
    if lgld_ops.build_info()["gpu"]["backend"] == "reference":
        pytest.skip("torch's own kernels promise less")


def test_the_backend_is_the_one_that_was_asked_for() -> None:
    chosen = lgld_ops.build_info()["gpu"]
    assert chosen["backend"] == os.environ.get("LGLD_GPU_BACKEND", chosen["backend"]), chosen["reason"]


@pytest.mark.parametrize("name", PASSES)
def test_the_same_bits_on_every_run(name: str) -> None:
    op, arguments = passes()[name]
    first = tensors(op(*arguments))
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, tensors(op(*arguments)), strict=True))


@pytest.mark.parametrize("name", PASSES)
def test_nothing_waits_for_the_device(name: str) -> None:
    op, arguments = passes()[name]
    op(*arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        op(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", PASSES)
def test_current_stream(name: str) -> None:
    """On a stream of its own, behind work that fills the operands late."""
    op, arguments = passes()[name]
    expected = tensors(op(*arguments))
    late = [torch.zeros_like(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for there, a in zip(late, arguments, strict=True):
            if isinstance(there, torch.Tensor):
                there.copy_(a)
        results = tensors(op(*late))
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, results, strict=True))


@pytest.mark.parametrize("name", PASSES)
def test_cuda_graphs(name: str) -> None:
    op, arguments = passes()[name]
    held = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        op(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tensors(op(*held))
    held[0].mul_(0.5)
    graph.replay()
    expected = tensors(op(held[0], *held[1:]))
    assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))


def test_autograd_keeps_inputs_only() -> None:
    x, weight, _ = (to_gpu(t) for t in Problem(2, 16, 32, 32).operands())
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        lgld_ops.involution2d(x.requires_grad_(), weight.requires_grad_(), 3, padding=1)
    assert [t.data_ptr() for t in kept] == [x.data_ptr(), weight.data_ptr()]
    image, parameters, running, _ = Mixing(2, 3, 64, 64, 64).operands()
    leaves = [to_gpu(t).requires_grad_() for t in (image, *parameters) if t is not None]
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        lgld_ops.fourier_feature_mixer(*leaves, *map(to_gpu, running), True)
    assert max(t.numel() for t in kept) == image.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    x, weight, _ = (to_gpu(t) for t in Problem().operands())
    with torch.autocast("cuda", dtype):
        y = lgld_ops.involution2d(x, weight, 3, padding=1)
    assert torch.equal(y, lgld_ops.involution2d(x.to(dtype), weight.to(dtype), 3, padding=1))
    image, parameters, running, _ = Mixing().operands()
    rest = [to_gpu(t) for t in (*parameters, *running) if t is not None]
    with torch.autocast("cuda", dtype):
        y, mean, _ = lgld_ops.fourier_feature_mixer(to_gpu(image), *rest, True)
    assert y.dtype == dtype
    assert mean.dtype == torch.float32


def test_derivatives() -> None:
    x, weight, _ = (to_gpu(t).requires_grad_() for t in Problem(1, 4, 4, 5, groups=2, dtype=torch.float64).operands())
    assert torch.autograd.gradcheck(lambda x, w: lgld_ops.involution2d(x, w, 3, padding=1, groups=2), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: lgld_ops.involution2d(x, w, 3, padding=1, groups=2), (x, weight))


def test_compiled_without_a_break() -> None:
    x, weight, _ = (to_gpu(t) for t in Problem(2, 8, 16, 16).operands())

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return lgld_ops.involution2d(torch.relu(x), weight, 3, padding=1) * 2

    torch.testing.assert_close(torch.compile(run, fullgraph=True)(x, weight), run(x, weight))


def test_the_network_is_the_cpus() -> None:
    torch.manual_seed(0)
    model = lgld_ops.LGLDNet(num_classes=4).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.cuda()(x.cuda()).cpu(), model.cpu()(x), rtol=1e-3, atol=1e-4)


def test_errors_name_the_argument() -> None:
    x, weight = torch.ones(1, 2, 4, 4, device="cuda"), torch.ones(1, 9, 4, 4, device="cuda")
    with pytest.raises(RuntimeError, match="weight must have shape"):
        lgld_ops.involution2d(x, weight[:, :8], 3, padding=1)
    with pytest.raises(RuntimeError, match="weight must be on"):
        lgld_ops.involution2d(x, weight.cpu(), 3, padding=1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", PASSES)
def test_the_tensors_device_need_not_be_the_current_one(name: str) -> None:
    op, arguments = passes()[name]
    expected = tensors(op(*arguments))
    elsewhere = [a.to("cuda:1") if isinstance(a, torch.Tensor) else a for a in arguments]
    assert all(torch.equal(a, b.to(a.device)) for a, b in zip(expected, tensors(op(*elsewhere)), strict=True))
