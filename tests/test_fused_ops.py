"""The fused network's stages as ops: each against the published blocks that it replaces, and together against the network."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_fused import image, network_of
from torch import Tensor

from lgld_ops import _native, fuse, reference

pytestmark = pytest.mark.skipif(not _native.loaded(), reason="there is no compiled library")

OPS = torch.ops.lgld_ops
# Largest error of a result, relative to its largest value: Winograd's single pixels err by more than direct convolutions'.
LIMIT = {"lgldnet_context": 1e-5}


def stages(network: reference.LGLDNet, x: Tensor) -> dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """For each op what it reads and what it must return, by the published blocks in float64."""
    network = copy.deepcopy(network).double()
    x = x.double()
    with torch.no_grad():
        local_map, global_map = network.local_stem(x), network.global_stem(x)
        local, gce = network.lfa(local_map), network.gce
        context = F.silu(gce.compress(torch.cat([gce.dil2(global_map), gce.dil4(global_map), gce.dil8(global_map)], 1)))
        gated = context * gce.se(context)
        assert torch.equal(gated, gce(global_map))
        fused = network.lgfm(local, gated)
        return {
            "lgldnet_local_stem": ((x,), (local_map,)),
            "lgldnet_global_stem": ((x,), (global_map,)),
            "lgldnet_local_features": ((local_map,), (local,)),
            "lgldnet_context": ((global_map,), (context,)),
            "lgldnet_head": ((local, context), (network.head(fused), network.head[:5](fused))),
        }


def call(name: str, inputs: tuple[Tensor, ...], weights: Tensor, network: reference.LGLDNet) -> tuple[Tensor, ...]:
    channels, in_channels = network.local_stem.conv.weight.shape[:2]
    size = channels if name.endswith("stem") else in_channels
    found = getattr(OPS, name)(*inputs, weights, size, network.head[6].out_features)
    return (found,) if isinstance(found, Tensor) else tuple(found)


def assert_stages(network: reference.LGLDNet, x: Tensor) -> None:
    weights = fuse(network).weights
    for name, (inputs, expected) in stages(network, x).items():
        found = call(name, tuple(value.float() for value in inputs), weights, network)
        assert len(found) == len(expected)
        for ours, truth in zip(found, expected, strict=True):
            assert (ours.shape, ours.dtype) == (truth.shape, torch.float32), name
            # Of each image: a dark one must not hide behind a bright one. Logits may cancel; 1e-6 is small beside their terms.
            error = (ours.double() - truth).flatten(1).abs().amax(1)
            assert bool((error < LIMIT.get(name, 2e-6) * truth.flatten(1).abs().amax(1) + 1e-6).all()), name


@pytest.mark.core
@pytest.mark.parametrize(
    ("in_channels", "channels", "classes", "batch", "height", "width"),
    [(3, 64, 4, 2, 64, 48), (3, 64, 4, 1, 45, 131), (1, 4, 2, 1, 1, 1), (2, 20, 3, 3, 7, 90), (4, 72, 5, 1, 34, 3)],
)
def test_each_op_is_its_blocks(in_channels: int, channels: int, classes: int, batch: int, height: int, width: int) -> None:
    assert_stages(network_of(in_channels, channels, classes), image(batch, in_channels, height, width))


@given(st.integers(1, 20), st.integers(1, 3), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**16))
def test_each_op_at_any_size(quarter: int, batch: int, height: int, width: int, seed: int) -> None:
    assert_stages(network_of(3, 4 * quarter, 4, seed), image(batch, 3, height, width, seed=seed))


@pytest.mark.core
def test_together_they_are_the_network() -> None:
    network = network_of(3, 36, 5)
    fast, x = fuse(network), image(3, 3, 41, 66)

    def op(name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        return call(name, inputs, fast.weights, network)

    (local,) = op("lgldnet_local_features", *op("lgldnet_local_stem", x))
    (context,) = op("lgldnet_context", *op("lgldnet_global_stem", x))
    logits, features = op("lgldnet_head", local, context)
    # The maps are the network's own; their means are summed in another order.
    torch.testing.assert_close(logits, fast(x), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(features, fast.features(x), rtol=2e-6, atol=1e-6)


@pytest.mark.core
def test_a_stage_leaves_nothing_behind() -> None:
    """They share workspaces with the network: NaN in a stage's map must not reach the next call."""
    network = network_of(3, 20, 4)
    fast, x = fuse(network), image(1, 3, 22, 30)
    expected = fast(x)
    nan = torch.full((1, 20, 11, 15), float("nan"))
    for name, inputs in {
        "lgldnet_local_features": (nan,),
        "lgldnet_context": (nan,),
        "lgldnet_head": (nan, nan),
        "lgldnet_local_stem": (torch.full_like(x, float("nan")),),
        "lgldnet_global_stem": (torch.full_like(x, float("nan")),),
    }.items():
        assert all(bool(found.isnan().any()) for found in call(name, inputs, fast.weights, network)), name
        assert torch.equal(fast(x), expected), name


