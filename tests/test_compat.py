"""`lgld_ops.compat`: constructors, state dicts, results and gradients of the public involutions, and their defects."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compat_golden
import numpy as np
import pytest
import torch
import unfolded
from hypothesis import assume, given
from hypothesis import strategies as st
from test_modules import kept_bytes, relative_error
from torch import Tensor, nn

import lgld_ops
from lgld_ops import compat

REQUIRED = inspect.Parameter.empty

# Each drop-in, its oracle, and the constructor as its source has it.
SOURCES: dict[str, tuple[type[nn.Module], type[nn.Module], dict[str, Any]]] = {
    "d_li14": (
        compat.d_li14.involution,
        unfolded.DLi14,
        {"channels": REQUIRED, "kernel_size": REQUIRED, "stride": REQUIRED, "dilation": 1},
    ),
    "christophreich1996": (
        compat.christophreich1996.Involution2d,
        unfolded.ChristophReich1996,
        {
            "in_channels": REQUIRED, "out_channels": REQUIRED, "sigma_mapping": None, "kernel_size": (7, 7), "stride": (1, 1),
            "groups": 1, "reduce_ratio": 1, "dilation": (1, 1), "padding": (3, 3), "bias": False, "force_shape_match": False,
            "kwargs": REQUIRED,
        },
    ),
    "shikishima": (
        compat.shikishima.Involution2d,
        unfolded.Shikishima,
        {
            "in_channels": REQUIRED, "out_channels": REQUIRED, "kernel_size": 7, "stride": 1, "padding": 3, "dilation": 1,
            "groups": 1, "bias": False, "sigma_mapping": None, "reduce_ratio": 1,
        },
    ),
    "timm": (
        compat.timm.Involution,
        unfolded.Timm,
        {
            "channels": REQUIRED, "kernel_size": 3, "stride": 1, "group_size": 16, "rd_ratio": 4,
            "norm_layer": nn.BatchNorm2d, "act_layer": nn.ReLU,
        },
    ),
    "holocron": (
        compat.holocron.Involution2d,
        unfolded.Holocron,
        {
            "in_channels": REQUIRED, "kernel_size": REQUIRED, "padding": 0, "stride": 1, "groups": 1, "dilation": 1,
            "reduction_ratio": 1,
        },
    ),
}  # fmt: skip


def two_groups(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


# Source, positional and keyword arguments, input shape.
CASES: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("d_li14", (32, 7, 1), {}, (2, 32, 9, 7)),
    ("d_li14", (16, 3, 2), {}, (2, 16, 8, 10)),
    ("d_li14", (48, 5, 3), {}, (1, 48, 9, 6)),
    ("d_li14", (16, 3, 1, 2), {}, (1, 16, 8, 7)),
    ("d_li14", (16, 4, 2), {}, (1, 16, 8, 6)),  # an even window fits where the stride hides its shift
    ("christophreich1996", (8, 8), {}, (2, 8, 9, 7)),
    ("christophreich1996", (8, 12, None, 3, 1, 4, 2, 1, 1, True), {}, (2, 8, 5, 6)),
    ("christophreich1996", (8, 8), {"kernel_size": (3, 5), "padding": (1, 2), "stride": (2, 1), "groups": 2}, (2, 8, 6, 5)),
    ("christophreich1996", (4, 4), {"kernel_size": 3, "dilation": 2, "padding": 2, "stride": 2}, (2, 4, 8, 8)),
    ("christophreich1996", (4, 6), {"kernel_size": 3, "force_shape_match": True}, (2, 4, 5, 6)),
    ("christophreich1996", (4, 4), {"kernel_size": 5, "padding": 0, "force_shape_match": True, "bias": True}, (2, 4, 7, 9)),
    ("christophreich1996", (4, 4, nn.Sigmoid()), {"kernel_size": 3, "padding": 1}, (2, 4, 5, 6)),
    ("shikishima", (8, 12, 3, 2, 1, 1, 4, True, None, 3), {}, (2, 8, 6, 8)),
    ("shikishima", (8, 8), {}, (2, 8, 7, 6)),
    ("timm", (32,), {}, (2, 32, 7, 5)),
    ("timm", (32, 7, 2, 8, 2), {}, (2, 32, 8, 6)),
    ("timm", (16,), {"act_layer": nn.SiLU, "norm_layer": two_groups}, (2, 16, 6, 5)),
    ("holocron", (8, 3, 1), {}, (2, 8, 6, 5)),
    ("holocron", (8, 7, 3, 2, 4, 1, 2.5), {}, (2, 8, 6, 8)),
    ("holocron", (6, 3, 2, 1, 3, 2), {}, (2, 6, 5, 7)),
    ("holocron", (6, 1), {}, (2, 6, 5, 7)),
]
IDS = [f"{source}-{i}" for i, (source, *_) in enumerate(CASES)]


def twins(source: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Drop-in and oracle in float64, same weights, no two alike."""
    ours_type, oracle_type, _ = SOURCES[source]
    torch.manual_seed(7)
    ours, oracle = ours_type(*args, **kwargs), oracle_type(*copy.deepcopy(args), **kwargs)
    state = {
        name: torch.rand_like(t, dtype=torch.float64) + 0.5 if t.dim() == 1 else torch.randn_like(t, dtype=torch.float64)
        for name, t in oracle.state_dict().items()
        if t.is_floating_point()
    }
    if "conv.weight" in state:
        state["conv.weight"] = state["conv2.weight"]
    for module in (ours.double(), oracle.double()):
        result = module.load_state_dict(state, strict=False)
        assert not result.unexpected_keys
        assert all(key.endswith("num_batches_tracked") for key in result.missing_keys)
    return ours, oracle


