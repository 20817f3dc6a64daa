"""What the ops compute on a GPU, against float64 by the rules that hold for the CPU's kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import mixer_oracle
import oracle
import pytest
import torch
from device import NEEDS_GPU, check_involution, check_mixer, need_memory, to_gpu
from hypothesis import given, settings
from mixer_oracle import DTYPES, Mixing, mixings
from oracle import LAYOUTS, Problem, laid_out, problems

import lgld_ops
from lgld_ops.ops import layer

pytestmark = NEEDS_GPU

INVOLUTIONS = {
    "lgldnet": Problem(2, 64, 56, 56),
    "rednet_7": Problem(2, 32, 14, 14, (7, 7), padding=(3, 3), groups=2),
    "rednet_stride": Problem(2, 16, 15, 13, (7, 7), (2, 2), (3, 3), groups=4),
    "stride_3": Problem(2, 16, 57, 61, (3, 3), (2, 2), (1, 1), groups=2),
    "rednet_stage": Problem(2, 32, 56, 56, (7, 7), (2, 2), (3, 3), groups=2),
    "five": Problem(2, 9, 12, 33, (5, 5), padding=(2, 2), groups=3),
    "wide": Problem(1, 3, 5, 3000),
    "pixel": Problem(1, 1, 1, 1, (1, 1), padding=(0, 0)),
    "beyond": Problem(2, 4, 2, 3, (7, 7), padding=(3, 3)),
    "only_padding": Problem(1, 2, 1, 1, (3, 3), padding=(8, 8), dilation=(5, 5)),
    "even_window": Problem(1, 5, 6, 7, (2, 4), (3, 1), (0, 2), (2, 3)),
    "huge_stride": Problem(1, 4, 6, 7, (3, 3), (2**23, 2**23), (1, 1)),
    "many_channels": Problem(1, 3000, 3, 2, groups=3),
    "empty_batch": Problem(0, 4, 5, 5),
}
MIXINGS = mixer_oracle.SHAPES | {
    "lgldnet": Mixing(3, 3, 64, 112, 112),
    "seven_channels": Mixing(2, 7, 4, 11, 18),
    "twelve_channels": Mixing(2, 12, 4, 11, 18),
    "stride_1": Mixing(2, 3, 10, 12, 33, stride=1),
    "wide": Mixing(1, 3, 2, 6, 4100),
    "many_images": Mixing(70, 3, 2, 9, 10),
    "many_channels": Mixing(1, 3, 400, 9, 10),
    "bright": Mixing(2, 3, 8, 140, 142, offset=0.85, spread=0.02),
}


def cases(names: Iterable[str], every: tuple[str, ...]) -> list[Any]:
    """Each in float32, some in every dtype: Triton compiles kernels for each dtype, most of a second a kernel."""
    return [pytest.param(n, d, id=f"{n}-{d}") for n in names for d in (DTYPES if n in every else DTYPES[:1])]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("name", "dtype"), cases(INVOLUTIONS, ("lgldnet", "rednet_stride", "rednet_stage", "stride_3", "even_window"))
)
def test_involution(name: str, dtype: torch.dtype, layout: str) -> None:
    problem = replace(INVOLUTIONS[name], dtype=dtype, layouts=(layout,) * 3)
    y, grad_x, _ = check_involution(problem)
    if problem.channels > 1 and min(problem.out_size) > 1 and problem.batch:
        assert (y.stride(1) == 1) == (layout == "channels_last")
        assert (grad_x.stride(1) == 1) == (layout == "channels_last")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", range(3), ids=["x", "weight", "grad"])
def test_involution_of_views(which: int, layout: str) -> None:
    layouts = tuple(layout if i == which else "contiguous" for i in range(3))
    for name in ("five", "rednet_stride"):
        check_involution(replace(INVOLUTIONS[name], layouts=layouts))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["lgldnet", "narrow", "wide", "rednet_7"])
def test_both_gradients_of_an_involution(name: str, dtype: torch.dtype) -> None:
    """One kernel or two: the same products of grad_x in the same order, and grad_weight as exact."""
    problem = replace((INVOLUTIONS | {"narrow": Problem(3, 40, 6, 8)})[name], dtype=dtype)
    operands = problem.operands()
    x, weight, grad_y = map(to_gpu, operands)
    y = lgld_ops.involution2d(x, weight, *problem.arguments)
    found = torch.ops.lgld_ops.involution2d_gradients(grad_y, x, weight, *problem.arguments)
    assert torch.equal(found[0], torch.ops.lgld_ops.involution2d_grad_x(grad_y, weight, *x.shape[2:], *problem.arguments))
    oracle.assert_like_reference(tuple(t.cpu() for t in (y, *found)), problem, operands)


@settings(max_examples=15)
@given(problems())
def test_random_involutions(problem: Problem) -> None:
    check_involution(problem)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(("name", "dtype"), cases(MIXINGS, ("lgldnet", "odd")))
def test_mixer(name: str, dtype: torch.dtype, training: bool, layout: str) -> None:
    check_mixer(replace(MIXINGS[name], dtype=dtype, training=training, layouts=(layout, layout)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mixer_of_views(layout: str) -> None:
    check_mixer(Mixing(layouts=(layout, "contiguous")))
    check_mixer(Mixing(layouts=("contiguous", layout)))


@settings(max_examples=10)
@given(mixings())
def test_random_mixings(problem: Mixing) -> None:
    check_mixer(problem)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "hidden", "k"), [((2, 64, 56, 50), 16, 3), ((1, 3, 1, 1), 1, 3), ((2, 9, 30, 17), 5, 5), ((1, 8, 9, 40), 2, 7)]
)
def test_involution_layer(shape: tuple[int, ...], hidden: int, k: int, dtype: torch.dtype, layout: str) -> None:
    """Against the composition in float64; at most 4 times the composition's error in float32."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (hidden, shape[1]), (hidden,), (k * k, hidden), (k * k,))
    operands = [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]
    operands[0] = laid_out(operands[0], layout)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def run(function: Any, tensors: list[torch.Tensor]) -> torch.Tensor:
        return function(*tensors, k).detach().cpu()

    exact = run(layer._plain, [t.double() for t in operands])
    theirs = run(layer._plain, [t.to(wide) for t in operands]).double()
    ours = run(layer.involution_layer, list(map(to_gpu, operands)))
    assert ours.dtype == dtype
    error = (ours.double() - exact).abs()
    allowed = 4 * (theirs - exact).abs().max() + 8 * torch.finfo(wide).eps * exact.abs().max()
    rounding = exact.abs() * torch.finfo(dtype).eps / 2 + torch.finfo(dtype).tiny if wide != dtype else 0
    if lgld_ops.build_info()["gpu"]["backend"] == "reference" and wide != dtype:
        return  # composed of operations that each round to 16 bits
    assert (error <= allowed + rounding).all(), error.max()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "hidden", "k"), [((2, 64, 56, 50), 16, 3), ((1, 3, 1, 1), 1, 3), ((2, 9, 30, 17), 20, 5), ((1, 8, 9, 40), 2, 7)]
)
def test_involution_layer_backward(shape: tuple[int, ...], hidden: int, k: int, dtype: torch.dtype, layout: str) -> None:
    """Each gradient against autograd's in float64; at most 4 times the error, in norm, of autograd's in float32."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, shape, (hidden, shape[1]), (hidden,), (k * k, hidden), (k * k,))
    grad_y, x, *parameters = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
    operands = [laid_out(x, layout), *parameters]
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def gradients(kind: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = [t.detach().to(kind).requires_grad_() for t in operands]
        return torch.autograd.grad(layer._plain(*leaves, k), leaves, grad_y.to(kind))

    backward = torch.ops.lgld_ops.involution_layer_backward
    ours = backward(to_gpu(laid_out(grad_y, layout)), *map(to_gpu, operands), k)
    if lgld_ops.build_info()["gpu"]["backend"] == "reference":
        return  # composed of operations that each round, and of convolutions that may use TF32
    for mine, theirs, exact in zip(ours, gradients(wide), gradients(torch.float64), strict=True):
        assert mine.dtype == dtype
        error, scale = (mine.cpu().double() - exact).norm(), exact.norm()
        allowed = 4 * (theirs.double() - exact).norm() + 8 * torch.finfo(wide).eps * scale
        assert error <= allowed + (scale * torch.finfo(dtype).eps if wide != dtype else 0), error / scale


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2**20], ids=["shared", "own"])
def test_a_million_channels_of_one_pixel(groups: int) -> None:
    check_involution(Problem(1, 2**20, 1, 1, (1, 1), padding=(0, 0), groups=groups))


def test_a_million_images() -> None:
    check_involution(Problem(2**20, 1, 1, 2, (1, 1), padding=(0, 0)))
    check_mixer(Mixing(2**18, 1, 2, 2, 2))


@pytest.mark.parametrize(("k", "gigabytes"), [(1, 30), (3, 115)])
def test_more_than_2_31_elements(k: int, gigabytes: float) -> None:
    """Against the same op on one image after the other, whose offsets are small: equal bits."""
    need_memory(gigabytes)
    batch = 2100
    generator = torch.Generator("cuda").manual_seed(1)
    sizes = [(batch, c, 1024, 1024) for c in (1, k * k, 1)]
    x, weight, grad = (torch.empty(s, dtype=torch.float16, device="cuda").normal_(generator=generator) for s in sizes)
    assert x.numel() > 2**31
    arguments = ((k, k), (1, 1), (k // 2, k // 2), (1, 1), 1)
    ops = torch.ops.lgld_ops
    whole = ops.involution2d(x, weight, *arguments)
    for b in (0, 1000, 2047, 2048, batch - 1):
        one = slice(b, b + 1)
        assert torch.equal(whole[one], ops.involution2d(x[one], weight[one], *arguments)), b
    del whole
    whole = ops.involution2d_grad_x(grad, weight, 1024, 1024, *arguments)
    for b in (0, 2047, 2048, batch - 1):
        one = slice(b, b + 1)
        assert torch.equal(whole[one], ops.involution2d_grad_x(grad[one], weight[one], 1024, 1024, *arguments)), b
    del whole, weight
    whole = ops.involution2d_grad_weight(grad, x, *arguments)
    for b in (0, 2047, 2048, batch - 1):
        one = slice(b, b + 1)
        assert torch.equal(whole[one], ops.involution2d_grad_weight(grad[one], x[one], *arguments)), b


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_more_than_2_31_elements_in_one_image(layout: torch.memory_format) -> None:
    """Against the same op on some of the channels: equal bits, since channels do not mix."""
    need_memory(20)
    x = torch.empty(1, 2064, 1024, 1024, dtype=torch.float16, device="cuda").normal_().contiguous(memory_format=layout)
    weight = torch.empty(1, 9, 1024, 1024, dtype=torch.float16, device="cuda").normal_()
    assert x.numel() > 2**31
    y = lgld_ops.involution2d(x, weight, 3, padding=1)
    for part in (slice(0, 16), slice(2048, 2064)):
        assert torch.equal(y[:, part], lgld_ops.involution2d(x[:, part].contiguous(), weight, 3, padding=1))


def test_more_than_2_31_elements_of_the_mixer() -> None:
    need_memory(30)
    x = torch.empty(132, 3, 1024, 1024, dtype=torch.float16, device="cuda").normal_()
    _, parameters, running, _ = Mixing(1, 3, 64).operands()
    arguments = [t.cuda() for t in (*parameters, *running) if t is not None]
    y = lgld_ops.fourier_feature_mixer(x, *arguments)[0]
    assert y.numel() > 2**31
    grad = torch.empty_like(y).normal_()
    backward = torch.ops.lgld_ops.fourier_feature_mixer_backward
    grad_x = backward(grad, x, *arguments, False)[0]
    for b in (0, 127, 128, 131):
        one = slice(b, b + 1)
        assert torch.equal(y[one], lgld_ops.fourier_feature_mixer(x[one], *arguments)[0]), b
        assert torch.equal(grad_x[one], backward(grad[one], x[one], *arguments, False)[0]), b
