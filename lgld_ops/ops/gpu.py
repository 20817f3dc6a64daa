"""What the ops run on CUDA tensors where the compiled library does not register itself: Triton, or the plain formulation.

Nothing is looked up before a CUDA tensor arrives, so that importing the package imports no Triton.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _gpu
from . import ffm, involution, layer
from .schemas import LIBRARY, NAMESPACE

_KERNEL_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def device_of(t: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes t's GPU the current one, where Triton launches; on the CPU (Triton's interpreter) nothing."""
    return torch.cuda.device_of(t) if t.is_cuda else contextlib.nullcontext()


def _check_dtype(op: str, name: str, t: Tensor) -> None:
    if t.dtype not in _KERNEL_DTYPES:
        raise RuntimeError(f"{op}: {name} must be float32, float64, float16 or bfloat16, but is {t.dtype}")


# --- Triton: checked and allocated by the ops' own shape rules, computed by kernels/triton -----------------------------


def _involution2d(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    _check_dtype("involution2d", "x", x)
    y = involution._involution2d_fake(x, weight, *arguments)
    with device_of(x):
        _gpu.triton_kernels().involution2d.forward(x, weight, y, *arguments)
    return y


def _involution2d_grad_x(grad_y: Tensor, weight: Tensor, height: int, width: int, *arguments: Any) -> Tensor:
    _check_dtype("involution2d_grad_x", "grad_y", grad_y)
    grad_x = involution._involution2d_grad_x_fake(grad_y, weight, height, width, *arguments)
    with device_of(grad_y):
        _gpu.triton_kernels().involution2d.grad_x(grad_y, weight, grad_x, *arguments)
    return grad_x


def _involution2d_grad_weight(grad_y: Tensor, x: Tensor, *arguments: Any) -> Tensor:
    _check_dtype("involution2d_grad_weight", "grad_y", grad_y)
    grad_weight = involution._involution2d_grad_weight_fake(grad_y, x, *arguments)
    with device_of(x):
        _gpu.triton_kernels().involution2d.grad_weight(grad_y, x, grad_weight, *arguments)
    return grad_weight


# The layer's kernels have a pixel's hidden values in registers; with more of them tiles of 32 pixels would not fit.
_MOST_HIDDEN = 512


def _too_wide(hidden_weight: Tensor) -> bool:
    return hidden_weight.dim() == 2 and hidden_weight.shape[0] > _MOST_HIDDEN


def _involution_layer(x: Tensor, *arguments: Any) -> Tensor:
    if _too_wide(arguments[0]):
        return REFERENCE["involution_layer"](x, *arguments)  # type: ignore[no-any-return]
    y = layer._involution_layer_fake(x, *arguments)
    with device_of(x):
        _gpu.triton_kernels().involution_layer.forward(x, *arguments, y)
    return y


def _involution_layer_backward(grad_y: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    if _too_wide(arguments[0]):
        return REFERENCE["involution_layer_backward"](grad_y, x, *arguments)  # type: ignore[no-any-return]
    gradients = layer._backward_fake(grad_y, x, *arguments)
    with device_of(x):
        _gpu.triton_kernels().involution_layer.backward(grad_y, x, *arguments, gradients)
    return gradients


# The Triton kernels unroll over the image's channels; this many still compile in reasonable time.
_MOST_IMAGE_CHANNELS = 64


def _fourier_feature_mixer(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    if x.shape[1] > _MOST_IMAGE_CHANNELS:  # the reference says that it runs
        return REFERENCE["fourier_feature_mixer"](x, *arguments)  # type: ignore[no-any-return]
    results = ffm._fake(x, *arguments)
    with device_of(x):
        _gpu.triton_kernels().ffm.forward(x, *arguments, *results)
    return results


def _fourier_feature_mixer_backward(grad_y: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    if x.shape[1] > _MOST_IMAGE_CHANNELS:
        return REFERENCE["fourier_feature_mixer_backward"](grad_y, x, *arguments)  # type: ignore[no-any-return]
    gradients = ffm._backward_fake(grad_y, x, *arguments)
    with device_of(x):
        _gpu.triton_kernels().ffm.backward(grad_y, x, *arguments, gradients)
    return gradients


TRITON: dict[str, Callable[..., Any]] = {
    "involution2d": _involution2d,
    "involution2d_grad_x": _involution2d_grad_x,
    "involution2d_grad_weight": _involution2d_grad_weight,
    "involution_layer": _involution_layer,
    "involution_layer_backward": _involution_layer_backward,
    "fourier_feature_mixer": _fourier_feature_mixer,
    "fourier_feature_mixer_backward": _fourier_feature_mixer_backward,
}
REFERENCE: dict[str, Callable[..., Any]] = involution.PLAIN | layer.PLAIN | ffm.PLAIN


@functools.cache
def _schema(name: str) -> dict[str, Any]:
    return {a.name: a.default_value for a in getattr(torch.ops.lgld_ops, name).default._schema.arguments}


def complete(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """All arguments of an op in the schema's order: where a default applies the dispatcher leaves the argument out."""
    schema = _schema(name)
    if len(arguments) == len(schema):
        return arguments
    return tuple((schema | dict(zip(schema, arguments, strict=False)) | named).values())


@functools.cache
def _implementation(name: str) -> Callable[..., Any]:
    backend = _gpu.choice().backend
    if backend == "cuda":  # which registers its ops itself: this one it lacks
        if _gpu.forced == "cuda":
            raise RuntimeError(f"{_gpu.VARIABLE} is 'cuda', but {_gpu.LIBRARY} has no kernel for {name}; unset {_gpu.VARIABLE}")
        backend = "reference" if _gpu.triton_error() else "triton"
    return (TRITON if backend == "triton" else REFERENCE)[name]


def _register(name: str) -> None:
    def run(*arguments: Any, **named: Any) -> Any:
        return _implementation(name)(*complete(name, arguments, named))

    LIBRARY.impl(name, run, "CUDA")


for _name in TRITON:
    if _gpu.library_error or not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{_name}", "CUDA"):
        _register(_name)