def step(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and statistics after one step."""
    x = x.detach().clone().requires_grad_()
    module.zero_grad()
    y = module(x)
    y.backward(torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y))
    assert x.grad is not None
    grads = {f"grad parameter {name}": p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "grad x": x.grad} | grads | {name: b.clone() for name, b in module.named_buffers()}


def agree(ours: dict[str, Tensor], truth: dict[str, Tensor], rtol: float = 1e-11) -> None:
    """Equal to rounding; a gradient in front of a BatchNorm may be sums that cancel, with the rounding of all gradients."""
    assert ours.keys() == truth.keys()
    gradients = max(float(value.norm()) for name, value in truth.items() if name.startswith("grad"))
    for name, value in truth.items():
        size = float(value.double().norm()) + (gradients if name.startswith("grad p") else 0.0)
        assert ours[name].dtype == value.dtype
        assert float((ours[name].double() - value.double()).norm()) <= rtol * size, name


@pytest.mark.parametrize("source", SOURCES)
def test_constructor_is_the_sources(source: str) -> None:
    ours, oracle, expected = SOURCES[source]
    for kind in (ours, oracle):
        parameters = inspect.signature(kind).parameters
        assert {name: p.default for name, p in parameters.items()} == expected
        assert list(parameters) == list(expected)
    assert ours.__name__ == {"d_li14": "involution", "timm": "Involution"}.get(source, "Involution2d")


BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
STATE_KEYS = {
    "d_li14": (
        (16, 3, 2),
        ["conv1.conv.weight", *(f"conv1.bn.{n}" for n in BATCH_NORM),
         "conv2.conv.weight", "conv2.conv.bias"],
    ),
    "christophreich1996": (
        (4, 8),
        [*(f"sigma_mapping.0.{n}" for n in BATCH_NORM),
         "initial_mapping.weight", "reduce_mapping.weight", "span_mapping.weight"],
    ),
    "timm": (
        (16,),
        ["conv1.conv.weight", *(f"conv1.bn.{n}" for n in BATCH_NORM),
         "conv2.weight", "conv.weight"],
    ),
    "holocron": ((4, 3), ["reduce.weight", "reduce.bias", "span.weight", "span.bias"]),
}  # fmt: skip
STATE_KEYS["shikishima"] = STATE_KEYS["christophreich1996"]


@pytest.mark.parametrize("source", SOURCES)
def test_state_dict_keys(source: str) -> None:
    args, keys = STATE_KEYS[source]
    module = SOURCES[source][0](*args)
    assert list(module.state_dict()) == keys
    assert len(list(module.parameters())) == len(
        [k for k in keys if "running" not in k and "num_" not in k and k != "conv.weight"]
    )


@pytest.mark.parametrize(("source", "args", "kwargs", "shape"), CASES, ids=IDS)
def test_equals_unfold(source: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]) -> None:
    ours, oracle = twins(source, args, kwargs)
    assert list(ours.state_dict()) == list(oracle.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    for training in (False, True):
        for module in (ours, oracle):
            module.train(training)
        agree(step(ours, x), step(oracle, x))
    # Two training steps: statistics of the second depend on the momentum.
    agree(step(ours, 2 * x), step(oracle, 2 * x))
    # There and back, strictly.
    copied, _ = twins(source, args, kwargs)
    copied.load_state_dict(oracle.state_dict(), strict=True)
    oracle.load_state_dict(copied.state_dict(), strict=True)
    with torch.inference_mode():
        assert relative_error(copied.eval()(x), oracle.eval()(x)) < 1e-11


@pytest.mark.parametrize(("source", "args", "kwargs", "shape"), CASES, ids=IDS)
def test_float32_error_is_eagers(source: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]) -> None:
    """At most 4 times the error of the unfold module in float32, plus rounding; for output, gradients and statistics."""
    ours, oracle = twins(source, args, kwargs)
    x = torch.randn(shape)
    exact = step(copy.deepcopy(oracle).train(), x.double())
    mine, theirs = (step(module.float().train(), x) for module in (ours, oracle))
    gradients = max(float(value.norm()) for name, value in exact.items() if name.startswith("grad"))
    for name, truth in exact.items():
        errors = [float((result[name].double() - truth).norm()) for result in (mine, theirs)]
        size = float(truth.double().norm()) + (gradients if name.startswith("grad") else 0.0)
        assert errors[0] <= 4 * errors[1] + 8 * torch.finfo(torch.float32).eps * size, name


@pytest.mark.parametrize("source", SOURCES)
def test_initial_weights_are_the_sources(source: str) -> None:
    args = {"d_li14": (32, 3, 2), "timm": (32,), "holocron": (8, 3)}.get(source, (4, 8))
    states = []
    for kind in SOURCES[source][:2]:
        torch.manual_seed(5)
        states.append(kind(*args).state_dict())
    for name, value in states[1].items():
        assert torch.equal(states[0][name], value), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("index", ["02", "03", "04", "05", "06", "07", "08"])
def test_golden_numbers(shared_dir: Path, index: str, dtype: torch.dtype) -> None:
    """Output and gradients of the published code, evaluated once in float64."""
    with np.load(shared_dir / "golden" / "involution_modules.npz") as arrays:
        meta = {entry["id"]: entry for entry in json.loads(str(arrays["meta"]))}
        data = {k.removeprefix(f"{index}/"): torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith(f"{index}/")}
    kind = {"d-li14": compat.d_li14.involution, "ChristophReich1996": compat.christophreich1996.Involution2d}
    module = kind[meta[index]["implementation"]](**meta[index]["args"])
    state = {key.removeprefix("state/"): value for key, value in data.items() if key.startswith("state/")}
    module.load_state_dict(state, strict=True)
    module.to(dtype).eval()
    x = data["x"].to(dtype).requires_grad_()
    y = module(x)
    y.backward(data["grad_y"].to(dtype))
    limit = 1e-12 if dtype == torch.float64 else 2e-6
    assert x.grad is not None
    assert relative_error(y.detach(), data["y"]) < limit
    assert relative_error(x.grad, data["grad_x"]) < limit
    parameters = dict(module.named_parameters())
    assert parameters.keys() == {key.removeprefix("grad/") for key in data if key.startswith("grad/")}
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        assert relative_error(parameter.grad, data[f"grad/{name}"]) < limit, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("source", "index"), [(s, i) for s, d in compat_golden.SOURCES.items() for i in range(len(d["cases"]))]
)
def test_recorded_numbers(source: str, index: int, dtype: torch.dtype) -> None:
    """Keys, output, gradients and statistics of the published code, evaluated once in float64; it isn't needed here."""
    recorded = json.loads(compat_golden.FILE.read_text())[source]
    expected = recorded["cases"][index]
    args, shape = compat_golden.SOURCES[source]["cases"][index]
    assert (expected["args"], expected["x_shape"]) == (json.loads(json.dumps(args)), list(shape))
    module = compat_golden.build(SOURCES[source][0], args)
    assert [*expected["state"].items()] == [(name, list(value.shape)) for name, value in module.state_dict().items()]
    state, x, grad_y = compat_golden.inputs(f"{source} {index}", args, module, shape)
    module.load_state_dict(state, strict=True)
    module.to(dtype)
    limit = 1e-12 if dtype == torch.float64 else 2e-6
    for mode in ("eval", "train"):
        found = compat_golden.results(module.train(mode == "train"), x.to(dtype), grad_y.to(dtype))
        # Without statistics training is inference, and was recorded once.
        wanted = expected.get(mode, expected["eval"])
        # Left out is what a source gets wrong.
        assert wanted.keys() == found.keys() - set(recorded.get("left_out", ()))
        # In training a bias in front of a BatchNorm has gradients that cancel, and leave the rounding of all others.
        gradients = max(value["norm"] for name, value in wanted.items() if name.startswith("grad/"))
        for name, value in wanted.items():
            size = value["norm"] + (gradients if name.startswith("grad/") else 0.0)
            assert compat_golden.difference(found[name], value) <= limit * size, (mode, name)


# --- where the sources are wrong ----------------------------------------------------------------------------------------

REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...], tuple[str, ...]]] = [
    ("d_li14", (16, 7, 2), {}, (2, 16, 9, 8), ("5 x 4 windows", "9 x 8 input", "4 x 4 kernels", "stride")),
    ("d_li14", (16, 4, 1), {}, (2, 16, 6, 6), ("5 x 5 windows", "6 x 6 kernels", "odd kernel_size")),
    ("d_li14", (16, 3, 2), {}, (2, 16, 3, 3), ("2 x 2 windows", "1 x 1 kernels")),  # the source reshapes
    ("timm", (16, 3, 2), {}, (2, 16, 5, 6), ("3 x 3 windows", "2 x 3 kernels")),
    ("timm", (16, 3, 3), {}, (2, 16, 6, 6), ("2 x 2 windows", "6 x 6 kernels", "stride 2 only")),
    ("holocron", (8, 3), {}, (2, 8, 6, 5), ("4 x 3 windows", "6 x 5 kernels", "padding")),
    ("holocron", (8, 3, 1, 2), {}, (2, 8, 5, 6), ("3 x 3 windows", "2 x 3 kernels")),
    ("christophreich1996", (4, 4), {"kernel_size": 3}, (2, 4, 6, 5), ("padding (3, 3)", "10 x 9 windows", "force_shape_match")),
    ("christophreich1996", (4, 4), {"stride": 2}, (2, 4, 9, 8), ("5 x 4 windows", "4 x 4 kernels", "force_shape_match")),
    # Here the source broadcasts one kernel over all windows, and a row of kernels over several rows.
    ("christophreich1996", (4, 4), {"kernel_size": 3}, (2, 4, 1, 1), ("5 x 5 windows", "1 x 1 kernels")),
    ("christophreich1996", (4, 4), {"kernel_size": 3, "padding": (3, 1)}, (2, 4, 1, 6), ("5 x 6 windows", "1 x 6 kernels")),
    ("christophreich1996", (4, 4), {"stride": 2, "force_shape_match": True}, (2, 4, 5, 5), ("1 x 1 kernels", "3 x 3 windows")),
    ("shikishima", (4, 4, 3), {}, (2, 4, 6, 5), ("padding (3, 3)", "10 x 9 windows", "6 x 5 kernels")),
    ("shikishima", (4, 4, 7, 2), {}, (2, 4, 9, 9), ("5 x 5 windows", "4 x 4 kernels")),
]  # fmt: skip


