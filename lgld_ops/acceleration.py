"""`accelerate(model)`: the ops of this package in anybody's model.

A module is recognised by its structure: the children, attributes and shapes that the public implementations have, wherever the
class is defined and whatever it is called. Before it is changed, a copy of it and a changed copy are run side by side.
"""

from __future__ import annotations

import copy
import copyreg
import inspect
import itertools
import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._layer import InvolutionBase, Window, pair
from .compat import christophreich1996, d_li14, holocron, shikishima, timm
from .mixer import FourierFeatureMixer
from .nn import Involution2d

__all__ = ["Left", "Replaced", "Report", "accelerate"]


@dataclass(frozen=True)
class Replaced:
    """A module that computes with this package now."""

    name: str
    """Qualified name in the model, "" for the model itself; names of the same module used again follow after commas."""
    kind: str
    """Module and name of its class before."""
    by: str
    """The class whose computation it has now."""
    error: float
    """Largest relative error of output, gradients and buffers, against the original in float64."""
    error_before: float
    """The same of the original in its own dtype; 0 in float64."""


@dataclass(frozen=True)
class Left:
    """A module that looks like one of those replaced, or hides what is inside it, and was left as it is."""

    name: str
    """Qualified name in the model, "" for the model itself."""
    kind: str
    """Module and name of its class."""
    reason: str
    """Why it was left."""


@dataclass(frozen=True)
class Report:
    """What `accelerate` did; ``str(report)`` is a table."""

    replaced: tuple[Replaced, ...]
    """Modules that were replaced, in the model's order."""
    left: tuple[Left, ...]
    """Modules that were left, in the model's order."""

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} replaced, {len(self.left)} left"]
        for title, rows in (
            (("replaced", "was", "computes as", "error", "error before"), [
                (r.name or "(the model)", r.kind, r.by, f"{r.error:.1e}", f"{r.error_before:.1e}") for r in self.replaced
            ]),
            (("left", "is", "because"), [(r.name or "(the model)", r.kind, r.reason) for r in self.left]),
        ):  # fmt: skip
            if rows:
                table = [title, *rows]
                widths = [max(map(len, column)) for column in zip(*table, strict=True)]
                lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join(lines)


class _Unfit(Exception):
    """Why a module that looks like one of those replaced is left."""


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


# --- recognition ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """How to compute a recognised module."""

    by: type[nn.Module]
    """The class whose `forward` it gets."""
    attributes: dict[str, Any]
    """What that `forward` reads and the module lacks."""
    shapes: tuple[tuple[int, ...], ...]
    """Inputs to try; the module has to accept the first."""
    unit: float = 0.0
    """Relative rounding of constants that the original computes in less than its own dtype."""


def _convolutions(*modules: nn.Module) -> list[nn.Conv2d]:
    return [m for module in modules for m in module.modules() if isinstance(m, nn.Conv2d)]


