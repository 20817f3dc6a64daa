"""What all involution layers share: the geometry of the window, the checks before any work, the call of the op."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import SupportsIndex

from torch import Tensor, nn

from .ops.involution import IntOrPair, check_tensor, involution2d


def _is_integer(value: object) -> bool:
    # numpy's integers have an index, as nn.Conv2d takes them; floats have none.
    return isinstance(value, SupportsIndex) and not isinstance(value, bool)


def pair(name: str, value: IntOrPair, least: int) -> tuple[int, int]:
    """`value` as (rows, columns), each an int of at least `least`; TypeError or ValueError naming `name` otherwise."""
    both = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(both) != 2 or not all(_is_integer(v) for v in both):
        raise TypeError(f"{name} must be an int or a pair of ints, but is {value!r}")
    if min(both) < least:
        raise ValueError(f"{name} must be at least {least}, but is {value!r}")
    return index(both[0]), index(both[1])


def counts(**values: int) -> tuple[int, ...]:
    """The values as ints; TypeError or ValueError naming the first that is no int of at least 1."""
    for name, value in values.items():
        if not _is_integer(value):
            raise TypeError(f"{name} must be an int, but is {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}")
    return tuple(map(index, values.values()))


def check_divides(name: str, value: int, of_name: str, of: int) -> None:
    """Raise ValueError where `value` doesn't divide `of`."""
    if of % value:
        raise ValueError(f"{name} must divide {of_name}, but {name} is {value} and {of_name} is {of}")


@dataclass(frozen=True)
class Window:
    """Which pixels an involution reads; `channels` are those of the layer's input."""

    channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of windows in an image of that size; less than 1 where none fits."""
        rows, columns = (
            (size + 2 * self.padding[i] - self.dilation[i] * (self.kernel_size[i] - 1) - 1) // self.stride[i] + 1
            for i, size in enumerate((height, width))
        )
        return rows, columns


class InvolutionBase(nn.Module):
    """``involution2d(_operand(x), _kernel(_pooled(x)))``: a subclass says how it pools and generates its kernels.

    A layer's geometry is its `_window` alone, whatever its public attributes are called.
    """

    _window: Window
    # Ends the message of a kernel map that fits no windows.
    _remedy = ""

    def _operand(self, x: Tensor) -> Tensor:
        """What the windows slide over."""
        return x

    def _pooled(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """x with one pixel for each kernel; has to be as large as `grid`."""
        raise NotImplementedError

    def _kernel(self, pooled: Tensor) -> Tensor:
        """One kernel for each pixel of `pooled`: [B, groups*Kh*Kw, rows, columns]."""
        raise NotImplementedError

    def _checked_pool(self, x: Tensor) -> Tensor:
        window = self._window
        check_tensor("x", x)
        if not x.is_floating_point():
            raise TypeError(f"x must be float16, bfloat16, float32 or float64, but is {x.dtype}")
        if x.dim() != 4 or x.shape[1] != window.channels:
            raise ValueError(f"x must have shape [B, {window.channels}, H, W], but has {list(x.shape)}")
        rows, columns = window.grid(x.shape[2], x.shape[3])
        if rows < 1 or columns < 1:
            raise ValueError(
                f"x must hold a window of {window.kernel_size} with dilation {window.dilation} and padding {window.padding}, "
                f"but is {x.shape[2]} x {x.shape[3]}"
            )
        pooled = self._pooled(x, (rows, columns))
        # A kernel map of another size would be broadcast where it has a single row or column.
        if pooled.shape[2] != rows or pooled.shape[3] != columns:
            raise ValueError(
                f"padding {window.padding} and stride {window.stride} make {rows} x {columns} windows of a "
                f"{x.shape[2]} x {x.shape[3]} input, but there are {pooled.shape[2]} x {pooled.shape[3]} kernels{self._remedy}"
            )
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', Ho, Wo], one pixel for each window.

        Raises:
            TypeError: x is no tensor, or its dtype is not floating-point.
            ValueError: x has other dimensions or channels, or makes more or fewer windows than there are kernels.
        """
        kernel, w = self._kernel(self._checked_pool(x)), self._window
        return involution2d(self._operand(x), kernel, w.kernel_size, w.stride, w.padding, w.dilation, w.groups)
