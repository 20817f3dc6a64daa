"""LGLD-Net's published parameters as one tensor: their names, shapes and order, and whether a module has that structure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

NORMS = ("local_stem.bn", "global_stem.bn", "head.1")  # in the order of their eps


def parameter_shapes(in_channels: int, base_channels: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    """The published state dict's names and shapes in its order, `num_batches_tracked` left out: the order of the op's
    `parameters` and of `lgldnet_parameters` in kernels/cpu/lgldnet."""
    c, d = base_channels, base_channels // 4
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    def norm(name: str) -> None:
        for key in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{key}"] = (c,)

    add("local_stem.conv", c, in_channels, 3, 3)
    add("local_stem.invo.reduce", d, c, 1, 1)
    add("local_stem.invo.shared_mlp.0", d, d, 1, 1)
    add("local_stem.invo.shared_mlp.2", 9, d, 1, 1)
    norm("local_stem.bn")
    shapes["global_stem.fourier_weight_real"] = shapes["global_stem.fourier_weight_imag"] = (c // 2,)
    add("global_stem.proj", c, in_channels + 4, 1, 1)
    norm("global_stem.bn")
    for k in (3, 5):
        add(f"lfa.dw{k}.0", c, 1, k, k)
        add(f"lfa.dw{k}.1", c, c, 1, 1)
    add("lfa.project", c, 2 * c, 1, 1, bias=False)
    for k in (2, 4, 8):
        add(f"gce.dil{k}", c, c, 3, 3)
    add("gce.compress", c, 3 * c, 1, 1)
    add("gce.se.1", d, c, 1, 1)
    add("gce.se.3", c, d, 1, 1)
    add("lgfm.fc.2", 2, 2 * c)
    add("head.0", c, c, 1, 1)
    norm("head.1")
    add("head.6", num_classes, c)
    return shapes


# (stride, padding, dilation) of the convolutions that are not (1, 0, 1), and which are depthwise.
_GEOMETRY = {
    "local_stem.conv": (2, 1, 1), "global_stem.proj": (2, 0, 1), "lfa.dw3.0": (1, 1, 1), "lfa.dw5.0": (1, 2, 1),
    "gce.dil2": (1, 2, 2), "gce.dil4": (1, 4, 4), "gce.dil8": (1, 8, 8),
}  # fmt: skip
_DEPTHWISE = ("lfa.dw3.0", "lfa.dw5.0")


def _listed(items: Sequence[str], limit: int = 6) -> str:
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def sizes_of(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """(in_channels, base_channels, num_classes) after checking every name, shape and dtype."""
    stem, last = state.get("local_stem.conv.weight"), state.get("head.6.weight")
    if stem is None or last is None or stem.dim() != 4 or last.dim() != 2:
        raise ValueError(
            "model must have LGLD-Net's published structure, with local_stem.conv.weight [C, in_channels, 3, 3] and "
            f"head.6.weight [num_classes, C]; it has {_listed(list(state)) or 'no parameters'}"
        )
    base, channels, classes = stem.shape[0], stem.shape[1], last.shape[0]
    if base % 4 or base < 4:
        raise ValueError(f"base_channels must be a multiple of 4 to be fused, but is {base}")
    shapes = parameter_shapes(channels, base, classes)
    complaints = []
    if missing := [key for key in shapes if key not in state]:
        complaints.append(f"missing {_listed(missing)}")
    if unexpected := [key for key in state if key not in shapes and not key.endswith("num_batches_tracked")]:
        complaints.append(f"unexpected {_listed(unexpected)}")
    if wrong := [
        f"{key} is {tuple(state[key].shape)}, must be {shape}"
        for key, shape in shapes.items()
        if key in state and tuple(state[key].shape) != shape
    ]:
        complaints.append(_listed(wrong))
    if integers := [key for key in shapes if key in state and not state[key].is_floating_point()]:
        complaints.append(f"not floating point: {_listed(integers)}")
    if complaints:
        raise ValueError(f"model must have LGLD-Net's published structure: {'; '.join(complaints)}")
    return channels, base, classes


def check_structure(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Equal names and shapes leave stride, padding and dilation open."""
    for key, shape in shapes.items():
        if len(shape) != 4:
            continue
        name = key.removesuffix(".weight")
        stride, padding, dilation = _GEOMETRY.get(name, (1, 0, 1))
        groups = shape[0] if name in _DEPTHWISE else 1
        wanted = {"stride": stride, "padding": padding, "dilation": dilation}
        attributes = {key: (value, value) for key, value in wanted.items()} | {"groups": groups, "padding_mode": "zeros"}
        conv = model.get_submodule(name)
        for attribute, must in attributes.items():
            found = getattr(conv, attribute, must)
            if found != must:
                raise ValueError(
                    f"model must have LGLD-Net's published structure: {name}.{attribute} is {found}, must be {must}"
                )


def flat(state: Mapping[str, Tensor], names: Iterable[str], eps: Sequence[float]) -> Tensor:
    """The tensors called `names`, one after the other, and the three eps, in float32."""
    pieces = [state[name].detach().to("cpu", torch.float32).reshape(-1) for name in names]
    return torch.cat([*pieces, torch.tensor(eps, dtype=torch.float32)])


def named(weights: Tensor, in_channels: int, base_channels: int, num_classes: int) -> dict[str, Tensor]:
    """The published state dict, as views of what `flat` made (`num_batches_tracked` is zero)."""
    state, at = {}, 0
    for name, shape in parameter_shapes(in_channels, base_channels, num_classes).items():
        count = math.prod(shape)
        state[name] = weights[at : at + count].view(shape)
        at += count
    return state | {f"{name}.num_batches_tracked": torch.zeros((), dtype=torch.int64) for name in NORMS}


def set_eps(model: nn.Module, eps: Sequence[float]) -> None:
    """Give the BatchNorms of a network with the published structure these eps."""
    for name, value in zip(NORMS, eps, strict=True):
        norm = model.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        norm.eps = value
