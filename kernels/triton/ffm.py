"""LGLD-Net's Fourier feature mixer, fused: position terms, 1x1 projection, modulation, BatchNorm and SiLU.

    f[i,j]   = (x[.., s i, s j], sin 2 pi s i / H, cos 2 pi s i / H, sin 2 pi s j / W, cos 2 pi s j / W)    F = inputs + 4
    z[c,i,j] = m_c (w_c . f[i,j] + b_c),   u = gamma_c (z - mean_c) / sqrt(var_c + eps) + beta_c,   y = SiLU(u)

z is linear in f, so u[c] = slope_c . f' + offset_c, where f' has a mean of a few pixels (`centre`) taken from x; slope and offset are
folded in float64 on each call, from the features' means and covariances in training. Those are sums in float64 of centred pixels:
uncentred sums in float32 lose 1e-3 of a bright image's variance.

Forward: `_prepare` (sines, centre), in training `_moments` and `_statistics`, then `_fold` and `_forward`. Backward computes u again;
with g_u = grad_y SiLU'(u) it needs the sums of g_u and g_u f' alone, and

    grad_x[k] = sum_c slope_ck g_u,c - (a_k . f' + d_k)    with a, d from those sums (0 where the statistics are constants),

so that grad_y is read once: `_backward` leaves the sums and the first term, `_gradients` the parameters' gradients and a, d,
`_grad_x` the rest. Every sum has partial sums in an order that the shape decides: no atomics, the same bits on every run.

Bytes that must move, for E-byte elements: forward x's rows that are read and y; backward those, grad_y and grad_x, and 8 * inputs bytes a
pixel of the first term (float32, written and read). In NCHW a lane has pixels and a program walks over channels with the pixel's features
in registers; in channels_last a tile is pixels x channels.

Compile time grows with the number of inputs, whose loops are unrolled; images have few.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

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

_TABLE = 256
_MOST_TASKS = 256  # runs of tiles that leave partial sums
_SLOTS = 64  # channels whose sums a backward program keeps
_FOLD_CHANNELS = 32
_MOMENT_PIXELS = 512


@triton.jit
def _position(p, out_w):
    return p // out_w, p % out_w


@triton.jit
def _prepare(
    x_ptr, tables_ptr, centre_ptr, table_programs, height, width, out_h, out_w, stride,
    batch, image_step, row_step, column_step, x_sb, x_sc, x_sh, x_sw,
    BLOCK: tl.constexpr, ARITHMETIC: tl.constexpr,
):  # fmt: skip
    """tables: sin, cos of the rows' phases [2, out_h], then the columns' [2, out_w]; centre [inputs]: a mean of 256 pixels or fewer."""
    n = tl.program_id(0)
    if n < table_programs:
        at = tl.cast(n, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        rows = at < out_h
        column = at - out_h
        position = tl.where(rows, at, column)
        extent = tl.where(rows, height, width)
        phase = (position * stride).to(tl.float64) * 6.283185307179586 / extent.to(tl.float64)
        count = tl.where(rows, out_h, out_w)
        to = tl.where(rows, position, 2 * out_h + position)
        there = at < out_h + out_w
        tl.store(tables_ptr + to, tl.sin(phase), mask=there)
        tl.store(tables_ptr + to + count, tl.cos(phase), mask=there)
    else:
        k = tl.cast(n - table_programs, tl.int64)
        sample = tl.arange(0, 256)
        b = (sample // 64) * tl.cast(image_step, tl.int64)
        i = (sample // 8 % 8) * tl.cast(row_step, tl.int64)
        j = (sample % 8) * tl.cast(column_step, tl.int64)
        there = (b < batch) & (i < out_h) & (j < out_w)
        x = load(x_ptr + b * x_sb + k * x_sc + i * stride * x_sh + j * stride * x_sw, there, tl.float64)
        mean = tl.sum(x) / tl.sum(there.to(tl.float64))
        tl.store(centre_ptr + k, mean.to(ARITHMETIC).to(tl.float64))


@triton.jit(do_not_specialize_on_alignment=["out_w", "pixels"])
def _moments(
    x_ptr, tables_ptr, centre_ptr, partial_ptr, programs, inputs, tiles, tiles_per_image, tiles_per_task, out_h, out_w, pixels,
    stride, x_sb, x_sc, x_sh, x_sw,
    PIXELS: tl.constexpr, INDEX: tl.constexpr, ARITHMETIC: tl.constexpr, FOLDED: tl.constexpr,
):  # fmt: skip
    """partial[task, a]: sums over the task's pixels of x'_a x'_b for b = a.., x'_a, x'_a times each position term."""
    n = program(FOLDED)
    if n >= programs:
        return
    a, task = tl.cast(n % inputs, tl.int64), tl.cast(n // inputs, tl.int64)
    lane = tl.arange(0, PIXELS).to(INDEX)
    first = task * tiles_per_task
    last = tl.minimum(first + tiles_per_task, tiles)
    out_ptr = partial_ptr + (task * inputs + a) * (inputs + 5)
    middle = tl.load(centre_ptr + a).to(ARITHMETIC)
    for b in range(a, inputs):
        other = tl.load(centre_ptr + b).to(ARITHMETIC)
        total = tl.zeros([PIXELS], tl.float64)
        for tile in range(first, last):
            p = (tile % tiles_per_image).to(INDEX) * PIXELS + lane
            i, j = _position(p, out_w)
            at = i * stride * x_sh + j * stride * x_sw
            image = x_ptr + (tile // tiles_per_image) * x_sb
            inside = p < pixels
            x = tl.where(inside, load(image + a * x_sc + at, inside, ARITHMETIC) - middle, 0).to(tl.float64)
            total += x * tl.where(inside, load(image + b * x_sc + at, inside, ARITHMETIC) - other, 0).to(tl.float64)
        tl.store(out_ptr + (b - a), tl.sum(total))
    all_ = tl.zeros([PIXELS], tl.float64)
    row_sin, row_cos, column_sin, column_cos = all_, all_, all_, all_
    for tile in range(first, last):
        p = (tile % tiles_per_image).to(INDEX) * PIXELS + lane
        i, j = _position(p, out_w)
        inside = p < pixels
        source = x_ptr + (tile // tiles_per_image) * x_sb + a * x_sc
        x = load(source + (i * stride * x_sh + j * stride * x_sw), inside, ARITHMETIC)
        x = tl.where(inside, x - middle, 0).to(tl.float64)
        all_ += x
        row_sin += x * load(tables_ptr + i, inside, tl.float64)
        row_cos += x * load(tables_ptr + out_h + i, inside, tl.float64)
        column_sin += x * load(tables_ptr + 2 * out_h + j, inside, tl.float64)
        column_cos += x * load(tables_ptr + 2 * out_h + out_w + j, inside, tl.float64)
    out_ptr += inputs - a
    tl.store(out_ptr, tl.sum(all_))
    tl.store(out_ptr + 1, tl.sum(row_sin))
    tl.store(out_ptr + 2, tl.sum(row_cos))
    tl.store(out_ptr + 3, tl.sum(column_sin))
    tl.store(out_ptr + 4, tl.sum(column_cos))


@triton.jit
def _table_mean(table_ptr, count, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(table_ptr + at, mask=at < count, other=0)
    return tl.sum(total) / tl.cast(count, tl.float64)


@triton.jit
def _table_covariance(a_ptr, b_ptr, a_mean, b_mean, count, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < count
        a = tl.load(a_ptr + at, mask=inside, other=0) - a_mean
        total += tl.where(inside, a * (tl.load(b_ptr + at, mask=inside, other=0) - b_mean), 0)
    return tl.sum(total) / tl.cast(count, tl.float64)


@triton.jit
def _statistics(
    partial_ptr, tables_ptr, mean_ptr, covariance_ptr, totals_ptr, inputs, tasks, positions, out_h, out_w,
    TASKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """mean [F] and covariance [F, F] of the centred features. One program: what follows a barrier reads what came before it."""
    record = inputs + 5
    features = inputs + 4
    count = tl.cast(positions, tl.float64)
    task = tl.arange(0, TASKS)[:, None]
    for first in range(0, inputs * record, 8):
        at = first + tl.arange(0, 8)[None, :]
        there = at < inputs * record
        # Records of channel a hold inputs - a products and 5 sums; what lies behind was never written.
        there = there & (at % record < record - at // record)
        values = tl.load(partial_ptr + task * (inputs * record) + at, mask=there & (task < tasks), other=0)
        tl.store(totals_ptr + at, tl.sum(values, axis=0, keep_dims=True) / count, mask=there)
    rows, columns = tables_ptr, tables_ptr + 2 * out_h
    row_sin, row_cos = _table_mean(rows, out_h, BLOCK), _table_mean(rows + out_h, out_h, BLOCK)
    column_sin, column_cos = _table_mean(columns, out_w, BLOCK), _table_mean(columns + out_w, out_w, BLOCK)
    # Position terms: means, then (sin sin, sin cos, cos cos) of the rows and of the columns.
    own = totals_ptr + inputs * record
    tl.store(own, row_sin)
    tl.store(own + 1, row_cos)
    tl.store(own + 2, column_sin)
    tl.store(own + 3, column_cos)
    tl.store(own + 4, _table_covariance(rows, rows, row_sin, row_sin, out_h, BLOCK))
    tl.store(own + 5, _table_covariance(rows, rows + out_h, row_sin, row_cos, out_h, BLOCK))
    tl.store(own + 6, _table_covariance(rows + out_h, rows + out_h, row_cos, row_cos, out_h, BLOCK))
    tl.store(own + 7, _table_covariance(columns, columns, column_sin, column_sin, out_w, BLOCK))
    tl.store(own + 8, _table_covariance(columns, columns + out_w, column_sin, column_cos, out_w, BLOCK))
    tl.store(own + 9, _table_covariance(columns + out_w, columns + out_w, column_cos, column_cos, out_w, BLOCK))
    tl.debug_barrier()
    for first in range(0, features, 32):
        k = first + tl.arange(0, 32)
        image = k < inputs
        mean = tl.load(totals_ptr + tl.where(image, k * record + inputs - k, inputs * record + k - inputs), mask=k < features)
        tl.store(mean_ptr + k, mean, mask=k < features)
    tl.debug_barrier()
    for first in range(0, features * features, 64):
        at = first + tl.arange(0, 64)
        there = at < features * features
        a = tl.minimum(at // features, at % features)
        b = tl.maximum(at // features, at % features)
        both = there & (b < inputs)
        mixed = there & (a < inputs) & (b >= inputs)
        product = tl.load(totals_ptr + tl.where(both, a * record + b - a, a * record + 1 + b - a), mask=both | mixed, other=0)
        means = tl.load(mean_ptr + a, mask=there, other=0) * tl.load(mean_ptr + b, mask=there, other=0)
        t, v = a - inputs, b - inputs
        # A row's term and a column's: the mean of the products is the product of the means.
        paired = there & (t >= 0) & (t // 2 == v // 2)
        known = tl.load(own + 4 + 3 * (t // 2) + t % 2 + v % 2, mask=paired, other=0)
        tl.store(covariance_ptr + at, tl.where(both | mixed, product - means, known), mask=there)


@triton.jit
def _channel_parameters(real_ptr, imag_ptr, bias_ptr, bn_weight_ptr, c, channels):
    """Modulation, bias and BatchNorm's factor of channels c."""
    half = channels // 2
    there = c < channels
    first = c < half
    m = tl.where(
        first,
        load(real_ptr + c, there & first, tl.float64),
        load(imag_ptr + (c - half), there & (c >= half), tl.float64),
    )
    bias = tl.zeros_like(m)
    if bias_ptr is not None:
        bias = load(bias_ptr + c, there, tl.float64)
    gamma = tl.zeros_like(m) + 1
    if bn_weight_ptr is not None:
        gamma = load(bn_weight_ptr + c, there, tl.float64)
    return m, bias, gamma


@triton.jit
def _covariance_row(covariance_ptr, w_ptr, c, k, features, there):
    """(covariance w)_k of channels c."""
    total = tl.zeros_like(c).to(tl.float64)
    for n in tl.range(0, features, loop_unroll_factor=8):
        total += tl.load(covariance_ptr + k * features + n) * load(w_ptr + c * features + n, there, tl.float64)
    return total


@triton.jit
def _fold(
    w_ptr, bias_ptr, real_ptr, imag_ptr, bn_weight_ptr, bn_bias_ptr, running_mean_ptr, running_var_ptr,
    mean_ptr, covariance_ptr, centre_ptr, slope_ptr, offset_ptr, z_ptr, batch_mean_ptr, batch_var_ptr, channels, inputs,
    EPS: tl.constexpr, TRAINING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """slope [C, F] and offset [C] of u; z [2, C]: the mean and variance that normalise."""
    c = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = c < channels
    features = inputs + 4
    m, bias, gamma = _channel_parameters(real_ptr, imag_ptr, bias_ptr, bn_weight_ptr, c, channels)
    at_centre = bias
    if TRAINING:
        middle, square = bias, tl.zeros_like(bias)
        for k in tl.range(0, features, loop_unroll_factor=4):
            w = load(w_ptr + c * features + k, there, tl.float64)
            middle += w * tl.load(mean_ptr + k)
            square += w * _covariance_row(covariance_ptr, w_ptr, c, k, features, there)
        for k in tl.range(0, inputs, loop_unroll_factor=4):
            part = load(w_ptr + c * features + k, there, tl.float64) * tl.load(centre_ptr + k)
            middle += part
            at_centre += part
        z_mean = m * middle
        # Rounding may make nothing a little less; NaN stays.
        z_var = m * m * tl.where(square < 0, 0.0, square)
        store(batch_mean_ptr + c, z_mean, there)
        store(batch_var_ptr + c, z_var, there)
    else:
        z_mean = load(running_mean_ptr + c, there, tl.float64)
        z_var = load(running_var_ptr + c, there, tl.float64)
    tl.store(z_ptr + c, z_mean, mask=there)
    tl.store(z_ptr + channels + c, z_var, mask=there)
    scale = gamma / tl.sqrt(z_var + EPS)
    offset = scale * (m * at_centre - z_mean)
    if bn_bias_ptr is not None:
        offset += load(bn_bias_ptr + c, there, tl.float64)
    store(offset_ptr + c, offset, there)
    for k in tl.range(0, features, loop_unroll_factor=4):
        store(slope_ptr + c * features + k, scale * m * load(w_ptr + c * features + k, there, tl.float64), there)


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
    found += (load(tables_ptr + 2 * out_h + j, inside, ARITHMETIC),)
    found += (load(tables_ptr + 2 * out_h + out_w + j, inside, ARITHMETIC),)
    return found


@triton.jit
def _u(features, slope_ptr, offset_ptr, c, there, COUNT: tl.constexpr):
    u = tl.load(offset_ptr + c, mask=there, other=0)
    for k in tl.static_range(COUNT):
        u += features[k] * tl.load(slope_ptr + c * COUNT + k, mask=there, other=0)
    return u


@triton.jit(do_not_specialize_on_alignment=["out_w", "pixels"])
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
    i, j = _position(p, out_w)
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
        store(y_ptr + c * y_sc + to, u / (1 + tl.exp(-u)), inside & there)


@triton.jit
def _slot_sum(values, slot, start, SLOTS: tl.constexpr):
    """Sums over pixels of [PIXELS, channels], each in its channel's slot; one dimension, so that lanes share the slots out."""
    if values.shape[1] == SLOTS:
        return tl.sum(values, axis=0).to(tl.float64)
    return tl.where(slot == start, tl.sum(values).to(tl.float64), 0.0)


@triton.jit(do_not_specialize_on_alignment=["out_w", "pixels"])
def _backward(
    g_ptr, x_ptr, tables_ptr, centre_ptr, slope_ptr, offset_ptr, partial_ptr, projected_ptr,
    programs, tasks, tiles, tiles_per_image, tiles_per_task, batch, channels, out_h, out_w, pixels, stride,
    g_sb, g_sc, g_sh, g_sw, x_sb, x_sc, x_sh, x_sw,
    INPUTS: tl.constexpr, CENTRED: tl.constexpr, NEED_X: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
    SLOTS: tl.constexpr, INDEX: tl.constexpr, ARITHMETIC: tl.constexpr, FOLDED: tl.constexpr,
):  # fmt: skip
    """partial[1 + F, task, C]: sums of g_u and of g_u f' over the task's pixels. projected[block, b, k, pixel]: sum of slope_ck g_u
    over the block's channels, SLOTS of them."""
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
        b = tile // tiles_per_image
        inside = p < pixels
        i, j = _position(p, out_w)
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


@triton.jit
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
    m, bias, gamma = _channel_parameters(real_ptr, imag_ptr, bias_ptr, bn_weight_ptr, c, channels)
    sigma = tl.sqrt(tl.load(z_ptr + channels + c, mask=there, other=1) + EPS)
    gain = gamma / sigma
    total = _task_sum(partial_ptr, 0, tasks, channels, c, TASKS)
    along = tl.zeros_like(total)  # sum g_u (h - mean(h)), or sum g_u (h - b)
    for k in range(0, features):
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
    for k in range(0, features):
        g_w = m * gain * tl.load(moment_ptr + c * features + k, mask=there, other=0)
        if TRAINING:
            spread = _covariance_row(covariance_ptr, w_ptr, c, k, features, there)
            g_w -= m * gain * (m1 * m / sigma * tl.cast(positions, tl.float64) * spread)
        store(g_weight_ptr + c * features + k, g_w, there)
    if TRAINING:
        correction_ptr += tl.cast(tl.program_id(0), tl.int64) * inputs * (features + 1)
        for k in range(0, inputs):
            back = gain * m * load(w_ptr + c * features + k, there, tl.float64)
            offset = tl.sum(tl.where(there, back * m0, 0.0))
            for n in range(0, features):
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


@triton.jit(do_not_specialize_on_alignment=["width", "pixels"])
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
    row, column = _position(p, width)
    read = inside & (row % stride == 0) & (column % stride == 0)
    i, j = row // stride, column // stride
    f = _features(
        x_ptr + b * x_sb, tables_ptr, centre_ptr, i, j, read, out_h, out_w, stride, x_sc, x_sh, x_sw, INPUTS, TRAINING, ARITHMETIC
    )  # fmt: skip
    plane = tl.cast(out_h, tl.int64) * out_w
    grad_ptr += b * g_sb
    for k in tl.static_range(INPUTS):
        total = tl.zeros([PIXELS], ARITHMETIC)
        for block in range(0, channel_blocks):
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


class _Problem:
    """What both passes make first: the folded map, and what it was made of."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, real: Tensor, imag: Tensor, bn_weight: Tensor | None,
        bn_bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None, training: bool, eps: float, stride: int,
    ) -> None:  # fmt: skip
        self.x, self.training, self.eps, self.stride = x, training, float(eps), stride
        self.batch, self.inputs, self.height, self.width = x.shape
        self.channels, self.features = weight.shape[0], self.inputs + 4
        self.out_h, self.out_w = -(-self.height // stride), -(-self.width // stride)
        self.pixels = self.out_h * self.out_w
        self.weight, self.bias, self.real, self.imag, self.bn_weight, self.bn_bias, self.running_mean, self.running_var = (
            None if t is None else t.contiguous()
            for t in (weight, bias, real, imag, bn_weight, bn_bias, running_mean, running_var)
        )
        self.arithmetic = arithmetic_type(x)
        self.narrow = torch.float64 if x.dtype == torch.float64 else torch.float32

    def doubles(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.float64, device=self.x.device)

    def index(self, *maps: Tensor) -> Any:
        return index_type(self.height * self.width, *(span(t, 2, 3) + _SLOTS * abs(t.stride(1)) for t in (self.x, *maps)))

    def lane(self, pixels: int, most: int) -> int:
        """Pixels of a tile: fewer a lane where there are many inputs to keep."""
        return min(power_of_2(pixels), most if self.inputs <= 4 else most // 2 if self.inputs <= 8 else 128)

    def fold(self, batch_mean: Tensor | None, batch_var: Tensor | None) -> None:
        """Fill slope, offset, z and what they come from; the batch's mean and variance where they are given."""
        x, n, f = self.x, self.inputs, self.features
        self.tables = self.doubles(2 * (self.out_h + self.out_w))
        self.centre, self.mean, self.covariance = self.doubles(n), self.doubles(f), self.doubles(f * f)
        self.slope = torch.empty(self.channels * f, dtype=self.narrow, device=x.device)
        self.offset, self.z = torch.empty_like(self.slope[: self.channels]), self.doubles(2 * self.channels)
        table_programs = -(-(self.out_h + self.out_w) // _TABLE)
        _prepare[(table_programs + (n if self.training else 0),)](
            x, self.tables, self.centre, table_programs, self.height, self.width, self.out_h, self.out_w, self.stride,
            self.batch, -(-self.batch // 4), -(-self.out_h // 8), -(-self.out_w // 8), *x.stride(),
            _TABLE, self.arithmetic, num_warps=4,
        )  # fmt: skip
        if self.training:
            tile = min(power_of_2(self.pixels), _MOMENT_PIXELS)
            tiles_per_image = -(-self.pixels // tile)
            tiles = self.batch * tiles_per_image
            per_task = -(-tiles // _MOST_TASKS)
            tasks = -(-tiles // per_task)
            partial = self.doubles(tasks * n * (n + 5))
            _moments[grid(tasks * n)](
                x, self.tables, self.centre, partial, tasks * n, n, tiles, tiles_per_image, per_task, self.out_h, self.out_w,
                self.pixels, self.stride, *x.stride(), tile, self.index(), self.arithmetic, tasks * n > MOST_PROGRAMS, num_warps=4,
            )  # fmt: skip
            _statistics[(1,)](
                partial, self.tables, self.mean, self.covariance, self.doubles(n * (n + 5) + 10), n, tasks,
                self.batch * self.pixels, self.out_h, self.out_w, power_of_2(tasks), 128, num_warps=4,
            )  # fmt: skip
        _fold[(-(-self.channels // _FOLD_CHANNELS),)](
            self.weight, self.bias, self.real, self.imag, self.bn_weight, self.bn_bias, self.running_mean, self.running_var,
            self.mean, self.covariance, self.centre, self.slope, self.offset, self.z,
            self.offset if batch_mean is None else batch_mean, self.offset if batch_var is None else batch_var,
            self.channels, n, self.eps, self.training, _FOLD_CHANNELS, num_warps=1,
        )  # fmt: skip


def forward(x: Tensor, *arguments: Any) -> None:
    """Fill y, and in training the batch's mean and variance: the last three arguments, behind those of the op."""
    y, mean, var = arguments[-3:]
    p = _Problem(x, *arguments[:-3])
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
        p.stride, *x.stride(), *y.stride(), p.inputs, p.training, tile, block, p.index(y), p.arithmetic, programs > MOST_PROGRAMS,
        num_warps=4,
    )  # fmt: skip


def backward(grad_y: Tensor, x: Tensor, *arguments: Any) -> None:
    """Fill the gradients of x (unless it is to be empty), weight, bias, real, imag, bn_weight and bn_bias: the last argument."""
    *given, need_x, gradients = arguments
    p = _Problem(x, *given)
    grad_x, g_weight, g_real, g_imag = gradients[0], gradients[1], gradients[3], gradients[4]
    g_bias, g_bn_weight, g_bn_bias = (
        g if t is not None else None for g, t in zip((gradients[2], *gradients[5:]), (p.bias, p.bn_weight, p.bn_bias), strict=True)
    )
    if p.batch == 0:
        for g in gradients[1:]:
            g.zero_()
        return
    # The batch's statistics are recomputed; nobody asks for them here.
    unused = p.doubles(2 * p.channels)
    p.fold(unused[: p.channels], unused[p.channels :])
    block = min(power_of_2(p.channels), _SLOTS) if channels_last(grad_y) else 1
    slots = min(power_of_2(p.channels), _SLOTS)
    tile = p.lane(p.pixels, 1024 if block == 1 else max(1, 2048 // block))
    tiles_per_image = -(-p.pixels // tile)
    tiles = p.batch * tiles_per_image
    per_task = -(-tiles // (2 * _MOST_TASKS))
    tasks = -(-tiles // per_task)
    channel_blocks = -(-p.channels // slots)
    programs = tasks * channel_blocks
    partial = p.doubles((1 + p.features) * tasks * p.channels)
    projected = torch.empty(channel_blocks * p.batch * p.inputs * p.pixels if need_x else 0, dtype=p.narrow, device=x.device)
    _backward[grid(programs)](
        grad_y, x, p.tables, p.centre, p.slope, p.offset, partial, projected, programs, tasks, tiles, tiles_per_image, per_task,
        p.batch, p.channels, p.out_h, p.out_w, p.pixels, p.stride, *grad_y.stride(), *x.stride(),
        p.inputs, p.training, need_x, tile, block, slots, p.index(grad_y), p.arithmetic, programs > MOST_PROGRAMS, num_warps=4,
    )  # fmt: skip
    blocks = -(-p.channels // _FOLD_CHANNELS)
    correction = p.doubles(blocks * p.inputs * (p.features + 1))
    _gradients[(blocks,)](
        partial, p.weight, p.bias, p.real, p.imag, p.bn_weight, p.mean, p.covariance, p.centre, p.z,
        p.doubles(p.channels * p.features), correction, g_weight, g_bias, g_real, g_imag, g_bn_weight, g_bn_bias,
        tasks, p.channels, p.inputs, p.batch * p.pixels, p.eps, p.training, _FOLD_CHANNELS, 32, num_warps=4,
    )  # fmt: skip
    if not need_x:
        return
    size = p.height * p.width
    tile = p.lane(size, 1024)
    tiles = -(-size // tile)
    programs = p.batch * tiles
    _grad_x[grid(programs)](
        x, p.tables, p.centre, projected, correction, grad_x, programs, tiles, blocks, channel_blocks, p.batch, p.width, size,
        p.out_h, p.out_w, p.stride, *x.stride(), *grad_x.stride(), p.inputs, p.training, tile, p.index(grad_x), p.arithmetic,
        programs > MOST_PROGRAMS, num_warps=4,
    )  # fmt: skip
