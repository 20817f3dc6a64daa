"""Opponents for the involution op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lgld_ops import reference

from ..cases import FORWARD, InvolutionCase
from .registry import Call, Inputs, cxx_compiler, opponent

Involution: TypeAlias = Callable[..., Tensor]


def operands(case: InvolutionCase, inputs: Inputs) -> Inputs:
    """Copies of the inputs in the dtype and memory format of the case; float64 ones stay float64, rounded alike."""
    dtype = getattr(torch, case.dtype)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format

    def laid_out(t: Tensor) -> Tensor:
        rounded = t.to(dtype)
        return (rounded.double() if t.dtype == torch.float64 else rounded).contiguous(memory_format=layout)

    return {name: laid_out(t) for name, t in inputs.items()}


def involution_call(function: Involution, case: InvolutionCase, inputs: Inputs) -> Call:
    """One call of ``function(x, weight, case)``, with both gradients where the case asks for them."""
    inputs = operands(case, inputs)
    x, weight = inputs["x"], inputs["weight"]
    if case.mode == FORWARD:
        return lambda: {"output": function(x, weight, case)}
    x.requires_grad_()
    weight.requires_grad_()
    grad_output = inputs["grad_output"]

    def step() -> Mapping[str, Tensor]:
        output = function(x, weight, case)
        grad_x, grad_weight = torch.autograd.grad(output, (x, weight), grad_output)
        return {"output": output, "grad_x": grad_x, "grad_weight": grad_weight}

    return step


def _unfold(x: Tensor, weight: Tensor, case: InvolutionCase) -> Tensor:
    return reference.involution2d_unfold(
        x, weight, case.kernel_size, stride=case.stride, padding=case.padding, groups=case.groups
    )


def _padded(x: Tensor, case: InvolutionCase) -> Tensor:
    return F.pad(x, (case.padding,) * 4) if case.padding else x


def _taps(padded: Tensor, weight: Tensor, case: InvolutionCase) -> list[tuple[Tensor, Tensor]]:
    """Views of the padded input shifted by each tap, with that tap's weights: both broadcast to [B, G, C/G,
    Ho, Wo]."""
    channels = padded.shape[1]
    rows, columns, k, s = weight.shape[2], weight.shape[3], case.kernel_size, case.stride
    grouped = padded.unflatten(1, (case.groups, channels // case.groups))
    weights = weight.unflatten(1, (case.groups, 1, k, k))
    last_row, last_column = s * (rows - 1) + 1, s * (columns - 1) + 1
    return [
        (grouped[..., i : i + last_row : s, j : j + last_column : s], weights[:, :, :, i, j])
        for i in range(k)
        for j in range(k)
    ]


@opponent("float64", "involution", role="judge", process="judge and floors")
def involution_float64(case: InvolutionCase, inputs: Inputs) -> Call:
    """The unfold function in float64, image by image to bound its memory."""

    def call() -> Mapping[str, Tensor]:
        results: list[Mapping[str, Tensor]] = []
        for image in range(case.batch):
            one = {name: value[image : image + 1].double() for name, value in inputs.items()}
            results.append(involution_call(_unfold, case, one)())
        return {name: torch.cat([result[name].detach() for result in results]) for name in results[0]}

    return call


@opponent("unfold, eager", "involution", role="reference", eager_autograd=True)
def unfold_eager(case: InvolutionCase, inputs: Inputs) -> Call:
    return involution_call(_unfold, case, inputs)


@opponent("unfold, torch.compile", "involution", requires=(cxx_compiler,), compiled=True)
def unfold_compiled(case: InvolutionCase, inputs: Inputs) -> Call:
    return involution_call(torch.compile(_unfold, dynamic=False), case, inputs)


@opponent("shifted multiply-add, eager", "involution", eager_autograd=True, takes=lambda case: case.dtype == "float32")
def shifted_eager(case: InvolutionCase, inputs: Inputs) -> Call:
    """One in-place multiply-add per tap over shifted views: the best that eager operators can do. In 16 bit it rounds after
    each of 49 taps and is over 4 times less exact than unfold, so it does not take part."""

    def function(x: Tensor, weight: Tensor, case: InvolutionCase) -> Tensor:
        taps = _taps(_padded(x, case), weight, case)
        output = taps[0][0] * taps[0][1]
        for pixels, weights in taps[1:]:
            output.addcmul_(pixels, weights)
        return output.flatten(1, 2)

    return involution_call(function, case, inputs)


@opponent("shifted multiply-add, torch.compile", "involution", requires=(cxx_compiler,), compiled=True)
def shifted_compiled(case: InvolutionCase, inputs: Inputs) -> Call:
    """One fused loop over all taps.

    The padding stays outside: inside, the compiler turns it into a masked load for each tap, which took 2.5
    times as long with K 3. And the limit on reads per fused loop is lifted, else the sum is cut into several
    passes."""

    def body(padded: Tensor, weight: Tensor, case: InvolutionCase) -> Tensor:
        output: Tensor | None = None
        for pixels, weights in _taps(padded, weight, case):
            term = pixels * weights
            output = term if output is None else output + term
        assert output is not None
        return output.flatten(1, 2)

    fused = torch.compile(body, dynamic=False, options={"realize_acc_reads_threshold": 1_000_000})
    return involution_call(lambda x, weight, case: fused(_padded(x, case), weight, case), case, inputs)


@opponent("lgld_ops", "involution", role="ours", eager_autograd=True)
def involution_ours(case: InvolutionCase, inputs: Inputs) -> Call:
    from lgld_ops import involution2d

    k, s, p, groups = case.kernel_size, case.stride, case.padding, case.groups
    return involution_call(lambda x, weight, case: involution2d(x, weight, k, stride=s, padding=p, groups=groups), case, inputs)


@opponent("lgld_ops, float32 contiguous", "involution", role="ours too", takes=lambda case: not case.plain)
def involution_ours_plain(case: InvolutionCase, inputs: Inputs) -> Call:
    """The same values in float32 and contiguous: what another dtype or memory format costs or saves."""
    rounded = {name: t.to(getattr(torch, case.dtype)).float() for name, t in inputs.items()}
    return involution_ours(replace(case, dtype="float32", channels_last=False), rounded)


@opponent("copy x", "involution", role="floor", modes=(FORWARD,), process="judge and floors")
def copy_x(case: InvolutionCase, inputs: Inputs) -> Call:
    x = operands(case, inputs)["x"]
    x_copy = torch.empty_like(x)
    return lambda: {"x": x_copy.copy_(x)}


@opponent("copy x and weight", "involution", role="floor", process="judge and floors")
def copy_x_and_weight(case: InvolutionCase, inputs: Inputs) -> Call:
    laid_out = operands(case, inputs)
    x, weight = laid_out["x"], laid_out["weight"]
    x_copy, weight_copy = torch.empty_like(x), torch.empty_like(weight)
    return lambda: {"x": x_copy.copy_(x), "weight": weight_copy.copy_(weight)}