def test_bytes_strides_threads_and_no_images() -> None:
    network = network_of(3, 16, 4)
    weights = fuse(network).weights
    data = torch.randint(0, 256, (2, 3, 33, 29), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in ("lgldnet_local_stem", "lgldnet_global_stem"):
        torch.testing.assert_close(call(name, (data,), weights, network), call(name, (data / 255,), weights, network))
    threads = torch.get_num_threads()
    for name, (inputs, _) in stages(network, data.double() / 255).items():
        plain = tuple(value.float() for value in inputs)
        expected = call(name, plain, weights, network)
        strided = tuple(value.to(memory_format=torch.channels_last) for value in plain)
        for count in (1, 3):
            torch.set_num_threads(count)
            try:
                found = call(name, strided, weights, network)
            finally:
                torch.set_num_threads(threads)
            assert all(torch.equal(ours, other) for ours, other in zip(found, expected, strict=True)), name
        empty = call(name, tuple(value[:0] for value in plain), weights, network)
        assert [tuple(value.shape) for value in empty] == [(0, *value.shape[1:]) for value in expected]


def test_opcheck() -> None:
    network = network_of(3, 8, 4)
    weights = fuse(network).weights
    for name, (inputs, _) in stages(network, image(2, 3, 9, 13)).items():
        arguments = (*(value.float() for value in inputs), weights, 8 if name.endswith("stem") else 3, 4)
        tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(getattr(OPS, name), arguments, test_utils=tests)


def test_bad_arguments() -> None:
    weights = fuse(network_of(3, 8, 4)).weights
    x, bare = image(1, 3, 8, 8), image(1, 8, 4, 4)
    for name, arguments, message in [
        ("lgldnet_local_stem", (x[0], weights, 8, 4), "lgldnet_local_stem: x must have 4 dimensions"),
        ("lgldnet_global_stem", (x.double(), weights, 8, 4), "x must be float32, or uint8"),
        ("lgldnet_global_stem", (x, weights, 6, 4), "base_channels must be a multiple of 4"),
        ("lgldnet_local_features", (bare[0], weights, 3, 4), "map must have 4 dimensions"),
        ("lgldnet_local_features", (bare[:, :6], weights, 3, 4), "base_channels must be a multiple of 4 from 4.*, but is 6"),
        ("lgldnet_context", (bare.to(torch.uint8), weights, 3, 4), "map must be float32"),
        ("lgldnet_context", (bare, weights[1:], 3, 4), "parameters must be contiguous with shape"),
        ("lgldnet_context", (bare, weights, 2, 4), "parameters must be contiguous with shape"),
        ("lgldnet_context", (bare, weights, 0, 4), "an image must have"),
        ("lgldnet_context", (bare, weights.double(), 3, 4), "parameters must be float32"),
        ("lgldnet_head", (bare, bare[..., :3], weights, 3, 4), "local and context must have the same shape"),
        ("lgldnet_head", (bare, bare[:0], weights, 3, 4), "local and context must have the same shape"),
        ("lgldnet_head", (bare, bare, weights, 3, 0), "num_classes must be at least 1"),
    ]:
        op = getattr(OPS, name)
        with pytest.raises(RuntimeError, match=message):
            op(*arguments)
        with pytest.raises(RuntimeError, match=message), torch._subclasses.FakeTensorMode() as mode:
            op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
