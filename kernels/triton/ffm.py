"""LGLD-Net's Fourier feature mixer, fused: position terms, 1x1 projection, modulation, BatchNorm and SiLU.

    f[i,j]   = (x[.., s i, s j], sin 2 pi s i / H, cos 2 pi s i / H, sin 2 pi s j / W, cos 2 pi s j / W)     F = inputs + 4
    z[c,i,j] = m_c (w_c . f[i,j] + b_c),   u = gamma_c (z - mean_c) / sqrt(var_c + eps) + beta_c,   y = SiLU(u)

z is linear in f, so u[c] = slope_c . f' + offset_c, where f' has a mean of a few pixels (`centre`) taken from x; slope and
offset are folded in float64 on each call, from the features' means and covariances in training. Those are sums in float64 of
centred pixels: uncentred sums in float32 lose 1e-3 of a bright image's variance.

Forward: `_prepare` (sines, centre), in training `_moments` and `_statistics`, then `_fold` and `_forward`. Backward computes
u again; with g_u = grad_y SiLU'(u) it needs the sums of g_u and g_u f' alone, and

    grad_x[k] = sum_c slope_ck g_u,c - (a_k . f' + d_k)    with a, d from those sums (0 where the statistics are constants),

so that grad_y is read once: `_backward` leaves the sums and the first term, `_gradients` the parameters' gradients and a, d,
`_grad_x` the rest. Every sum has partial sums in an order that the shape decides: no atomics, the same bits on every run.

Bytes that must move, for E-byte elements: forward x's rows that are read and y; backward those, grad_y and grad_x, and 8 *
inputs bytes a pixel of the first term (float32, written and read). In NCHW a lane has pixels and a program walks over
channels with the pixel's features in registers; in channels_last a tile is pixels x channels.

Compile time grows with the number of inputs, whose loops are unrolled; images have few.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton
import triton.language as tl

from ._common import MOST_PROGRAMS, channels_last, grid, load, power_of_2, program, store
from ._ffm_fold import FOLD_CHANNELS, MOST_TASKS, SLOTS, Problem, channel_parameters, covariance_row, position


@triton.jit
def _features(
    x_ptr, tables_ptr, centre_ptr, i, j, inside, out_h, out_w, stride, x_sc, x_sh, x_sw,
    INPUTS: tl.constexpr, CENTRED: tl.constexpr, ARITHMETIC: tl.constexpr,
):  # fmt: skip
    """f' at pixels (i, j): a tuple of INPUTS + 4 tensors."""
    at = i * stride * x_sh + j * stride * x_sw
    found = ()
    for k in tl.static_range(INPUTS):
        x = load(x_ptr + k * tl.cast(x_sc, tl.int64) + at, inside, ARITHMETIC)
        if CENTRED:
            x -= tl.load(centre_ptr + k).to(ARITHMETIC)
        found += (x,)
    found += (load(tables_ptr + i, inside, ARITHMETIC),)
    found += (load(tables_ptr + out_h + i, inside, ARITHMETIC),)
    found += (load(tables_ptr + out_h + out_h + j, inside, ARITHMETIC),)
    found += (load(tables_ptr + out_h + out_h + out_w + j, inside, ARITHMETIC),)
    return found


@triton.jit
def _u(features, slope_ptr, offset_ptr, c, there, COUNT: tl.constexpr):
    u = tl.load(offset_ptr + c, mask=there, other=0)
    for k in tl.static_range(COUNT):
        u += features[k] * tl.load(slope_ptr + c * COUNT + k, mask=there, other=0)
    return u


