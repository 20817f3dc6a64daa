"""LGLD-Net's involution layer in one kernel: its weights are made where they are used.

    h[d,p] = SiLU(sum_c hidden_weight[d,c] x[c,p] + hidden_bias[d])
    k[t,p] = sum_d span_weight[t,d] h[d,p] + span_bias[t]
    y[c,p] = sum_t k[t,p] x[c, p + t],    t over a K x K window around p, x zero outside its bounds

(ICITA 2025, DOI 10.1007/978-3-032-21174-3_28; its two convolutions before SiLU are one.) A program has a tile of pixels of one
image: it walks over the channels once for h, once for y, and x is in L2 the second time; k never leaves the registers. Bytes
that must move, for E-byte elements: 2 C * E a pixel, where the layer and the op apart move 2 C + C + 2 K^2 or more.
"""

from __future__ import annotations

from torch import Tensor

import triton
import triton.language as tl

from ._common import MOST_PROGRAMS, arithmetic_type, grid, index_type, load, power_of_2, program, span, store


@triton.jit(do_not_specialize_on_alignment=["programs", "tiles", "height", "width", "pixels"])
def _layer(
    x_ptr, hidden_weight_ptr, hidden_bias_ptr, span_weight_ptr, span_bias_ptr, y_ptr,
    programs, tiles, channels, hidden, height, width, pixels, x_sb, x_sc, x_sh, x_sw, y_sb, y_sc, y_sh, y_sw,
    K: tl.constexpr, HIDDEN: tl.constexpr, PIXELS: tl.constexpr, INDEX: tl.constexpr, ARITHMETIC: tl.constexpr,
    FOLDED: tl.constexpr,
):  # fmt: skip
    """y of a tile of pixels. hidden_weight is [channels, hidden] here: a channel's are neighbours."""
    n = program(FOLDED)
    if n >= programs:
        return
    tile, b = n % tiles, tl.cast(n // tiles, tl.int64)
    x_ptr += b * x_sb
    y_ptr += b * y_sb
    p = tl.cast(tile, INDEX) * PIXELS + tl.arange(0, PIXELS).to(INDEX)
    inside = p < pixels
    i, j = p // width, p % width
    centre = i * x_sh + j * x_sw
    d = tl.arange(0, HIDDEN)[:, None]
    used = d < hidden
    h = tl.zeros([HIDDEN, PIXELS], ARITHMETIC) + load(hidden_bias_ptr + d, used, ARITHMETIC)
    for c in range(channels):
        x = load(x_ptr + tl.cast(c, tl.int64) * x_sc + centre, inside, ARITHMETIC)
        h += load(hidden_weight_ptr + tl.cast(c, tl.int64) * hidden + d, used, ARITHMETIC) * x[None, :]
    # Far below, where SiLU is 0, the quotient would be inf / inf.
    h = tl.where(h < -1000, -1000.0, h)
    h = tl.where(used, h / (1 + tl.exp(-h)), 0.0)
    weights, at, found = (), (), ()
    for t in tl.static_range(K * K):
        row, column = i + (t // K - K // 2), j + (t % K - K // 2)
        at += (centre + (t // K - K // 2) * x_sh + (t % K - K // 2) * x_sw,)
        found += (inside & (row >= 0) & (row < height) & (column >= 0) & (column < width),)
        weight = tl.sum(load(span_weight_ptr + t * hidden + d, used, ARITHMETIC) * h, axis=0)
        weights += (weight + tl.load(span_bias_ptr + t).to(ARITHMETIC),)
    to = i * y_sh + j * y_sw
    for c in range(channels):
        source = x_ptr + tl.cast(c, tl.int64) * x_sc
        total = tl.zeros([PIXELS], ARITHMETIC)
        for t in tl.static_range(K * K):
            total += weights[t] * load(source + at[t], found[t], ARITHMETIC)
        store(y_ptr + tl.cast(c, tl.int64) * y_sc + to, total, inside)


def forward(
    x: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, span_weight: Tensor, span_bias: Tensor, kernel_size: int, y: Tensor
) -> None:
    """y [B, C, H, W] from x, hidden_weight [D, C], hidden_bias [D], span_weight [K*K, D] and span_bias [K*K], one dtype."""
    if y.numel() == 0:
        return
    batch, channels, height, width = x.shape
    hidden, pixels = hidden_weight.shape[0], height * width
    tile = min(power_of_2(pixels), 256 if kernel_size == 3 else 128)
    tiles = -(-pixels // tile)
    programs = batch * tiles
    _layer[grid(programs)](
        x, hidden_weight.t().contiguous(), hidden_bias.contiguous(), span_weight.contiguous(), span_bias.contiguous(), y,
        programs, tiles, channels, hidden, height, width, pixels, *x.stride(), *y.stride(),
        kernel_size, power_of_2(hidden), tile,
        index_type(pixels, height + kernel_size, *(span(t, 2, 3) + kernel_size * abs(t.stride(2)) for t in (x, y))),
        arithmetic_type(x), programs > MOST_PROGRAMS, num_warps=4,
    )  # fmt: skip
