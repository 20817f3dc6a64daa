"""Involution as shifted multiply-adds in plain torch: what runs on devices that have no kernel of ours.

One pass over the map per tap, nothing kept between taps: it needs no more memory than its operands and result.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _gpu, _native

Pair = list[int]

_warned: set[str] = set()


def warn_once(device_type: str) -> None:
    """Say once per device type that the plain formulation runs there, and why."""
    if device_type not in _warned:
        _warned.add(device_type)
        if device_type == "cpu":
            reason = _native.load_error
        elif device_type == "cuda":
            reason = _gpu.choice().reason
        else:
            reason = f"this version has no kernels for '{device_type}'"
        message = f"lgld_ops runs its plain torch formulation on '{device_type}', which is slower: {reason}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def _taps(size: tuple[int, int], kernel_size: Pair, stride: Pair, dilation: Pair) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Each tap's number and the rows and columns of the padded map that it reads, for `size` outputs."""
    for u in range(kernel_size[0]):
        for v in range(kernel_size[1]):
            top, left = u * dilation[0], v * dilation[1]
            rows = slice(top, top + (size[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (size[1] - 1) * stride[1] + 1, stride[1])
            yield u * kernel_size[1] + v, (rows, columns)


def _padded(x: Tensor, padding: Pair) -> Tensor:
    return F.pad(x, (padding[1], padding[1], padding[0], padding[0]))


def involution2d(
    x: Tensor, weight: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """y[b,c,i,j] = sum_t weight[b, g*T+t, i, j] * x[b, c, tap t of (i, j)]; shapes as `lgld_ops.involution2d`."""
    batch, channels = x.shape[:2]
    height, width = weight.shape[2:]
    grouped = _padded(x, padding).unflatten(1, (groups, channels // groups))
    weights = weight.unflatten(1, (groups, -1))
    y = x.new_zeros(batch, groups, channels // groups, height, width)
    for t, (rows, columns) in _taps((height, width), kernel_size, stride, dilation):
        y.addcmul_(grouped[..., rows, columns], weights[:, :, t : t + 1])
    return y.flatten(1, 2)


def involution2d_grad_x(
    grad_y: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Gradient of `involution2d` with respect to x, whose rows and columns are given."""
    batch, channels = grad_y.shape[:2]
    grad = grad_y.unflatten(1, (groups, channels // groups))
    weights = weight.unflatten(1, (groups, -1))
    padded = grad_y.new_zeros(batch, groups, channels // groups, height + 2 * padding[0], width + 2 * padding[1])
    size = (grad_y.shape[2], grad_y.shape[3])
    for t, (rows, columns) in _taps(size, kernel_size, stride, dilation):
        padded[..., rows, columns].addcmul_(grad, weights[:, :, t : t + 1])
    inner = padded[..., padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return inner.flatten(1, 2).contiguous()


def involution2d_grad_weight(
    grad_y: Tensor, x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """Gradient of `involution2d` with respect to weight."""
    channels = x.shape[1]
    size = (grad_y.shape[2], grad_y.shape[3])
    grad = grad_y.unflatten(1, (groups, channels // groups))
    grouped = _padded(x, padding).unflatten(1, (groups, channels // groups))
    maps = [(grad * grouped[..., rows, columns]).sum(2) for _, (rows, columns) in _taps(size, kernel_size, stride, dilation)]
    return torch.stack(maps, 2).flatten(1, 2)
