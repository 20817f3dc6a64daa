"""What is measured: the involution op at published shapes, LGLD-Net's Fourier feature mixer, and LGLD-Net as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Mode: TypeAlias = Literal["forward", "forward+backward"]
Arrays: TypeAlias = dict[str, NDArray[Any]]

FORWARD: Mode = "forward"
TRAINING: Mode = "forward+backward"

DTYPES = ("float32", "float16", "bfloat16")

_SEED = 20250728


def _checked_mode(mode: str) -> None:
    if mode not in (FORWARD, TRAINING):
        raise ValueError(f"mode must be {FORWARD!r} or {TRAINING!r}, got {mode!r}")


@dataclass(frozen=True)
class InvolutionCase:
    """One call of the involution op, "same" padding ``(kernel_size - 1) // 2``.

    ``x`` is ``[batch, channels, height, width]``, ``weight`` ``[batch, groups * kernel_size**2, out_height,
    out_width]``, both of ``dtype`` (float32, float16 or bfloat16) and contiguous or channels_last."""

    subject: ClassVar[str] = "involution"
    heading: ClassVar[str] = "involution2d"

    channels: int
    height: int
    width: int
    kernel_size: int
    groups: int = 1
    stride: int = 1
    batch: int = 1
    mode: Mode = FORWARD
    dtype: str = "float32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        for name in ("channels", "height", "width", "kernel_size", "groups", "stride", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")
        if self.channels % self.groups:
            raise ValueError(f"groups must divide the {self.channels} channels, got {self.groups}")
        _checked_mode(self.mode)

    @property
    def padding(self) -> int:
        return self.kernel_size // 2

    @property
    def out_height(self) -> int:
        return (self.height - 1) // self.stride + 1

    @property
    def out_width(self) -> int:
        return (self.width - 1) // self.stride + 1

    @property
    def multiply_adds(self) -> int:
        """Of the case's mode: forward, and as many again for each of the two gradients."""
        forward = self.batch * self.channels * self.kernel_size**2 * self.out_height * self.out_width
        return forward if self.mode == FORWARD else 3 * forward

    @property
    def copies(self) -> int:
        """Least number of passes over x and weight: one forward; backward reads both again and writes both
        gradients."""
        return 1 if self.mode == FORWARD else 2

    @property
    def label(self) -> str:
        stride = f" s{self.stride}" if self.stride > 1 else ""
        shape = f"[{self.batch},{self.channels},{self.height},{self.width}]"
        kind = "" if self.dtype == "float32" else f" {self.dtype}"
        kind += " channels_last" if self.channels_last else ""
        return f"{shape} K{self.kernel_size} G{self.groups}{stride}{kind} {self.mode}"

    @property
    def plain(self) -> bool:
        """Whether it is float32 and contiguous."""
        return self.dtype == "float32" and not self.channels_last

    def arrays(self) -> Arrays:
        """The inputs, the same for every opponent: standard normal, float32. Opponents round and lay them out as the
        case says."""
        rng = np.random.default_rng(_SEED)
        taps = self.groups * self.kernel_size**2
        arrays: Arrays = {
            "x": rng.standard_normal((self.batch, self.channels, self.height, self.width), np.float32),
            "weight": rng.standard_normal((self.batch, taps, self.out_height, self.out_width), np.float32),
        }
        if self.mode == TRAINING:
            shape = (self.batch, self.channels, self.out_height, self.out_width)
            arrays["grad_output"] = rng.standard_normal(shape, np.float32)
        return arrays


def _images(rng: np.random.Generator, batch: int, size: int) -> NDArray[np.float32]:
    """RGB images in [0, 1].

    Each has colours and waves of its own: noise alone averages out, and a network's logits would say nothing."""
    phase = np.linspace(0.0, 2.0 * np.pi, size)
    channels = (batch, 3, 1, 1)
    rows, columns = rng.integers(1, 12, (2, *channels))
    waves = np.sin(rows * phase[:, None] + columns * phase + rng.uniform(0.0, 2.0 * np.pi, channels))
    noise = rng.standard_normal((batch, 3, size, size))
    images = rng.uniform(0.2, 0.8, channels) + 0.25 * waves + 0.05 * noise
    clipped: NDArray[np.float32] = np.clip(images, 0.0, 1.0).astype(np.float32)
    return clipped


