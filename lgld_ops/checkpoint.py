"""Reading LGLD-Net's weights from a file: tensors only, never code.

``.safetensors`` and ``.lgld`` files are read with safetensors, ``.pth`` and ``.pt`` files with
``torch.load(weights_only=True)``; a pickle that would have to run code is refused. The sizes of the network
follow from the shapes of its tensors. A file of a fused network (``lgld_ops.FusedLGLDNet.save``) is checked as
``lgld_ops.load`` checks it, whatever its suffix.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from . import fused_file, reference
from .canonical import set_eps

__all__ = ["CheckpointError", "CheckpointInfo", "load_network", "read_state_dict"]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_SAFETENSORS = (".safetensors", fused_file.SUFFIX)
_SUFFIXES = (*_SAFETENSORS, ".pth", ".pt")


class CheckpointError(ValueError):
    """A weights file that is there but cannot be used; the message says which file and why."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a weights file says about its network.

    Attributes:
        path: the file.
        in_channels: channels of the images, from the shapes.
        base_channels: C, from the shapes.
        num_classes: from the shapes.
        image_size: (height, width) in pixels the network was trained for, where the file says.
        classes: one name per class in the order of the logits, where the file says.
        metadata: all other text that came with the tensors.
    """

    path: Path
    in_channels: int
    base_channels: int
    num_classes: int
    image_size: tuple[int, int] | None = None
    classes: tuple[str, ...] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated, or not a safetensors file ({str(error).splitlines()[0]})") from error


def _read_pickle(path: Path, file: IO[bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with warnings.catch_warnings():
            # Remarks on pickle protocols and TorchScript: what matters of them is in the errors below.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(file, map_location="cpu", weights_only=True)
    # A damaged file can end in almost any exception of torch.load: KeyError, EOFError, even OSError.
    except Exception as error:
        needs = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needs is None and "TorchScript" in str(error):
            raise CheckpointError(f"{path}: a TorchScript program, not weights; save model.state_dict() instead") from error
        if needs is not None:
            raise CheckpointError(
                f"{path}: this pickle needs code to load ({needs[1]}) and was refused; "
                "weights are read as tensors only: save model.state_dict(), or use safetensors"
            ) from error
        raise CheckpointError(
            f"{path}: truncated, or not a file of weights written by torch.save ({type(error).__name__})"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, must hold a state dict")
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return dict(content[key]), {name: value for name, value in content.items() if name != key}
    return dict(content), {}


def _image_size(path: Path, value: Any) -> tuple[int, int]:
    size = value
    if isinstance(value, str):
        try:
            size = json.loads(value)
        except ValueError:
            size = None
    if isinstance(size, int):
        size = [size, size]
    good = isinstance(size, list | tuple) and len(size) == 2
    if not good or not all(type(item) is int and item > 0 for item in size):
        raise CheckpointError(f"{path}: metadata image_size must be a positive int or [height, width], got {value!r}")
    return size[0], size[1]


def _classes(path: Path, value: Any, num_classes: int) -> tuple[str, ...]:
    names = value
    if isinstance(value, str):
        try:
            names = json.loads(value)
        except ValueError:
            names = None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: metadata classes must be a JSON list of names, got {value!r}")
    if len(names) != num_classes:
        raise CheckpointError(f"{path}: metadata classes names {len(names)} classes, but head.6.weight has {num_classes}")
    return tuple(names)


def read_state_dict(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a weights file by name, and whatever was stored beside them.

    Accepted: safetensors; ``torch.save`` of a state dict, or of a dict that holds one under "state_dict",
    "model_state_dict" or "model". A prefix "module." common to all names is removed.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        CheckpointError: it is truncated, of another format, or needs code to load.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such weights file")
    if not path.is_file():
        raise CheckpointError(f"{path}: is no file; weights must be a {', '.join(_SUFFIXES)} file")
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise CheckpointError(f"{path}: weights must be a {', '.join(_SUFFIXES)} file, got suffix {suffix!r}")
    with path.open("rb") as file:
        state, metadata = _read_safetensors(path) if suffix in _SAFETENSORS else _read_pickle(path, file)
    foreign = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise CheckpointError(f"{path}: must hold tensors only, but these are none: {_listed(foreign)}")
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state, metadata


def _listed(items: list[str], limit: int = 6) -> str:
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def _sizes(path: Path, state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """(in_channels, base_channels, num_classes) from the shapes, after checking all names and shapes."""
    stem, last = state.get("local_stem.conv.weight"), state.get("head.6.weight")
    base, channels = (stem.shape[0], stem.shape[1]) if stem is not None and stem.dim() == 4 else (64, 3)
    classes = last.shape[0] if last is not None and last.dim() == 2 else 4
    try:
        with torch.device("meta"):
            expected = reference.LGLDNet(channels, base, classes).state_dict()
    except ValueError as error:
        raise CheckpointError(f"{path}: not a checkpoint of LGLD-Net: {error}") from error
    complaints = []
    if missing := [key for key in expected if key not in state]:
        complaints.append(f"missing {_listed(missing)}")
    if unexpected := [key for key in state if key not in expected]:
        complaints.append(f"unexpected {_listed(unexpected)}")
    wrong = []
    for key, wanted in expected.items():
        if (found := state.get(key)) is None:
            continue
        if found.shape != wanted.shape:
            wrong.append(f"{key} is {tuple(found.shape)}, must be {tuple(wanted.shape)}")
        elif found.is_complex() or found.is_floating_point() != wanted.is_floating_point():
            kind = "floating point" if wanted.is_floating_point() else "of integers"
            wrong.append(f"{key} is {found.dtype}, must be {kind}")
    if wrong:
        complaints.append(_listed(wrong))
    if complaints:
        raise CheckpointError(f"{path}: not a checkpoint of LGLD-Net: {'; '.join(complaints)}")
    return channels, base, classes


def load_network(
    path: str | os.PathLike[str], *, network: Callable[[int, int, int], nn.Module] | None = None
) -> tuple[nn.Module, CheckpointInfo]:
    """The network of a weights file, in eval mode, on the CPU, in float32.

    Weights of another floating-point dtype are converted. The state of torch's random generator is left
    alone.

    Args:
        path: a ``.safetensors``, ``.lgld``, ``.pth`` or ``.pt`` file; see ``read_state_dict`` for what it may hold.
        network: called with (in_channels, base_channels, num_classes); ``None`` is ``lgld_ops.LGLDNet``.
            ``lgld_ops.reference.LGLDNet`` is the published network in plain PyTorch.

    Returns:
        The network, and what the file says about it. Class names and image size come from the entries
        "classes" (JSON list) and "image_size" (int or [height, width]) beside the tensors.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        CheckpointError: it is truncated, of another format, needs code to load, holds another network, or its
            metadata contradicts its tensors.
    """
    path = Path(path)
    state, metadata = read_state_dict(path)
    fused = metadata.get("format") == fused_file.FORMAT or path.suffix.lower() == fused_file.SUFFIX
    eps = fused_file.checked(path, state, metadata).eps if fused else None
    in_channels, base_channels, num_classes = _sizes(path, state)
    for name, size in (("in_channels", in_channels), ("base_channels", base_channels)):
        if name in metadata and str(metadata[name]) != str(size):
            raise CheckpointError(f"{path}: metadata {name} is {metadata[name]}, but the tensors have {size}")
    image_size = _image_size(path, metadata["image_size"]) if "image_size" in metadata else None
    classes = _classes(path, metadata["classes"], num_classes) if "classes" in metadata else None
    if network is None:
        from . import LGLDNet

        network = LGLDNet
    with torch.random.fork_rng(devices=[]):
        model = network(in_channels, base_channels, num_classes)
    model.load_state_dict(state, strict=True)
    if eps is not None:
        set_eps(model, eps)
    used = ("in_channels", "base_channels", "image_size", "classes")
    info = CheckpointInfo(
        path=path,
        in_channels=in_channels,
        base_channels=base_channels,
        num_classes=num_classes,
        image_size=image_size,
        classes=classes,
        metadata={key: value for key, value in metadata.items() if isinstance(value, str) and key not in used},
    )
    return model.eval(), info
