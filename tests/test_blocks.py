"""LGLD-Net's blocks as they are arranged for training: what they keep, second gradients, hooks and exchanged parts."""

from __future__ import annotations

import copy

import pytest
import torch
from test_modules import kept_bytes, relative_error
from torch import Tensor, nn

import lgld_ops
from lgld_ops import LGLDNet, blocks, reference


def test_memory_kept_for_a_training_step() -> None:
    published, ours = reference.LGLDNet(), LGLDNet()
    x = torch.rand(2, 3, 224, 224)
    theirs = kept_bytes(lambda: published(x), *published.parameters())
    mine = kept_bytes(lambda: ours(x), *ours.parameters())
    assert theirs > 200e6
    assert mine <= 0.42 * theirs, f"{mine / 1e6:.1f} MB of {theirs / 1e6:.1f} MB"


def stem(kind: type[nn.Module]) -> nn.Module:
    return kind(3, 4, involution_type=lgld_ops.Involution2d)


def head(kind: type[nn.Sequential]) -> nn.Sequential:
    return kind(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


# Ours, the published block, channels of the input.
PAIRS = {
    "IPS": (lambda: stem(blocks.IPS), lambda: stem(reference.IPS), 3),
    "Head": (lambda: head(blocks.Head), lambda: head(nn.Sequential), 4),
    "LFA": (lambda: blocks.LFA(4), lambda: reference.LFA(4), 4),
    "GCE": (lambda: blocks.GCE(16), lambda: reference.GCE(16), 16),
}
Built = tuple[nn.Module, nn.Module, Tensor]


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Built:
    ours, published, channels = PAIRS[request.param]
    torch.manual_seed(0)
    a, b = ours().double(), published().double()
    b.load_state_dict(a.state_dict(), strict=True)
    return a, b, torch.randn(2, channels, 5, 6, dtype=torch.float64)


def gradients(block: nn.Module, x: Tensor, order: int) -> list[Tensor]:
    """Result, gradients of its squares' sum, and with `order` 2 those of the gradients' squares' sum."""
    x = x.clone().requires_grad_()
    operands = [x, *block.parameters()]
    y = block(x)
    found, wanted = [y.detach()], y.square().sum()
    for k in range(order):
        grads = torch.autograd.grad(wanted, operands, create_graph=k + 1 < order)
        found += [g.detach() for g in grads]
        wanted = sum((g.square().sum() for g in grads), torch.zeros((), dtype=x.dtype))
    return found


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_gradients(pair: Built, order: int, training: bool) -> None:
    ours, published, x = pair
    mine, theirs = (gradients(block.train(training), x, order) for block in (ours, published))
    scale = float(torch.stack([g.norm() for g in theirs[1:]]).norm())
    for a, b in zip(mine, theirs, strict=True):
        assert float((a - b).norm()) <= 1e-12 * float(b.norm()) + 1e-13 * scale
    for (name, a), b in zip(ours.named_buffers(), published.buffers(), strict=True):
        assert relative_error(a.double(), b.double()) < 1e-14, name


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
def test_other_batch_norms(momentum: float | None, affine: bool, tracked: bool) -> None:
    ours, published = head(blocks.Head).double(), head(nn.Sequential).double()
    ours[1] = nn.BatchNorm2d(4, 1e-3, momentum, affine, tracked).double()
    published[1] = copy.deepcopy(ours[1])
    published.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    for training in (True, True, False):
        mine, theirs = (gradients(block.train(training), x, 1) for block in (ours, published))
        scale = float(torch.stack([g.norm() for g in theirs]).norm())
        assert all(float((a - b).norm()) <= 1e-13 * scale for a, b in zip(mine, theirs, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), published.buffers(), strict=True))


@pytest.mark.parametrize("pair", ["IPS", "Head"], indirect=True)
def test_hooks_see_the_map_between(pair: Built) -> None:
    """What a hook on BatchNorm was given is not overwritten, and one on SiLU is called with it."""
    ours, _, x = pair
    norms = [m for m in ours.modules() if isinstance(m, nn.BatchNorm2d)]
    activations = [m for m in ours.modules() if isinstance(m, nn.SiLU)][-1:]
    assert norms
    before: list[Tensor] = []
    after: list[Tensor] = []
    for once in (False, True):  # a hook may remove itself while it is called

        def hook(norm: nn.Module, args: tuple[Tensor, ...], out: Tensor, once: bool = once) -> None:
            before.append(args[0])
            after.append(out)
            if once:
                norm._forward_hooks.clear()

        norms[0].register_forward_hook(hook)
        ours.train()(x)
        norms[0]._forward_hooks.clear()
        assert torch.equal(after[-1], norms[0](before[-1]))
    seen: list[Tensor] = []
    activations[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    ours(x)
    assert torch.equal(seen[0], after[-1])
