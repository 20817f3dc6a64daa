"""LGLD-Net as one op: inference in float32 on the CPU, several times faster than the modules it was made from.

>>> fast = lgld_ops.fuse(model)  # any module with the published structure: reference, ours, yours
>>> logits = fast(x)  # x [B, in_channels, H, W], float32, values in [0, 1]
>>> fast.save("cell.lgld", image_size=(224, 224), classes=["benign", "early"])
>>> fast = lgld_ops.load("cell.lgld")
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import _native
from .canonical import NORMS, check_structure, flat, named, parameter_shapes, sizes_of
from .fused_file import Contents, checked_classes, checked_image_size, read, write
from .ops.lgldnet import parameter_count

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FusedLGLDNet", "Stage", "drop_workspaces", "fuse", "load", "plan", "stage_times"]

_WRAPPERS = ("module.", "_orig_mod.")


class FusedLGLDNet(nn.Module):
    """LGLD-Net for inference, as `fuse` and `load` make it: the same call and results, one op inside.

    Images [B, in_channels, H, W] in [0, 1], float32, any B, H and W -> logits [B, num_classes]. Source: A. Palai, A. Dasgupta
    et al., ICITA 2025, DOI 10.1007/978-3-032-21174-3_28; kernels/cpu/lgldnet/lgldnet.h names the identities. A wrong shape or
    device is a ValueError, a wrong dtype a TypeError, training a RuntimeError.

    The module keeps the published parameters only, as one tensor; what the kernels need is derived from it when it first
    runs, so a pickle or a saved file works on every processor. It may be called from several threads at once, inside
    `torch.compile` and by `torch.export`. After a parallel call a forked child needs `torch.set_num_threads(1)`, as for any
    torch op: OpenMP's threads do not survive a fork, and the child would wait for them.

    It has no gradient, computes in float32 (after `half()` or `double()` every call is a TypeError) and stays in eval mode:
    `train()` of a model that contains it raises too, when it comes to this module, and those before it are in train mode then;
    `eval()` of that model brings them back.

    Attributes:
        in_channels, base_channels, num_classes: the network's sizes.
        image_size: (height, width) the network was trained for, None where nobody said.
        classes: one name per class in the order of the logits, None where nobody said.
    """

    weights: Tensor

    def __init__(
        self,
        weights: Tensor,
        in_channels: int,
        base_channels: int,
        num_classes: int,
        *,
        image_size: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if not _native.loaded():
            raise RuntimeError(f"the fused network needs the compiled library, and there is none: {_native.load_error}")
        count = parameter_count(in_channels, base_channels, num_classes)
        if weights.shape != (count,):
            raise ValueError(f"weights must have shape [{count}], but have {list(weights.shape)}")
        self.in_channels, self.base_channels, self.num_classes = in_channels, base_channels, num_classes
        self.image_size = checked_image_size(image_size)
        self.classes = checked_classes(classes, num_classes)
        self.register_buffer("weights", weights)
        super().train(False)

    def train(self, mode: bool = True) -> FusedLGLDNet:
        """Only `train(False)`, which changes nothing.

        Raises:
            RuntimeError: `mode` is true.
        """
        if mode:
            raise RuntimeError("a fused LGLD-Net is for inference only: train the network it was made from, then fuse it again")
        return self

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.lgld_ops.lgldnet.default(x, self.weights, self.base_channels, self.num_classes)  # type: ignore[no-any-return]

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, but is a {type(x).__name__}")
        self._check_state(x)
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must have shape [B, {self.in_channels}, H, W], but has {list(x.shape)}")
        if x.dtype != torch.float32:
            hint = "; predict() takes uint8" if x.dtype == torch.uint8 else ""
            raise TypeError(f"x must be float32, but is {x.dtype}{hint}")
        if x.shape[2] < 1 or x.shape[3] < 1:
            raise ValueError(f"x must have at least one row and column, but has shape {list(x.shape)}")

    def _check_state(self, x: Tensor) -> None:
        """What has nothing to do with the image's shape and dtype."""
        weights = self.weights
        if weights.dtype != torch.float32:
            raise TypeError(f"weights must be float32, but are {weights.dtype}: fuse or load the network again")
        if x.device.type != "cpu" or weights.device.type != "cpu":
            raise ValueError(f"x and the network must be on the CPU, but are on {x.device} and {weights.device}")
        backward = torch.is_grad_enabled()
        forward = not torch.compiler.is_compiling() and forward_ad._current_level >= 0
        for who, tensor in (("x requires", x), ("weights require", weights)):
            if (backward and tensor.requires_grad) or (forward and forward_ad.unpack_dual(tensor).tangent is not None):
                raise RuntimeError(f"{who} a gradient, and a fused LGLD-Net has none: use the network it was made from")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images x [B, in_channels, H, W], float32, values in [0, 1], any strides.

        Raises:
            TypeError: x is no tensor, or x or the weights are not float32.
            ValueError: x has another shape or is not on the CPU.
            RuntimeError: x or the weights require a gradient where gradients are on, or there is not enough memory.
        """
        self._check(x)
        return self._run(x)[0]

    def features(self, x: Tensor) -> Tensor:
        """The pooled fused features [B, base_channels] of x [B, in_channels, H, W]: the head's mean over all pixels, which the
        last layer reads. Raises as `forward`."""
        self._check(x)
        return self._run(x)[1]

    def predict(self, images: Tensor | np.ndarray[Any, Any], *, layout: str | None = None) -> Tensor:
        """Logits [B, num_classes] of uint8 images, 0 to 255; equal to `self(images / 255)` up to rounding.

        Args:
            images: uint8 [B, H, W, in_channels] or [B, in_channels, H, W], tensor or array.
            layout: "NHWC" or "NCHW"; None takes the one whose number of channels fits.

        Raises:
            TypeError: images are no tensor or array, or not uint8, or the weights are not float32.
            ValueError: the shape fits no layout, or both and `layout` does not say which.
        """
        if not isinstance(images, Tensor):
            if not hasattr(images, "__array_interface__"):
                raise TypeError(f"images must be a torch.Tensor or a numpy.ndarray, but are a {type(images).__name__}")
            # torch takes neither read-only memory nor negative strides.
            shares = images.flags.writeable and all(stride >= 0 for stride in images.strides)
            images = torch.as_tensor(images if shares else images.copy())
        x = images
        if x.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, but are {x.dtype}")
        if layout not in (None, "NHWC", "NCHW"):
            raise ValueError(f"layout must be 'NHWC', 'NCHW' or None, but is {layout!r}")
        if x.dim() != 4:
            raise ValueError(f"images must have 4 dimensions, but have shape {list(x.shape)}")
        first, last = x.shape[1] == self.in_channels, x.shape[3] == self.in_channels
        if layout is None and first and last:
            raise ValueError(f"images of shape {list(x.shape)} may be NHWC or NCHW: layout must say which")
        if not (last if layout == "NHWC" else first if layout == "NCHW" else first or last):
            wanted = {"NHWC": f"[B, H, W, {self.in_channels}]", "NCHW": f"[B, {self.in_channels}, H, W]"}
            shapes = wanted[layout] if layout else " or ".join(wanted.values())
            raise ValueError(f"images must have shape {shapes}, but have {list(x.shape)}")
        if layout == "NHWC" or (layout is None and last):
            x = x.permute(0, 3, 1, 2)
        if x.shape[2] < 1 or x.shape[3] < 1:
            raise ValueError(f"images must have at least one row and column, but have shape {list(images.shape)}")
        self._check_state(x)
        return self._run(x)[0]

    def canonical_state_dict(self) -> dict[str, Tensor]:
        """The published network's state dict, as views of this module's weights (`num_batches_tracked` is zero)."""
        return named(self.weights, self.in_channels, self.base_channels, self.num_classes)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        image_size: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Write a file that `lgld_ops.load` reads: safetensors with the published names, sizes, image size and class names.

        Args:
            path: the file; an existing one is replaced.
            image_size: (height, width) to write; the module's own by default.
            classes: class names to write; the module's own by default.

        Raises:
            ValueError: `classes` has another length than the logits, or a size is not positive.
            OSError: the file cannot be written.
        """
        size = self.image_size if image_size is None else checked_image_size(image_size)
        names = self.classes if classes is None else checked_classes(classes, self.num_classes)
        contents = Contents(self.weights, self.in_channels, self.base_channels, self.num_classes, size, names)
        write(Path(path), contents)

    def extra_repr(self) -> str:
        """The network's sizes, as nn.Module prints them."""
        return f"in_channels={self.in_channels}, base_channels={self.base_channels}, num_classes={self.num_classes}"


