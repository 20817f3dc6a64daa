"""The Fourier feature mixer op: results and gradients of every dtype, layout and shape, and torch's own checks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import mixer_oracle
import pytest
import torch
from hypothesis import given, settings
from mixer_oracle import DTYPES, Mixing, assert_exact_enough, mixings, with_gradients
from oracle import LAYOUTS
from torch import Tensor
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.overrides import TorchFunctionMode

import lgld_ops
from lgld_ops.ops import plain_ffm

mixer = lgld_ops.fourier_feature_mixer
ops = torch.ops.lgld_ops

SHAPES = mixer_oracle.SHAPES | {
    "lgldnet": Mixing(1, 3, 64, 56, 64),
    "seven_channels": Mixing(2, 7, 4, 11, 18),
    "stride_1": Mixing(2, 3, 10, 12, 33, stride=1),
    "wide": Mixing(1, 3, 2, 6, 4100),
    "many_images": Mixing(70, 3, 2, 9, 10),
    "bright": Mixing(2, 3, 8, 40, 42, offset=0.85, spread=0.02),
}


@pytest.mark.core
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_float64(name: str, dtype: torch.dtype, training: bool) -> None:
    problem = replace(SHAPES[name], dtype=dtype, training=training)
    assert_exact_enough(with_gradients(mixer, problem), problem)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str, grad_layout: str, dtype: torch.dtype) -> None:
    problem = Mixing(layouts=(layout, grad_layout), dtype=dtype)
    assert_exact_enough(with_gradients(mixer, problem), problem)


@given(mixings())
def test_random_problems(problem: Mixing) -> None:
    assert_exact_enough(with_gradients(mixer, problem), problem)


@pytest.mark.nightly
@settings(max_examples=500, derandomize=False)
@given(mixings())
def test_random_problems_at_length(problem: Mixing) -> None:
    assert_exact_enough(with_gradients(mixer, problem), problem)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_memory_format_of_the_result(layout: str) -> None:
    x, parameters, running, _ = Mixing(layouts=(layout, layout)).operands()
    x.requires_grad_()
    y = mixer(x, *parameters, *running)[0]
    (grad_x,) = torch.autograd.grad(y.sum(), x)
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert y.is_contiguous(memory_format=wanted)
    assert grad_x.is_contiguous(memory_format=wanted)


def test_statistics_of_a_bright_image() -> None:
    """0.85 +- 0.02: moments that are not centred, or summed in float32, are off by 1e-3."""
    problem = Mixing(4, 3, 8, 120, 124, offset=0.85, spread=0.02)
    x, parameters, running, _ = problem.operands()
    _, mean, var = mixer(x, *parameters, *running, True)
    _, exact_mean, exact_var = plain_ffm.fourier_feature_mixer(x.double(), *parameters, *running, True)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=3e-7, atol=1e-7)
    torch.testing.assert_close(var.double(), exact_var, rtol=3e-7, atol=0)
    assert mixer(x, *parameters, *running)[1].shape == (0,)


def test_position_terms_are_those_of_the_input_grid() -> None:
    """Weights that let one term through at a time: the exact sines of the even rows and columns."""
    height, width = 7, 10
    x, zero, one = torch.zeros(1, 3, height, width, dtype=torch.float64), torch.zeros(2).double(), torch.ones(1).double()
    i, j = torch.arange(0, height, 2).double()[:, None], torch.arange(0, width, 2).double()
    full = torch.zeros(4, 5, dtype=torch.float64)
    terms = [
        (2 * math.pi * i / height).sin(),
        (2 * math.pi * i / height).cos(),
        (2 * math.pi * j / width).sin(),
        (2 * math.pi * j / width).cos(),
    ]
    for k, term in enumerate(terms):
        weight = torch.zeros(2, 7).double()
        weight[:, 3 + k] = 1
        y = mixer(x, weight, zero, one, one, None, None, zero, one.repeat(2), eps=1e-300)[0]
        torch.testing.assert_close(y[0, 0], torch.nn.functional.silu(full + term), rtol=0, atol=4e-16)


@pytest.mark.core
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck(stride: int, training: bool) -> None:
    x, parameters, running, _ = Mixing(2, 3, 4, 5, 6, stride=stride, dtype=torch.float64).operands()
    operands = [x, *(p for p in parameters if p is not None)]

    def run(*tensors: Tensor) -> Tensor:
        return mixer(*tensors, *running, training, 1e-5, stride)[0]

    for t in operands:
        t.requires_grad_()
    assert torch.autograd.gradcheck(run, operands)
    assert torch.autograd.gradgradcheck(run, operands)


def test_gradients_that_are_not_needed() -> None:
    problem = Mixing()
    full = with_gradients(mixer, problem)
    x, parameters, running, g = problem.operands()
    assert parameters[0] is not None
    parameters[0].requires_grad_()
    y = mixer(x, *parameters, *running, True)[0]
    assert torch.equal(torch.autograd.grad(y, parameters[0], g)[0], full["weight"])
    needs = ops.fourier_feature_mixer_backward.default(g, x, *parameters, *running, True, 1e-5, 2, False)
    assert needs[0].shape == (0,)


def test_statistics_have_no_gradient() -> None:
    x, parameters, running, _ = Mixing().operands()
    _, mean, var = mixer(x.requires_grad_(), *parameters, *running, True)
    assert not mean.requires_grad
    assert not var.requires_grad


def test_keeps_nothing_of_the_size_of_the_result() -> None:
    x, parameters, running, _ = Mixing(2, 3, 64, 64, 64).operands()
    kept: list[int] = []
    for p in parameters:
        assert p is not None
        p.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        mixer(x, *parameters, *running, True)
    assert max(kept) == x.numel()


def test_empty_batch() -> None:
    for training in (True, False):
        results = with_gradients(mixer, Mixing(batch=0, training=training))
        assert results["y"].shape == (0, 6, 5, 7)
        assert all((results[name] == 0).all() for name in ("weight", "bias", "bn_weight", "bn_bias"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_stay_where_they_are_in_inference(value: float) -> None:
    x, parameters, running, _ = Mixing(height=40, width=40).operands()
    x[1, 1, 20, 6] = value
    y = mixer(x, *parameters, *running)[0]
    odd = ~y.isfinite()
    assert not odd[0].any()
    assert not odd[1, :, torch.arange(20) != 10].any()
    assert not odd[..., torch.arange(20) != 3].any()
    spoilt = y[1, :, 10, 3]
    assert spoilt.isnan().all() if math.isnan(value) else (spoilt.isposinf() | (spoilt == 0)).all()


# --- reproducibility --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["lgldnet", "odd", "many_images", "wide"])
def test_bitwise_equal_for_every_number_of_threads(name: str, dtype: torch.dtype) -> None:
    problem = replace(SHAPES[name], batch=max(3, SHAPES[name].batch), dtype=dtype)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            runs.append(with_gradients(mixer, problem))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(run[name], runs[0][name]) for run in runs for name in run)


# --- inside torch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_opcheck(training: bool, layout: str) -> None:
    x, parameters, running, g = Mixing(layouts=(layout, layout)).operands()
    arguments = (*parameters, *running, training, 1e-5, 2)
    leaves = tuple(t.clone().requires_grad_() if isinstance(t, Tensor) and i < 6 else t for i, t in enumerate(arguments))
    torch.library.opcheck(ops.fourier_feature_mixer.default, (x.detach().requires_grad_(), *leaves))
    for need_x in (True, False):
        torch.library.opcheck(
            ops.fourier_feature_mixer_backward.default,
            (g, x, *arguments, need_x),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_opcheck_without_optional_parameters() -> None:
    x, parameters, running, _ = Mixing(affine=False).operands()
    torch.library.opcheck(
        ops.fourier_feature_mixer.default, (x.requires_grad_(), parameters[0], None, *parameters[2:], *running, False)
    )


def test_plain_formulation_is_what_other_devices_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients through the dispatcher's own registration, here on the CPU."""
    from lgld_ops.ops import ffm, plain

    monkeypatch.setattr(plain, "_warned", {"cpu"})
    x, parameters, running, g = Mixing(dtype=torch.float64).operands()
    arguments = (*parameters, *running, True, 1e-5, 2)
    for ours, theirs in zip(ffm._plain_forward(x, *arguments), ops.fourier_feature_mixer(x, *arguments), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    for need_x in (True, False):
        plain_grads = ffm._plain_backward(g, x, *arguments, need_x)
        for ours, theirs in zip(plain_grads, ops.fourier_feature_mixer_backward(g, x, *arguments, need_x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_meta_device() -> None:
    x, parameters, running, _ = Mixing().operands()
    y, mean, var = mixer(
        x.to("meta"), *(p.to("meta") for p in parameters if p is not None), *(r.to("meta") for r in running), True
    )
    assert (y.shape, mean.shape, var.shape) == ((2, 6, 5, 7), (6,), (6,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    x, parameters, running, _ = Mixing().operands()
    for p in (x, *parameters):
        assert p is not None
        p.requires_grad_()
    with torch.autocast("cpu", dtype):
        y, mean, _ = mixer(x, *parameters, *running, True)
    assert y.dtype == dtype
    assert mean.dtype == torch.float32
    assert torch.equal(y, mixer(x.to(dtype), *parameters, *running, True)[0])
    y.float().sum().backward()
    assert all(p is not None and p.grad is not None and p.grad.dtype == torch.float32 for p in (x, *parameters))
    with torch.autocast("cpu", dtype):
        assert mixer(x.double(), *parameters, *running)[0].dtype == torch.float64


def test_function_transforms() -> None:
    x, parameters, running, _ = Mixing(1, 3, 4, 4, 5, dtype=torch.float64).operands()

    def run(x: Tensor) -> Tensor:
        return mixer(x, *parameters, *running)[0].square().sum()

    x.requires_grad_()
    (expected,) = torch.autograd.grad(run(x), x)
    x = x.detach()
    torch.testing.assert_close(grad(run)(x), expected)
    batch = torch.stack([x, 2 * x])
    torch.testing.assert_close(vmap(grad(run))(batch)[0], expected)
    torch.testing.assert_close(jvp(run, (x,), (x,))[1], (expected * x).sum())
    assert hessian(run)(x).isfinite().all()


# --- errors -----------------------------------------------------------------------------------------------------------

X, PARAMETERS, RUNNING, _ = Mixing().operands()
NAMED: dict[str, Any] = dict(
    zip(
        (
            "x",
            "weight",
            "bias",
            "fourier_weight_real",
            "fourier_weight_imag",
            "bn_weight",
            "bn_bias",
            "running_mean",
            "running_var",
        ),
        (X, *PARAMETERS, *RUNNING),
        strict=True,
    )
)


@pytest.mark.core
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"x": X[0]}, ("x must have 4 dimensions", "[3, 9, 13]")),
        ({"x": X[:, :, :0]}, ("at least one channel, row and column", "[2, 3, 0, 13]")),
        ({"x": X.int()}, ("x must be float32",)),
        ({"weight": X[0]}, ("weight must have shape [C, 7]", "[3, 9, 13]")),
        ({"weight": torch.ones(6, 8)}, ("weight must have shape [C, 7]", "[6, 8]")),
        ({"weight": torch.ones(5, 7)}, ("even number of rows", "5")),
        ({"weight": torch.ones(0, 7)}, ("even number of rows", "0")),
        ({"weight": torch.ones(6, 7, dtype=torch.int64)}, ("weight must be float32",)),
        ({"bias": torch.ones(5)}, ("bias must have shape [C] = [6]", "[5]")),
        ({"fourier_weight_real": torch.ones(6)}, ("fourier_weight_real must have shape [C / 2] = [3]", "[6]")),
        ({"fourier_weight_imag": torch.ones(3, 1)}, ("fourier_weight_imag must have shape [C / 2] = [3]", "[3, 1]")),
        ({"bn_weight": torch.ones(7)}, ("bn_weight must have shape [C] = [6]", "[7]")),
        ({"bn_bias": torch.ones(7)}, ("bn_bias must have shape [C] = [6]", "[7]")),
        ({"running_mean": torch.ones(7)}, ("running_mean must have shape [C] = [6]", "[7]")),
        ({"running_var": None}, ("running_mean and running_var must be given",)),
        ({"stride": 0}, ("stride must be at least 1", "0")),
        ({"eps": 0.0}, ("eps must be positive", "0")),
        ({"x": X[:1, :, :2, :2], "training": True}, ("more than 1 value per channel", "[1, 3, 2, 2]")),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_arguments(change: dict[str, Any], parts: tuple[str, ...], device: str) -> None:
    arguments = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in (NAMED | change).items()}
    with pytest.raises(RuntimeError) as caught:
        mixer(**arguments)
    message = str(caught.value)
    assert message.startswith("fourier_feature_mixer: ")
    assert all(part in message for part in parts), message


def test_bad_gradients() -> None:
    for grad_y, part in ((torch.ones(2, 6, 5, 6), "[2, 6, 5, 6]"), (torch.ones(2, 6, 5, 7).double(), "dtype of x")):
        with pytest.raises(RuntimeError, match="grad_y must have") as caught:
            ops.fourier_feature_mixer_backward(grad_y, X, *PARAMETERS, *RUNNING, True)
        assert part in str(caught.value)


def test_functional_call_of_the_layer() -> None:
    layer = lgld_ops.FourierFeatureMixer(3, 4).eval()
    x = torch.rand(2, 3, 6, 6)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, parameters, (x,)).square().sum()

    found = grad(loss)(dict(layer.named_parameters()))
    layer(x).square().sum().backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_python_and_the_dispatcher_lead_to_one_derivative(training: bool) -> None:
    """The function has an autograd.Function of its own in plain eager mode, the op the registered one: equal bits."""
    operands = [t.double().requires_grad_() for t in (X, *PARAMETERS)]
    statistics = (None, None) if training else RUNNING
    found = []
    for call in (mixer, ops.fourier_feature_mixer):
        y = call(*operands, *statistics, training)[0]
        first = torch.autograd.grad(y.square().sum(), operands, create_graph=True, allow_unused=True)
        second = torch.autograd.grad(first[0].square().sum(), operands[:2])
        found.append((y.grad_fn.name(), [y, *(g for g in first if g is not None), *second]))
    (direct, ours), (registered, expected) = found
    assert direct != registered
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_a_mode_that_replaces_the_op_is_differentiated() -> None:
    class Doubled(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is ops.fourier_feature_mixer.default:
                y, mean, var = plain_ffm.fourier_feature_mixer(*args, **(kwargs or {}))
                return 2 * y, mean, var
            return function(*args, **(kwargs or {}))

    x = X.double().requires_grad_()
    arguments = (*(p.double() for p in PARAMETERS), None, None, True)
    with Doubled():
        y = mixer(x, *arguments)[0]
    (found,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad(2 * mixer(x, *arguments)[0].sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
