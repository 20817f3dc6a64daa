"""The whole network as a torch op: shape rules. `lgld_ops.fused` is what users call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .involution import _check as _require
from .involution import _fake
from .schemas import NAMESPACE


def parameter_count(in_channels: int, base_channels: int, num_classes: int) -> int:
    """Length of the op's `parameters`: every tensor of the state dict but `num_batches_tracked`, and three eps."""
    c, d = base_channels, base_channels // 4
    local_stem = c * in_channels * 9 + c + d * c + d + d * d + d + 9 * d + 9 + 4 * c
    global_stem = c + c * (in_channels + 4) + c + 4 * c
    lfa = c * 9 + c + c * 25 + c + 2 * (c * c + c) + 2 * c * c
    gce = 3 * (9 * c * c + c) + 3 * c * c + c + 2 * c * d + d + c
    head = c * c + c + 4 * c + num_classes * c + num_classes
    return local_stem + global_stem + lfa + gce + 4 * c + 2 + head + 3


def _check_parameters(op: str, parameters: Tensor, in_channels: int, base_channels: int, num_classes: int) -> None:
    def check(condition: Any, message: str) -> None:
        _require(op, condition, message)

    check(
        base_channels >= 4 and base_channels % 4 == 0, f"base_channels must be a multiple of 4 from 4, but is {base_channels}"
    )
    check(num_classes >= 1, f"num_classes must be at least 1, but is {num_classes}")
    check(in_channels >= 1, f"an image must have at least 1 channel, but has {in_channels}")
    check(parameters.dtype == torch.float32, f"parameters must be float32, but is {parameters.dtype}")
    count = parameter_count(in_channels, base_channels, num_classes)
    check(
        parameters.dim() == 1 and parameters.shape[0] == count,
        f"parameters must be contiguous with shape [{count}] for {in_channels} image channels, base_channels {base_channels} "
        f"and num_classes {num_classes}, but has shape {list(parameters.shape)}",
    )


def _check_images(op: str, name: str, x: Tensor) -> None:
    shape = f"{name} must have 4 dimensions, [batch, channels, height, width], but has shape {list(x.shape)}"
    _require(op, x.dim() == 4, shape)


def _check(op: str, x: Tensor, parameters: Tensor, base_channels: int, num_classes: int) -> None:
    _check_images(op, "x", x)
    _require(op, x.dtype in (torch.float32, torch.uint8), f"x must be float32, or uint8 with 255 for 1.0, but is {x.dtype}")
    _check_parameters(op, parameters, int(x.shape[1]), base_channels, num_classes)


def _check_map(op: str, name: str, x: Tensor, parameters: Tensor, in_channels: int, num_classes: int) -> None:
    _check_images(op, name, x)
    _require(op, x.dtype == torch.float32, f"{name} must be float32, but is {x.dtype}")
    _check_parameters(op, parameters, in_channels, int(x.shape[1]), num_classes)


@_fake(f"{NAMESPACE}::lgldnet")
def _lgldnet_fake(x: Tensor, parameters: Tensor, base_channels: int, num_classes: int) -> tuple[Tensor, Tensor]:
    _check("lgldnet", x, parameters, base_channels, num_classes)
    batch = x.shape[0]
    return parameters.new_empty(batch, num_classes), parameters.new_empty(batch, base_channels)


@_fake(f"{NAMESPACE}::lgldnet_stage_times")
def _stage_times_fake(x: Tensor, parameters: Tensor, base_channels: int, num_classes: int, rounds: int) -> Tensor:
    _check("lgldnet_stage_times", x, parameters, base_channels, num_classes)
    return parameters.new_empty(rounds, 8)


def _register_stem(name: str) -> None:
    @_fake(f"{NAMESPACE}::{name}")
    def fake(x: Tensor, parameters: Tensor, base_channels: int, num_classes: int) -> Tensor:
        _check(name, x, parameters, base_channels, num_classes)
        return parameters.new_empty(x.shape[0], base_channels, (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2)


def _register_map_stage(name: str) -> None:
    @_fake(f"{NAMESPACE}::{name}")
    def fake(map: Tensor, parameters: Tensor, in_channels: int, num_classes: int) -> Tensor:
        _check_map(name, "map", map, parameters, in_channels, num_classes)
        return parameters.new_empty(map.shape)


for _name in ("lgldnet_local_stem", "lgldnet_global_stem"):
    _register_stem(_name)
for _name in ("lgldnet_local_features", "lgldnet_context"):
    _register_map_stage(_name)


@_fake(f"{NAMESPACE}::lgldnet_head")
def _head_fake(local: Tensor, context: Tensor, parameters: Tensor, in_channels: int, num_classes: int) -> tuple[Tensor, Tensor]:
    _check_map("lgldnet_head", "local", local, parameters, in_channels, num_classes)
    _check_map("lgldnet_head", "context", context, parameters, in_channels, num_classes)
    for ours, other in zip(local.shape, context.shape, strict=True):
        _require(
            "lgldnet_head",
            ours == other,
            f"local and context must have the same shape, but have {list(local.shape)} and {list(context.shape)}",
        )
    batch = local.shape[0]
    return parameters.new_empty(batch, num_classes), parameters.new_empty(batch, local.shape[1])
