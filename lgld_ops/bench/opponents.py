"""Who computes: a registry with one function per opponent.

An opponent is a function ``(case, inputs) -> call``. It is run once per case, in the opponent's own process,
with the thread count set; ``call`` computes once from start to end and returns its named results, which are
judged before anything is timed. In forward mode everything runs under ``torch.inference_mode()``. To add one,
write the function and decorate it::

    @opponent("ONNX Runtime", "network", modes=(FORWARD,), requires=(module("onnxruntime"),))
    def onnx_runtime(case, inputs): ...

Names and order here are the names and order in the tables.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgld_ops import reference

from .cases import FORWARD, TRAINING, Case, InvolutionCase, MixerCase, Mode, NetworkCase
from .equivalence import FACTOR, PARAMETER_GRADIENT

Inputs: TypeAlias = dict[str, Tensor]
Call: TypeAlias = Callable[[], Mapping[str, Any]]
Build: TypeAlias = Callable[[Any, Inputs], Call]
Requirement: TypeAlias = Callable[[], str | None]
Involution: TypeAlias = Callable[..., Tensor]
Role: TypeAlias = Literal["reference", "opponent", "ours", "ours too", "judge", "floor"]

BOTH: tuple[Mode, ...] = (FORWARD, TRAINING)


@dataclass(frozen=True)
class Opponent:
    """An entry of the registry.

    ``role``: "reference" is eager float32, whose error is the yardstick; "ours" is what ratios are formed
    with; "ours too" is another way to run it; the "judge" computes in float64 and is not timed; a "floor" is
    timed, but computes nothing."""

    name: str
    subject: str
    build: Build
    role: Role = "opponent"
    modes: tuple[Mode, ...] = BOTH
    requires: tuple[Requirement, ...] = ()
    """Each says what is missing on this machine, or None."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set before the process starts, e.g. ``{"ONEDNN_MAX_CPU_ISA": "AVX2"}``; excludes sharing the
    process."""
    process: str = ""
    """Opponents that name the same process share it; by default each has its own."""
    compiled: bool = False
    """Whether building takes a compiler and many seconds."""
    error_factor: float = FACTOR
    """How many times the eager error its results may be off. More than ``FACTOR`` needs a reason beside
    it."""
    eager_autograd: bool = False
    """Whether a saved-tensors hook sees what autograd keeps."""
    takes: Callable[[Any], bool] = lambda case: True
    """Whether it has anything to say to a case."""

    def __post_init__(self) -> None:
        if self.process and self.environment:
            raise ValueError(f"process must be empty where environment is not, got {self.process!r}")
        if not self.process:
            object.__setattr__(self, "process", f"{self.subject}: {self.name}")


REGISTRY: dict[tuple[str, str], Opponent] = {}


def opponent(name: str, subject: str, **options: Any) -> Callable[[Build], Build]:
    """Registers a function as an opponent; ``options`` are the fields of ``Opponent``."""

    def register(build: Build) -> Build:
        if (subject, name) in REGISTRY:
            raise ValueError(f"name must be new among the opponents for {subject}, got {name!r} again")
        REGISTRY[subject, name] = Opponent(name, subject, build, **options)
        return build

    return register


def opponents_for(case: Case) -> list[Opponent]:
    """Those registered for the case's subject and mode that take it, in the order of registration."""
    found = [entry for entry in REGISTRY.values() if entry.subject == case.subject and case.mode in entry.modes]
    return [entry for entry in found if entry.takes(case)]


def module(name: str) -> Requirement:
    """Requires an importable module."""
    return lambda: None if importlib.util.find_spec(name) else f"needs the Python package {name}"


