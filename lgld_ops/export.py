"""Models with this package's ops, for runtimes without them: ONNX, and plain ATen programs.

In the exported graph an involution is a sum of shifted products: pad once, then slice, multiply and add for each tap. No
runtime needs Im2Col (which ONNX lacks) or a custom operator for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused import FusedLGLDNet
from .ops import layer, plain_ffm

__all__ = ["decompositions", "export_onnx"]


def _involution2d(
    x: Tensor,
    weight: Tensor,
    kernel_size: list[int],
    stride: list[int] | tuple[int, int] = (1, 1),
    padding: list[int] | tuple[int, int] = (0, 0),
    dilation: list[int] | tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16):  # the op accumulates in float32
        x, weight = x.float(), weight.float()
    if any(padding):
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    channels, (height, width) = x.shape[1], weight.shape[2:]
    if groups > 1:
        x = x.unflatten(1, (groups, channels // groups))
        weight = weight.unflatten(1, (groups, -1))
    y = None
    for u in range(kernel_size[0]):
        for v in range(kernel_size[1]):
            top, left, t = u * dilation[0], v * dilation[1], u * kernel_size[1] + v
            rows = slice(top, top + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (width - 1) * stride[1] + 1, stride[1])
            taps = weight[:, t : t + 1] if groups == 1 else weight[:, :, t : t + 1]
            product = x[..., rows, columns] * taps
            y = product if y is None else y + product
    assert y is not None  # a window has at least one tap
    return (y if groups == 1 else y.flatten(1, 2)).to(dtype)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What each op of this package is in ATen's operators, for `torch.export.ExportedProgram.run_decompositions`.

    ``torch.export.export(model.eval(), args).run_decompositions(lgld_ops.decompositions())`` is a program that needs no
    lgld_ops where it runs. float16 and bfloat16 are summed in float32, as by the ops. Formulas: `lgld_ops.involution2d`,
    `lgld_ops.fourier_feature_mixer`.
    """
    ops = torch.ops.lgld_ops
    return {
        ops.involution2d.default: _involution2d,
        ops.involution_layer.default: layer._plain,
        ops.fourier_feature_mixer.default: plain_ffm.fourier_feature_mixer,
    }


def export_onnx(
    model: nn.Module,
    args: tuple[Any, ...],
    path: str | os.PathLike[str] | None = None,
    *,
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> Any:
    """Export `model` to ONNX, with this package's ops as pads, slices, products and sums.

    Like ``torch.onnx.export(model, args, path, dynamo=True)``, which can't translate the ops themselves. Needs the packages
    onnx and onnxscript.

    Args:
        model: a module in eval mode.
        args: example inputs, a tuple, shapes and dtypes as the model takes them.
        path: where to write the model; None writes nothing.
        kwargs: example keyword inputs.
        dynamic_shapes: which dimensions are free, as for `torch.export.export`.
        options: whatever else `torch.onnx.export` takes: input_names, output_names, opset_version, external_data, ...

    Returns:
        torch's `ONNXProgram`.

    Raises:
        TypeError: `model` is no torch.nn.Module or has a fused network in it, or `args` is no tuple.
        ValueError: `model` is in training mode.
        FileNotFoundError: `path` lies in no folder that exists.
        RuntimeError: a package is missing, or torch can't export the model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}")
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple of the model's inputs, but is {type(args).__name__}")
    if model.training:
        raise ValueError("model must be in eval mode, but is in training mode: call model.eval() first")
    if any(isinstance(module, FusedLGLDNet) for module in model.modules()):
        raise TypeError("model must have no fused network in it, which ONNX can't express: export the network that was fused")
    if path is not None and not Path(path).parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists, but is {os.fspath(path)!r}")
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RuntimeError("export_onnx needs onnx and onnxscript: pip install onnx onnxscript") from error
    with torch.no_grad():
        program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    options.setdefault("verbose", False)
    return torch.onnx.export(program.run_decompositions(decompositions()), f=path, dynamo=True, **options)
