"""What the kernels share: how a launch is laid out, how wide its indices are, how results are rounded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton
import triton.language as tl

# Programs along one axis of a launch. CUDA allows 2^31 - 1 along x and 65535 along y, which a million channels exceed: work is
# numbered along x alone, and what does not fit there is folded.
MOST_PROGRAMS = 2**31 - 1
# Offsets inside what one program adds to a 64-bit base are 32-bit up to here.
MOST_OFFSET = 2**31 - 1

# Triton's interpreter truncates float32 to bfloat16, or lets a rounding's carry be lost in the exponent.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def grid(programs: int) -> tuple[int, ...]:
    """A launch of at least that many programs; `program` numbers them, the surplus returns at once."""
    if programs <= MOST_PROGRAMS:
        return (programs,)
    columns = min(MOST_PROGRAMS, 2**24)
    return (columns, -(-programs // columns))


@triton.jit
def program(FOLDED: tl.constexpr):
    """This program's number."""
    number = tl.program_id(0)
    if FOLDED:
        return number.to(tl.int64) + tl.program_id(1).to(tl.int64) * tl.num_programs(0)
    return number


def power_of_2(n: int) -> int:
    """The smallest power of 2 that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def span(t: Tensor, *dims: int) -> int:
    """The largest offset that positions in these dimensions add up to."""
    return sum(max(0, t.shape[d] - 1) * abs(t.stride(d)) for d in dims)


def index_type(*spans: int) -> Any:
    """The integer that holds offsets and positions up to all of `spans`, with room for a tile beyond the last one."""
    return tl.int32 if max(spans) + 2**20 <= MOST_OFFSET else tl.int64


def arithmetic_type(t: Tensor) -> Any:
    """float64 for float64, else float32."""
    return tl.float64 if t.dtype == torch.float64 else tl.float32


def channels_last(t: Tensor) -> bool:
    """Whether channels are neighbours in memory and columns are not."""
    return t.shape[1] > 1 and t.stride(1) == 1 and t.stride(3) != 1


@triton.jit
def store(pointer, value, mask):
    """Store rounded to the nearest, ties to even."""
    if _INTERPRETED and pointer.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.float32).to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(value == value, rounded, 0x7FC0)
        tl.store(pointer, rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load(pointer, mask, TYPE: tl.constexpr):
    """Load as TYPE, 0 where the mask is not set."""
    value = tl.load(pointer, mask=mask, other=0)
    if pointer.dtype.element_ty == tl.bfloat16:
        value = value.to(tl.float32)
    return value.to(TYPE)