def cxx_compiler() -> str | None:
    """torch.compile needs a C++ compiler on a CPU."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        found = shutil.which(get_cpp_compiler())
    except Exception as error:  # torch raises a type of its own, which moved between versions
        return f"torch.compile finds no C++ compiler ({type(error).__name__})"
    return None if found else "torch.compile needs a C++ compiler; install g++"


# The involution op.


def operands(case: InvolutionCase, inputs: Inputs) -> Inputs:
    """Copies of the inputs in the dtype and memory format of the case; float64 ones stay float64, rounded alike."""
    dtype = getattr(torch, case.dtype)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format

    def laid_out(t: Tensor) -> Tensor:
        rounded = t.to(dtype)
        return (rounded.double() if t.dtype == torch.float64 else rounded).contiguous(memory_format=layout)

    return {name: laid_out(t) for name, t in inputs.items()}


def involution_call(function: Involution, case: InvolutionCase, inputs: Inputs) -> Call:
    """One call of ``function(x, weight, case)``, with both gradients where the case asks for them."""
    inputs = operands(case, inputs)
    x, weight = inputs["x"], inputs["weight"]
    if case.mode == FORWARD:
        return lambda: {"output": function(x, weight, case)}
    x.requires_grad_()
    weight.requires_grad_()
    grad_output = inputs["grad_output"]

    def step() -> Mapping[str, Tensor]:
        output = function(x, weight, case)
        grad_x, grad_weight = torch.autograd.grad(output, (x, weight), grad_output)
        return {"output": output, "grad_x": grad_x, "grad_weight": grad_weight}

    return step


def _unfold(x: Tensor, weight: Tensor, case: InvolutionCase) -> Tensor:
    return reference.involution2d_unfold(
        x, weight, case.kernel_size, stride=case.stride, padding=case.padding, groups=case.groups
    )


def _padded(x: Tensor, case: InvolutionCase) -> Tensor:
    return F.pad(x, (case.padding,) * 4) if case.padding else x


def _taps(padded: Tensor, weight: Tensor, case: InvolutionCase) -> list[tuple[Tensor, Tensor]]:
    """Views of the padded input shifted by each tap, with that tap's weights: both broadcast to [B, G, C/G,
    Ho, Wo]."""
    channels = padded.shape[1]
    rows, columns, k, s = weight.shape[2], weight.shape[3], case.kernel_size, case.stride
    grouped = padded.unflatten(1, (case.groups, channels // case.groups))
    weights = weight.unflatten(1, (case.groups, 1, k, k))
    last_row, last_column = s * (rows - 1) + 1, s * (columns - 1) + 1
    return [
        (grouped[..., i : i + last_row : s, j : j + last_column : s], weights[:, :, :, i, j])
        for i in range(k)
        for j in range(k)
    ]


@opponent("float64", "involution", role="judge", process="judge and floors")
def involution_float64(case: InvolutionCase, inputs: Inputs) -> Call:
    """The unfold function in float64, image by image to bound its memory."""

    def call() -> Mapping[str, Tensor]:
        results: list[Mapping[str, Tensor]] = []
        for image in range(case.batch):
            one = {name: value[image : image + 1].double() for name, value in inputs.items()}
            results.append(involution_call(_unfold, case, one)())
        return {name: torch.cat([result[name].detach() for result in results]) for name in results[0]}

    return call


@opponent("unfold, eager", "involution", role="reference", eager_autograd=True)
def unfold_eager(case: InvolutionCase, inputs: Inputs) -> Call:
    return involution_call(_unfold, case, inputs)


@opponent("unfold, torch.compile", "involution", requires=(cxx_compiler,), compiled=True)
def unfold_compiled(case: InvolutionCase, inputs: Inputs) -> Call:
    return involution_call(torch.compile(_unfold, dynamic=False), case, inputs)


@opponent("shifted multiply-add, eager", "involution", eager_autograd=True, takes=lambda case: case.dtype == "float32")
def shifted_eager(case: InvolutionCase, inputs: Inputs) -> Call:
    """One in-place multiply-add per tap over shifted views: the best that eager operators can do. In 16 bit it rounds after
    each of 49 taps and is over 4 times less exact than unfold, so it does not take part."""

    def function(x: Tensor, weight: Tensor, case: InvolutionCase) -> Tensor:
        taps = _taps(_padded(x, case), weight, case)
        output = taps[0][0] * taps[0][1]
        for pixels, weights in taps[1:]:
            output.addcmul_(pixels, weights)
        return output.flatten(1, 2)

    return involution_call(function, case, inputs)


@opponent("shifted multiply-add, torch.compile", "involution", requires=(cxx_compiler,), compiled=True)
def shifted_compiled(case: InvolutionCase, inputs: Inputs) -> Call:
    """One fused loop over all taps.

    The padding stays outside: inside, the compiler turns it into a masked load for each tap, which took 2.5
    times as long with K 3. And the limit on reads per fused loop is lifted, else the sum is cut into several
    passes."""

    def body(padded: Tensor, weight: Tensor, case: InvolutionCase) -> Tensor:
        output: Tensor | None = None
        for pixels, weights in _taps(padded, weight, case):
            term = pixels * weights
            output = term if output is None else output + term
        assert output is not None
        return output.flatten(1, 2)

    fused = torch.compile(body, dynamic=False, options={"realize_acc_reads_threshold": 1_000_000})
    return involution_call(lambda x, weight, case: fused(_padded(x, case), weight, case), case, inputs)


@opponent("lgld_ops", "involution", role="ours", eager_autograd=True)
def involution_ours(case: InvolutionCase, inputs: Inputs) -> Call:
    from lgld_ops import involution2d

    k, s, p, groups = case.kernel_size, case.stride, case.padding, case.groups
    return involution_call(lambda x, weight, case: involution2d(x, weight, k, stride=s, padding=p, groups=groups), case, inputs)


@opponent("lgld_ops, float32 contiguous", "involution", role="ours too", takes=lambda case: not case.plain)
def involution_ours_plain(case: InvolutionCase, inputs: Inputs) -> Call:
    """The same values in float32 and contiguous: what another dtype or memory format costs or saves."""
    rounded = {name: t.to(getattr(torch, case.dtype)).float() for name, t in inputs.items()}
    return involution_ours(replace(case, dtype="float32", channels_last=False), rounded)


@opponent("copy x", "involution", role="floor", modes=(FORWARD,), process="judge and floors")
def copy_x(case: InvolutionCase, inputs: Inputs) -> Call:
    x = operands(case, inputs)["x"]
    x_copy = torch.empty_like(x)
    return lambda: {"x": x_copy.copy_(x)}


@opponent("copy x and weight", "involution", role="floor", process="judge and floors")
def copy_x_and_weight(case: InvolutionCase, inputs: Inputs) -> Call:
    laid_out = operands(case, inputs)
    x, weight = laid_out["x"], laid_out["weight"]
    x_copy, weight_copy = torch.empty_like(x), torch.empty_like(weight)
    return lambda: {"x": x_copy.copy_(x), "weight": weight_copy.copy_(weight)}


# The Fourier feature mixer.


def mixer(kind: Callable[..., nn.Module], case: MixerCase) -> nn.Module:
    """``kind(3, 64)`` in the case's mode, with the weights that every opponent has and statistics that are not trivial."""
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = reference.FourierFeatureMixer(3, 64)
        weights.bn.weight.uniform_(0.5, 1.5)
        weights.bn.bias.normal_()
        assert weights.bn.running_mean is not None
        assert weights.bn.running_var is not None
        weights.bn.running_mean.normal_(0.0, 0.1)
        weights.bn.running_var.uniform_(0.5, 1.5)
        layer = kind(3, 64)
        layer.load_state_dict(weights.state_dict())
    return layer.train(case.mode == TRAINING)


