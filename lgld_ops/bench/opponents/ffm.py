"""Opponents for LGLD-Net's Fourier feature mixer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lgld_ops import reference

from ..cases import FORWARD, TRAINING, MixerCase
from ..equivalence import PARAMETER_GRADIENT
from .registry import Call, Inputs, cxx_compiler, opponent


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
