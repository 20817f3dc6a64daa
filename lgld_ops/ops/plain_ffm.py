"""The Fourier feature mixer in plain torch: the readable reference, and what runs on devices that have no kernel of ours."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def position_terms(height: int, width: int, stride: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """sin and cos of the rows' phases [2, Ho, 1] and of the columns' [2, 1, Wo], computed in float64, in `like`'s dtype."""

    def terms(extent: int) -> Tensor:
        phase = torch.arange(0, extent, stride, device=like.device, dtype=torch.float64) * (2 * math.pi / extent)
        return torch.stack([phase.sin(), phase.cos()]).to(like.dtype)

    return terms(height)[:, :, None], terms(width)[:, None, :]


def fourier_feature_mixer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    fourier_weight_real: Tensor,
    fourier_weight_imag: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float = 1e-5,
    stride: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `lgld_ops.fourier_feature_mixer`, made of differentiable torch operations; 16-bit x is computed in float32."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32

    def to(t: Tensor) -> Tensor:
        return t.to(wide)

    inputs = x.shape[1]
    grid = to(x)[:, :, ::stride, ::stride]
    w = to(weight).flatten(1)
    rows, columns = position_terms(x.shape[2], x.shape[3], stride, grid)
    z = torch.einsum("ck,bkij->bcij", w[:, :inputs], grid)
    z = z + (
        torch.einsum("ck,kij->cij", w[:, inputs : inputs + 2], rows) + torch.einsum("ck,kij->cij", w[:, inputs + 2 :], columns)
    )
    if bias is not None:
        z = z + to(bias)[:, None, None]
    z = z * torch.cat([to(fourier_weight_real), to(fourier_weight_imag)])[:, None, None]
    if training:
        mean = z.mean((0, 2, 3))
        var = (z - mean[:, None, None]).square().mean((0, 2, 3))
        given = mean.detach(), var.detach()
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, var = to(running_mean), to(running_var)
        given = mean.new_empty(0), var.new_empty(0)
    scale = torch.rsqrt(var + eps)
    if bn_weight is not None:
        scale = scale * to(bn_weight)
    u = (z - mean[:, None, None]) * scale[:, None, None]
    if bn_bias is not None:
        u = u + to(bn_bias)[:, None, None]
    return F.silu(u).to(x.dtype), *given
