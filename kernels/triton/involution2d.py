"""Involution and its two gradients, each a gather: no atomics, one order of additions, so bitwise the same on every run.

    y[b,c,i,j]          = sum_t w[b,g,t,i,j] x[b,c,i*s - p + u*d, j*s - p + v*d]         t = u*Kw + v, g = c // (C / groups)
    grad_x[b,c,i,j]     = sum_t w[b,g,t,k,l] grad_y[b,c,k,l]    over the k, l with k*s - p + u*d = i, l*s - p + v*d = j
    grad_w[b,g,t,i,j]   = sum_{c in g} grad_y[b,c,i,j] x[b,c,i*s - p + u*d, j*s - p + v*d]

A program has a tile of pixels, numbered through the plane so that no row is too short for a tile, and a run of one group's
channels. Bytes that must move, for E-byte elements: forward (C + T*G) * E in and C * E out a pixel, each gradient the same
with the roles changed. The windows overlap, which L1 and L2 absorb: T loads an output come from there.

Where columns are neighbours (NCHW) a lane has a pixel and a program walks over channels, with the pixel's T weights in
registers: the map of weights is read once for a run of channels. Where channels are neighbours (channels_last) a tile is
pixels x channels and loads are vectors of channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import triton
import triton.language as tl

from ._common import (
    MOST_PROGRAMS,
    arithmetic_type,
    channels_last,
    grid,
    index_type,
    load,
    power_of_2,
    program,
    span,
    store,
)

# Windows whose taps are unrolled; others are loops.
UNROLLED = ((3, 3), (5, 5), (7, 7))
# Pixels of a lane in NCHW: registers hold taps * pixels weights or sums.
_LANE_PIXELS = {3: 2, 5: 1, 7: 1}
# Programs that fill a large GPU twice: below that, runs of channels get shorter.
_ENOUGH_PROGRAMS = 264
_RUN = 64
_TILE = 1024


@triton.jit
def _source(i, j, u, v, height, width, SH, SW, PH, PW, DH, DW, TRANSPOSED: tl.constexpr):
    """Row and column that tap (u, v) of pixel (i, j) reads, and whether they exist."""
    if TRANSPOSED:
        row = i + PH - u * DH
        column = j + PW - v * DW
        inside = (row >= 0) & (column >= 0) & (row % SH == 0) & (column % SW == 0)
        row = row // SH
        column = column // SW
        return row, column, inside & (row < height) & (column < width)
    row = i * SH - PH + u * DH
    column = j * SW - PW + v * DW
    return row, column, (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit(do_not_specialize_on_alignment=["programs", "tiles", "splits", "groups", "a_h", "a_w", "out_w", "pixels"])
def _weighted_sum(
    a_ptr, w_ptr, out_ptr,
    programs, tiles, splits, run, groups, group_channels,
    a_h, a_w, out_w, pixels,
    a_sb, a_sc, a_sh, a_sw, w_sb, w_sc, w_sh, w_sw, o_sb, o_sc, o_sh, o_sw,
    KH, KW, SH, SW, PH, PW, DH, DW,
    UNROLL_H: tl.constexpr, UNROLL_W: tl.constexpr, TRANSPOSED: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
    INDEX: tl.constexpr, ARITHMETIC: tl.constexpr, FOLDED: tl.constexpr,
):  # fmt: skip
    """out[b,c,p] = sum_t w[b, g*T + t] a[b,c] at tap t of p: y, or with TRANSPOSED grad_x."""
    n = program(FOLDED)
    if n >= programs:
        return
    # Runs of channels that share weights are neighbours in time.
    split, n = n % splits, n // splits
    tile, n = n % tiles, n // tiles
    g, b = tl.cast(n % groups, tl.int64), tl.cast(n // groups, tl.int64)
    p = (tile.to(INDEX) * PIXELS + tl.arange(0, PIXELS).to(INDEX))[:, None]
    inside = p < pixels
    i, j = p // out_w, p % out_w
    first = split * run
    last = tl.minimum(first + run, group_channels)
    a_ptr += b * a_sb + (g * group_channels) * a_sc
    out_ptr += b * o_sb + (g * group_channels) * o_sc
    out_at = i * o_sh + j * o_sw
    if UNROLL_H > 0:
        TAPS: tl.constexpr = UNROLL_H * UNROLL_W
        w_ptr += b * w_sb + g * TAPS * w_sc
        if CHANNELS == 1:
            weights, a_at, found = (), (), ()
            for t in tl.static_range(TAPS):
                row, column, exists = _source(
                    i, j, t // UNROLL_W, t % UNROLL_W, a_h, a_w, SH, SW, PH, PW, DH, DW, TRANSPOSED
                )  # fmt: skip
                found += (inside & exists,)
                a_at += (row * a_sh + column * a_sw,)
                # Where y's window leaves x, the weight is multiplied with 0: a NaN there stays one.
                w_at = (row * w_sh + column * w_sw) if TRANSPOSED else (i * w_sh + j * w_sw)
                w_found = found[t] if TRANSPOSED else inside
                weights += (load(w_ptr + t * tl.cast(w_sc, tl.int64) + w_at, w_found, ARITHMETIC),)
            for c in range(first, last):
                a_base = a_ptr + tl.cast(c, tl.int64) * a_sc
                total = tl.zeros([PIXELS, 1], ARITHMETIC)
                for t in tl.static_range(TAPS):
                    total += weights[t] * load(a_base + a_at[t], found[t], ARITHMETIC)
                store(out_ptr + tl.cast(c, tl.int64) * o_sc + out_at, total, inside)
        else:
            # One block of channels, no loop: nothing of the taps would be worth keeping.
            lane = tl.arange(0, CHANNELS)[None, :]
            there = inside & (first + lane < last)
            a_base = a_ptr + tl.cast(first, tl.int64) * a_sc
            total = tl.zeros([PIXELS, CHANNELS], ARITHMETIC)
            for t in tl.static_range(TAPS):
                row, column, exists = _source(
                    i, j, t // UNROLL_W, t % UNROLL_W, a_h, a_w, SH, SW, PH, PW, DH, DW, TRANSPOSED
                )  # fmt: skip
                w_at = (row * w_sh + column * w_sw) if TRANSPOSED else (i * w_sh + j * w_sw)
                w_found = (inside & exists) if TRANSPOSED else inside
                weight = load(w_ptr + t * tl.cast(w_sc, tl.int64) + w_at, w_found, ARITHMETIC)
                a_at = row * a_sh + column * a_sw + lane.to(INDEX) * a_sc
                total += weight * load(a_base + a_at, there & exists, ARITHMETIC)
            store(out_ptr + tl.cast(first, tl.int64) * o_sc + (out_at + lane.to(INDEX) * o_sc), total, there)
    else:
        w_ptr += b * w_sb + g * KH * KW * w_sc
        for c in range(first, last, CHANNELS):
            channel = c + tl.arange(0, CHANNELS)[None, :]
            there = inside & (channel < last)
            a_base = a_ptr + tl.cast(c, tl.int64) * a_sc
            within = (tl.arange(0, CHANNELS)[None, :]).to(INDEX) * a_sc
            total = tl.zeros([PIXELS, CHANNELS], ARITHMETIC)
            for u in range(KH):
                for v in range(KW):
                    row, column, found = _source(i, j, u, v, a_h, a_w, SH, SW, PH, PW, DH, DW, TRANSPOSED)
                    at = (row * w_sh + column * w_sw) if TRANSPOSED else (i * w_sh + j * w_sw)
                    tap = (tl.cast(u, tl.int64) * KW + v) * w_sc
                    weight = load(w_ptr + tap + at, inside & (found | (not TRANSPOSED)), ARITHMETIC)
                    total += weight * load(a_base + (row * a_sh + column * a_sw + within), there & found, ARITHMETIC)
            o_within = (tl.arange(0, CHANNELS)[None, :]).to(INDEX) * o_sc
            store(out_ptr + tl.cast(c, tl.int64) * o_sc + (out_at + o_within), total, there)


@triton.jit
def _products(g, a):
    """g * a summed over channels [PIXELS, CHANNELS] -> [PIXELS, 1]; pairwise, in an order that the shape alone decides."""
    if a.shape[1] == 1:
        return g * a
    return tl.sum(g * a, axis=1, keep_dims=True)


@triton.jit(do_not_specialize_on_alignment=["programs", "tiles", "groups", "a_h", "a_w", "out_w", "pixels"])
def _channel_sum(
    g_ptr, a_ptr, out_ptr,
    programs, tiles, groups, group_channels,
    a_h, a_w, out_w, pixels,
    g_sb, g_sc, g_sh, g_sw, a_sb, a_sc, a_sh, a_sw, o_sb, o_sc, o_sh, o_sw,
    KH, KW, SH, SW, PH, PW, DH, DW,
    UNROLL_H: tl.constexpr, UNROLL_W: tl.constexpr, ONE_BLOCK: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
    INDEX: tl.constexpr, ARITHMETIC: tl.constexpr, FOLDED: tl.constexpr,
):  # fmt: skip
    """out[b, g*T + t, p] = sum_c g[b,c,p] a[b,c] at tap t of p: grad_w."""
    n = program(FOLDED)
    if n >= programs:
        return
    tile, n = n % tiles, n // tiles
    group, b = tl.cast(n % groups, tl.int64), tl.cast(n // groups, tl.int64)
    p = (tile.to(INDEX) * PIXELS + tl.arange(0, PIXELS).to(INDEX))[:, None]
    inside = p < pixels
    i, j = p // out_w, p % out_w
    g_ptr += b * g_sb + (group * group_channels) * g_sc
    a_ptr += b * a_sb + (group * group_channels) * a_sc
    a_within = (tl.arange(0, CHANNELS)[None, :]).to(INDEX) * a_sc
    g_at = i * g_sh + j * g_sw + (tl.arange(0, CHANNELS)[None, :]).to(INDEX) * g_sc
    out_at = i * o_sh + j * o_sw
    if UNROLL_H > 0:
        TAPS: tl.constexpr = UNROLL_H * UNROLL_W
        totals, a_at, found = (), (), ()
        for t in tl.static_range(TAPS):
            row, column, exists = _source(i, j, t // UNROLL_W, t % UNROLL_W, a_h, a_w, SH, SW, PH, PW, DH, DW, False)
            a_at += (row * a_sh + column * a_sw,)
            found += (inside & exists,)
            totals += (tl.zeros([PIXELS, 1], ARITHMETIC),)
        for c in range(0, CHANNELS if ONE_BLOCK else group_channels, CHANNELS):
            there = c + tl.arange(0, CHANNELS)[None, :] < group_channels
            g = load(g_ptr + tl.cast(c, tl.int64) * g_sc + g_at, there & inside, ARITHMETIC)
            a_base = a_ptr + tl.cast(c, tl.int64) * a_sc
            sums = ()
            for t in tl.static_range(TAPS):
                a = load(a_base + (a_at[t] + a_within), there & found[t], ARITHMETIC)
                sums += (totals[t] + _products(g, a),)
            totals = sums
        out_ptr += b * o_sb + group * TAPS * o_sc
        for t in tl.static_range(TAPS):
            store(out_ptr + t * tl.cast(o_sc, tl.int64) + out_at, totals[t], inside)
    else:
        out_ptr += b * o_sb + group * KH * KW * o_sc
        for u in range(KH):
            for v in range(KW):
                row, column, found = _source(i, j, u, v, a_h, a_w, SH, SW, PH, PW, DH, DW, False)
                total = tl.zeros([PIXELS, 1], ARITHMETIC)
                for c in range(0, group_channels, CHANNELS):
                    there = inside & (c + tl.arange(0, CHANNELS)[None, :] < group_channels)
                    g = load(g_ptr + tl.cast(c, tl.int64) * g_sc + g_at, there, ARITHMETIC)
                    a_base = a_ptr + tl.cast(c, tl.int64) * a_sc
                    a = load(a_base + (row * a_sh + column * a_sw + a_within), there & found, ARITHMETIC)
                    total += _products(g, a)
                store(out_ptr + (tl.cast(u, tl.int64) * KW + v) * o_sc + out_at, total, inside)


# --- launches ---------------------------------------------------------------------------------------------------------


def _tile(map_: Tensor, pixels: int, group_channels: int, kernel_size: Any) -> tuple[int, int, int]:
    """Pixels and channels of a program's tile, and its warps: from the shape and layout of the map it reads, nothing else."""
    # A lane would have too many pixels' weights where a group has fewer channels than a lane loads.
    if channels_last(map_) and group_channels >= 4:
        channels = min(power_of_2(group_channels), 64)
        return max(1, min(power_of_2(pixels), _TILE // channels)), channels, 4
    lane = _LANE_PIXELS.get(kernel_size[0], 2) if tuple(kernel_size) in UNROLLED else 2
    if pixels < 32:
        # Pixels alone do not fill a warp: neighbouring channels do.
        tile = power_of_2(pixels)
        return tile, min(power_of_2(group_channels), 256 // tile), 4
    tile = min(power_of_2(pixels), 256 * lane)
    return tile, 1, max(1, min(8, tile // (32 * lane)))


def _unrolled(kernel_size: Any) -> tuple[int, int]:
    size = (kernel_size[0], kernel_size[1])
    return size if size in UNROLLED else (0, 0)


def _gather(
    a: Tensor, weight: Tensor, out: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: int,
    transposed: bool,
) -> None:  # fmt: skip
    if out.numel() == 0:
        return
    batch, channels, height, width = out.shape
    group_channels, pixels = channels // groups, height * width
    tile, block, warps = _tile(a, pixels, group_channels, kernel_size)
    tiles = -(-pixels // tile)
    run = block if block > 1 and _unrolled(kernel_size)[0] else max(_RUN, block)
    while run > max(4, block) and batch * groups * tiles * -(-group_channels // run) < _ENOUGH_PROGRAMS:
        run //= 2
    splits = -(-group_channels // run)
    programs = batch * groups * tiles * splits
    _weighted_sum[grid(programs)](
        a, weight, out, programs, tiles, splits, run, groups, group_channels, a.shape[2], a.shape[3], width, pixels,
        *a.stride(), *weight.stride(), *out.stride(), *kernel_size, *stride, *padding, *dilation,
        *_unrolled(kernel_size), transposed, tile, block,
        index_type(
            pixels, *(span(t, 2, 3) + block * t.stride(1) for t in (a, out)), span(weight, 2, 3),
            *(extent + 2 * pad for extent, pad in zip((*a.shape[2:], *out.shape[2:]), (*padding, *padding), strict=True)),
        ),
        arithmetic_type(a), programs > MOST_PROGRAMS, num_warps=warps,
    )  # fmt: skip


def forward(
    x: Tensor, weight: Tensor, y: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> None:
    """y [B, C, Ho, Wo] from x [B, C, H, W] and weight [B, groups*Kh*Kw, Ho, Wo], any strides; weight may be wider."""
    _gather(x, weight, y, kernel_size, stride, padding, dilation, groups, False)


def grad_x(
    grad_y: Tensor, weight: Tensor, grad: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> None:
    """grad [B, C, H, W] of x from grad_y [B, C, Ho, Wo] and weight."""
    _gather(grad_y, weight, grad, kernel_size, stride, padding, dilation, groups, True)


def grad_weight(
    grad_y: Tensor, x: Tensor, grad: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> None:
    """grad [B, groups*Kh*Kw, Ho, Wo] of weight from grad_y [B, C, Ho, Wo] and x [B, C, H, W]."""
    if grad.numel() == 0:
        return
    batch, channels, height, width = grad_y.shape
    group_channels, pixels = channels // groups, height * width
    tile, block, warps = _tile(x, pixels, group_channels, kernel_size)
    tiles = -(-pixels // tile)
    programs = batch * groups * tiles
    _channel_sum[grid(programs)](
        grad_y, x, grad, programs, tiles, groups, group_channels, x.shape[2], x.shape[3], width, pixels,
        *grad_y.stride(), *x.stride(), *grad.stride(), *kernel_size, *stride, *padding, *dilation,
        *_unrolled(kernel_size), group_channels <= block, tile, block,
        index_type(
            pixels, *(span(t, 2, 3) + block * t.stride(1) for t in (grad_y, x)), span(grad, 2, 3),
            *(extent + 2 * pad for extent, pad in zip(x.shape[2:], padding, strict=True)),
        ),
        arithmetic_type(x), programs > MOST_PROGRAMS, num_warps=warps,
    )  # fmt: skip