@dataclass(frozen=True)
class MixerCase:
    """LGLD-Net's Fourier feature mixer, 3 -> 64 channels, on a batch of ``size`` x ``size`` RGB images: its result in eval
    mode, or in train mode the result and the gradient of every parameter (none of the image, as in the network)."""

    subject: ClassVar[str] = "ffm"
    heading: ClassVar[str] = "Fourier feature mixer"

    batch: int = 1
    size: int = 224
    mode: Mode = FORWARD

    def __post_init__(self) -> None:
        for name in ("batch", "size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        _checked_mode(self.mode)

    @property
    def label(self) -> str:
        return f"[{self.batch},3,{self.size},{self.size}] {self.mode}"

    def arrays(self) -> Arrays:
        """Images in [0, 1], float32, and the gradient of the result for training."""
        rng = np.random.default_rng(_SEED)
        arrays: Arrays = {"x": _images(rng, self.batch, self.size)}
        if self.mode == TRAINING:
            side = (self.size + 1) // 2
            arrays["grad_output"] = rng.standard_normal((self.batch, 64, side, side), np.float32)
        return arrays


@dataclass(frozen=True)
class NetworkCase:
    """LGLD-Net on a batch of ``size`` x ``size`` RGB images: logits in eval mode, or the gradients of a
    training step.

    The training step is forward in train mode (dropout off, so that results can be compared), cross-entropy,
    and the gradient of every parameter; no optimiser."""

    subject: ClassVar[str] = "network"
    heading: ClassVar[str] = "LGLD-Net"

    batch: int = 1
    size: int = 224
    num_classes: int = 4
    mode: Mode = FORWARD

    def __post_init__(self) -> None:
        for name in ("batch", "size", "num_classes"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        _checked_mode(self.mode)

    @property
    def label(self) -> str:
        return f"[{self.batch},3,{self.size},{self.size}] {self.mode}"

    def arrays(self) -> Arrays:
        """Images in [0, 1], float32, and class labels for training."""
        rng = np.random.default_rng(_SEED)
        arrays: Arrays = {"x": _images(rng, self.batch, self.size)}
        if self.mode == TRAINING:
            arrays["labels"] = rng.integers(0, self.num_classes, self.batch, np.int64)
        return arrays


Case: TypeAlias = InvolutionCase | MixerCase | NetworkCase

_CASES: dict[str, type[InvolutionCase] | type[MixerCase] | type[NetworkCase]] = {
    InvolutionCase.subject: InvolutionCase,
    MixerCase.subject: MixerCase,
    NetworkCase.subject: NetworkCase,
}


def case_to_dict(case: Case) -> dict[str, Any]:
    return {"subject": case.subject, **asdict(case)}


def case_from_dict(data: Mapping[str, Any]) -> Case:
    fields = dict(data)
    return _CASES[fields.pop("subject")](**fields)


LGLD = InvolutionCase(64, 112, 112, kernel_size=3)
SHAPES: dict[str, InvolutionCase] = {
    "lgld": LGLD,
    "rednet56": InvolutionCase(64, 56, 56, kernel_size=7, groups=4),
    "rednet14": InvolutionCase(256, 14, 14, kernel_size=7, groups=16),
    "rednet56s2": InvolutionCase(128, 56, 56, kernel_size=7, groups=8, stride=2),
}
"""LGLD-Net's involution, and three of RedNet's (D. Li et al., "Involution", CVPR 2021), at batch 1."""

_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+):k(\d+)(?::g(\d+))?(?::s(\d+))?", re.IGNORECASE)


def parse_shape(text: str) -> InvolutionCase:
    """A name in ``SHAPES``, or ``CxHxW:kK[:gG][:sS]`` such as ``64x56x56:k7:g4``.

    Raises:
        ValueError: the text is neither, or the numbers are no possible shape.
    """
    if text in SHAPES:
        return SHAPES[text]
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)} or CxHxW:kK[:gG][:sS], got {text!r}")
    channels, height, width, kernel_size, groups, stride = (int(part or 1) for part in match.groups())
    return InvolutionCase(channels, height, width, kernel_size, groups, stride)


def involution_cases(shapes: Iterable[InvolutionCase], batches: Iterable[int], modes: Iterable[Mode]) -> list[InvolutionCase]:
    """Every shape at every batch size in every mode."""
    batches, modes = tuple(batches), tuple(modes)
    return [replace(shape, batch=batch, mode=mode) for mode in modes for batch in batches for shape in shapes]
