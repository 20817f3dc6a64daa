"""Each stage of the fused network, in every compiled instruction set, against the published blocks that it replaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_fused import image, network_of, trained
from torch import Tensor

from lgld_ops import fuse, reference

_testing = pytest.importorskip("lgld_ops._testing", reason="the test module is built by editable installs only")

VARIANTS = [name for name, runs in _testing.variants() if runs]
Maps = dict[str, npt.NDArray[np.float32]]

# Largest error of a map relative to its largest value. Direct convolutions err by a few 1e-7; Winograd's sums of larger terms,
# F(4x4, 5x5) above all, by up to ten times that in single pixels.
LIMIT = {"wide_context": 2e-5, "context": 1e-5}


def maps_of(variant: str, network: reference.LGLDNet, x: Tensor, order: int = 0) -> Maps:
    fast = fuse(network)
    return _testing.lgldnet(  # type: ignore[no-any-return]
        variant, x.numpy(), fast.weights.numpy(), network.gce.dil2.out_channels, network.head[6].out_features, order
    )


@torch.no_grad()
def truth_of(network: reference.LGLDNet, x: Tensor) -> dict[str, Tensor]:
    """The same maps by the published blocks in float64."""
    network = network.double()
    x = x.double()[None]
    truth = {"local_stem": network.local_stem(x), "global_stem": network.global_stem(x)}
    truth["local_features"] = network.lfa(truth["local_stem"])
    g, gce = truth["global_stem"], network.gce
    dilated = [gce.dil2(g), gce.dil4(g), gce.dil8(g)]
    p = F.silu(gce.compress(torch.cat(dilated, 1)))
    truth["context"] = p
    # compress without dilation 2 and without biases
    bare = [F.conv2d(g, conv.weight, None, 1, conv.padding, conv.dilation) for conv in (gce.dil4, gce.dil8)]
    c = g.shape[1]
    truth["wide_context"] = F.conv2d(torch.cat(bare, 1), gce.compress.weight[:, c:])
    weights = network.lgfm.fc(torch.cat([truth["local_features"], p * gce.se(p)], 1))
    truth["local_factor"] = weights[:, :1].expand(1, c)
    truth["context_factor"] = weights[:, 1:] * gce.se(p)[:, :, 0, 0]
    fused = network.lgfm(truth["local_features"], gce(g))
    truth["features"] = network.head[:5](fused)
    truth["logits"] = network.head(fused)
    network.float()
    return {name: value[0] for name, value in truth.items()}


def assert_stages(variant: str, network: reference.LGLDNet, x: Tensor) -> None:
    ours, truth = maps_of(variant, network, x), truth_of(network, x)
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        found = torch.from_numpy(ours[name]).double()
        assert found.shape == expected.shape, name
        assert float((found - expected).abs().max()) < LIMIT.get(name, 2e-6) * float(expected.abs().max()) + 1e-12, name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("in_channels", "channels", "classes", "height", "width"),
    [(3, 64, 4, 64, 48), (3, 64, 4, 45, 131), (1, 4, 2, 1, 1), (2, 20, 3, 7, 90), (4, 72, 5, 34, 3), (3, 132, 4, 19, 23)],
)
def test_each_stage(variant: str, in_channels: int, channels: int, classes: int, height: int, width: int) -> None:
    assert_stages(variant, network_of(in_channels, channels, classes), image(in_channels, height, width))


@given(st.sampled_from(VARIANTS), st.integers(1, 20), st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**16))
def test_each_stage_of_any_size(variant: str, quarter: int, height: int, width: int, seed: int) -> None:
    assert_stages(variant, network_of(3, 4 * quarter, 4, seed), image(3, height, width, seed=seed))


@pytest.mark.parametrize("variant", VARIANTS)
def test_tasks_run_in_any_order(variant: str) -> None:
    network, x = network_of(3, 32, 4), image(3, 75, 140)
    first = maps_of(variant, network, x)
    for order in (1, 2, 3):
        for name, found in maps_of(variant, network, x, order).items():
            assert np.array_equal(found, first[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes(variant: str) -> None:
    network = network_of(3, 16, 4)
    data = torch.randint(0, 256, (3, 33, 29), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours, truth = maps_of(variant, network, data), truth_of(network, data.double() / 255)
    for name in ("local_stem", "global_stem"):
        found = torch.from_numpy(ours[name]).double()
        assert float((found - truth[name]).abs().max()) < 2e-6 * float(truth[name].abs().max()), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("weights", ["random", "trained"])
def test_winograds_error(variant: str, weights: str, scale: float, record_property: Any) -> None:
    """Norm of the context map's error, beside that of the same convolutions done directly in float32."""
    network, x = trained() if weights == "trained" else network_of(), scale * image(3, 96, 96)
    truth = truth_of(network, x)["context"]
    ours = torch.from_numpy(maps_of(variant, network, x)["context"]).double()
    with torch.no_grad():
        g = network.global_stem(x[None])
        gce = network.gce
        direct = F.silu(gce.compress(torch.cat([gce.dil2(g), gce.dil4(g), gce.dil8(g)], 1)))[0].double()
    error, least = (float((map_ - truth).norm() / truth.norm()) for map_ in (ours, direct))
    record_property("winograd", error)
    record_property("direct", least)
    assert error < 3e-6
    assert least < 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_silu(variant: str) -> None:
    """Every 4099th float and the special values; the bounds are those that kernels/cpu/lgldnet/activation.h states."""
    bits = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32)
    dense = np.linspace(-20, 20, 200_001, dtype=np.float32)
    x = np.concatenate([bits.view(np.float32), dense, np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 87, -87, 3e38, -3e38])])
    y = _testing.lgldnet_silu(variant, x).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
    # As torch: -inf / inf.
    assert bool(F.silu(torch.tensor(-np.inf)).isnan())
    assert np.array_equal(np.isnan(y), np.isnan(x) | (x == -np.inf))
    assert y[x == np.inf] == np.inf
    assert not y[(x < -89) & np.isfinite(x)].any()
    finite = np.isfinite(x)
    size = np.abs(x[finite], dtype=np.float64)
    difference = np.abs(y[finite] - exact[finite])
    assert (difference <= 1.2e-7 * np.maximum(1, size)).all()
    seen = np.abs(exact[finite]) > 2e-36
    slope = 7e-8 if variant in ("scalar", "sse2") else 1.4e-8  # without and with a fused multiply-add
    assert (difference[seen] <= (2.5e-7 + slope * size[seen]) * np.abs(exact[finite][seen])).all()
    assert (np.abs(y[finite][~seen]) < 2.1e-36).all()
    assert np.array_equal(y[-9:-7], [0, 0])
