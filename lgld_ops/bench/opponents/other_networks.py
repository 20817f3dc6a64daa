"""AlexNet and ResNet18 with 1000 classes on the images of a network case: compared with LGLD-Net in time only.

Each runner's logits are compared with the same network's eager run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..cases import FORWARD, NetworkCase
from .classifiers import AlexNet, ResNet18
from .network import network_call
from .registry import Call, Inputs, cxx_compiler, opponent
from .runtimes import ONNX_RUNTIME, OPENVINO, run_onnx_runtime, run_openvino, runs

NETWORKS: dict[str, type[nn.Module]] = {"AlexNet": AlexNet, "ResNet18": ResNet18}

LEAST_SIZES = {"AlexNet": 63}
"""Of an image's sides; of smaller ones its pooling leaves nothing."""

OTHER_ORDER_ERROR = 1e-4
"""Of the largest logit, float32: thousands of products summed in another order are off by some 1e-6 of it, and Winograd
convolutions by ten times that; another layer or weight would be by a tenth and more."""


def other_network(name: str) -> nn.Module:
    """With torch's initial weights under a seed, in eval mode; its logits depend on the image."""
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[name]().eval()


def _eager(name: str) -> Callable[[NetworkCase, Inputs], Call]:
    def build(case: NetworkCase, inputs: Inputs) -> Call:
        net = other_network(name)
        return network_call(net, net, inputs)

    return build


def _frozen(name: str) -> Callable[[NetworkCase, Inputs], Call]:
    def build(case: NetworkCase, inputs: Inputs) -> Call:
        net = other_network(name)
        return network_call(net, torch.compile(net, dynamic=False, options={"freezing": True}), inputs)

    return build


def _too_small(name: str) -> Callable[[NetworkCase], str | None]:
    least = LEAST_SIZES.get(name, 1)
    return lambda case: f"needs images of at least {least} x {least} pixels" if case.size < least else None


def _register(name: str) -> None:
    def add(runner: str, **options: object) -> Callable[[Callable[[NetworkCase, Inputs], Call]], object]:
        judge = {"judged_by": f"{name}, eager", "relative_error": OTHER_ORDER_ERROR, "refuses": _too_small(name)}
        return opponent(f"{name}, {runner}", "network", role="other network", modes=(FORWARD,), **judge, **options)

    add("eager")(_eager(name))
    add("torch.compile + freezing", requires=(cxx_compiler,), compiled=True)(_frozen(name))
    add("ONNX Runtime", requires=ONNX_RUNTIME, limited_by_variables=False)(runs(name, run_onnx_runtime))
    add("OpenVINO f32", requires=OPENVINO)(runs(name, run_openvino))


for _name in NETWORKS:
    _register(_name)
