"""The mixer's folded map, from its parameters and in training from the image's statistics. Formulas: ffm.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton
import triton.language as tl

from ._common import MOST_PROGRAMS, arithmetic_type, grid, index_type, load, power_of_2, program, span, store

_TABLE = 256
MOST_TASKS = 256  # runs of tiles that leave partial sums
SLOTS = 64  # channels whose sums a backward program keeps
FOLD_CHANNELS = 32
_MOMENT_PIXELS = 512


@triton.jit
def position(p, out_w):
    return p // out_w, p % out_w


# One compilation serves all sizes of the small kernels: a lone call would wait longer for another than it could win.
@triton.jit(
    do_not_specialize=[
        "table_programs", "height", "width", "out_h", "out_w", "stride", "batch", "image_step", "row_step", "column_step",
        "x_sb", "x_sc", "x_sh", "x_sw",
    ]
)  # fmt: skip
def _prepare(
    x_ptr, tables_ptr, centre_ptr, table_programs, height, width, out_h, out_w, stride,
    batch, image_step, row_step, column_step, x_sb, x_sc, x_sh, x_sw,
    BLOCK: tl.constexpr, ARITHMETIC: tl.constexpr,
):  # fmt: skip
    """tables: sin, cos of the rows' phases [2, out_h], of the columns' [2, out_w]; centre [inputs]: a mean of some pixels."""
    n = tl.program_id(0)
    if n < table_programs:
        at = tl.cast(n, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        rows = at < out_h
        column = at - out_h
        position = tl.where(rows, at, column)
        extent = tl.where(rows, height, width)
        phase = (position * stride).to(tl.float64) * 6.283185307179586 / extent.to(tl.float64)
        count = tl.where(rows, out_h, out_w)
        to = tl.where(rows, position, at + out_h)
        there = at < tl.cast(out_h, tl.int64) + out_w
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


@triton.jit(
    do_not_specialize=[
        "programs", "inputs", "tiles", "tiles_per_image", "tiles_per_task", "out_h", "out_w", "pixels", "stride", "x_sb",
        "x_sc", "x_sh", "x_sw",
    ]
)  # fmt: skip
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
            i, j = position(p, out_w)
            at = i * stride * x_sh + j * stride * x_sw
            image = x_ptr + tl.cast(tile // tiles_per_image, tl.int64) * x_sb
            inside = p < pixels
            x = tl.where(inside, load(image + a * x_sc + at, inside, ARITHMETIC) - middle, 0).to(tl.float64)
            total += x * tl.where(inside, load(image + tl.cast(b, tl.int64) * x_sc + at, inside, ARITHMETIC) - other, 0).to(
                tl.float64
            )
        tl.store(out_ptr + (b - a), tl.sum(total))
    all_ = tl.zeros([PIXELS], tl.float64)
    row_sin, row_cos, column_sin, column_cos = all_, all_, all_, all_
    for tile in range(first, last):
        p = (tile % tiles_per_image).to(INDEX) * PIXELS + lane
        i, j = position(p, out_w)
        inside = p < pixels
        source = x_ptr + tl.cast(tile // tiles_per_image, tl.int64) * x_sb + a * x_sc
        x = load(source + (i * stride * x_sh + j * stride * x_sw), inside, ARITHMETIC)
        x = tl.where(inside, x - middle, 0).to(tl.float64)
        all_ += x
        row_sin += x * load(tables_ptr + i, inside, tl.float64)
        row_cos += x * load(tables_ptr + out_h + i, inside, tl.float64)
        column_sin += x * load(tables_ptr + out_h + out_h + j, inside, tl.float64)
        column_cos += x * load(tables_ptr + out_h + out_h + out_w + j, inside, tl.float64)
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


@triton.jit(do_not_specialize=["inputs", "tasks", "positions", "out_h", "out_w"])
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
    rows, columns = tables_ptr, tables_ptr + out_h + out_h  # 2 * out_h could pass 2^31
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
def channel_parameters(real_ptr, imag_ptr, bias_ptr, bn_weight_ptr, c, channels):
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
def covariance_row(covariance_ptr, w_ptr, c, k, features, there):
    """(covariance w)_k of channels c."""
    total = tl.zeros_like(c).to(tl.float64)
    for n in tl.range(0, features, loop_unroll_factor=8):
        total += tl.load(covariance_ptr + k * features + n) * load(w_ptr + c * features + n, there, tl.float64)
    return total


@triton.jit(do_not_specialize=["channels", "inputs"])
def _fold(
    w_ptr, bias_ptr, real_ptr, imag_ptr, bn_weight_ptr, bn_bias_ptr, running_mean_ptr, running_var_ptr,
    mean_ptr, covariance_ptr, centre_ptr, slope_ptr, offset_ptr, z_ptr, batch_mean_ptr, batch_var_ptr, channels, inputs,
    EPS: tl.constexpr, TRAINING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """slope [C, F] and offset [C] of u; z [2, C]: the mean and variance that normalise."""
    c = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = c < channels
    features = inputs + 4
    m, bias, gamma = channel_parameters(real_ptr, imag_ptr, bias_ptr, bn_weight_ptr, c, channels)
    at_centre = bias
    if TRAINING:
        middle, square = bias, tl.zeros_like(bias)
        for k in tl.range(0, features, loop_unroll_factor=4):
            w = load(w_ptr + c * features + k, there, tl.float64)
            middle += w * tl.load(mean_ptr + k)
            square += w * covariance_row(covariance_ptr, w_ptr, c, k, features, there)
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


# --- launches ---------------------------------------------------------------------------------------------------------


class Problem:
    """What both passes make first: the folded map, and what it was made of."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, real: Tensor, imag: Tensor, bn_weight: Tensor | None,
        bn_bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None, training: bool, eps: float,
        stride: int,
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
        return index_type(self.height * self.width, *(span(t, 2, 3) + SLOTS * abs(t.stride(1)) for t in (self.x, *maps)))

    def lane(self, pixels: int, most: int) -> int:
        """Pixels of a tile: fewer a lane where there are many inputs to keep."""
        return min(max(128, power_of_2(pixels)), most if self.inputs <= 4 else most // 2 if self.inputs <= 8 else 128)

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
            tile = _MOMENT_PIXELS
            tiles_per_image = -(-self.pixels // tile)
            tiles = self.batch * tiles_per_image
            per_task = -(-tiles // MOST_TASKS)
            tasks = -(-tiles // per_task)
            partial = self.doubles(tasks * n * (n + 5))
            _moments[grid(tasks * n)](
                x, self.tables, self.centre, partial, tasks * n, n, tiles, tiles_per_image, per_task, self.out_h, self.out_w,
                self.pixels, self.stride, *x.stride(), tile, self.index(), self.arithmetic, tasks * n > MOST_PROGRAMS,
                num_warps=4,
            )  # fmt: skip
            _statistics[(1,)](
                partial, self.tables, self.mean, self.covariance, self.doubles(n * (n + 5) + 10), n, tasks,
                self.batch * self.pixels, self.out_h, self.out_w, power_of_2(MOST_TASKS), 128, num_warps=4,
            )  # fmt: skip
        _fold[(-(-self.channels // FOLD_CHANNELS),)](
            self.weight, self.bias, self.real, self.imag, self.bn_weight, self.bn_bias, self.running_mean, self.running_var,
            self.mean, self.covariance, self.centre, self.slope, self.offset, self.z,
            self.offset if batch_mean is None else batch_mean, self.offset if batch_var is None else batch_var,
            self.channels, n, self.eps, self.training, FOLD_CHANNELS, num_warps=1,
        )  # fmt: skip
