"""The reference network against the published one's numbers, and the unfold op against its definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lgld_ops import reference
from lgld_ops.reference import InvolutionLayer, LGLDNet, involution2d_unfold

SETS = ("all", "raabin")
DTYPES = (torch.float64, torch.float32)

# Golden numbers are float64 save for FFM's sines, which are float32 and may differ by a unit in the last
# place from one maths library to the next. What holds no sine must agree to float64's rounding.
LIMIT = {torch.float64: 1e-6, torch.float32: 1e-6}
LIMIT_WITHOUT_SINES = {torch.float64: 1e-12, torch.float32: 1e-6}


class Golden:
    """One file of golden numbers: arrays by name, and the published state dict."""

    def __init__(self, path: Path) -> None:
        self.arrays = dict(np.load(path))
        prefix = "state/"
        self.state = {k.removeprefix(prefix): self[k] for k in self.arrays if k.startswith(prefix)}
        self.cases = sorted({k.split("/")[0] for k in self.arrays if k.startswith(("eval", "train"))})

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def network(self, dtype: torch.dtype) -> LGLDNet:
        network = LGLDNet(num_classes=len(self.state["head.6.bias"]))
        network.load_state_dict(self.state, strict=True)
        return network.to(dtype)


@pytest.fixture(scope="module")
def golden(shared_dir: Path) -> Callable[[str], Golden]:
    loaded: dict[str, Golden] = {}

    def load(name: str) -> Golden:
        if name not in loaded:
            loaded[name] = Golden(shared_dir / "golden" / f"{name}.npz")
        return loaded[name]

    return load


def relative_error(ours: Tensor, truth: Tensor) -> float:
    assert ours.shape == truth.shape
    return float((ours.double() - truth.double()).norm() / truth.double().norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SETS)
def test_forward_equals_the_published_network(golden: Callable[[str], Golden], name: str, dtype: torch.dtype) -> None:
    data = golden(f"lgldnet_{name}")
    network = data.network(dtype).eval()
    blocks: dict[str, Tensor] = {}
    for block in ("local_stem", "global_stem", "lfa", "gce", "lgfm"):
        network.get_submodule(block).register_forward_hook(
            lambda _module, _args, out, block=block: blocks.__setitem__(block, out)
        )
    compared = 0
    for case in (case for case in data.cases if case.startswith("eval")):
        with torch.no_grad():
            outputs = {"logits": network(data[f"{case}/x"].to(dtype)), **blocks}
        for key, ours in outputs.items():
            if f"{case}/{key}" in data.arrays:
                limit = (LIMIT_WITHOUT_SINES if key in ("local_stem", "lfa") else LIMIT)[dtype]
                assert ours.dtype == dtype
                assert relative_error(ours, data[f"{case}/{key}"]) < limit, (case, key)
                compared += 1
    assert compared == {"all": 14, "raabin": 1}[name]


def test_photographs_equal_the_published_network(golden: Callable[[str], Golden]) -> None:
    data = golden("lgldnet_all")
    x = data["images/uint8_nhwc"].permute(0, 3, 1, 2).double() / 255
    with torch.no_grad():
        logits = data.network(torch.float64).eval()(x)
    assert relative_error(logits, data["images/logits"]) < LIMIT[torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SETS)
def test_training_step_equals_the_published_network(golden: Callable[[str], Golden], name: str, dtype: torch.dtype) -> None:
    data = golden(f"lgldnet_{name}")
    case = "train_3x3x34x30"
    network = data.network(dtype).train()
    dropout = network.head[5]
    assert isinstance(dropout, nn.Dropout)
    dropout.p = 0.0
    x = data[f"{case}/x"].to(dtype).requires_grad_()
    loss = nn.functional.cross_entropy(network(x), data[f"{case}/labels"])
    loss.backward()
    assert x.grad is not None
    assert relative_error(loss.detach(), data[f"{case}/loss"]) < LIMIT[dtype]
    assert relative_error(x.grad, data[f"{case}/grad_x"]) < LIMIT[dtype]

    truth = {name: data[f"{case}/grad/{name}"] for name, _ in network.named_parameters()}
    # A bias or scale in front of BatchNorm has a gradient of zero but for eps and rounding: a sum of large
    # terms that cancel. Its rounding is that of the terms, so the size of all gradients together enters.
    scale = float(torch.stack([grad.norm() for grad in truth.values()]).norm())
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None
        error = float((parameter.grad.double() - truth[key]).norm())
        assert error < 2 * LIMIT[dtype] * float(truth[key].norm()) + 8 * torch.finfo(dtype).eps * scale, key
    for key, buffer in network.named_buffers():
        assert relative_error(buffer, data[f"{case}/buffer_after/{key}"]) < LIMIT[dtype], key


@pytest.mark.parametrize("index", ["00", "01"])
def test_involution_layer_equals_the_published_one(golden: Callable[[str], Golden], index: str) -> None:
    data = golden("involution_modules")
    state = {key.removeprefix(f"{index}/state/"): data[key] for key in data.arrays if key.startswith(f"{index}/state/")}
    channels, hidden = state["reduce.weight"].shape[1], state["reduce.weight"].shape[0]
    layer = InvolutionLayer(channels, int(len(state["shared_mlp.2.bias"]) ** 0.5), channels // hidden)
    layer.load_state_dict(state, strict=True)
    layer.double()
    x = data[f"{index}/x"].double().requires_grad_()
    y = layer(x)
    y.backward(data[f"{index}/grad_y"].double())
    assert x.grad is not None
    assert relative_error(y.detach(), data[f"{index}/y"]) < 1e-12
    assert relative_error(x.grad, data[f"{index}/grad_x"]) < 1e-12
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert relative_error(parameter.grad, data[f"{index}/grad/{key}"]) < 1e-12


@pytest.mark.parametrize(
    ("num_classes", "parameters", "multiply_adds"), [(4, 152_975, 1_878_792_704), (5, 153_040, 1_878_792_768)]
)
def test_counts(num_classes: int, parameters: int, multiply_adds: int) -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    network = LGLDNet(num_classes=num_classes).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    analysis = fvcore.FlopCountAnalysis(network, torch.rand(1, 3, 224, 224)).unsupported_ops_warnings(False)
    assert analysis.total() == multiply_adds


def test_starts_as_published() -> None:
    torch.manual_seed(0)
    network = LGLDNet(base_channels=512)
    fourier = torch.cat([network.global_stem.fourier_weight_real, network.global_stem.fourier_weight_imag]).detach()
    assert abs(float(fourier.mean())) < 0.2
    assert abs(float(fourier.std()) - 1) < 0.15
    dropouts = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    assert [dropout.p for dropout in dropouts] == [0.5]


def test_global_stem_reads_even_pixels_only() -> None:
    stem = reference.FourierFeatureMixer(3, 8).eval()
    x = torch.rand(1, 3, 7, 10)
    changed = torch.rand_like(x)
    changed[..., ::2, ::2] = x[..., ::2, ::2]
    with torch.no_grad():
        assert torch.equal(stem(x), stem(changed))
        assert not torch.equal(stem(x), stem(torch.rand_like(x)))


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 1, 9), (0, 3, 8, 8), (1, 3, 5, 2)])
def test_any_image_size(shape: tuple[int, ...]) -> None:
    network = LGLDNet(base_channels=8, num_classes=5).eval()
    with torch.no_grad():
        assert network(torch.rand(shape)).shape == (shape[0], 5)
        halved = (shape[0], 8, -(-shape[2] // 2), -(-shape[3] // 2))
        assert network.local_stem(torch.rand(shape)).shape == halved
        assert network.global_stem(torch.rand(shape)).shape == halved


def test_subclass_can_swap_the_involution() -> None:
    class Doubled(InvolutionLayer):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Network(LGLDNet):
        involution_type = Doubled

    ours, published = Network(base_channels=8).eval(), LGLDNet(base_channels=8).eval()
    published.load_state_dict(ours.state_dict(), strict=True)
    x = torch.rand(1, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(
            ours.local_stem.invo(x.repeat(1, 3, 1, 1)[:, :8]),
            2 * published.local_stem.invo(x.repeat(1, 3, 1, 1)[:, :8]),
        )
        assert not torch.equal(ours(x), published(x))


def involution_by_definition(
    x: Tensor,
    weight: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """The sum of the docstring, one product at a time."""
    batch, channels, height, width = x.shape
    _, _, ho, wo = weight.shape
    taps = kernel[0] * kernel[1]
    out = torch.zeros(batch, channels, ho, wo, dtype=torch.float64)
    for b, c, i, j in np.ndindex(batch, channels, ho, wo):
        g = c // (channels // groups)
        for u, v in np.ndindex(*kernel):
            row = i * stride[0] - padding[0] + u * dilation[0]
            column = j * stride[1] - padding[1] + v * dilation[1]
            if 0 <= row < height and 0 <= column < width:
                t = u * kernel[1] + v
                out[b, c, i, j] += weight[b, g * taps + t, i, j] * x[b, c, row, column]
    return out


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "dilation", "groups"),
    [
        ((2, 4, 5, 6), (3, 3), (1, 1), (1, 1), (1, 1), 1),
        ((1, 6, 6, 5), (2, 3), (2, 1), (0, 2), (1, 2), 3),
        ((1, 4, 7, 8), (3, 1), (3, 2), (4, 0), (2, 1), 4),
        ((1, 2, 1, 1), (5, 5), (1, 1), (2, 2), (1, 1), 2),
        ((1, 2, 9, 4), (1, 2), (2, 2), (0, 0), (1, 3), 1),
    ],
)
def test_unfold_equals_the_definition(
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64)
    out_size = [(shape[2 + k] + 2 * padding[k] - dilation[k] * (kernel[k] - 1) - 1) // stride[k] + 1 for k in range(2)]
    weight = torch.randn(shape[0], groups * kernel[0] * kernel[1], *out_size, dtype=torch.float64)
    truth = involution_by_definition(x, weight, kernel, stride, padding, dilation, groups)
    ours = involution2d_unfold(x, weight, kernel, stride, padding, dilation, groups)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-13)
    strided = involution2d_unfold(
        x.to(memory_format=torch.channels_last),
        weight.mT.contiguous().mT,
        kernel,
        stride,
        padding,
        dilation,
        groups,
    )
    torch.testing.assert_close(strided, truth, rtol=0, atol=1e-13)


def test_unfold_of_an_empty_batch() -> None:
    out = involution2d_unfold(torch.rand(0, 4, 5, 5), torch.rand(0, 18, 5, 5), 3, padding=1, groups=2)
    assert out.shape == (0, 4, 5, 5)


def test_unfold_gradients() -> None:
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 12, 2, 3, dtype=torch.float64, requires_grad=True)
    arguments = ((3, 2), (2, 1), (1, 0), (1, 1), 2)
    weight_fits = weight[..., :2]
    assert involution2d_unfold(x, weight_fits, *arguments).shape == (1, 2, 2, 2)
    assert torch.autograd.gradcheck(lambda x, w: involution2d_unfold(x, w[..., :2], *arguments), (x, weight))


X, WEIGHT = torch.rand(1, 4, 5, 5), torch.rand(1, 9, 5, 5)


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"x": X[0]}, ValueError, "x"),
        ({"x": X.int()}, TypeError, "x"),
        ({"x": [1.0]}, TypeError, "x"),
        ({"weight": WEIGHT[0]}, ValueError, "weight"),
        ({"weight": WEIGHT[:, :8]}, ValueError, "weight"),
        ({"weight": WEIGHT[..., :4]}, ValueError, "weight"),
        ({"weight": WEIGHT.long()}, TypeError, "weight"),
        ({"kernel_size": 0}, ValueError, "kernel_size"),
        ({"kernel_size": 9}, ValueError, "kernel_size"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size"),
        ({"kernel_size": 3.0}, TypeError, "kernel_size"),
        ({"stride": (1, 0)}, ValueError, "stride"),
        ({"padding": -1}, ValueError, "padding"),
        ({"dilation": 0}, ValueError, "dilation"),
        ({"dilation": True}, TypeError, "dilation"),
        ({"groups": 3}, ValueError, "groups"),
        ({"groups": 0}, ValueError, "groups"),
        ({"groups": 1.0}, TypeError, "groups"),
    ],
)
def test_unfold_names_the_bad_argument(change: dict[str, Any], error: type[Exception], name: str) -> None:
    good: dict[str, Any] = {"x": X, "weight": WEIGHT, "kernel_size": 3, "padding": 1}
    involution2d_unfold(**good)
    with pytest.raises(error, match=rf"^{name} "):
        involution2d_unfold(**(good | change))


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: InvolutionLayer(8, 4), "kernel_size"),
        (lambda: InvolutionLayer(3), "channels"),
        (lambda: InvolutionLayer(8, reduction=0), "reduction"),
        (lambda: LGLDNet(in_channels=0), "in_channels"),
        (lambda: LGLDNet(base_channels=7), "base_channels"),
        (lambda: LGLDNet(base_channels=2), "base_channels"),
        (lambda: LGLDNet(num_classes=0), "num_classes"),
        (lambda: reference.FourierFeatureMixer(3, 5), "out_channels"),
        (lambda: reference.GCE(3), "channels"),
    ],
)
def test_constructors_name_the_bad_argument(build: Callable[[], nn.Module], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} "):
        build()