@triton.jit(do_not_specialize_on_alignment=["programs", "tiles", "splits", "out_h", "out_w", "pixels"])
def _forward(
    x_ptr, tables_ptr, centre_ptr, slope_ptr, offset_ptr, y_ptr,
    programs, tiles, splits, run, channels, out_h, out_w, pixels, stride,
    x_sb, x_sc, x_sh, x_sw, y_sb, y_sc, y_sh, y_sw,
    INPUTS: tl.constexpr, CENTRED: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
    INDEX: tl.constexpr, ARITHMETIC: tl.constexpr, FOLDED: tl.constexpr,
):  # fmt: skip
    """y of a tile of pixels and a run of channels."""
    n = program(FOLDED)
    if n >= programs:
        return
    split, n = n % splits, n // splits
    tile, b = n % tiles, tl.cast(n // tiles, tl.int64)
    p = (tl.cast(tile, INDEX) * PIXELS + tl.arange(0, PIXELS).to(INDEX))[:, None]
    inside = p < pixels
    i, j = position(p, out_w)
    f = _features(
        x_ptr + b * x_sb, tables_ptr, centre_ptr, i, j, inside, out_h, out_w, stride, x_sc, x_sh, x_sw, INPUTS, CENTRED,
        ARITHMETIC,
    )  # fmt: skip
    y_ptr += b * y_sb
    lane = tl.arange(0, CHANNELS)[None, :]
    to = i * y_sh + j * y_sw + lane.to(INDEX) * y_sc
    first = tl.cast(split, tl.int64) * run
    for c in range(first, tl.minimum(first + run, channels), CHANNELS):
        there = c + lane < channels
        u = _u(f, slope_ptr, offset_ptr, c + lane, there, INPUTS + 4)
        # Far below, where SiLU is 0, the quotient would be inf / inf.
        u = tl.where(u < -1000, -1000.0, u)
        store(y_ptr + tl.cast(c, tl.int64) * y_sc + to, u / (1 + tl.exp(-u)), inside & there)


@triton.jit
def _slot_sum(values, slot, start, SLOTS: tl.constexpr):
    """Sums over pixels of [PIXELS, channels], each in its channel's slot; one dimension, so that lanes share the slots out."""
    if values.shape[1] == SLOTS:
        return tl.sum(values, axis=0).to(tl.float64)
    return tl.where(slot == start, tl.sum(values).to(tl.float64), 0.0)


@triton.jit(
    do_not_specialize_on_alignment=[
        "programs", "tasks", "tiles", "tiles_per_image", "tiles_per_task", "batch", "out_h", "out_w", "pixels",
    ]
)  # fmt: skip
def _backward(
    g_ptr, x_ptr, tables_ptr, centre_ptr, slope_ptr, offset_ptr, partial_ptr, projected_ptr,
    programs, tasks, tiles, tiles_per_image, tiles_per_task, batch, channels, out_h, out_w, pixels, stride,
    g_sb, g_sc, g_sh, g_sw, x_sb, x_sc, x_sh, x_sw,
    INPUTS: tl.constexpr, CENTRED: tl.constexpr, NEED_X: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
    SLOTS: tl.constexpr, INDEX: tl.constexpr, ARITHMETIC: tl.constexpr, FOLDED: tl.constexpr,
):  # fmt: skip
    """partial[1 + F, task, C]: sums of g_u and of g_u f' over the task's pixels. projected[block, b, k, pixel]: sum of slope_ck
    g_u over the block's channels, SLOTS of them."""
    n = program(FOLDED)
    if n >= programs:
        return
    FEATURES: tl.constexpr = INPUTS + 4
    task, block = tl.cast(n % tasks, tl.int64), tl.cast(n // tasks, tl.int64)
    slot = tl.arange(0, SLOTS)
    lane = tl.arange(0, CHANNELS)[None, :]
    c_first = block * SLOTS
    sums = ()
    for _ in tl.static_range(FEATURES + 1):
        sums += (tl.zeros([SLOTS], tl.float64),)
    first = task * tiles_per_task
    for tile in range(first, tl.minimum(first + tiles_per_task, tiles)):
        p = ((tile % tiles_per_image).to(INDEX) * PIXELS + tl.arange(0, PIXELS).to(INDEX))[:, None]
        b = tl.cast(tile // tiles_per_image, tl.int64)
        inside = p < pixels
        i, j = position(p, out_w)
        f = _features(
            x_ptr + b * x_sb, tables_ptr, centre_ptr, i, j, inside, out_h, out_w, stride, x_sc, x_sh, x_sw, INPUTS, CENTRED,
            ARITHMETIC,
        )  # fmt: skip
        g_at = i * g_sh + j * g_sw + lane.to(INDEX) * g_sc
        back = ()
        for _ in tl.static_range(INPUTS):
            back += (tl.zeros([PIXELS, 1], ARITHMETIC),)
        for start in range(0, SLOTS, CHANNELS):
            c = c_first + start + lane
            there = c < channels
            u = _u(f, slope_ptr, offset_ptr, c, there, FEATURES)
            u = tl.where(u < -1000, -1000.0, tl.where(u > 1000, 1000.0, u))
            sigmoid = 1 / (1 + tl.exp(-u))
            g = load(g_ptr + b * g_sb + (c_first + start) * g_sc + g_at, inside & there, ARITHMETIC)
            # SiLU' = s (1 + u (1 - s)). Beyond the tile and the channels g is 0, but u may be anything.
            g = tl.where(inside & there, g * sigmoid * (1 + u * (1 - sigmoid)), 0)
            new = (sums[0] + _slot_sum(g, slot, start, SLOTS),)
            for k in tl.static_range(FEATURES):
                # Beyond the tile f' is minus the centre, which may be NaN.
                new += (sums[k + 1] + _slot_sum(tl.where(inside, g * f[k], 0), slot, start, SLOTS),)
            sums = new
            if NEED_X:
                more = ()
                for k in tl.static_range(INPUTS):
                    part = g * tl.load(slope_ptr + c * FEATURES + k, mask=there, other=0)
                    if CHANNELS > 1:
                        part = tl.sum(part, axis=1, keep_dims=True)
                    more += (back[k] + part,)
                back = more
        if NEED_X:
            to = projected_ptr + ((block * batch + b) * INPUTS) * pixels
            for k in tl.static_range(INPUTS):
                tl.store(to + tl.cast(k, tl.int64) * pixels + p, back[k], mask=inside)
    c = c_first + slot
    for k in tl.static_range(FEATURES + 1):
        tl.store(partial_ptr + (tl.cast(k, tl.int64) * tasks + task) * channels + c, sums[k], mask=c < channels)


@triton.jit
def _task_sum(partial_ptr, k, tasks, channels, c, TASKS: tl.constexpr):
    """Sum over tasks of record k: [1, BLOCK]."""
    total = tl.zeros_like(c).to(tl.float64)
    for first in range(0, tasks, TASKS):
        task = tl.cast(first + tl.arange(0, TASKS)[:, None], tl.int64)
        at = partial_ptr + (tl.cast(k, tl.int64) * tasks + task) * channels + c
        total += tl.sum(tl.load(at, mask=(task < tasks) & (c < channels), other=0), axis=0, keep_dims=True)
    return total


@triton.jit(do_not_specialize=["tasks", "channels", "inputs", "positions"])
def _gradients(
    partial_ptr, w_ptr, bias_ptr, real_ptr, imag_ptr, bn_weight_ptr, mean_ptr, covariance_ptr, centre_ptr, z_ptr, moment_ptr,
    correction_ptr, g_weight_ptr, g_bias_ptr, g_real_ptr, g_imag_ptr, g_bn_weight_ptr, g_bn_bias_ptr,
    tasks, channels, inputs, positions,
    EPS: tl.constexpr, TRAINING: tl.constexpr, BLOCK: tl.constexpr, TASKS: tl.constexpr,
):  # fmt: skip
    """The parameters' gradients, and in training this block's share of grad_x's correction [inputs, F + 1].

    With h = w . f + b, z = m h, z^ = (z - mean) / sigma and N positions, BatchNorm's gradient (S. Ioffe, C. Szegedy, 2015) is
    g_z = gamma / sigma (g_u - m0 - m1 z^), m0 = mean(g_u), m1 = mean(g_u z^); with f~ = f - mean(f), whose sum is 0,
    z^ = m / sigma w . f~ and sum g_z f~_k = gamma / sigma (sum g_u f~_k - m1 m / sigma N (Cov w)_k), sum g_z = 0.
    """
    c = (tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK))[None, :]
    there = c < channels
    features = inputs + 4
    m, bias, gamma = channel_parameters(real_ptr, imag_ptr, bias_ptr, bn_weight_ptr, c, channels)
    sigma = tl.sqrt(tl.load(z_ptr + channels + c, mask=there, other=1) + EPS)
    gain = gamma / sigma
    total = _task_sum(partial_ptr, 0, tasks, channels, c, TASKS)
    along = tl.zeros_like(total)  # sum g_u (h - mean(h)), or sum g_u (h - b)
    for k in range(features):
        moment = _task_sum(partial_ptr, k + 1, tasks, channels, c, TASKS)
        if TRAINING:
            moment -= tl.load(mean_ptr + k) * total
        along += moment * load(w_ptr + c * features + k, there, tl.float64)
        tl.store(moment_ptr + c * features + k, moment, mask=there)
    tl.debug_barrier()
    if g_bn_bias_ptr is not None:
        store(g_bn_bias_ptr + c, total, there)
    if TRAINING:
        m0 = total / tl.cast(positions, tl.float64)
        m1 = m / sigma * along / tl.cast(positions, tl.float64)
        g_gamma = m1 * tl.cast(positions, tl.float64)
        g_b = tl.zeros_like(total)
        # sum g_z h = gain along (1 - var / sigma^2), without the cancellation
        g_m = gain * along * EPS / (sigma * sigma)
    else:
        m0, m1 = tl.zeros_like(total), tl.zeros_like(total)
        h = along + bias * total
        g_gamma = (m * h - tl.load(z_ptr + c, mask=there, other=0) * total) / sigma
        g_b = gain * m * total
        g_m = gain * h
    if g_bias_ptr is not None:
        store(g_bias_ptr + c, g_b, there)
    if g_bn_weight_ptr is not None:
        store(g_bn_weight_ptr + c, g_gamma, there)
    half = channels // 2
    store(g_real_ptr + c, g_m, c < half)
    store(g_imag_ptr + (c - half), g_m, there & (c >= half))
    for k in range(features):
        g_w = m * gain * tl.load(moment_ptr + c * features + k, mask=there, other=0)
        if TRAINING:
            spread = covariance_row(covariance_ptr, w_ptr, c, k, features, there)
            g_w -= m * gain * (m1 * m / sigma * tl.cast(positions, tl.float64) * spread)
        store(g_weight_ptr + c * features + k, g_w, there)
    if TRAINING:
        correction_ptr += tl.cast(tl.program_id(0), tl.int64) * inputs * (features + 1)
        for k in range(inputs):
            back = gain * m * load(w_ptr + c * features + k, there, tl.float64)
            offset = tl.sum(tl.where(there, back * m0, 0.0))
            for n in range(features):
                w = load(w_ptr + c * features + n, there, tl.float64)
                slope = tl.sum(tl.where(there, back * m1 * m / sigma * w, 0.0))
                tl.store(correction_ptr + k * (features + 1) + n, slope)
                offset -= slope * tl.load(mean_ptr + n)
            tl.store(correction_ptr + k * (features + 1) + features, offset)


@triton.jit
def _correction(correction_ptr, blocks, RECORD: tl.constexpr, at: tl.constexpr, ARITHMETIC: tl.constexpr):
    total = tl.load(correction_ptr + at)
    for block in range(1, blocks):
        total += tl.load(correction_ptr + tl.cast(block, tl.int64) * RECORD + at)
    return total.to(ARITHMETIC)


@triton.jit(
    do_not_specialize_on_alignment=[
        "programs", "tiles", "blocks", "channel_blocks", "batch", "width", "pixels", "out_h", "out_w",
    ]
)  # fmt: skip
def _grad_x(
    x_ptr, tables_ptr, centre_ptr, projected_ptr, correction_ptr, grad_ptr,
    programs, tiles, blocks, channel_blocks, batch, width, pixels, out_h, out_w, stride,
    x_sb, x_sc, x_sh, x_sw, g_sb, g_sc, g_sh, g_sw,
    INPUTS: tl.constexpr, TRAINING: tl.constexpr, PIXELS: tl.constexpr, INDEX: tl.constexpr, ARITHMETIC: tl.constexpr,
    FOLDED: tl.constexpr,
):  # fmt: skip
    """grad_x of a tile of the image's pixels, 0 where no output reads them."""
    n = program(FOLDED)
    if n >= programs:
        return
    FEATURES: tl.constexpr = INPUTS + 4
    tile, b = n % tiles, tl.cast(n // tiles, tl.int64)
    p = tl.cast(tile, INDEX) * PIXELS + tl.arange(0, PIXELS).to(INDEX)
    inside = p < pixels
    row, column = position(p, width)
    read = inside & (row % stride == 0) & (column % stride == 0)
    i, j = row // stride, column // stride
    f = _features(
        x_ptr + b * x_sb, tables_ptr, centre_ptr, i, j, read, out_h, out_w, stride, x_sc, x_sh, x_sw, INPUTS, TRAINING,
        ARITHMETIC,
    )  # fmt: skip
    plane = tl.cast(out_h, tl.int64) * out_w
    grad_ptr += b * g_sb
    for k in tl.static_range(INPUTS):
        total = tl.zeros([PIXELS], ARITHMETIC)
        for block in range(channel_blocks):
            source = projected_ptr + ((tl.cast(block, tl.int64) * batch + b) * INPUTS + k) * plane
            total += tl.load(source + (i * out_w + j), mask=read, other=0)
        if TRAINING:
            away = _correction(correction_ptr, blocks, INPUTS * (FEATURES + 1), k * (FEATURES + 1) + FEATURES, ARITHMETIC)
            total -= away
            for t in tl.static_range(FEATURES):
                slope = _correction(correction_ptr, blocks, INPUTS * (FEATURES + 1), k * (FEATURES + 1) + t, ARITHMETIC)
                total -= slope * f[t]
        store(grad_ptr + k * tl.cast(g_sc, tl.int64) + (row * g_sh + column * g_sw), tl.where(read, total, 0), inside)


# --- launches ---------------------------------------------------------------------------------------------------------


def forward(x: Tensor, *arguments: Any) -> None:
    """Fill y, and in training the batch's mean and variance: the last three arguments, behind those of the op."""
    y, mean, var = arguments[-3:]
    p = Problem(x, *arguments[:-3])
    if p.batch == 0:
        mean.fill_(torch.nan)
        var.fill_(torch.nan)
        return
    p.fold(*((mean, var) if p.training else (None, None)))
    block = min(power_of_2(p.channels), 64) if channels_last(y) else 1
    tile = p.lane(p.pixels, 1024 if block == 1 else max(1, 2048 // block))
    tiles, run = -(-p.pixels // tile), max(64, block)
    while run > max(8, block) and p.batch * tiles * -(-p.channels // run) < 264:
        run //= 2
    splits = -(-p.channels // run)
    programs = p.batch * tiles * splits
    _forward[grid(programs)](
        x, p.tables, p.centre, p.slope, p.offset, y, programs, tiles, splits, run, p.channels, p.out_h, p.out_w, p.pixels,
        p.stride, *x.stride(), *y.stride(), p.inputs, p.training, tile, block, p.index(y), p.arithmetic,
        programs > MOST_PROGRAMS, num_warps=4,
    )  # fmt: skip


def backward(grad_y: Tensor, x: Tensor, *arguments: Any) -> None:
    """Fill the last argument: gradients of x (where it is needed), weight, bias, real, imag, bn_weight and bn_bias."""
    *given, need_x, gradients = arguments
    p = Problem(x, *given)
    grad_x, g_weight, g_real, g_imag = gradients[0], gradients[1], gradients[3], gradients[4]
    g_bias, g_bn_weight, g_bn_bias = (
        None if t is None else g for g, t in zip((gradients[2], *gradients[5:]), (p.bias, p.bn_weight, p.bn_bias), strict=True)
    )
    if p.batch == 0:
        for g in gradients[1:]:
            g.zero_()
        return
    # The batch's statistics are recomputed; nobody asks for them here.
    unused = p.doubles(2 * p.channels)
    p.fold(unused[: p.channels], unused[p.channels :])
    block = min(power_of_2(p.channels), SLOTS) if channels_last(grad_y) else 1
    slots = min(power_of_2(p.channels), SLOTS)
    # Sums, features and the gradient's projection fill the registers: a small tile where lanes have several channels.
    most = 512 if x.dtype == torch.float64 else 1024
    tile = p.lane(p.pixels, most if block == 1 else max(1, most // block))
    tiles_per_image = -(-p.pixels // tile)
    tiles = p.batch * tiles_per_image
    per_task = -(-tiles // (2 * MOST_TASKS))
    tasks = -(-tiles // per_task)
    channel_blocks = -(-p.channels // slots)
    programs = tasks * channel_blocks
    partial = p.doubles((1 + p.features) * tasks * p.channels)
    projected = torch.empty(channel_blocks * p.batch * p.inputs * p.pixels if need_x else 0, dtype=p.narrow, device=x.device)
    _backward[grid(programs)](
        grad_y, x, p.tables, p.centre, p.slope, p.offset, partial, projected, programs, tasks, tiles, tiles_per_image,
        per_task, p.batch, p.channels, p.out_h, p.out_w, p.pixels, p.stride, *grad_y.stride(), *x.stride(),
        p.inputs, p.training, need_x, tile, block, slots, p.index(grad_y), p.arithmetic, programs > MOST_PROGRAMS, num_warps=4,
    )  # fmt: skip
    blocks = -(-p.channels // FOLD_CHANNELS)
    correction = p.doubles(blocks * p.inputs * (p.features + 1))
    _gradients[(blocks,)](
        partial, p.weight, p.bias, p.real, p.imag, p.bn_weight, p.mean, p.covariance, p.centre, p.z,
        p.doubles(p.channels * p.features), correction, g_weight, g_bias, g_real, g_imag, g_bn_weight, g_bn_bias,
        tasks, p.channels, p.inputs, p.batch * p.pixels, p.eps, p.training, FOLD_CHANNELS, 32, num_warps=4,
    )  # fmt: skip
    if not need_x:
        return
    size = p.height * p.width
    tile = p.lane(size, 1024)
    tiles = -(-size // tile)
    programs = p.batch * tiles
    _grad_x[grid(programs)](
        x, p.tables, p.centre, projected, correction, grad_x, programs, tiles, blocks, channel_blocks, p.batch, p.width,
        size, p.out_h, p.out_w, p.stride, *x.stride(), *grad_x.stride(), p.inputs, p.training, tile, p.index(grad_x),
        p.arithmetic, programs > MOST_PROGRAMS, num_warps=4,
    )  # fmt: skip
