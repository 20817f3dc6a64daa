"""`Involution2d` of Holocron (github.com/frgfm/Holocron, `holocron.nn.Involution2d`; Apache 2.0)."""

from __future__ import annotations

from torch import Tensor, nn

from .._layer import InvolutionBase, Window, check_divides, counts, pair

__all__ = ["Involution2d"]


class Involution2d(InvolutionBase):
    """Holocron's involution, whose generator is linear: ``kernel = conv1x1(conv1x1(pool(x)))``, both with bias.

    Then `lgld_ops.involution2d` (Li et al., CVPR 2021, eq. 4). [B, in_channels, H, W] -> [B, in_channels, H // stride,
    W // stride]; every floating dtype that `lgld_ops.involution2d` takes.

    Args:
        in_channels: channels of input and output.
        kernel_size: rows and columns of the window.
        padding: zeros around the input. The default fits a `kernel_size` of 1 only, as in the source, which reshapes the rest
            wrongly or fails; give ``dilation * (kernel_size - 1) / 2``.
        stride: pixels between outputs; H and W have to be multiples of it.
        groups: groups of channels that share kernels; divides `in_channels`.
        dilation: pixels between the window's taps.
        reduction_ratio: the generator has ``int(in_channels // reduction_ratio)`` hidden channels.

    State dict: ``reduce.*``, ``span.*``.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range, or x doesn't fit.
    """

    _remedy = "; give padding = dilation * (kernel_size - 1) / 2 and an image whose size the stride divides"

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        padding: int = 0,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        reduction_ratio: float = 1,
    ) -> None:
        super().__init__()
        in_channels, kernel_size, stride, groups, dilation = counts(
            in_channels=in_channels, kernel_size=kernel_size, stride=stride, groups=groups, dilation=dilation
        )
        check_divides("groups", groups, "in_channels", in_channels)
        if not isinstance(reduction_ratio, (int, float)) or isinstance(reduction_ratio, bool):
            raise TypeError(f"reduction_ratio must be a number, but is {reduction_ratio!r}")
        if not 0 < reduction_ratio <= in_channels:
            raise ValueError(f"reduction_ratio must be above 0, at most in_channels, {in_channels}, but is {reduction_ratio}")
        self.groups, self.k_size = groups, kernel_size
        margin = pair("padding", padding, 0)
        self._window = Window(in_channels, (kernel_size,) * 2, (stride,) * 2, margin, (dilation,) * 2, groups)
        self.pool = nn.AvgPool2d(stride, stride) if stride > 1 else None
        hidden = int(in_channels // reduction_ratio)
        self.reduce = nn.Conv2d(in_channels, hidden, 1)
        self.span = nn.Conv2d(hidden, kernel_size**2 * groups, 1)

    def _pooled(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return x if self.pool is None else self.pool(x)  # type: ignore[no-any-return]

    def _kernel(self, pooled: Tensor) -> Tensor:
        return self.span(self.reduce(pooled))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The geometry, as nn.Module prints it."""
        w = self._window
        return (
            f"{w.channels}, kernel_size={self.k_size}, padding={w.padding}, stride={w.stride}, groups={w.groups}, "
            f"dilation={w.dilation}"
        )
