"""Bad input: every message names the argument, what it was and what it must be, for real, meta and fake tensors alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import lgld_ops

MAPS = ("x", "weight", "grad_y")

# involution2d's valid arguments, which each case below spoils; the gradients' follow from them.
GOOD: dict[str, Any] = {
    "x": (2, 4, 6, 7),
    "weight": (2, 18, 6, 7),
    "grad_y": (2, 4, 6, 7),
    "height": 6,
    "width": 7,
    "kernel_size": 3,
    "stride": 1,
    "padding": 1,
    "dilation": 1,
    "groups": 2,
}
OPS = {
    "involution2d": ("x", "weight"),
    "involution2d_grad_x": ("grad_y", "weight", "height", "width"),
    "involution2d_grad_weight": ("grad_y", "x"),
}
GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class Bad:
    """A spoiled argument, and what the message must hold: the argument's name, what it was, what it must be."""

    change: dict[str, Any]
    parts: tuple[str, ...]
    ops: tuple[str, ...] = tuple(OPS)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)


FORWARD, GRAD_X, GRAD_WEIGHT = (("involution2d",), ("involution2d_grad_x",), ("involution2d_grad_weight",))
BAD = {
    "x_3d": Bad({"x": (4, 6, 7)}, ("x", "[4, 6, 7]", "4 dimensions"), FORWARD + GRAD_WEIGHT),
    "x_5d": Bad({"x": (1, 2, 4, 6, 7)}, ("x", "[1, 2, 4, 6, 7]", "4 dimensions"), FORWARD + GRAD_WEIGHT),
    "x_0d": Bad({"x": ()}, ("x", "[]", "4 dimensions"), FORWARD + GRAD_WEIGHT),
    "weight_2d": Bad({"weight": (18, 6)}, ("weight", "[18, 6]", "4 dimensions"), FORWARD + GRAD_X),
    "grad_y_1d": Bad({"grad_y": (18,)}, ("grad_y", "[18]", "4 dimensions"), GRAD_X + GRAD_WEIGHT),
    "weight_batch": Bad({"weight": (3, 18, 6, 7)}, ("weight", "[3, 18, 6, 7]", "[2, 18, 6, 7]"), FORWARD + GRAD_X),
    "weight_batch_1": Bad({"weight": (1, 18, 6, 7)}, ("weight", "[1, 18, 6, 7]", "[2, 18, 6, 7]"), FORWARD + GRAD_X),
    "weight_taps": Bad({"weight": (2, 9, 6, 7)}, ("weight", "[2, 9, 6, 7]", "[2, 18, 6, 7]"), FORWARD + GRAD_X),
    "weight_rows": Bad({"weight": (2, 18, 5, 7)}, ("weight", "[2, 18, 5, 7]", "[2, 18, 6, 7]"), FORWARD + GRAD_X),
    "weight_columns": Bad({"weight": (2, 18, 6, 1)}, ("weight", "[2, 18, 6, 1]", "[2, 18, 6, 7]"), FORWARD + GRAD_X),
    "grad_y_rows": Bad({"grad_y": (2, 4, 5, 7)}, ("grad_y", "[2, 4, 5, 7]", "[2, 4, 6, 7]"), GRAD_X + GRAD_WEIGHT),
    "grad_y_channels": Bad({"grad_y": (2, 6, 6, 7)}, ("grad_y", "[2, 6, 6, 7]", "[2, 4, 6, 7]"), GRAD_WEIGHT),
    "height": Bad({"height": 8}, ("grad_y", "[2, 4, 6, 7]", "[2, 4, 8, 7]"), GRAD_X),
    "kernel_0": Bad({"kernel_size": 0}, ("kernel_size", "(0, 0)", "at least 1")),
    "kernel_negative": Bad({"kernel_size": (3, -3)}, ("kernel_size", "(3, -3)", "at least 1")),
    "kernel_3": Bad({"kernel_size": (3, 3, 3)}, ("kernel_size", "3", "two integers")),
    "kernel_none": Bad({"kernel_size": ()}, ("kernel_size", "0", "two integers")),
    "stride_0": Bad({"stride": (1, 0)}, ("stride", "(1, 0)", "at least 1")),
    "stride_negative": Bad({"stride": -1}, ("stride", "(-1, -1)", "at least 1")),
    "stride_1": Bad({"stride": (1,)}, ("stride", "1", "two integers")),
    "padding_negative": Bad({"padding": (-1, 0)}, ("padding", "(-1, 0)", "at least 0")),
    "padding_3": Bad({"padding": (1, 1, 1)}, ("padding", "3", "two integers")),
    "dilation_0": Bad({"dilation": 0}, ("dilation", "(0, 0)", "at least 1")),
    "dilation_negative": Bad({"dilation": (2, -2)}, ("dilation", "(2, -2)", "at least 1")),
    "groups_0": Bad({"groups": 0}, ("groups", "0", "at least 1")),
    "groups_negative": Bad({"groups": -2}, ("groups", "-2", "at least 1")),
    "groups_divide": Bad({"groups": 3}, ("groups", "3", "4 channels", "divide")),
    "window": Bad({"kernel_size": 9, "padding": 1}, ("kernel_size", "(9, 9)", "larger than the padded")),
    "window_dilated": Bad({"dilation": 5, "padding": 0}, ("kernel_size", "dilation", "(5, 5)", "larger than the padded")),
    "kernel_huge": Bad({"kernel_size": 2**62, "padding": 2**62}, ("kernel_size", str(2**62), "less than")),
    "padding_huge": Bad({"padding": 2**62}, ("padding", str(2**62), "less than")),
    "dilation_huge": Bad({"dilation": 2**62}, ("dilation", str(2**62), "less than")),
    "stride_huge": Bad({"stride": 2**62}, ("stride", str(2**62), "less than")),
    "no_channels": Bad({"x": (2, 0, 6, 7)}, ("x", "0", "at least one channel"), FORWARD + GRAD_WEIGHT),
    "no_rows": Bad({"x": (2, 4, 0, 7)}, ("x", "0", "at least one channel, row and column"), FORWARD + GRAD_WEIGHT),
    "other_dtype": Bad({}, ("dtype", "float64", "float32"), FORWARD + GRAD_X, {"x": torch.float64, "grad_y": torch.float64}),
    "integer": Bad({}, ("must be float32, float64, float16 or bfloat16", "int"), dtypes=dict.fromkeys(MAPS, torch.int64)),
    "complex": Bad(
        {}, ("must be float32, float64, float16 or bfloat16", "complex"), dtypes=dict.fromkeys(MAPS, torch.complex64)
    ),
}
CASES = [(name, op) for name, bad in BAD.items() for op in bad.ops]
# On the meta device no kernel is asked, so what only kernels cannot do is allowed there.
KERNEL_ONLY = {"integer", "complex"}


