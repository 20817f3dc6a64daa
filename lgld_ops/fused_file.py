"""The file of a fused network: safetensors with the published names, and in its metadata all that the tensors leave open.

Nothing here needs the compiled library: `lgld_ops.checkpoint.load_network` reads these files where there is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .canonical import NORMS, flat, named, parameter_shapes, sizes_of

SUFFIX = ".lgld"
FORMAT = "lgld_ops.fused"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Contents:
    """What such a file holds: the canonical parameters (`lgld_ops.canonical.flat`), sizes, what is known of the data set."""

    weights: Tensor
    in_channels: int
    base_channels: int
    num_classes: int
    image_size: tuple[int, int] | None = None
    classes: tuple[str, ...] | None = None

    @property
    def eps(self) -> list[float]:
        """Of the three BatchNorms, in the order of `lgld_ops.canonical.NORMS`."""
        return self.weights[-3:].tolist()  # type: ignore[no-any-return]


def checked_image_size(value: Sequence[int] | None) -> tuple[int, int] | None:
    """(height, width), or a ValueError."""
    if value is None:
        return None
    size = tuple(value)
    if len(size) != 2 or not all(type(item) is int and item > 0 for item in size):
        raise ValueError(f"image_size must be two positive ints, (height, width), but is {value!r}")
    return size[0], size[1]


def checked_classes(value: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """One name per class, or a ValueError."""
    if value is None:
        return None
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"classes must be a sequence of names, but is {value!r}")
    if len(value) != num_classes:
        raise ValueError(f"classes must name {num_classes} classes, but names {len(value)}")
    return tuple(value)


def replace_with(path: Path, write: Callable[[Path], object]) -> None:
    """`write` a file beside `path`, then rename it: a reader sees the old file or the new one, never half of either."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write(path: Path, contents: Contents) -> None:
    """The file of `contents`; an existing one is replaced.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    weights = contents.weights.detach().cpu()
    sizes = (contents.in_channels, contents.base_channels, contents.num_classes)
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        **dict(zip(("in_channels", "base_channels", "num_classes"), map(str, sizes), strict=True)),
        "eps": json.dumps(contents.eps),
    }
    if contents.image_size is not None:
        metadata["image_size"] = json.dumps(contents.image_size)
    if contents.classes is not None:
        metadata["classes"] = json.dumps(contents.classes)
    metadata["sha256"] = _digest(metadata, weights)
    data = save({name: value.clone() for name, value in named(weights, *sizes).items()}, metadata)
    replace_with(path, lambda partial: partial.write_bytes(data))


def read(path: Path) -> Contents:
    """What `write` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        lgld_ops.checkpoint.CheckpointError: it is truncated, altered, of a newer format or of another kind.
    """
    from .checkpoint import CheckpointError, _read_safetensors

    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise CheckpointError(f"{path}: is no file; it must be one that FusedLGLDNet.save wrote")
    with path.open("rb"):  # a file that may not be read is an OSError, not a damaged one
        state, metadata = _read_safetensors(path)
    return checked(path, state, metadata)


def checked(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Contents:
    """The contents of the safetensors file at `path`; a CheckpointError where `write` did not make it so."""
    from .checkpoint import CheckpointError

    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not written by FusedLGLDNet.save (format is {metadata.get('format')!r}, must be {FORMAT!r}); weights of "
            "a network are read by lgld_ops.checkpoint.load_network, and lgld_ops.fuse makes this of it"
        )
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: format version is {metadata.get('format_version')!r}, this lgld_ops reads version {FORMAT_VERSION}"
        )
    try:
        sizes = sizes_of(state)
        if [metadata.get(key) for key in ("in_channels", "base_channels", "num_classes")] != [str(size) for size in sizes]:
            raise ValueError("the sizes in its metadata are not those of its tensors")
        shapes = parameter_shapes(*sizes)
        counters = {name: value for name, value in state.items() if name not in shapes}
        zero = torch.zeros((), dtype=torch.int64)
        if counters.keys() != {f"{name}.num_batches_tracked" for name in NORMS} or not all(
            value.dtype == zero.dtype and torch.equal(value, zero) for value in counters.values()
        ):
            raise ValueError("num_batches_tracked must be an int64 zero of each BatchNorm, and nothing else")
        weights = flat(state, shapes, json.loads(metadata.get("eps", "null")))
        if metadata.get("sha256") != _digest(metadata, weights):
            raise ValueError("its checksum does not fit its contents")
        image_size, classes = (json.loads(metadata.get(key, "null")) for key in ("image_size", "classes"))
        return Contents(weights, *sizes, checked_image_size(image_size), checked_classes(classes, sizes[2]))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: altered since FusedLGLDNet.save wrote it: {error}") from error


def _digest(metadata: Mapping[str, str], weights: Tensor) -> str:
    """Of all that is read but `num_batches_tracked`, which `checked` compares with zero; the weights in the published order."""
    text = json.dumps({key: metadata[key] for key in sorted(metadata) if key != "sha256"})
    return hashlib.sha256(text.encode() + weights.to(torch.float32).contiguous().numpy().tobytes()).hexdigest()
