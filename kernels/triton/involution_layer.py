"""LGLD-Net's involution layer: its weights are made where they are used, K 3 in one kernel. Its backward makes them again.

    h[d,p] = sum_c hidden_weight[d,c] x[c,p] + hidden_bias[d]
    k[t,p] = sum_d span_weight[t,d] SiLU(h[d,p]) + span_bias[t]
    y[c,p] = sum_t k[t,p] x[c, p + t],    t over a K x K window around p, x zero outside its bounds

(ICITA 2025, DOI 10.1007/978-3-032-21174-3_28; its two convolutions before SiLU are one.) A program has a tile of pixels of one
image: it walks over the channels once for h, once for y, and x is in L2 the second time; k never leaves the registers. Bytes
that must move, for E-byte elements: 2 C * E a pixel, where the layer and the op apart move 2 C + C + 2 K^2 or more. With K 5
and 7 one kernel makes k, in the arithmetic's type, and the involution's applies it.

With g the gradient of y and s = sigmoid(h), the gradients are

    grad_k[t,p] = sum_c g[c,p] x[c, p + t]               grad_h[d,p] = (sum_t span_weight[t,d] grad_k[t,p]) s (1 + h (1 - s))
    grad_span_weight[t,d] = sum_p grad_k[t,p] SiLU(h[d,p])          grad_span_bias[t] = sum_p grad_k[t,p]
    grad_hidden_weight[d,c] = sum_p grad_h[d,p] x[c,p]              grad_hidden_bias[d] = sum_p grad_h[d,p]
    grad_x[c,p] = sum_t k[t, p - t] g[c, p - t] + sum_d hidden_weight[d,c] grad_h[d,p]

in two kernels. A pixel's grad_x needs the kernels of K^2 pixels: the first kernel, which has h, leaves k and grad_h in memory
for the second, K^2 + D values a pixel in the arithmetic's type; grad_k never leaves the registers. A program's sums over
pixels are a record, and the records are summed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl

from . import involution2d
from ._common import MOST_PROGRAMS, arithmetic_type, grid, index_type, load, power_of_2, program, span, store

# Of backward's sums over pixels; the last is in values.
FEWEST_RECORDS, MOST_RECORDS, RECORDS_TOGETHER = 128, 2048, 2**24


@triton.jit
def _pixels(number, tiles, width, pixels, PIXELS: tl.constexpr, INDEX: tl.constexpr):
    """Image, pixels, whether they are in it, rows and columns of a tile, by its number among all images'."""
    p = tl.cast(number % tiles, INDEX) * PIXELS + tl.arange(0, PIXELS).to(INDEX)
    return tl.cast(number // tiles, tl.int64), p, p < pixels, p // width, p % width


@triton.jit
def _hidden(
    x_ptr, x_sc, centre, inside, hidden_weight_ptr, hidden_bias_ptr, channels, hidden,
    HIDDEN: tl.constexpr, PIXELS: tl.constexpr, ARITHMETIC: tl.constexpr,
):  # fmt: skip
    """h of a tile's pixels, and its sigmoid: [HIDDEN, PIXELS]. hidden_weight is [channels, hidden] here."""
    d = tl.arange(0, HIDDEN)[:, None]
    used = d < hidden
    h = tl.zeros([HIDDEN, PIXELS], ARITHMETIC) + load(hidden_bias_ptr + d, used, ARITHMETIC)
    for c in range(channels):
        x = load(x_ptr + tl.cast(c, tl.int64) * x_sc + centre, inside, ARITHMETIC)
        h += load(hidden_weight_ptr + tl.cast(c, tl.int64) * hidden + d, used, ARITHMETIC) * x[None, :]
    return h, 1 / (1 + tl.exp(-h))


@triton.jit
def _kernel_tap(activated, span_weight_ptr, span_bias_ptr, t, hidden, HIDDEN: tl.constexpr, ARITHMETIC: tl.constexpr):
    """k[t] of a tile's pixels from SiLU(h), which is 0 beyond the hidden channels."""
    d = tl.arange(0, HIDDEN)[:, None]
    weight = tl.sum(load(span_weight_ptr + t * hidden + d, d < hidden, ARITHMETIC) * activated, axis=0)
    return weight + tl.load(span_bias_ptr + t).to(ARITHMETIC)


@triton.jit(do_not_specialize_on_alignment=["programs", "tiles", "width", "pixels"])
def _generate(
    x_ptr, hidden_weight_ptr, hidden_bias_ptr, span_weight_ptr, span_bias_ptr, kernel_ptr,
    programs, tiles, taps, channels, hidden, width, pixels, x_sb, x_sc, x_sh, x_sw,
    HIDDEN: tl.constexpr, PIXELS: tl.constexpr, INDEX: tl.constexpr, ARITHMETIC: tl.constexpr, FOLDED: tl.constexpr,
):  # fmt: skip
    """k of a tile of pixels, [B, K*K, pixels]."""
    n = program(FOLDED)
    if n >= programs:
        return
    b, p, inside, i, j = _pixels(n, tiles, width, pixels, PIXELS, INDEX)
    h, sigmoid = _hidden(
        x_ptr + b * x_sb, x_sc, i * x_sh + j * x_sw, inside, hidden_weight_ptr, hidden_bias_ptr, channels, hidden,
        HIDDEN, PIXELS, ARITHMETIC,
    )  # fmt: skip
    activated = tl.where(tl.arange(0, HIDDEN)[:, None] < hidden, h * sigmoid, 0.0)
    for t in range(taps):
        kernel = _kernel_tap(activated, span_weight_ptr, span_bias_ptr, t, hidden, HIDDEN, ARITHMETIC)
        tl.store(kernel_ptr + (b * taps + t) * pixels + p, kernel, mask=inside)


@triton.jit(do_not_specialize_on_alignment=["programs", "tiles", "height", "width", "pixels"])
def _layer(
    x_ptr, hidden_weight_ptr, hidden_bias_ptr, span_weight_ptr, span_bias_ptr, y_ptr,
    programs, tiles, channels, hidden, height, width, pixels, x_sb, x_sc, x_sh, x_sw, y_sb, y_sc, y_sh, y_sw,
    K: tl.constexpr, HIDDEN: tl.constexpr, PIXELS: tl.constexpr, INDEX: tl.constexpr, ARITHMETIC: tl.constexpr,
    FOLDED: tl.constexpr,
):  # fmt: skip
    """y of a tile of pixels."""
    n = program(FOLDED)
    if n >= programs:
        return
    b, _p, inside, i, j = _pixels(n, tiles, width, pixels, PIXELS, INDEX)
    x_ptr += b * x_sb
    y_ptr += b * y_sb
    centre = i * x_sh + j * x_sw
    h, sigmoid = _hidden(
        x_ptr, x_sc, centre, inside, hidden_weight_ptr, hidden_bias_ptr, channels, hidden, HIDDEN, PIXELS, ARITHMETIC
    )
    activated = tl.where(tl.arange(0, HIDDEN)[:, None] < hidden, h * sigmoid, 0.0)
    weights, at, found = (), (), ()
    for t in tl.static_range(K * K):
        row, column = i + (t // K - K // 2), j + (t % K - K // 2)
        at += (row * x_sh + column * x_sw,)
        found += (inside & (row >= 0) & (row < height) & (column >= 0) & (column < width),)
        weights += (_kernel_tap(activated, span_weight_ptr, span_bias_ptr, t, hidden, HIDDEN, ARITHMETIC),)
    to = i * y_sh + j * y_sw
    for c in range(channels):
        source = x_ptr + tl.cast(c, tl.int64) * x_sc
        total = tl.zeros([PIXELS], ARITHMETIC)
        for t in tl.static_range(K * K):
            total += weights[t] * load(source + at[t], found[t], ARITHMETIC)
        store(y_ptr + tl.cast(c, tl.int64) * y_sc + to, total, inside)


@triton.jit
def _add(pointer, value, mask):
    """Add to what stands in memory. One program's own; between two to the same place it waits (tl.debug_barrier)."""
    tl.store(pointer, tl.load(pointer, mask=mask) + value, mask=mask)


@triton.jit(do_not_specialize_on_alignment=["programs", "tiles", "all_tiles", "height", "width", "pixels"])
def _layer_sums(
    g_ptr, x_ptr, hidden_weight_ptr, hidden_bias_ptr, span_weight_ptr, span_bias_ptr, kernel_ptr, grad_hidden_ptr, record_ptr,
    programs, tiles, all_tiles, channels, hidden, height, width, pixels, g_sb, g_sc, g_sh, g_sw, x_sb, x_sc, x_sh, x_sw,
    K: tl.constexpr, HIDDEN: tl.constexpr, PIXELS: tl.constexpr, INDEX: tl.constexpr, ARITHMETIC: tl.constexpr,
    FOLDED: tl.constexpr, NEED_X: tl.constexpr,
):  # fmt: skip
    """Sums over the pixels of every `programs`-th tile, which are the parameters' gradients, and, where grad_x is wanted, the
    tiles' k and grad_h.

    A record is [channels, hidden] of hidden_weight, [hidden] of hidden_bias, [K*K, hidden] of span_weight, [K*K] of span_bias.
    It starts as zeros, and values of a tile are added where those of another have been: between them is a barrier.
    """
    n = program(FOLDED)  # 64 bits where tiles behind the last one would be counted beyond 31
    record_ptr += tl.cast(n, tl.int64) * (tl.cast(channels + 1 + K * K, tl.int64) * hidden + K * K)
    span_record = record_ptr + tl.cast(channels + 1, tl.int64) * hidden
    d = tl.arange(0, HIDDEN)
    used = d < hidden
    for number in range(n, all_tiles, programs):
        b, p, inside, i, j = _pixels(number, tiles, width, pixels, PIXELS, INDEX)
        image = x_ptr + b * x_sb
        centre = i * x_sh + j * x_sw
        grad_kernel, at, found = (), (), ()
        for t in tl.static_range(K * K):
            row, column = i + (t // K - K // 2), j + (t % K - K // 2)
            at += (row * x_sh + column * x_sw,)
            found += (inside & (row >= 0) & (row < height) & (column >= 0) & (column < width),)
            grad_kernel += (tl.zeros([PIXELS], ARITHMETIC),)
        from_g = g_ptr + b * g_sb + i * g_sh + j * g_sw
        for c in range(channels):
            source = image + tl.cast(c, tl.int64) * x_sc
            g = load(from_g + tl.cast(c, tl.int64) * g_sc, inside, ARITHMETIC)
            more = ()
            for t in tl.static_range(K * K):
                more += (grad_kernel[t] + g * load(source + at[t], found[t], ARITHMETIC),)
            grad_kernel = more
        h, sigmoid = _hidden(
            image, x_sc, centre, inside, hidden_weight_ptr, hidden_bias_ptr, channels, hidden, HIDDEN, PIXELS, ARITHMETIC
        )
        # Pixels beyond the image have values, of the bias alone: left out by choice, since 0 times infinity is no 0.
        there = used[:, None] & inside[None, :]
        activated = tl.where(there, h * sigmoid, 0.0)
        grad_h = tl.zeros([HIDDEN, PIXELS], ARITHMETIC)
        for t in tl.static_range(K * K):
            grad_h += load(span_weight_ptr + t * hidden + d, used, ARITHMETIC)[:, None] * grad_kernel[t][None, :]
            _add(span_record + t * hidden + d, tl.sum(grad_kernel[t][None, :] * activated, axis=1), used)
            _add(span_record + K * K * hidden + t, tl.sum(grad_kernel[t], axis=0), True)
            if NEED_X:  # here, where fewer values are alive than behind the loop
                kernel = _kernel_tap(activated, span_weight_ptr, span_bias_ptr, t, hidden, HIDDEN, ARITHMETIC)
                tl.store(kernel_ptr + (b * (K * K) + t) * pixels + p, kernel, mask=inside)
        grad_h = tl.where(there, grad_h * (sigmoid * (1 + h * (1 - sigmoid))), 0.0)
        if NEED_X:
            tl.store(grad_hidden_ptr + (b * hidden + d[:, None]) * pixels + p[None, :], grad_h, mask=there)
        _add(record_ptr + tl.cast(channels, tl.int64) * hidden + d, tl.sum(grad_h, axis=1), used)
        for c in range(channels):
            x = load(image + tl.cast(c, tl.int64) * x_sc + centre, inside, ARITHMETIC)
            _add(record_ptr + tl.cast(c, tl.int64) * hidden + d, tl.sum(grad_h * x[None, :], axis=1), used)
        tl.debug_barrier()


@triton.jit(do_not_specialize_on_alignment=["programs", "tiles", "height", "width", "pixels"])
def _layer_grad_x(
    g_ptr, kernel_ptr, grad_hidden_ptr, hidden_weight_ptr, grad_x_ptr,
    programs, tiles, channels, hidden, height, width, pixels, g_sb, g_sc, g_sh, g_sw, y_sb, y_sc, y_sh, y_sw,
    K: tl.constexpr, HIDDEN: tl.constexpr, PIXELS: tl.constexpr, INDEX: tl.constexpr, ARITHMETIC: tl.constexpr,
    FOLDED: tl.constexpr,
):  # fmt: skip
    """grad_x of a tile of pixels, from g, k and grad_h. Its strides are called y's."""
    n = program(FOLDED)
    if n >= programs:
        return
    b, p, inside, i, j = _pixels(n, tiles, width, pixels, PIXELS, INDEX)
    g_ptr += b * g_sb
    grad_x_ptr += b * y_sb
    kernel_ptr += b * (K * K) * pixels
    weights, at, found = (), (), ()
    for t in tl.static_range(K * K):
        # The pixel whose tap t reads this one.
        row, column = i - (t // K - K // 2), j - (t % K - K // 2)
        reads = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        at += (row * g_sh + column * g_sw,)
        found += (reads,)
        weights += (load(kernel_ptr + tl.cast(t, tl.int64) * pixels + row * width + column, reads, ARITHMETIC),)
    d = tl.arange(0, HIDDEN)[:, None]
    used = d < hidden
    grad_h = load(grad_hidden_ptr + (b * hidden + d) * pixels + p[None, :], used & inside[None, :], ARITHMETIC)
    to = i * y_sh + j * y_sw
    for c in range(channels):
        source = g_ptr + tl.cast(c, tl.int64) * g_sc
        total = tl.sum(load(hidden_weight_ptr + tl.cast(c, tl.int64) * hidden + d, used, ARITHMETIC) * grad_h, axis=0)
        for t in tl.static_range(K * K):
            total += weights[t] * load(source + at[t], found[t], ARITHMETIC)
        store(grad_x_ptr + tl.cast(c, tl.int64) * y_sc + to, total, inside)


def _tile(pixels: int, hidden: int, kernel_size: int) -> int:
    """Pixels of a program: fewer where each has many taps or hidden values in registers."""
    return min(power_of_2(pixels), 256 if kernel_size == 3 else 128, max(32, 4096 // power_of_2(hidden)))


def forward(
    x: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, span_weight: Tensor, span_bias: Tensor, kernel_size: int, y: Tensor
) -> None:
    """y [B, C, H, W] from x, hidden_weight [D, C], hidden_bias [D], span_weight [K*K, D] and span_bias [K*K], one dtype."""
    if y.numel() == 0:
        return
    batch, channels, height, width = x.shape
    hidden, pixels, taps = hidden_weight.shape[0], height * width, kernel_size**2
    tile = _tile(pixels, hidden, kernel_size)
    tiles = -(-pixels // tile)
    programs = batch * tiles
    parameters = (hidden_weight.t().contiguous(), *(t.contiguous() for t in (hidden_bias, span_weight, span_bias)))
    index = index_type(pixels, height + kernel_size, *(span(t, 2, 3) + kernel_size * abs(t.stride(2)) for t in (x, y)))
    constants = (power_of_2(hidden), tile, index, arithmetic_type(x), programs > MOST_PROGRAMS)
    if kernel_size == 3:
        _layer[grid(programs)](
            x, *parameters, y, programs, tiles, channels, hidden, height, width, pixels, *x.stride(), *y.stride(), kernel_size,
            *constants, num_warps=4,
        )  # fmt: skip
        return
    # 25 or 49 taps beside a pixel's hidden values fall out of the registers.
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    kernel = x.new_empty(batch, taps, height, width, dtype=wide)
    _generate[grid(programs)](
        x, *parameters, kernel, programs, tiles, taps, channels, hidden, width, pixels, *x.stride(), *constants, num_warps=4
    )
    half = (kernel_size // 2,) * 2
    involution2d.forward(x, kernel, y, (kernel_size, kernel_size), (1, 1), half, (1, 1), 1)


def backward(
    grad_y: Tensor, x: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, span_weight: Tensor, span_bias: Tensor,
    kernel_size: int, need_x: bool, gradients: tuple[Tensor, ...],
) -> None:  # fmt: skip
    """Gradients of x (like x, or empty where not needed) and of the four parameters, which are contiguous, from grad_y."""
    grad_x, *of_parameters = gradients
    if x.numel() == 0:
        for gradient in of_parameters:
            gradient.zero_()
        return
    batch, channels, height, width = x.shape
    hidden, pixels, taps = hidden_weight.shape[0], height * width, kernel_size**2
    tile = _tile(pixels, hidden, kernel_size)
    tiles = -(-pixels // tile)
    all_tiles = batch * tiles
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    kept = batch if need_x else 0
    kernel, grad_hidden = (x.new_empty(kept, n, height, width, dtype=wide) for n in (taps, hidden))
    sizes = (channels * hidden, hidden, taps * hidden, taps)
    # Several records for each multiprocessor of a large GPU, one for wide layers, whose records are large. Programs have
    # equally many tiles, or one less.
    most = max(FEWEST_RECORDS, min(MOST_RECORDS, RECORDS_TOGETHER // sum(sizes)))
    sharing = -(-all_tiles // (-(-all_tiles // most)))
    records = x.new_zeros(sharing, sum(sizes), dtype=wide)
    transposed = hidden_weight.t().contiguous()
    maps = (grad_y, x, grad_x) if need_x else (grad_y, x)
    index = index_type(pixels, height + kernel_size, *(span(t, 2, 3) + kernel_size * abs(t.stride(2)) for t in maps))
    shape = (channels, hidden, height, width, pixels)
    constants = (kernel_size, power_of_2(hidden), tile, index, arithmetic_type(x))
    warps = max(4, tile // 32)  # with two pixels a lane, the sums of K 3 fall out of its registers
    _layer_sums[(sharing,)](
        grad_y, x, transposed, hidden_bias.contiguous(), span_weight.contiguous(), span_bias.contiguous(), kernel, grad_hidden,
        records, sharing, tiles, all_tiles, *shape, *grad_y.stride(), *x.stride(), *constants,
        all_tiles + sharing > MOST_PROGRAMS, need_x, num_warps=warps,
    )  # fmt: skip
    if need_x:
        _layer_grad_x[grid(all_tiles)](
            grad_y, kernel, grad_hidden, transposed, grad_x, all_tiles, tiles, *shape, *grad_y.stride(), *grad_x.stride(),
            *constants, all_tiles > MOST_PROGRAMS, num_warps=warps,
        )  # fmt: skip
    wide_weight, *rest = records.sum(0, dtype=torch.float64).split(sizes)
    for gradient, sums in zip(of_parameters, (wide_weight.view(channels, hidden).t(), *rest), strict=True):
        gradient.copy_(sums.reshape(gradient.shape))