def arguments_of(op: str, bad: Bad) -> list[Any]:
    values = GOOD | bad.change
    names = OPS[op] + GEOMETRY
    return [
        torch.zeros(values[name], dtype=bad.dtypes.get(name, torch.float32)) if name in MAPS else values[name] for name in names
    ]


def message_of(call: Callable[[], Any]) -> str:
    with pytest.raises(RuntimeError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(("name", "op"), CASES, ids=[f"{name}-{op}" for name, op in CASES])
def test_real_tensors(name: str, op: str) -> None:
    arguments = arguments_of(op, BAD[name])
    message = message_of(lambda: getattr(torch.ops.lgld_ops, op)(*arguments))
    assert op in message
    assert all(part in message for part in BAD[name].parts), message
    if op == "involution2d":
        assert message_of(lambda: lgld_ops.involution2d(*arguments)) == message


@pytest.mark.parametrize(("name", "op"), CASES, ids=[f"{name}-{op}" for name, op in CASES])
def test_fake_tensors(name: str, op: str) -> None:
    with FakeTensorMode():
        arguments = arguments_of(op, BAD[name])
        message = message_of(lambda: getattr(torch.ops.lgld_ops, op)(*arguments))
    assert all(part in message for part in BAD[name].parts), message


@pytest.mark.parametrize(("name", "op"), [case for case in CASES if case[0] not in KERNEL_ONLY], ids=lambda value: str(value))
def test_meta_tensors(name: str, op: str) -> None:
    arguments = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments_of(op, BAD[name])]
    message = message_of(lambda: getattr(torch.ops.lgld_ops, op)(*arguments))
    assert all(part in message for part in BAD[name].parts), message