def _involution(by: type[InvolutionBase], generator: tuple[nn.Module, ...], **geometry: Any) -> _Plan | None:
    """Plan for a layer whose kernels `generator` makes, None where its maps can't be groups x Kh x Kw."""
    kernel_size, stride, dilation = (pair(name, geometry[name], 1) for name in ("kernel_size", "stride", "dilation"))
    padding, groups = pair("padding", geometry["padding"], 0), geometry["groups"]
    convolutions = _convolutions(*generator)
    if convolutions[-1].out_channels != groups * kernel_size[0] * kernel_size[1]:
        return None
    window = Window(convolutions[0].in_channels, kernel_size, stride, padding, dilation, groups)
    # More than 2 x stride windows, so that no map of kernels pooled twice is down to one row; not square. First a size that
    # the stride divides, which all sources need, then one more pixel.
    size = [s * (-(-d * k // s) + 2 * s + 2 * i) for i, (k, d, s) in enumerate(zip(kernel_size, dilation, stride, strict=True))]
    shapes = [(2, window.channels, size[0] + i, size[1] + i) for i in ((0, 1) if max(stride) > 1 else (0,))]
    return _Plan(by, {"_window": window}, tuple(shapes))


def _d_li14(m: Any) -> _Plan | None:
    """d-li14's and timm's, with `unfold` or with a CUDA kernel."""
    unfold = getattr(m, "unfold", None)
    dilation = unfold.dilation if unfold else getattr(m, "dilation", 1)
    (d, _), (k, _) = pair("dilation", dilation, 1), pair("kernel_size", m.kernel_size, 1)
    padding = unfold.padding if unfold else d * (k - 1) // 2
    return _involution(
        timm.Involution if "conv" in m._modules else d_li14.involution,
        (m.conv1, m.conv2),
        kernel_size=m.kernel_size, stride=m.stride, padding=padding, dilation=dilation, groups=m.groups,
    )  # fmt: skip


def _christophreich1996(m: Any) -> _Plan | None:
    """ChristophReich1996's and shikishima-TasakiLab's."""
    return _involution(
        christophreich1996.Involution2d if hasattr(m, "force_shape_match") else shikishima.Involution2d,
        (m.reduce_mapping, m.span_mapping),
        kernel_size=m.kernel_size, stride=m.stride, padding=m.padding, dilation=m.dilation, groups=m.groups,
    )  # fmt: skip


def _holocron(m: Any) -> _Plan | None:
    u = m.unfold
    return _involution(
        holocron.Involution2d,
        (m.reduce, m.span),
        kernel_size=u.kernel_size, stride=u.stride, padding=u.padding, dilation=u.dilation, groups=m.groups,
    )  # fmt: skip


def _lgld_net(m: Any) -> _Plan | None:
    taps = _convolutions(m.shared_mlp)[-1].out_channels
    k = math.isqrt(taps)
    return _involution(
        Involution2d, (m.reduce, m.shared_mlp), kernel_size=k, stride=1, padding=k // 2, dilation=1, groups=1
    )  # fmt: skip


def _fourier_feature_mixer(m: Any) -> _Plan | None:
    channels, stride = m.proj.in_channels - 4, m.proj.stride[0]
    attributes = {"in_channels": channels, "out_channels": m.proj.out_channels, "stride": stride}
    if not hasattr(m, "act"):
        attributes["act"] = nn.SiLU()
    # The published code computes its sines in float32, whatever the dtype of x.
    unit = torch.finfo(torch.float32).eps
    if channels < 1:
        raise ValueError(f"proj must have more than 4 input channels, but has {m.proj.in_channels}")
    return _Plan(FourierFeatureMixer, attributes, ((2, channels, 9, 14),), unit)


_RECOGNISERS: tuple[tuple[frozenset[str], Callable[[Any], _Plan | None]], ...] = (
    # The children and parameters that a module must have, and who looks closer.
    (frozenset({"reduce_mapping", "sigma_mapping", "span_mapping", "initial_mapping"}), _christophreich1996),
    (frozenset({"conv1", "conv2"}), _d_li14),
    (frozenset({"reduce", "span"}), _holocron),
    (frozenset({"reduce", "shared_mlp"}), _lgld_net),
    (frozenset({"proj", "bn", "fourier_weight_real", "fourier_weight_imag"}), _fourier_feature_mixer),
)


# What computes with our ops already.
_OURS = (InvolutionBase, FourierFeatureMixer)


def _recognise(module: nn.Module) -> _Plan | None:
    """How to compute `module`, None where it is something else; _Unfit where it looks like an involution that can't be read."""
    names = {*module._modules, *module._parameters}
    for needed, plan in _RECOGNISERS:
        if needed <= names:
            try:
                if found := plan(module):
                    return found
            except Exception as error:
                # A module that shares but two names with us lacks attributes, or raises what it likes where they are asked
                # for. It may be one of ours where they are there and of another kind.
                pointwise = all(conv.kernel_size == (1, 1) for conv in _convolutions(module))
                if len(needed) > 2 or (isinstance(error, (TypeError, ValueError)) and _convolutions(module) and pointwise):
                    raise _Unfit(f"its attributes can't be read: {_line(error)}") from error
    return None


# --- the change -------------------------------------------------------------------------------------------------------


_subclasses: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def _subclass(theirs: type[nn.Module], by: type[nn.Module]) -> type[nn.Module]:
    """`theirs` in everything but `forward`, which is that of `by`."""
    if (theirs, by) in _subclasses:
        return _subclasses[theirs, by]

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        reduced = super(cls, self).__reduce_ex__(protocol)
        if isinstance(reduced, str) or reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced
        return _new, (theirs, by), *reduced[2:]

    bases = (by,) if issubclass(by, theirs) else (theirs, by)
    members = {
        "forward": by.forward,
        "extra_repr": theirs.extra_repr,  # ours speaks of attributes that theirs need not have
        "__reduce_ex__": __reduce_ex__,
        "__module__": theirs.__module__,
    }
    cls: type[nn.Module] = type(f"Accelerated_{theirs.__name__}", bases, members)
    _subclasses[theirs, by] = cls
    return cls


def _new(theirs: type[nn.Module], by: type[nn.Module]) -> nn.Module:
    """An empty module of `_subclass(theirs, by)`, for pickle."""
    cls = _subclass(theirs, by)
    return cls.__new__(cls)


def _change(plan: _Plan, module: nn.Module) -> None:
    """The object stays, and with it parameters, buffers, children, hooks, mode, and whoever refers to it."""
    for name, value in plan.attributes.items():
        if vars(module).get(name, value) != value:
            raise AttributeError(f"its attribute {name} means something else")
    module.__class__ = _subclass(type(module), plan.by)
    for name, value in plan.attributes.items():
        object.__setattr__(module, name, value)


# --- the comparison ---------------------------------------------------------------------------------------------------


def _copy(module: nn.Module) -> nn.Module:
    """A deep copy without hooks: those see and may hold on to anything."""
    state = [item for m in module.modules() for item in vars(m).items()]
    hooks = [value for name, value in state if "_hooks" in name and isinstance(value, OrderedDict)]
    return copy.deepcopy(module, {id(value): OrderedDict() for value in hooks})


def _randomise(module: nn.Module) -> None:
    """New parameters and statistics: with initial ones, zeros often, everything might agree."""
    # On the CPU, whatever the default device is.
    generator = torch.Generator("cpu").manual_seed(1)

    def filled(t: Tensor) -> Tensor:
        if t.dim() < 2:
            return torch.rand(t.shape, generator=generator, dtype=torch.float64, device="cpu") + 0.5
        return torch.randn(t.shape, generator=generator, dtype=torch.float64, device="cpu") / math.sqrt(t[0].numel())

    for p in module.parameters():
        p.data.copy_(filled(p))
        p.requires_grad_(p.is_floating_point())
    for b in module.buffers():
        if b.is_floating_point():
            b.copy_(filled(b))
    # A factor of 1, too, would hide that it is applied. Floats of the modules inside are those modules' own business.
    for name, value in vars(module).items():
        if isinstance(value, float):
            object.__setattr__(module, name, 0.75 * value + 0.125)


def _step(module: nn.Module, x: Tensor, training: bool) -> dict[str, Tensor]:
    """Output, gradients and buffers of one step."""
    module.train(training)
    x = x.detach().requires_grad_()
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.autocast(x.device.type, enabled=False):
        # torch.manual_seed would reach the generators of all devices, which are not restored.
        torch.default_generator.manual_seed(0)
        for device in devices:
            torch.cuda.default_generators[device.index].manual_seed(0)
        y = module(x)
        if not isinstance(y, Tensor):
            raise TypeError(f"it returns {type(y).__name__}, not a tensor")
        grad = torch.randn(y.shape, generator=torch.Generator("cpu").manual_seed(2), device="cpu").to(y)
        leaves = {"x": x} | dict(module.named_parameters())
        grads = torch.autograd.grad(y, list(leaves.values()), grad, allow_unused=True)
    results = {f"gradient of {name}": g for name, g in zip(leaves, grads, strict=True) if g is not None}
    return {"output": y.detach()} | results | {f"buffer {name}": b for name, b in module.named_buffers()}


def _attributes(module: nn.Module) -> dict[str, tuple[Any, int | None]]:
    """Every attribute of `module` and the modules inside, and how much the containers among them hold."""
    return {
        f"{path}.{name}".lstrip("."): (value, len(value) if isinstance(value, (list, dict, set)) else None)
        for path, m in module.named_modules()
        for name, value in vars(m).items()
        if name != "training"
    }


def _attempt(what: str, module: nn.Module, x: Tensor, training: bool) -> dict[str, Tensor]:
    mode = "train" if training else "eval"
    before = _attributes(module)
    try:
        results = _step(module, x, training)
    except Exception as error:
        raise _Unfit(f"{what} fails in {mode} mode on {list(x.shape)}: {_line(error)}") from error
    changed = []
    for name, (value, size) in _attributes(module).items():
        if name not in before or before[name][0] is not value or before[name][1] != size:
            changed.append(name)
    if changed:
        raise _Unfit(f"{what} stores {', '.join(changed)} in {mode} mode, which would be lost")
    return results


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm()) if a.shape == b.shape else math.inf


def _compare(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], truth: dict[str, Tensor], least_unit: float, where: str
) -> tuple[float, float]:
    """Largest relative errors of ours and theirs; _Unfit where ours are not within four of theirs, plus rounding."""
    if ours.keys() != truth.keys() or theirs.keys() != truth.keys():
        names = ", ".join(sorted({*ours} ^ {*truth} or {*theirs} ^ {*truth}))
        raise _Unfit(f"it differs in {where}: {names} is there only on one side")
    # A gradient in front of a BatchNorm may be nothing but sums that cancel, with the rounding of all of them.
    all_gradients = math.hypot(*(float(t.double().norm()) for name, t in truth.items() if name.startswith("gradient")))
    worst = [0.0, 0.0]
    for name, exact in truth.items():
        size = float(exact.double().norm()) + (all_gradients if name.startswith("gradient") else 0.0)
        errors = [_distance(result[name], exact) for result in (ours, theirs)]
        unit = max(torch.finfo(theirs[name].dtype).eps, least_unit) if theirs[name].is_floating_point() else 0.0
        allowed = 4 * errors[1] + 16 * unit * size
        # Not finite is not equal.
        if not errors[0] <= allowed or theirs[name].dtype != ours[name].dtype:
            raise _Unfit(f"it differs in {where}: error of {name} is {errors[0]:.1e}, allowed {allowed:.1e}, size {size:.1e}")
        worst = [max(w, e / (size or 1.0)) for w, e in zip(worst, errors, strict=True)]
    return worst[0], worst[1]


def _verify(plan: _Plan, module: nn.Module) -> tuple[float, float]:
    """Errors of the changed and the original module, both copies; _Unfit where they differ or can't be run."""
    tensor = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)
    if tensor is None or tensor.is_meta:
        raise _Unfit("it has no values to compare (meta device)")
    try:
        original = _copy(module)
        _randomise(original)
        changed, exact = copy.deepcopy(original), copy.deepcopy(original).double()
        _change(plan, changed)
    except Exception as error:
        raise _Unfit(f"it can't be copied and changed: {_line(error)}") from error
    if isinstance(changed, FourierFeatureMixer) and not changed._is_as_built():
        raise _Unfit("its proj, bn or act is of a kind or configuration that only the modules one by one can compute")
    worst = (0.0, 0.0)
    for i, (shape, training) in enumerate(itertools.product(plan.shapes, (False, True))):
        x = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(3), device="cpu").to(tensor)
        mode = "train" if training else "eval"
        try:
            theirs = _attempt("its own forward", copy.deepcopy(original), x, training)
        except _Unfit:
            if i < 2:  # the first shape, which it has to accept
                raise
            continue  # where the original fails there is nothing to compare
        # The same function in float64, where little hides in rounding; and no less exact in its own dtype.
        truth = _attempt("its own forward in float64", copy.deepcopy(exact), x.double(), training)
        wide = _attempt("the replacement in float64", copy.deepcopy(changed).double(), x.double(), training)
        _compare(wide, truth, truth, plan.unit, f"{mode} mode on {list(shape)} in float64")
        ours = _attempt("the replacement", copy.deepcopy(changed), x, training)
        errors = _compare(ours, theirs, truth, plan.unit, f"{mode} mode on {list(shape)}")
        worst = (max(worst[0], errors[0]), max(worst[1], errors[1]))
    return worst