@pytest.mark.parametrize(("source", "args", "kwargs", "shape", "parts"), REFUSED)
def test_what_fits_no_kernel_map_is_an_error_before_anything_changes(
    source: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...], parts: tuple[str, ...]
) -> None:
    ours, _ = twins(source, args, kwargs)
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        ours.train()(torch.randn(shape, dtype=torch.float64))
    assert all(part in str(caught.value) for part in parts), caught.value
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_the_sources_broadcast_what_is_refused() -> None:
    """The oracles of the cases above that name broadcasting do return something."""
    for source, args, kwargs, shape, _ in REFUSED[9:12]:
        _, oracle = twins(source, args, kwargs)
        assert oracle(torch.randn(shape, dtype=torch.float64)).numel() > 0


@pytest.mark.parametrize("stride", [2, (2, 1)])
@pytest.mark.parametrize("size", [(9, 11), (8, 13), (12, 12)])
def test_force_shape_match_with_a_stride(stride: Any, size: tuple[int, int]) -> None:
    """One kernel a window whatever the size, where the source always fails."""
    ours, oracle = twins("christophreich1996", (4, 6), {"stride": stride, "force_shape_match": True})
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        oracle(x)
    y = ours(x)
    w = ours._window
    assert tuple(y.shape[2:]) == w.grid(*size)
    pooled = nn.functional.adaptive_avg_pool2d(x, y.shape[2:])
    kernel = ours.span_mapping(ours.sigma_mapping.eval()(ours.reduce_mapping(pooled)))
    expected = lgld_ops.reference.involution2d_unfold(ours.initial_mapping(x), kernel, w.kernel_size, w.stride, w.padding)
    torch.testing.assert_close(ours.eval()(x), expected)


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, dict[str, Any], tuple[int, ...]]:
    """A source, constructor arguments valid in themselves, and an input that may fit or not."""

    def integer(least: int, most: int) -> int:
        return draw(st.integers(least, most))

    source = draw(st.sampled_from(list(SOURCES)))
    k, s, d, p = integer(1, 5), integer(1, 3), integer(1, 2), integer(0, 4)
    if draw(st.booleans()):
        k, p = 2 * (k // 2) + 1, d * (k // 2)
    if source == "d_li14":
        channels = 16 * integer(1, 2)
        kwargs: dict[str, Any] = {"channels": channels, "kernel_size": k, "stride": s, "dilation": d}
    elif source == "timm":
        size = integer(1, 4)
        channels = size * integer(1, 3)
        kwargs = {"channels": channels, "kernel_size": k, "stride": s, "group_size": size, "rd_ratio": integer(1, channels)}
    else:
        groups = integer(1, 3)
        channels = groups * integer(1, 3)
        kwargs = {"in_channels": channels, "kernel_size": k, "stride": s, "padding": p, "dilation": d, "groups": groups}
        if source == "holocron":
            kwargs["reduction_ratio"] = draw(st.floats(1, channels))
        else:
            out = groups * integer(1, 3)
            kwargs |= {"out_channels": out, "reduce_ratio": integer(1, out), "bias": draw(st.booleans())}
        if source == "christophreich1996":
            kwargs["force_shape_match"] = draw(st.booleans())
    return source, kwargs, (integer(1, 2), channels, integer(1, 12), integer(1, 12))


@given(layers())
def test_any_layer_computes_its_source_or_refuses(layer: tuple[str, dict[str, Any], tuple[int, ...]]) -> None:
    source, kwargs, shape = layer
    ours, oracle = twins(source, (), kwargs)
    x = torch.randn(shape, dtype=torch.float64)
    grid = ours._window.grid(*shape[2:])
    for module in (ours, oracle):
        module.eval()
    kernels: list[Any] = []
    last = oracle.span_mapping if hasattr(oracle, "span_mapping") else oracle.conv2 if hasattr(oracle, "conv2") else oracle.span
    last.register_forward_hook(lambda _m, _a, out: kernels.append(tuple(out.shape[2:])))
    try:
        expected = step(oracle, x)
    except RuntimeError:
        # force_shape_match with a stride is the one thing that only the drop-in does.
        assume(not (kwargs.get("force_shape_match") and kwargs["stride"] > 1))
        with pytest.raises((ValueError, RuntimeError)):
            ours(x)
        return
    if kernels != [grid]:
        with pytest.raises(ValueError, match="kernels"):
            ours(x)
    else:
        agree(step(ours, x), expected, 1e-10)


@pytest.mark.parametrize(
    ("source", "args", "kwargs", "error", "parts"),
    [
        ("d_li14", (24, 3, 1), {}, ValueError, ("16", "24")),
        ("d_li14", (16, 0, 1), {}, ValueError, ("kernel_size", "0", "at least 1")),
        ("d_li14", (16, 3, 1.0), {}, TypeError, ("stride", "1.0", "int")),
        ("d_li14", (16, 3, 1, 0), {}, ValueError, ("dilation", "0")),
        ("timm", (20,), {}, ValueError, ("group_size", "16", "20")),
        ("timm", (16, 3, 1, 16, 17), {}, ValueError, ("rd_ratio", "17", "16")),
        ("timm", (16,), {"norm_layer": None}, TypeError, ("norm_layer", "None", "class or function")),
        ("timm", (16, "3"), {}, TypeError, ("kernel_size", "'3'")),
        ("holocron", (8, 3, 1, 1, 3), {}, ValueError, ("groups", "3", "8")),
        ("holocron", (8, 3, -1), {}, ValueError, ("padding", "-1", "at least 0")),
        ("holocron", (8, 3), {"reduction_ratio": 9}, ValueError, ("reduction_ratio", "9", "8")),
        ("holocron", (8, 3), {"reduction_ratio": "2"}, TypeError, ("reduction_ratio", "'2'")),
        ("christophreich1996", (4, 6), {"groups": 4}, ValueError, ("groups", "4", "out_channels", "6")),
        ("christophreich1996", (6, 4), {"groups": 4}, ValueError, ("groups", "4", "in_channels", "6")),
        ("christophreich1996", (4, 4), {"reduce_ratio": 5}, ValueError, ("reduce_ratio", "5", "4")),
        ("christophreich1996", (4, 4, "relu"), {}, TypeError, ("sigma_mapping", "'relu'", "Module")),
        ("christophreich1996", (4, 4), {"bias": 1}, TypeError, ("bias", "1", "bool")),
        ("christophreich1996", (4, 4), {"force_shape_match": "yes"}, TypeError, ("force_shape_match", "'yes'")),
        ("shikishima", (4, 0), {}, ValueError, ("out_channels", "0")),
        ("shikishima", (4, 4, (3, 3, 3)), {}, TypeError, ("kernel_size", "(3, 3, 3)")),
    ],
)
def test_constructors_refuse(
    source: str, args: tuple[Any, ...], kwargs: dict[str, Any], error: type[Exception], parts: tuple[str, ...]
) -> None:
    with pytest.raises(error) as caught:
        SOURCES[source][0](*args, **kwargs)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_unknown_keywords_are_ignored_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="ignores dilatation"):
        compat.christophreich1996.Involution2d(4, 4, dilatation=2)