def mixer_call(layer: nn.Module, run: Callable[[Tensor], Tensor], inputs: Inputs) -> Call:
    """One call of ``run``, which is ``layer`` or a compiled form of it; in train mode with every parameter's gradient."""
    x = inputs["x"]
    if not layer.training:
        return lambda: {"output": run(x)}
    grad_output = inputs["grad_output"]
    names = [PARAMETER_GRADIENT + name for name, _ in layer.named_parameters()]
    parameters = list(layer.parameters())

    def step() -> Mapping[str, Tensor]:
        output = run(x)
        return {"output": output, **dict(zip(names, torch.autograd.grad(output, parameters, grad_output), strict=True))}

    return step


def plain_mixer(layer: nn.Module, x: Tensor) -> Tensor:
    from lgld_ops.ops import plain_ffm

    bn = layer.bn
    assert isinstance(bn, nn.BatchNorm2d)
    p = dict(layer.named_parameters())
    statistics = (bn.running_mean, bn.running_var, layer.training, bn.eps)
    parameters = (p["fourier_weight_real"], p["fourier_weight_imag"], p["bn.weight"], p["bn.bias"])
    return plain_ffm.fourier_feature_mixer(x, p["proj.weight"], p["proj.bias"], *parameters, *statistics)[0]


@opponent("float64", "ffm", role="judge", process="judge and floors")
def mixer_float64(case: MixerCase, inputs: Inputs) -> Call:
    """Plain torch with exact sines; the published code computes its sines in float32 whatever the dtype."""
    layer = mixer(reference.FourierFeatureMixer, case).double()
    return mixer_call(layer, lambda x: plain_mixer(layer, x), {name: value.double() for name, value in inputs.items()})


