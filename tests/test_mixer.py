"""`lgld_ops.FourierFeatureMixer` and the network's blocks against the published ones: keys, buffers, hooks, corner cases."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_modules import exact_position_maps
from torch import Tensor, nn

import lgld_ops
from lgld_ops import FourierFeatureMixer, blocks, reference


def pair(inputs: int = 3, channels: int = 8, dtype: torch.dtype = torch.float32) -> tuple[FourierFeatureMixer, nn.Module]:
    """Ours and the published block with equal parameters and buffers."""
    torch.manual_seed(1)
    published = reference.FourierFeatureMixer(inputs, channels)
    ours = FourierFeatureMixer(inputs, channels)
    ours.load_state_dict(published.state_dict(), strict=True)
    return ours.to(dtype), published.to(dtype)


def assert_buffers_equal(ours: nn.Module, published: nn.Module) -> None:
    mine, theirs = dict(ours.named_buffers()), dict(published.named_buffers())
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert mine[name].dtype == value.dtype
        torch.testing.assert_close(mine[name], value, rtol=2e-6, atol=1e-6)


def test_state_dict_is_the_published_one() -> None:
    ours, published = pair()
    assert {k: (v.shape, v.dtype) for k, v in ours.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in published.state_dict().items()
    }
    assert sum(p.numel() for p in FourierFeatureMixer().parameters()) == 704
    assert type(ours.bn) is nn.BatchNorm2d


def test_starts_as_the_published_one() -> None:
    torch.manual_seed(5)
    ours = FourierFeatureMixer(3, 16)
    torch.manual_seed(5)
    theirs = reference.FourierFeatureMixer(3, 16)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("name", ["all", "raabin"])
def test_equals_golden_numbers(shared_dir: Path, name: str) -> None:
    compared = 0
    with np.load(shared_dir / "golden" / f"lgldnet_{name}.npz") as data:
        state = {
            k.removeprefix("state/global_stem."): torch.from_numpy(data[k])
            for k in data.files
            if k.startswith("state/global_stem.")
        }
        layer = FourierFeatureMixer(3, 64).double()
        layer.load_state_dict(state, strict=True)
        layer.eval()
        for key in (k for k in data.files if k.endswith("/global_stem")):
            x = torch.from_numpy(data[key.replace("global_stem", "x")])
            truth = torch.from_numpy(data[key])
            for dtype, limit in ((torch.float64, 1e-6), (torch.float32, 1e-6)):
                with torch.no_grad():
                    y = copy.deepcopy(layer).to(dtype)(x.to(dtype)).double()
                assert (y - truth).norm() < limit * truth.norm()
            compared += 1
    assert compared or name == "raabin"


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "published": {},
    "momentum": {"momentum": 0.3},
    "cumulative": {"momentum": None},
    "no_running_statistics": {"track_running_stats": False},
    "not_affine": {"affine": False},
    "eps": {"eps": 0.5},
}


@pytest.mark.core
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_buffers_move_as_batchnorm_moves_them(name: str) -> None:
    ours, published = pair()
    for module in (ours, published):
        torch.manual_seed(2)
        module.bn = nn.BatchNorm2d(8, **CONFIGURATIONS[name])
        if module.bn.affine:
            nn.init.normal_(module.bn.weight)
            nn.init.normal_(module.bn.bias)
    for step in range(6):
        x = torch.rand(1 + step % 3, 3, 6 + step, 7)
        for module in (ours, published):
            # Frozen statistics for a while, in a module that trains.
            module.train()
            module.bn.train(step not in (3, 4))
        torch.testing.assert_close(ours(x), published(x), rtol=2e-5, atol=2e-5)
        assert_buffers_equal(ours, published)
    ours.eval(), published.eval()
    torch.testing.assert_close(ours(x), published(x), rtol=2e-5, atol=2e-5)
    assert_buffers_equal(ours, published)


CHANGES: dict[str, dict[str, Any]] = {
    "affine": {"affine": False},
    "not_counted": {"momentum": None, "num_batches_tracked": None},
    "no_eps": {"eps": 0.0},
    "no_running_mean": {"running_mean": None},
    "no_running_variance": {"running_var": None},
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_batchnorm_changed_after_it_was_built(name: str, training: bool) -> None:
    """The result or the error of BatchNorm2d."""
    modules, found = pair(), []
    x = torch.rand(2, 3, 6, 7)
    for module in modules:
        torch.manual_seed(2)
        nn.init.normal_(module.bn.weight)
        for attribute, value in CHANGES[name].items():
            setattr(module.bn, attribute, value)
        try:
            found.append(module.train(training)(x))
        except (RuntimeError, ValueError) as error:
            found.append(str(error))
    if isinstance(found[1], str):
        assert found[0] == found[1]
    else:
        torch.testing.assert_close(found[0], found[1], rtol=2e-5, atol=2e-5)
    assert_buffers_equal(*modules)


def test_one_value_per_channel() -> None:
    ours, published = pair()
    x = torch.rand(1, 3, 2, 2)
    messages = []
    for module in (ours.train(), published.train()):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel") as caught:
            module(x)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert_buffers_equal(ours, published)
    torch.testing.assert_close(ours.eval()(x), published.eval()(x))


def test_empty_batch_moves_the_counter_alone() -> None:
    ours, published = pair()
    for module in (ours, published):
        assert module(torch.rand(0, 3, 6, 6)).shape == (0, 8, 3, 3)
    assert_buffers_equal(ours, published)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_converted_modules(dtype: torch.dtype) -> None:
    ours, published = pair()
    x = torch.rand(2, 3, 9, 8)
    exact = copy.deepcopy(published).double()(x.to(dtype).double())
    y = ours.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert (y.double() - exact).abs().max() < 60 * torch.finfo(dtype).eps
    assert ours.bn.running_mean is not None
    assert ours.bn.running_mean.dtype == dtype


def test_hooks_and_replaced_parts() -> None:
    x = torch.rand(2, 3, 6, 8)
    ours, published = pair()
    seen: list[str] = []
    ours.proj.register_forward_hook(lambda *_: seen.append("proj"))
    ours.bn.register_forward_pre_hook(lambda *_: seen.append("bn"))
    torch.testing.assert_close(ours(x), published(x))
    assert seen == ["proj", "bn"]
    assert_buffers_equal(ours, published)
    ours, published = pair()
    for module in (ours, published):
        module.act = nn.ReLU()
    torch.testing.assert_close(ours(x), published(x))
    ours.bn = nn.Identity()  # type: ignore[assignment]
    published.bn = nn.Identity()
    torch.testing.assert_close(ours(x), published(x))


@pytest.mark.parametrize(
    ("arguments", "error", "part"),
    [
        ((0, 8), ValueError, "in_channels must be at least 1, but is 0"),
        ((3, 7), ValueError, "out_channels must be even, but is 7"),
        ((3, 8.0), TypeError, "out_channels must be an int, but is 8.0"),
        ((True, 8), TypeError, "in_channels must be an int"),
    ],
)
def test_constructor_refuses(arguments: tuple[Any, ...], error: type[Exception], part: str) -> None:
    with pytest.raises(error, match=part):
        FourierFeatureMixer(*arguments)
    with pytest.raises(ValueError, match="stride must be at least 1"):
        FourierFeatureMixer(3, 8, stride=0)


def test_refuses_other_shapes() -> None:
    for shape in ((3, 8, 8), (1, 4, 8, 8)):
        with pytest.raises(ValueError, match=r"x must have shape \[B, 3, H, W\]"):
            FourierFeatureMixer(3, 8)(torch.rand(shape))


def test_stride_1() -> None:
    ours, published = pair()
    ours = FourierFeatureMixer(3, 8, stride=1)
    ours.load_state_dict(published.state_dict())
    x = torch.rand(2, 3, 6, 7)
    y = ours.eval()(x)
    assert y.shape == (2, 8, 6, 7)
    torch.testing.assert_close(y[..., ::2, ::2], published.eval()(x), rtol=1e-5, atol=1e-6)


def test_compiles_exports_copies_and_pickles() -> None:
    torch._dynamo.reset()
    ours, _ = pair()
    again = copy.deepcopy(ours)
    compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
    x = torch.rand(2, 3, 8, 9)
    y, z = ours(x), compiled(x)
    y.square().sum().backward()
    z.square().sum().backward()
    assert torch.equal(y, z)
    for a, b in zip(ours.parameters(), again.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)
    assert_buffers_equal(ours, again)
    exported = torch.export.export(ours.eval(), (x,)).module()
    assert torch.equal(exported(x), ours(x))
    memory = io.BytesIO()
    torch.save(ours, memory)
    memory.seek(0)
    assert torch.equal(torch.load(memory, weights_only=False)(x), ours(x))
    assert json.loads(json.dumps(ours.extra_repr())) == "3, 8, stride=2"


# --- the blocks behind the stems --------------------------------------------------------------------------------------

BLOCKS = {
    "lfa": (blocks.LFA, reference.LFA, 1),
    "gce": (blocks.GCE, reference.GCE, 1),
    "lgfm": (blocks.LGFM, reference.LGFM, 2),
}


def block_results(block: nn.Module, maps: list[Tensor], grad: Tensor) -> list[Tensor]:
    maps = [m.detach().requires_grad_() for m in maps]
    y = block(*maps)
    return [y.detach(), *torch.autograd.grad(y, [*maps, *block.parameters()], grad)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_equal_the_published_ones(name: str, layout: torch.memory_format) -> None:
    kind, published_kind, inputs = BLOCKS[name]
    torch.manual_seed(4)
    ours, published = kind(8).double(), published_kind(8).double()
    assert ours.load_state_dict(published.state_dict(), strict=True)
    for size in ((2, 8, 9, 7), (1, 8, 1, 1)):
        maps = [torch.randn(size, dtype=torch.float64).contiguous(memory_format=layout) for _ in range(inputs)]
        grad = torch.randn(size, dtype=torch.float64)
        for mine, theirs in zip(block_results(ours, maps, grad), block_results(published, maps, grad), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "part"), [("lfa", "project"), ("lfa", "act"), ("gce", "compress"), ("gce", "dil4"), ("lgfm", "fc.0")]
)
def test_hooks_of_parts_fire(name: str, part: str) -> None:
    kind, _, inputs = BLOCKS[name]
    block = kind(8)
    seen: list[int] = []
    block.get_submodule(part).register_forward_hook(lambda *_: seen.append(1))
    block(*[torch.rand(1, 8, 5, 5) for _ in range(inputs)])
    assert seen == [1]


def test_a_training_step_keeps_less_than_the_published_one() -> None:
    kept = []
    for kind in (reference.LGLDNet, lgld_ops.LGLDNet):
        storages: dict[int, int] = {}
        alive: list[Tensor] = []

        def pack(t: Tensor, storages: dict[int, int] = storages, alive: list[Tensor] = alive) -> Tensor:
            alive.append(t)
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        network = kind()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            network(torch.rand(2, 3, 64, 64))
        kept.append(sum(storages.values()))
    assert kept[1] < 0.6 * kept[0], kept


def test_whole_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gradient and buffer of one step in float64, with dropout off; exact sines in both."""
    monkeypatch.setattr(reference.FourierFeatureMixer, "position_maps", staticmethod(exact_position_maps))
    torch.manual_seed(6)
    theirs, ours = reference.LGLDNet(3, 8).double(), lgld_ops.LGLDNet(3, 8).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(3, 3, 20, 22, dtype=torch.float64)
    for network in (theirs, ours):
        network.head[5].p = 0.0
        network(x).square().sum().backward()
    scale = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-11 * scale, msg=name)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
