"""What the `Involution2d` of ChristophReich1996 and that of shikishima-TasakiLab have in common: all but the argument order."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .._layer import InvolutionBase, Window, check_divides, counts, pair
from ..ops.involution import IntOrPair


class MappedInvolution(InvolutionBase):
    """Involution with a projection of its input; arguments are explained at the two public classes."""

    # Overridden by an instance where the source has the argument.
    force_shape_match = False

    def _build(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: IntOrPair,
        stride: IntOrPair,
        padding: IntOrPair,
        dilation: IntOrPair,
        groups: int,
        bias: bool,
        sigma_mapping: nn.Module | None,
        reduce_ratio: int,
    ) -> None:
        in_channels, out_channels, groups, reduce_ratio = counts(
            in_channels=in_channels, out_channels=out_channels, groups=groups, reduce_ratio=reduce_ratio
        )
        check_divides("groups", groups, "in_channels", in_channels)
        check_divides("groups", groups, "out_channels", out_channels)
        if out_channels < reduce_ratio:
            raise ValueError(f"reduce_ratio must be at most out_channels, {out_channels}, but is {reduce_ratio}")
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be a bool, but is {bias!r}")
        if sigma_mapping is not None and not isinstance(sigma_mapping, nn.Module):
            raise TypeError(f"sigma_mapping must be a torch.nn.Module or None, but is {sigma_mapping!r}")
        self.in_channels, self.out_channels, self.groups, self.reduce_ratio = in_channels, out_channels, groups, reduce_ratio
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        self.stride = pair("stride", stride, 1)
        self.padding = pair("padding", padding, 0)
        self.dilation = pair("dilation", dilation, 1)
        self.bias = bias
        self._window = Window(in_channels, self.kernel_size, self.stride, self.padding, self.dilation, groups)
        hidden = out_channels // reduce_ratio
        # In the order of the sources, so that one seed gives one set of initial weights.
        self.sigma_mapping = (
            sigma_mapping if sigma_mapping is not None else nn.Sequential(nn.BatchNorm2d(hidden, momentum=0.3), nn.ReLU())
        )
        self.initial_mapping = (
            nn.Conv2d(in_channels, out_channels, 1, bias=bias) if in_channels != out_channels else nn.Identity()
        )
        self.o_mapping: nn.Module = nn.AvgPool2d(self.stride) if self.stride != (1, 1) else nn.Identity()
        self.reduce_mapping = nn.Conv2d(in_channels, hidden, 1, bias=bias)
        self.span_mapping = nn.Conv2d(hidden, self.kernel_size[0] * self.kernel_size[1] * groups, 1, bias=bias)

    def _operand(self, x: Tensor) -> Tensor:
        return self.initial_mapping(x)  # type: ignore[no-any-return]

    def _pooled(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if not self.force_shape_match:
            return self.o_mapping(x)  # type: ignore[no-any-return]
        stride = self._window.stride
        # The source pools to the grid and then by the stride once more. That fits no window but where a single row or column
        # of kernels is left to broadcast.
        again = [size // step for size, step in zip(grid, stride, strict=True)]
        if again != list(grid) and all(left in (1, size) for left, size in zip(again, grid, strict=True)):
            raise ValueError(
                f"force_shape_match with stride {stride} would broadcast {again[0]} x {again[1]} kernels over {grid[0]} x "
                f"{grid[1]} windows of a {x.shape[2]} x {x.shape[3]} input; give a larger image, or force_shape_match=False"
            )
        pooled = F.adaptive_avg_pool2d(x, grid)
        return self.o_mapping(pooled) if stride == (1, 1) else pooled

    def _kernel(self, pooled: Tensor) -> Tensor:
        return self.span_mapping(self.sigma_mapping(self.reduce_mapping(pooled)))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The geometry, as nn.Module prints it."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias}, "
            f"reduce_ratio={self.reduce_ratio}"
        )