@opponent("reference, eager", "ffm", role="reference", eager_autograd=True)
def mixer_eager(case: MixerCase, inputs: Inputs) -> Call:
    layer = mixer(reference.FourierFeatureMixer, case)
    return mixer_call(layer, layer, inputs)


# Forward alone, like the compiled one, which chooses channels_last, too: in torch 2.13 on the CPU the weight's gradient of a
# channels_last 1x1 convolution with stride 2 and 7 channels writes outside its memory and ends the process or spoils results.
@opponent("reference, eager channels_last", "ffm", modes=(FORWARD,))
def mixer_channels_last(case: MixerCase, inputs: Inputs) -> Call:
    layout = torch.channels_last
    layer = mixer(reference.FourierFeatureMixer, case).to(memory_format=layout)  # type: ignore[call-overload]
    return mixer_call(layer, layer, {name: value.contiguous(memory_format=layout) for name, value in inputs.items()})


@opponent("reference, torch.compile", "ffm", modes=(FORWARD,), requires=(cxx_compiler,), compiled=True)
def mixer_compiled(case: MixerCase, inputs: Inputs) -> Call:
    layer = mixer(reference.FourierFeatureMixer, case)
    return mixer_call(layer, torch.compile(layer, dynamic=False), inputs)


@opponent("plain torch without maps of positions", "ffm", eager_autograd=True)
def mixer_plain(case: MixerCase, inputs: Inputs) -> Call:
    """The same algebra in torch: a 3 -> C product plus a row term plus a column term."""
    layer = mixer(reference.FourierFeatureMixer, case)
    return mixer_call(layer, lambda x: plain_mixer(layer, x), inputs)


@opponent("lgld_ops", "ffm", role="ours", eager_autograd=True)
def mixer_ours(case: MixerCase, inputs: Inputs) -> Call:
    from lgld_ops import FourierFeatureMixer

    layer = mixer(FourierFeatureMixer, case)
    return mixer_call(layer, layer, inputs)


# The network.

INDUCTOR_ERROR_FACTOR = 32.0
"""The compiled networks' logits, the reference's and ours alike, are over ten times less exact than eager's, so
4 times would forbid every comparison with torch.compile. Measured by block, the excess is in the head (torch 2.13):
SiLU and mean of a channels-last map alone are off by 2.3e-6, eager by 1.6e-7. A running float32 sum over 12,544
pixels would explain it; the generated code was not read."""