@pytest.mark.parametrize("shape", [(16, 5, 5), (1, 8, 5, 5)], ids=str)
def test_other_inputs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x must have shape \[B, 16, H, W\]") as caught:
        compat.d_li14.involution(16, 3, 1)(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)
    with pytest.raises(ValueError, match=r"window of \(5, 5\)"):
        compat.holocron.Involution2d(4, 5)(torch.zeros(1, 4, 3, 3))


# --- what people do to modules ------------------------------------------------------------------------------------------

MEMORY = [
    ("d_li14", (64, 7, 1), {}, 0.09),
    ("d_li14", (64, 7, 2), {}, 0.15),
    ("christophreich1996", (64, 64), {"groups": 4}, 0.11),
    ("shikishima", (64, 64, 7, 1, 3, 1, 4), {}, 0.11),
    ("timm", (64,), {}, 0.19),
    ("holocron", (64, 7, 3), {"groups": 4}, 0.10),
]


@pytest.mark.parametrize(("source", "args", "kwargs", "limit"), MEMORY, ids=[m[0] + str(m[1]) for m in MEMORY])
def test_memory_kept_for_backward(
    source: str, args: tuple[Any, ...], kwargs: dict[str, Any], limit: float, record_property: Callable[[str, Any], None]
) -> None:
    ours_type, oracle_type, _ = SOURCES[source]
    x = torch.randn(1, 64, 56, 56, requires_grad=True)
    mine, theirs = (
        kept_bytes(lambda m=module: m(x), *module.parameters())
        for module in (ours_type(*args, **kwargs), oracle_type(*args, **kwargs))
    )
    record_property("kept", f"{mine / 1e6:.2f} MB of {theirs / 1e6:.2f} MB")
    assert mine <= limit * theirs, f"{mine / 1e6:.2f} MB of {theirs / 1e6:.2f} MB, {mine / theirs:.3f}"