def _obstacle(module: nn.Module, compiled: set[nn.Module]) -> str | None:
    """Why a recognised module can't be changed whatever it computes."""
    if module in compiled:
        return "it is compiled already: accelerate the model before torch.compile"
    if parametrize.is_parametrized(module):
        return "its own parameters are parametrized"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    taken = list(inspect.signature(module.forward).parameters.values())
    if len(taken) != 1 or taken[0].kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.KEYWORD_ONLY):
        return f"its forward takes {inspect.signature(module.forward)}, not one tensor"
    return None


def _compiled(module: nn.Module) -> bool:
    # Where nothing was compiled, torch._dynamo need not even be imported.
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return module._compiled_call_impl is not None or (dynamo is not None and isinstance(module, dynamo.OptimizedModule))


def _public_name(by: type[nn.Module]) -> str:
    return f"{by.__module__}.{by.__qualname__}".replace("lgld_ops.nn.", "lgld_ops.").replace("lgld_ops.mixer.", "lgld_ops.")


def accelerate(model: nn.Module) -> Report:
    """Make every involution and Fourier feature mixer in `model` compute with this package's ops, in place.

    Recognised by structure, wherever its class is defined and whatever it is called: LGLD-Net's `InvolutionLayer` and
    `FourierFeatureMixer`, and the involutions that `lgld_ops.compat` lists. A recognised module stays the very object it is.
    Only its class becomes a subclass of it and of ours with our `forward`, so that parameters, buffers, children, hooks,
    device, dtype, mode, the optimiser's references, shared modules, methods of its class, and `isinstance` of it stay as they
    are; so can `model` itself be one. Copies and pickles of the model keep the change (pickles need its classes to be
    importable, as before).

    Before that, a copy with random weights and float attributes and a changed copy of that copy are run in eval and in train
    mode, forward and backward, on random input, in float64 and in the model's dtype. It is changed only where output,
    gradients and buffers agree: in float64 to rounding, in its own dtype with at most 4 times the original's error, plus
    rounding. `model`, its random state and gradients are not touched by this.

    Left with a reason: modules that differ (subclasses that compute something else), whose forward stores something in an
    attribute, that can't be run here (CUDA-only originals on the CPU), whose forward takes more than one tensor or was
    replaced on the instance, whose own parameters are parametrized, that are compiled (`torch.compile`) or scripted, and
    mixers whose BatchNorm is of another kind (GroupNorm, SyncBatchNorm). Modules that are ours already are not mentioned.

    Args:
        model: any module, on any device, in a dtype that the ops take; wrapped in DistributedDataParallel or not.

    Returns:
        A `Report` of what was replaced, with the errors measured, and what was left and why. Print it.

    Raises:
        TypeError: `model` is no torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}")
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    compiled = {below for module in names if _compiled(module) for below in module.modules()}
    scripted = {below for module in names if isinstance(module, torch.jit.ScriptModule) for below in module.children()}
    replaced: list[Replaced] = []
    left: list[Left] = []
    for module, called in names.items():
        name, kind = ", ".join(called), f"{type(module).__module__}.{type(module).__qualname__}"
        if isinstance(module, torch.jit.ScriptModule):
            if module not in scripted:
                left.append(Left(name, kind, "it is scripted already: accelerate the model before torch.jit"))
            continue
        if isinstance(module, _OURS):
            continue
        try:
            plan = _recognise(module)
            if plan is None:
                continue
            if reason := _obstacle(module, compiled):
                raise _Unfit(reason)
            with torch.inference_mode(False), torch.enable_grad():
                errors = _verify(plan, module)
        except _Unfit as unfit:
            left.append(Left(name, kind, str(unfit)))
            continue
        _change(plan, module)
        replaced.append(Replaced(name, kind, _public_name(plan.by), *errors))
    return Report(tuple(replaced), tuple(left))
