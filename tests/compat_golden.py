"""Numbers of published involutions: what goes in, what is kept of what comes out, how they were recorded.

tests/golden/compat.json holds what timm 0.4.12, pylocron 0.2.1 (Holocron) and shikishima-TasakiLab's Involution-PyTorch 0.1.0
computed, once, in float64, from their own files; the tests need none of them. To record again, with torch, ninja, a compiler:

    pip install --no-deps --target FOLDER timm==0.4.12 pylocron==0.2.1
    cp -r include involution src FOLDER  # of a checkout of Involution-PyTorch, at the commits named below
    python tests/compat_golden.py FOLDER

Weights and inputs aren't kept: `inputs` makes them of Python's own generator, whose stream for a seed is fixed by its
documentation, unlike torch's. Of a result all elements are kept where there are few; else some, a norm and a weighted sum.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import random
import re
import sys
import types
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FILE = Path(__file__).parent / "golden" / "compat.json"
ENTRIES = 6

# Where the numbers come from; then arguments and input shape of each case. An argument may name a class of torch.nn.
SOURCES: dict[str, dict[str, Any]] = {
    "timm": {
        "package": "timm",
        "version": "0.4.12",
        "module": "timm.models.layers.involution",
        "class": "Involution",
        "cases": [
            ({"channels": 32}, (2, 32, 7, 5)),
            ({"channels": 24, "kernel_size": 7, "stride": 2, "group_size": 8, "rd_ratio": 3}, (2, 24, 8, 6)),
            ({"channels": 12, "kernel_size": 5, "group_size": 3, "rd_ratio": 2, "act_layer": "SiLU"}, (1, 12, 6, 9)),
            ({"channels": 8, "stride": 2, "group_size": 1, "rd_ratio": 1}, (3, 8, 4, 10)),
        ],
    },
    "holocron": {
        "package": "pylocron",
        "version": "0.2.1",
        "module": "holocron.nn.modules.conv",
        "class": "Involution2d",
        "cases": [
            ({"in_channels": 8, "kernel_size": 3, "padding": 1}, (2, 8, 6, 5)),
            (
                {"in_channels": 12, "kernel_size": 7, "padding": 3, "stride": 2, "groups": 4, "reduction_ratio": 2.5},
                (2, 12, 8, 6),
            ),
            ({"in_channels": 6, "kernel_size": 3, "padding": 2, "groups": 3, "dilation": 2}, (2, 6, 5, 7)),
            (
                {"in_channels": 10, "kernel_size": 5, "padding": 2, "stride": 3, "groups": 5, "reduction_ratio": 4},
                (1, 10, 9, 6),
            ),
            ({"in_channels": 6, "kernel_size": 1}, (2, 6, 5, 7)),
        ],
    },
    "shikishima": {
        "repository": "shikishima-TasakiLab/Involution-PyTorch",
        "version": "0.1.0",
        "module": "involution.involution2d",
        "class": "Involution2d",
        # Which versions of the module and of the CPU's operator.
        "files": {
            "involution/involution2d.py": {
                "commit": "4b036d3831f7b0762fbe676bf48639c057cb65d6",
                "sha256": "16ac727c280ae4b04fab765aca7914fa2d06680907e5c5446a80b2e8e51b1a57",
            },
            "src/involution2d_cpu.cpp": {
                "commit": "221b32b45f8067c17b601e1b11c560d162916068",
                "sha256": "fa7538b771b815f5a8476d0f83375d499ec15d9fb80d50dec1d3592559c52fff",
            },
        },
        # On a CPU its gradient of the operand has each column from the row: wrong, and with it all that comes of it.
        "left_out": ["grad_x", "grad/initial_mapping.weight", "grad/initial_mapping.bias"],
        "cases": [
            (
                {
                    "in_channels": 8,
                    "out_channels": 12,
                    "kernel_size": 3,
                    "padding": 1,
                    "groups": 4,
                    "bias": True,
                    "reduce_ratio": 3,
                },
                (2, 8, 6, 5),
            ),
            (
                {"in_channels": 6, "out_channels": 6, "kernel_size": (3, 5), "stride": 2, "padding": (1, 2), "groups": 3},
                (2, 6, 8, 6),
            ),
            ({"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2}, (1, 4, 5, 7)),
        ],
    },
}


def build(kind: type[nn.Module], args: dict[str, Any]) -> nn.Module:
    return kind(**{name: getattr(nn, value) if isinstance(value, str) else value for name, value in args.items()})


def uniform(name: str, shape: tuple[int, ...] | torch.Size, low: int) -> Tensor:
    """Multiples of 1/1024 from `low` to below `low` + 2: exact in float32, so that it computes with the same numbers."""
    stream = random.Random(name)
    values = [low + math.floor(2048 * stream.random()) / 1024 for _ in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float64).view(tuple(shape))


def inputs(
    case: str, args: dict[str, Any], module: nn.Module, shape: tuple[int, ...]
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """State, x and the output's gradient: functions of the case's name, the state's names and shapes, and nothing else."""
    state = {}
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            state[name] = torch.zeros_like(value)
        elif "running_var" in name or "bn.weight" in name:
            # Positive, and away from 0, where float32's rounding would count.
            state[name] = 0.5 * uniform(f"{case} {name}", value.shape, 1)
        else:
            state[name] = uniform(f"{case} {name}", value.shape, -1)
    if "conv.weight" in state:
        state["conv.weight"] = state["conv2.weight"]  # one convolution of timm's under two names
    stride = args.get("stride", 1)
    x = uniform(f"{case} x", shape, -1)
    size = (shape[0], args.get("out_channels", shape[1]), shape[2] // stride, shape[3] // stride)
    grad_y = uniform(f"{case} grad_y", size, -1)
    return state, x, grad_y


def results(module: nn.Module, x: Tensor, grad_y: Tensor) -> dict[str, Tensor]:
    """Output, all gradients and, of a module that trains, the buffers afterwards."""
    x = x.detach().clone().requires_grad_()
    module.zero_grad()
    y = module(x)
    y.backward(grad_y)
    assert x.grad is not None
    found = {"y": y.detach(), "grad_x": x.grad}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        found[f"grad/{name}"] = parameter.grad.clone()
    if module.training:
        found |= {f"buffer_after/{name}": buffer.clone() for name, buffer in module.named_buffers()}
    return found


def summary(value: Tensor) -> dict[str, Any]:
    """Some elements, spread over the tensor; the norm; and a sum with weights within -1 and 1, which tells places apart."""
    flat = value.detach().double().flatten()
    places = torch.arange(flat.numel())
    weights = (places * 37 % 101 - 50).double() / 50
    # The step is a prime that divides none of the sizes: no place comes twice.
    chosen = flat[places[:ENTRIES] * 7919 % flat.numel()]
    return {"norm": float(flat.norm()), "sum": float((weights * flat).sum()), "entries": chosen.tolist()}


def difference(value: Tensor, expected: dict[str, Any]) -> float:
    """The largest difference of `value`'s summary from the recorded one."""
    found = summary(value)
    assert len(found["entries"]) == len(expected["entries"])
    away = [a - b for a, b in zip(found["entries"], expected["entries"], strict=True)]
    away += [found["norm"] - expected["norm"], (found["sum"] - expected["sum"]) / math.sqrt(value.numel())]
    # torch's maximum, unlike Python's, hands a NaN on.
    return float(torch.tensor(away, dtype=torch.float64).abs().max())


def published(folder: Path, source: dict[str, Any]) -> type[nn.Module]:
    """The class out of its own file; the packages above it stay empty: as wholes they need torchvision."""
    if "package" in source:
        versions = {found.metadata["Name"].lower(): found.version for found in distributions(path=[str(folder)])}
        assert versions.get(source["package"]) == source["version"], versions
    for name, file in source.get("files", {}).items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == file["sha256"], name
    parents = source["module"].split(".")[:-1]
    for depth in range(1, len(parents) + 1):
        name = ".".join(parents[:depth])
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(folder.joinpath(*parents[:depth]))]
    module = importlib.import_module(source["module"])
    assert module.__file__ is not None
    assert folder in Path(module.__file__).parents
    return getattr(module, source["class"])