def network(kind: Callable[..., nn.Module], case: NetworkCase) -> nn.Module:
    """``kind(num_classes=...)`` with the weights that every opponent has, BatchNorm statistics that are not
    trivial, in the mode of the case, and dropout off."""
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = reference.LGLDNet(num_classes=case.num_classes)
        for part in weights.modules():
            if isinstance(part, nn.Conv2d):
                # With torch's initial weights the maps shrink until only biases reach the logits.
                part.weight.mul_(2.5)
            elif isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.normal_(0.0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
        net = kind(num_classes=case.num_classes)
        net.load_state_dict(weights.state_dict())
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return net.train(case.mode == TRAINING)


def network_call(net: nn.Module, run: Callable[[Tensor], Tensor], inputs: Inputs) -> Call:
    """One call of ``run``, which is ``net`` or a compiled form of it; in train mode with every parameter's
    gradient."""
    x = inputs["x"]
    if not net.training:
        return lambda: {"logits": run(x)}
    labels = inputs["labels"]
    names = [PARAMETER_GRADIENT + name for name, _ in net.named_parameters()]
    parameters = list(net.parameters())

    def step() -> Mapping[str, Tensor]:
        logits = run(x)
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels), parameters)
        return {"logits": logits, **dict(zip(names, gradients, strict=True))}

    return step


@opponent("float64", "network", role="judge", process="judge and floors")
def network_float64(case: NetworkCase, inputs: Inputs) -> Call:
    net = network(reference.LGLDNet, case).double()
    return network_call(net, net, {**inputs, "x": inputs["x"].double()})


@opponent("reference, eager", "network", role="reference", eager_autograd=True)
def reference_eager(case: NetworkCase, inputs: Inputs) -> Call:
    net = network(reference.LGLDNet, case)
    return network_call(net, net, inputs)


@opponent("reference, eager channels_last", "network", eager_autograd=True)
def reference_channels_last(case: NetworkCase, inputs: Inputs) -> Call:
    layout = torch.channels_last
    net = network(reference.LGLDNet, case).to(memory_format=layout)  # type: ignore[call-overload]
    return network_call(net, net, {**inputs, "x": inputs["x"].contiguous(memory_format=layout)})


@opponent(
    "reference, torch.compile",
    "network",
    requires=(cxx_compiler,),
    compiled=True,
    error_factor=INDUCTOR_ERROR_FACTOR,
)
def reference_compiled(case: NetworkCase, inputs: Inputs) -> Call:
    net = network(reference.LGLDNet, case)
    return network_call(net, torch.compile(net, dynamic=False), inputs)


@opponent(
    "reference, torch.compile + freezing",
    "network",
    modes=(FORWARD,),
    requires=(cxx_compiler,),
    compiled=True,
    error_factor=INDUCTOR_ERROR_FACTOR,
)
def reference_frozen(case: NetworkCase, inputs: Inputs) -> Call:
    net = network(reference.LGLDNet, case)
    return network_call(net, torch.compile(net, dynamic=False, options={"freezing": True}), inputs)


@opponent("lgld_ops, eager", "network", role="ours", eager_autograd=True)
def network_ours(case: NetworkCase, inputs: Inputs) -> Call:
    from lgld_ops import LGLDNet

    net = network(LGLDNet, case)
    return network_call(net, net, inputs)


@opponent(
    "lgld_ops, torch.compile",
    "network",
    role="ours too",
    requires=(cxx_compiler,),
    compiled=True,
    error_factor=INDUCTOR_ERROR_FACTOR,
)
def network_ours_compiled(case: NetworkCase, inputs: Inputs) -> Call:
    from lgld_ops import LGLDNet

    net = network(LGLDNet, case)
    return network_call(net, torch.compile(net, dynamic=False), inputs)
