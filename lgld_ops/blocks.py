"""LGLD-Net's blocks with the published parameters, arranged to train faster and in less memory.

Each is a subclass of its namesake in `lgld_ops.reference`, with the same parameters and state-dict keys, and equal to it up to
rounding. Where somebody exchanged or hooks a part that would be evaluated together with another, the published formulation
runs; in LFA and GCE under torch.func transforms, too, where a sum in place fails if vmap maps over its other operand alone.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from . import reference
from .nn import _ActivatedPointwise, _GatedActivation, _is_plain, _normalized_activation, _recomputes
from .ops.involution import _transforming


def _are_plain(kind: type[nn.Module], *modules: nn.Module) -> bool:
    return all(_is_plain(module, kind) for module in modules)


def _pointwise_of(branch: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """conv1x1(branch(x)); in training a branch that ends in SiLU is kept as the map in front of it alone."""
    if _recomputes() and isinstance(branch, nn.Sequential) and _is_plain(branch, nn.Sequential) and len(branch) > 0:
        *front, last = branch
        if _is_plain(last, nn.SiLU):
            for module in front:
                x = module(x)
            return _ActivatedPointwise.apply(x, weight, None)  # type: ignore[no-any-return, no-untyped-call]
    return F.conv2d(branch(x), weight)


class IPS(reference.IPS):
    """`lgld_ops.reference.IPS`, in training without the map between BatchNorm and SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, C, ceil(H/2), ceil(W/2)]."""
        if _has_any_global_hook():
            return super().forward(x)
        return _normalized_activation(self.bn, self.act, self.invo(self.conv(x)))


class LFA(reference.LFA):
    """`lgld_ops.reference.LFA` without its concatenation: ``project(concat(a, b)) = project_1(a) + project_2(b)``."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        plain = _are_plain(nn.Conv2d, self.project) and _are_plain(nn.SiLU, self.act)
        if _has_any_global_hook() or _transforming() or not plain:
            return super().forward(x)
        first, second = self.project.weight.chunk(2, dim=1)
        # In place: a convolution keeps its input, not its output.
        return F.silu(_pointwise_of(self.dw3, x, first).add_(_pointwise_of(self.dw5, x, second)).add_(x))


class GCE(reference.GCE):
    """`lgld_ops.reference.GCE` with `compress` merged into the dilated convolutions, between which and it nothing stands.

    ``compress(concat(D_2 x, D_4 x, D_8 x)) = sum_d (K_d D_d) x``: three small products of weights a call replace a map of 3C
    channels.
    """

    def _hidden(self, x: Tensor) -> Tensor:
        total: Tensor | None = None
        bias = cast("Tensor", self.compress.bias)
        convs = (self.dil2, self.dil4, self.dil8)
        parts = self.compress.weight.flatten(1).chunk(3, dim=1)
        for part, conv in zip(parts, convs, strict=True):
            bias = bias + part @ cast("Tensor", conv.bias)
        for part, conv in zip(parts, convs, strict=True):
            weight = (part @ conv.weight.flatten(1)).view_as(conv.weight)
            y = F.conv2d(x, weight, bias if total is None else None, 1, conv.padding, conv.dilation)
            total = y if total is None else total.add_(y)
        return cast("Tensor", total)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        convs = (self.dil2, self.dil4, self.dil8, self.compress)
        plain = _are_plain(nn.Conv2d, *convs) and all(conv.bias is not None for conv in convs) and _are_plain(nn.SiLU, self.act)
        if _has_any_global_hook() or _transforming() or not plain:
            return super().forward(x)
        hidden = self._hidden(x)
        p = F.silu(hidden)
        gate: Tensor = self.se(p)
        # A product would keep p.
        return _GatedActivation.apply(hidden, gate) if _recomputes() else p * gate  # type: ignore[no-any-return, no-untyped-call]


class LGFM(reference.LGFM):
    """`lgld_ops.reference.LGFM` on the concatenated means instead of the mean of the concatenated maps."""

    def forward(self, local_map: Tensor, global_map: Tensor) -> Tensor:
        """Two [B, C, h, w] -> [B, C, h, w]."""
        pool, flatten, linear, softmax = self.fc
        if _has_any_global_hook() or not (_are_plain(nn.AdaptiveAvgPool2d, pool) and _are_plain(nn.Flatten, flatten)):
            return super().forward(local_map, global_map)
        w: Tensor = softmax(linear(torch.cat([local_map.mean((2, 3)), global_map.mean((2, 3))], dim=1)))
        return torch.addcmul(w[:, 0, None, None, None] * local_map, w[:, 1, None, None, None], global_map)


class Head(nn.Sequential):
    """The classifier behind LGFM, in training without the map between BatchNorm and SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> logits [B, num_classes]."""
        if _has_any_global_hook() or len(self) < 3:
            return super().forward(x)  # type: ignore[no-any-return, no-untyped-call]
        conv, norm, activation, *rest = self
        x = _normalized_activation(norm, activation, conv(x))
        for module in rest:
            x = module(x)
        return x