def define_involution2d(folder: Path) -> torch.library.Library:
    """`torch.ops.involution.involution2d` out of the source's C++ for the CPU; the source's own build asks for CUDA."""
    from torch.utils.cpp_extension import load_inline  # slow to import, and the tests don't need it

    native = load_inline(
        "involution2d_cpu",
        [(folder / "src" / "involution2d_cpu.cpp").read_text()],
        functions=["involution::cpu::involution2d_forward", "involution::cpu::involution2d_backward"],
        extra_include_paths=[str(folder / "include")],
    )
    forward, backward = (getattr(native, f"involution::cpu::involution2d_{way}") for way in ("forward", "backward"))

    class Involution(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, kernel: Tensor, *geometry: Any) -> Tensor:
            ctx.save_for_backward(x, kernel)
            ctx.geometry = geometry
            return forward(x, kernel, *geometry)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            x, kernel = ctx.saved_tensors
            return (*backward(grad, kernel, x, *ctx.geometry), *[None] * len(ctx.geometry))

    library = torch.library.Library("involution", "DEF")
    library.define(
        "involution2d(Tensor x, Tensor kernel, int[] size, int[] stride, int[] pad, int[] dilation, int groups) -> Tensor"
    )
    library.impl("involution2d", lambda *operands: Involution.apply(*operands), "CompositeImplicitAutograd")
    return library


def record(folder: Path) -> dict[str, Any]:
    library = define_involution2d(folder)
    recorded: dict[str, Any] = {}
    for source, description in SOURCES.items():
        kind = published(folder, description)
        cases = []
        for index, (args, shape) in enumerate(description["cases"]):
            module = build(kind, args).double()
            state, x, grad_y = inputs(f"{source} {index}", args, module, shape)
            module.load_state_dict(state, strict=True)
            case = {"args": args, "x_shape": shape, "state": {name: list(value.shape) for name, value in state.items()}}
            # Training last: it changes the statistics.
            for mode in ("eval", "train"):
                found = results(module.train(mode == "train"), x, grad_y)
                left_out = description.get("left_out", ())
                case[mode] = {name: summary(value) for name, value in found.items() if name not in left_out}
            if case["eval"] == case["train"]:
                del case["train"]
            cases.append(case)
        recorded[source] = description | {"cases": cases}
    del library  # its operator is gone with it
    return recorded


def as_text(recorded: dict[str, Any]) -> str:
    """JSON with one recorded tensor a line."""
    text = json.dumps(recorded, indent=1)
    for innermost in (r"\[[^\[\]{}]*\]", r'\{\s*"norm"[^{}]*\}'):
        text = re.sub(innermost, lambda found: " ".join(found.group().split()), text)
    return text + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER, where the sources are")
    FILE.write_text(as_text(record(Path(sys.argv[1]).resolve())))