@pytest.mark.parametrize(("source", "args", "kwargs", "shape"), CASES[::3], ids=IDS[::3])
def test_compiles_exports_copies_and_pickles(
    source: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]
) -> None:
    torch._dynamo.reset()
    ours, _ = twins(source, args, kwargs)
    ours.eval()
    x = torch.randn(shape, dtype=torch.float64)
    expected = step(ours, x)
    compiled = step(torch.compile(ours, fullgraph=True, backend="aot_eager"), x)
    agree({name.replace("_orig_mod.", ""): value for name, value in compiled.items()}, expected)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(ours, (x,)).module()(x), expected["y"])
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        agree(step(other, x), expected, 1e-15)
    assert "kernel_size=" in repr(ours)


def test_autocast() -> None:
    torch.manual_seed(0)
    layer = compat.d_li14.involution(32, 3, 1).eval()
    x = torch.randn(2, 32, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert relative_error(y.detach(), layer(x).detach()) < 0.02


def test_importing_the_package_leaves_compat_for_later(run_python: Any) -> None:
    done = run_python(
        "import sys, lgld_ops\n"
        "assert 'lgld_ops.compat' not in sys.modules and 'lgld_ops.acceleration' not in sys.modules\n"
        "assert {'compat', 'accelerate', 'Report'} <= set(dir(lgld_ops))\n"
        "lgld_ops.compat.timm.Involution(16)\n"
        "from lgld_ops.compat.d_li14 import involution\n"
        "from lgld_ops import accelerate\n"
        "try: lgld_ops.nothing\n"
        "except AttributeError as error: print(error)"
    )
    assert "has no attribute 'nothing'" in done.stdout