def test_good_arguments_are_good() -> None:
    for op in OPS:
        getattr(torch.ops.lgld_ops, op)(*arguments_of(op, Bad({}, ())))


@pytest.mark.parametrize("where", ["x", "weight"])
def test_devices_must_agree(where: str) -> None:
    arguments = arguments_of("involution2d", Bad({}, ()))
    arguments[0 if where == "x" else 1] = arguments[0 if where == "x" else 1].to("meta")
    message = message_of(lambda: lgld_ops.involution2d(*arguments))
    assert "meta" in message
    assert "cpu" in message.lower()


@pytest.mark.parametrize("value", ["3", 3.0, None], ids=repr)
@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation", "groups"])
def test_arguments_of_another_type(name: str, value: object) -> None:
    values = GOOD | {name: value}
    x, weight = torch.zeros(values["x"]), torch.zeros(values["weight"])
    with pytest.raises((TypeError, RuntimeError), match=name):
        lgld_ops.involution2d(x, weight, **{key: values[key] for key in GEOMETRY})


@pytest.mark.parametrize("value", [None, 3, [1.0]], ids=str)
@pytest.mark.parametrize("which", [0, 1])
def test_no_tensor(which: int, value: object) -> None:
    arguments = arguments_of("involution2d", Bad({}, ()))
    arguments[which] = value
    with pytest.raises(TypeError, match=f"^{('x', 'weight')[which]} must be a torch.Tensor, but is {re.escape(repr(value))}$"):
        lgld_ops.involution2d(*arguments)


@pytest.mark.parametrize("index", [0, 1, 3, 4])
def test_no_tensor_for_the_mixer(index: int) -> None:
    names = ("x", "weight", "bias", "fourier_weight_real", "fourier_weight_imag")
    arguments: list[Any] = [torch.zeros(1, 3, 4, 4), torch.zeros(8, 7), None, torch.zeros(4), torch.zeros(4)]
    arguments[index] = None
    with pytest.raises(TypeError, match=f"^{names[index]} must be a torch.Tensor, but is None$"):
        lgld_ops.fourier_feature_mixer(*arguments, training=True)


@pytest.mark.parametrize(
    ("make", "x", "error", "message"),
    [
        (lambda: lgld_ops.Involution2d(8), 3, TypeError, "x must be a torch.Tensor, but is 3"),
        (lgld_ops.FourierFeatureMixer, 3, TypeError, "x must be a torch.Tensor, but is 3"),
        (lambda: lgld_ops.LGLDNet(3, 8), None, TypeError, "x must be a torch.Tensor, but is None"),
        (lambda: lgld_ops.LGLDNet(3, 8), torch.zeros(3, 9, 8), ValueError, "images .* has shape [3, 9, 8]"),
        (
            lambda: lgld_ops.Involution2d(8),
            torch.zeros(1, 8, 5, 5, dtype=torch.int64),
            TypeError,
            "x must be .* is torch.int64",
        ),
    ],
)
def test_modules_name_what_they_were_given(make: Any, x: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("[", r"\[")):
        make()(x)


@pytest.mark.parametrize("kind", ["sparse", "quantized"])
def test_other_kinds_of_tensors_are_refused(kind: str) -> None:
    x, weight, *rest = arguments_of("involution2d", Bad({}, ()))
    other = x.to_sparse() if kind == "sparse" else torch.quantize_per_tensor(x, 1.0, 0, torch.quint8)
    with pytest.raises((RuntimeError, NotImplementedError)):
        lgld_ops.involution2d(other, weight, *rest)


def test_the_state_after_an_error_is_whole() -> None:
    good = arguments_of("involution2d", Bad({}, ()))
    for name in ("weight_rows", "groups_divide", "stride_0"):
        message_of(lambda name=name: lgld_ops.involution2d(*arguments_of("involution2d", BAD[name])))
        assert lgld_ops.involution2d(*good).eq(0).all()