def fuse(model: nn.Module, *, image_size: Sequence[int] | None = None, classes: Sequence[str] | None = None) -> FusedLGLDNet:
    """An inference module that computes what `model.eval()` does, as one op.

    The parameters are copied: later changes of `model` do not reach the result. BatchNorm is folded, the dilated convolutions
    merged and transformed when it first runs; every step is exact but for rounding. Both then compute the logits of one small
    image, `model` in eval mode where it is; its mode and torch's random state are left as they were, its hooks are called.

    Args:
        model: LGLD-Net: `lgld_ops.reference.LGLDNet`, `lgld_ops.LGLDNet`, or any module whose state dict has the published
            names and shapes; any floating-point dtype, device and mode.
        image_size: (height, width) the network was trained for, to be remembered by `save`.
        classes: class names in the order of the logits, likewise.

    Raises:
        TypeError: `model` is no nn.Module.
        ValueError: `model` has another structure, base_channels is not a multiple of 4, it is on the meta device, or its logits
            of that image are others, by more than 1e-4 of the terms they are sums of (5 % where `model` rounds to fewer than 24
            bits).
        RuntimeError: the package has no compiled library.
    """
    if isinstance(model, FusedLGLDNet):
        return FusedLGLDNet(
            model.weights.detach().clone(),
            model.in_channels,
            model.base_channels,
            model.num_classes,
            image_size=model.image_size if image_size is None else image_size,
            classes=model.classes if classes is None else classes,
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is a {type(model).__name__}")
    # DataParallel, DistributedDataParallel and torch.compile wrap the network.
    while (state := model.state_dict()) and (prefix := next(iter(state)).split(".")[0] + ".") in _WRAPPERS:
        model = model.get_submodule(prefix[:-1])
    sizes = sizes_of(state)
    shapes = parameter_shapes(*sizes)
    check_structure(model, shapes)
    if any(tensor.is_meta for tensor in state.values()):
        raise ValueError("model must have values for its parameters, but is on the meta device")
    eps = [float(getattr(model.get_submodule(name), "eps", 1e-5)) for name in NORMS]
    fast = FusedLGLDNet(flat(state, shapes, eps), *sizes, image_size=image_size, classes=classes)
    _compare(model, fast, state["head.6.weight"])
    return fast


def _compare(model: nn.Module, fast: FusedLGLDNet, last: Tensor) -> None:
    """Names and shapes leave open what `model` computes with its parameters, of which `last` is the last layer's weight."""
    x = torch.rand(1, fast.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs = _eval_logits(model, x.to(last))
    with torch.no_grad():
        ours = fast(x)
        if theirs.shape != ours.shape:
            raise ValueError(f"model must compute logits of shape {list(ours.shape)}, but they have {list(theirs.shape)}")
        difference = float((theirs - ours).abs().max())
        # What the logits are sums of, biases apart: those may outweigh all that depends on the image.
        scale = float((fast.features(x).abs() @ last.to(x).abs().T).max())
    # Where a GPU, or the CPU by this setting, may use fewer bits for float32.
    exact = last.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    tolerance = 1e-4 if exact and last.dtype in (torch.float32, torch.float64) else 0.05
    if difference > tolerance * scale:
        raise ValueError(
            "model must compute what LGLD-Net does with its parameters, but computes something else: the logits of an image "
            f"differ by up to {difference:.2g}, where rounding accounts for {tolerance * scale:.2g}"
        )


def _eval_logits(model: nn.Module, x: Tensor) -> Tensor:
    """On the CPU in float32, with everything as it was before."""
    modes = {module: module.training for module in model.modules()}
    devices = [x.device] if x.device.type == "cuda" else []
    try:
        for module in modes:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices), torch.autocast(x.device.type, enabled=False):
            return model(x).to("cpu", torch.float32)  # type: ignore[no-any-return]
    except Exception as error:
        raise ValueError(
            f"model must turn an image of shape {list(x.shape)} into logits, but fails: {type(error).__name__}: {error}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def load(path: str | os.PathLike[str]) -> FusedLGLDNet:
    """The network in a file that `FusedLGLDNet.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        lgld_ops.checkpoint.CheckpointError: it is truncated, altered, of a newer format or of another kind; a ValueError.
        RuntimeError: the package has no compiled library.
    """
    found = read(Path(path))
    sizes = (found.in_channels, found.base_channels, found.num_classes)
    return FusedLGLDNet(found.weights, *sizes, image_size=found.image_size, classes=found.classes)


@dataclass(frozen=True)
class Stage:
    """One stage of the plan for one image size; what it moves is counted once, in bytes.

    Attributes:
        name: what it computes.
        kernel: how; Winograd's F(outputs, window) for large maps.
        reads, writes: names of buffers; "image" and "results" are the caller's.
        phase: stages of one phase run side by side, after all of the phases before.
        tasks: pieces that threads take one by one.
        multiply_adds, silus: arithmetic for one image.
        bytes_read, bytes_written: maps, image and weights.
    """

    name: str
    kernel: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    phase: int
    tasks: int
    multiply_adds: int
    silus: int
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True)
class Plan:
    """How one image size is computed: the stages, where each buffer begins in the workspace and its size, and the bytes of
    workspace, of each thread's scratch and packed weights."""

    stages: tuple[Stage, ...]
    buffers: dict[str, tuple[int, int]]
    workspace: int
    scratch: int
    packed_weights: int


def plan(network: FusedLGLDNet, height: int, width: int) -> Plan:
    """The plan for images of that size on this machine's instruction set.

    Raises:
        ValueError: a size is not positive, or the image has more than 2^28 pixels.
    """
    if height < 1 or width < 1 or height * width > 2**28:
        raise ValueError(f"height and width must be at least 1 and at most 2^28 pixels together, but are {height} and {width}")
    library = _native.library()
    geometry = (ctypes.c_int64 * 5)(network.in_channels, network.base_channels, network.num_classes, height, width)
    row, names = (ctypes.c_int64 * 11)(), (ctypes.c_char_p * 2)()
    buffers: dict[str, tuple[int, int]] = {}
    while library.lgld_lgldnet_buffer(geometry, ctypes.c_int(len(buffers)), names, row):
        buffers[(names[0] or b"").decode()] = (row[0], row[1])

    def named(bits: int) -> tuple[str, ...]:
        return tuple(name for k, name in enumerate(buffers) if bits >> k & 1)

    stages: list[Stage] = []
    while library.lgld_lgldnet_stage(geometry, ctypes.c_int(len(stages)), names, row):
        name, kernel = ((text or b"").decode() for text in names)
        stages.append(Stage(name, kernel, named(row[0]), named(row[1]), *row[2:8]))
    return Plan(tuple(stages), {name: place for name, place in buffers.items() if place[1]}, *row[8:11])


def stage_times(network: FusedLGLDNet, x: Tensor, rounds: int = 20) -> Tensor:
    """Seconds of each stage of `plan(network, H, W)` for the first image of x, one after the other: [rounds, stages]."""
    network._check(x)
    return torch.ops.lgld_ops.lgldnet_stage_times.default(  # type: ignore[no-any-return]
        x, network.weights, network.base_channels, network.num_classes, rounds
    )


def drop_workspaces() -> None:
    """Give back the memory that fused networks keep between calls: packed weights, plans, workspaces. The next call plans anew.

    At most four networks and eight image sizes of each are kept, and of each size as many workspaces as were in use at once, or
    eight. Where idle ones hold more than 512 MiB together, those of the networks and sizes used longest ago are given back; the
    one used last is kept, however large.
    """
    if _native.loaded():
        _native.library().lgld_lgldnet_clear()


def cached() -> dict[str, int]:
    """What is kept between calls: bytes, networks, plans and idle workspaces; and how many workspaces were made since
    `drop_workspaces`: repeated calls make none."""
    size, counts = ctypes.c_int64(), (ctypes.c_int64 * 4)()
    if _native.loaded():
        _native.library().lgld_lgldnet_cached(ctypes.byref(size), counts)
    return {"bytes": size.value, "networks": counts[0], "plans": counts[1], "workspaces": counts[2], "made": counts[3]}
