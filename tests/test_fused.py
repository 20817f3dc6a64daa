"""The fused network against the published one: results, every kind of input, and life as a module."""

from __future__ import annotations

import copy
import ctypes
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad

import lgld_ops
from lgld_ops import _native, canonical, fuse, fused, reference
from lgld_ops.checkpoint import load_network

EPS = float(torch.finfo(torch.float32).eps)

pytestmark = pytest.mark.skipif(not _native.loaded(), reason="there is no compiled library")


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Eval mode, with BatchNorms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 2.0),
                (module.bias, -0.5, 0.5),
            ):
                assert tensor is not None
                tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return network.eval()


def network_of(
    in_channels: int = 3, channels: int = 64, classes: int = 4, seed: int = 0, gain: float = 1.0
) -> reference.LGLDNet:
    """With torch's initial weights the maps shrink until biases are most of the logits; with a gain of 2.5 they do not."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = reference.LGLDNet(in_channels, channels, classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.mul_(gain)
    randomised(network, seed)
    return network


def trained() -> reference.LGLDNet:
    """The checkpoint in examples/."""
    path = Path(__file__).resolve().parents[1] / "examples" / "lgldnet_bccd.safetensors"
    network, _ = load_network(path, network=reference.LGLDNet)
    assert isinstance(network, reference.LGLDNet)
    return network


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def error(ours: Tensor, truth: Tensor) -> float:
    """Largest difference of a row of logits, relative to that row's size."""
    assert ours.shape == truth.shape
    return float(((ours.double() - truth).norm(dim=1) / truth.norm(dim=1)).max())


@torch.no_grad()
def assert_as_good_as_eager(network: nn.Module, x: Tensor, ours: Tensor, truth: Tensor | None = None) -> None:
    """Within 2e-6 of float64, and within 4 times eager's own error plus rounding of a few operations."""
    eager = network(x)
    exact = copy.deepcopy(network).double()(x.double()) if truth is None else truth
    assert error(ours, exact) < 2e-6
    assert error(ours, exact) < 4 * error(eager, exact) + 4 * EPS


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("name", ["lgldnet_all", "lgldnet_raabin"])
def test_golden_logits(shared_dir: Path, name: str) -> None:
    data = np.load(shared_dir / "golden" / f"{name}.npz")
    network = reference.LGLDNet(num_classes=len(data["state/head.6.bias"]))
    network.load_state_dict({key[6:]: torch.from_numpy(np.asarray(data[key])) for key in data if key.startswith("state/")})
    fast = fuse(network.eval())
    cases = [key[:-2] for key in data if key.startswith("eval") and key.endswith("/x")]
    assert len(cases) == {"lgldnet_all": 4, "lgldnet_raabin": 1}[name]
    for case in cases:
        x = torch.from_numpy(data[f"{case}/x"])
        assert_as_good_as_eager(network, x, fast(x), torch.from_numpy(data[f"{case}/logits"]))
    if name == "lgldnet_all":
        images = torch.from_numpy(data["images/uint8_nhwc"])
        x = images.permute(0, 3, 1, 2) / 255
        truth = torch.from_numpy(data["images/logits"])
        assert_as_good_as_eager(network, x, fast(x), truth)
        assert_as_good_as_eager(network, x, fast.predict(images), truth)


@pytest.mark.core
def test_trained_weights(shared_dir: Path) -> None:
    network, info = load_network(shared_dir / "golden" / "lgldnet_bccd.safetensors", network=reference.LGLDNet)
    data = np.load(shared_dir / "golden" / "lgldnet_bccd_val.npz")
    fast = fuse(network, image_size=info.image_size, classes=info.classes)
    truth = torch.from_numpy(data["logits"])
    ours = fast.predict(data["uint8_nhwc"])
    assert_as_good_as_eager(network, torch.from_numpy(data["uint8_nhwc"]).permute(0, 3, 1, 2) / 255, ours, truth)
    assert torch.equal(ours.argmax(1), truth.argmax(1))


@pytest.mark.core
@pytest.mark.parametrize(
    ("in_channels", "channels", "classes", "batch", "height", "width", "gain"),
    [
        (3, 64, 4, 1, 224, 224, 1.0),
        (3, 64, 4, 3, 96, 96, 1.0),
        (3, 64, 5, 2, 61, 83, 2.5),
        (1, 4, 1, 1, 1, 1, 1.0),
        (3, 8, 2, 1, 1, 40, 2.5),
        (2, 12, 3, 1, 40, 1, 1.0),
        (4, 132, 7, 1, 20, 33, 2.5),
        (5, 36, 4, 1, 2, 3, 1.0),
        (3, 16, 2, 1, 300, 18, 2.5),
        (3, 64, 4, 2, 1, 1, 2.5),
        (3, 64, 4, 2, 22, 22, 2.5),
        (3, 64, 4, 2, 28, 28, 2.5),
    ],
)
def test_sizes(in_channels: int, channels: int, classes: int, batch: int, height: int, width: int, gain: float) -> None:
    network = network_of(in_channels, channels, classes, gain=gain)
    x = image(batch, in_channels, height, width)
    assert_as_good_as_eager(network, x, fuse(network)(x))


@given(
    st.integers(1, 4), st.integers(1, 12), st.integers(1, 6), st.integers(1, 3), st.integers(1, 70), st.integers(1, 70),
    st.integers(0, 2**16), st.sampled_from([1.0, 2.5]),
)  # fmt: skip
def test_any_size(
    in_channels: int, quarter: int, classes: int, batch: int, height: int, width: int, seed: int, gain: float
) -> None:
    network = network_of(in_channels, 4 * quarter, classes, seed, gain)
    x = image(batch, in_channels, height, width, seed=seed)
    exact = copy.deepcopy(network).double()(x.double()).detach()
    fast = fuse(network)
    # Logits that happen to cancel have no relative accuracy: their terms set the scale.
    scale = (network.head[6].weight.detach().double().abs() @ fast.features(x).double().abs().T).T + 1e-3
    assert float(((fast(x).double() - exact).abs() / scale).max()) < 2e-6


@pytest.mark.core
@pytest.mark.parametrize("gain", [1.0, 2.5])
@pytest.mark.parametrize(("smallest", "largest"), [(1, 4), (5, 16), (17, 40)])
def test_error_of_many_networks(
    smallest: int, largest: int, gain: float, record_property: Callable[[str, object], None]
) -> None:
    """The root mean square of the errors is below twice eager's, with no term for rounding: where one result is worse by more
    than 4 times, eager's happens to be right to less than one rounding."""
    generator = torch.Generator().manual_seed(smallest)
    errors = []
    for seed in range(24):
        height, width = torch.randint(smallest, largest + 1, (2,), generator=generator).tolist()
        network = network_of(3, 4 * (1 + seed % 16), 4, seed, gain)
        x = image(4, 3, height, width, seed=seed)
        exact = copy.deepcopy(network).double()(x.double()).detach()
        results = (fuse(network)(x), network(x).detach())
        errors.append(torch.stack([(y.double() - exact).norm(dim=1) / exact.norm(dim=1) for y in results]))
    ours, eager = torch.cat(errors, dim=1).square().mean(dim=1).sqrt().tolist()
    record_property("ratio", ours / eager)
    assert ours < 2 * eager


@pytest.mark.core
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("weights", ["random", "trained"])
def test_scaled_images(weights: str, scale: float) -> None:
    network = trained() if weights == "trained" else network_of()
    x = scale * image(1, 3, 96, 80)
    ours = fuse(network)(x)
    exact = copy.deepcopy(network).double()(x.double()).detach()
    assert error(ours, exact) < 2e-6
    assert error(ours, exact) < 4 * error(network(x).detach(), exact) + 4 * EPS


@pytest.mark.core
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_spread_as_in_the_reference(value: float) -> None:
    network = network_of(3, 16, 4)
    fast = fuse(network)
    for at in [(0, 0, 0), (1, 20, 31), (2, 39, 46)]:
        x = image(2, 3, 40, 47)
        x[(1, *at)] = value
        with torch.no_grad():
            expected = network(x)
        ours = fast(x)
        assert torch.equal(ours.isnan(), expected.isnan())
        assert ours[1].isnan().all()
        assert not ours[0].isnan().any()
    assert not fast(image(1, 3, 40, 47)).isnan().any()  # nothing stays in the workspace


@pytest.mark.core
def test_features_are_what_the_last_layer_reads() -> None:
    network = network_of(3, 32, 6)
    x = image(2, 3, 50, 37)
    seen: list[Tensor] = []
    network.head[6].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        logits = network(x)
    features = fuse(network).features(x)
    assert features.shape == (2, 32)
    torch.testing.assert_close(features, seen[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(nn.functional.linear(features, network.head[6].weight, network.head[6].bias).detach(), logits)


@pytest.mark.core
def test_predict_takes_bytes_in_both_layouts() -> None:
    network = network_of(3, 16, 4)
    fast = fuse(network)
    images = torch.randint(0, 256, (2, 31, 45, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    x = images.permute(0, 3, 1, 2) / 255
    ours = fast.predict(images)
    assert_as_good_as_eager(network, x, ours)
    assert torch.equal(fast.predict(images.permute(0, 3, 1, 2)), ours)
    assert torch.equal(fast.predict(images.permute(0, 3, 1, 2).contiguous()), ours)
    assert torch.equal(fast.predict(images.numpy()), ours)
    assert torch.equal(fast.predict(images, layout="NHWC"), ours)
    flipped = images.numpy()[:, ::-1]
    flipped.flags.writeable = False
    assert torch.equal(fast.predict(flipped), fast.predict(images.flip(1)))
    square = images[:, :3, :3]
    with pytest.raises(ValueError, match="layout must say which"):
        fast.predict(square)
    assert not torch.equal(fast.predict(square, layout="NHWC"), fast.predict(square, layout="NCHW"))


@pytest.mark.core
def test_any_strides() -> None:
    fast = fuse(network_of(3, 16, 4))
    x = image(2, 3, 21, 34)
    expected = fast(x)
    wide = torch.zeros(2, 3, 21, 68)
    wide[..., ::2] = x
    for view in (
        x.to(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        wide[..., ::2],
        torch.cat([image(1, 3, 21, 34), x])[1:],
    ):
        assert torch.equal(fast(view), expected)
    assert torch.equal(fast(x[:1].expand(3, -1, -1, -1)), expected[:1].expand(3, -1))
    assert fast(x[:0]).shape == (0, 4)
    assert fast.features(x[:0]).shape == (0, 16)


def test_structures_that_are_accepted() -> None:
    x = image(1, 3, 24, 24)
    base = network_of(3, 16, 4)
    expected = fuse(base)(x)

    class Foreign(nn.Module):
        """The published structure without a line of ours."""

        def __init__(self) -> None:
            super().__init__()
            for name, child in base.named_children():
                self.add_module(name, copy.deepcopy(child))

        def forward(self, x: Tensor) -> Tensor:
            fused: Tensor = self.lgfm(self.lfa(self.local_stem(x)), self.gce(self.global_stem(x)))
            logits: Tensor = self.head(fused)
            return logits

    ours = lgld_ops.LGLDNet(3, 16, 4)
    ours.load_state_dict(base.state_dict())
    for model in (Foreign(), ours, ours.train(), base.double(), nn.DataParallel(base), torch.compile(base), fuse(base)):
        assert torch.equal(fuse(model)(x), expected)
    base.float()


@pytest.mark.parametrize("sizes", [(3, 64, 4), (1, 4, 1), (7, 20, 3)])
def test_the_canonical_parameters_are_the_published_state_dict(sizes: tuple[int, int, int]) -> None:
    state = network_of(*sizes).state_dict()
    shapes = canonical.parameter_shapes(*sizes)
    assert list(shapes) == [name for name in state if not name.endswith("num_batches_tracked")]
    assert all(tuple(state[name].shape) == shape for name, shape in shapes.items())
    fast = fuse(network_of(*sizes))
    again = fast.canonical_state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in shapes)
    assert fast.weights.numel() == sum(state[name].numel() for name in shapes) + 3


def test_eps_is_the_models() -> None:
    network = network_of(3, 16, 4)
    network.local_stem.bn.eps, network.global_stem.bn.eps, network.head[1].eps = 0.1, 0.2, 0.3
    x = image(1, 3, 24, 24)
    assert_as_good_as_eager(network, x, fuse(network)(x))


# --- life as a module -------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_results_do_not_depend_on_threads() -> None:
    fast = fuse(network_of())
    x = image(2, 3, 100, 77)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results += [fast(x), fast(x)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(fast(x[1:]), results[0][1:])


def test_several_threads_at_once() -> None:
    networks = [fuse(network_of(3, 16, 4, seed)) for seed in range(6)]  # more than are kept
    inputs = [image(1, 3, 20 + 3 * size, 33, seed=size) for size in range(4)]
    expected = [[network(x) for x in inputs] for network in networks]
    wrong: list[str] = []

    def call(worker: int) -> None:
        for turn in range(30):
            n, i = (worker + turn) % len(networks), (worker * turn) % len(inputs)
            if not torch.equal(networks[n](inputs[i]), expected[n][i]):
                wrong.append(f"thread {worker}, turn {turn}")
            if turn == 15 and worker == 0:
                fused.drop_workspaces()

    workers = [threading.Thread(target=call, args=(worker,)) for worker in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_what_is_kept_is_bounded_and_droppable() -> None:
    fused.drop_workspaces()
    assert fused.cached() == {"bytes": 0, "networks": 0, "plans": 0, "workspaces": 0, "made": 0}
    for seed in range(6):
        fuse(network_of(3, 8, 4, seed))(image(1, 3, 16, 16))
    assert fused.cached()["networks"] == 4
    fast = fuse(network_of(3, 8, 4))
    for size in range(1, 12):
        fast(image(1, 3, size, size))
    held = fused.cached()
    assert (held["networks"], held["plans"]) == (4, 3 + 8)
    assert 0 < held["bytes"] < 2**23
    fast(image(1, 3, 11, 11))
    assert fused.cached() == held
    fused.drop_workspaces()
    assert fused.cached()["bytes"] == 0


def test_weights_changed_in_place_are_noticed() -> None:
    fast = fuse(network_of(3, 16, 4, 0))
    other = fuse(network_of(3, 16, 4, 1))
    x = image(1, 3, 20, 20)
    before = fast(x)
    fast.load_state_dict(other.state_dict())
    assert torch.equal(fast(x), other(x))
    assert not torch.equal(fast(x), before)
    fast.weights[-5] += 1  # the last class's bias stands before the three eps
    assert not torch.equal(fast(x), other(x))


def test_the_model_is_copied() -> None:
    network = network_of(3, 16, 4)
    x = image(1, 3, 20, 20)
    fast = fuse(network)
    before = fast(x)
    with torch.no_grad():
        network.head[6].bias.add_(1)
    assert torch.equal(fast(x), before)


@pytest.mark.core
def test_inference_mode_compile_and_export() -> None:
    fast = fuse(network_of(3, 16, 4))
    x = image(2, 3, 30, 22)
    expected, features = fast(x), fast.features(x)
    with torch.inference_mode():
        assert torch.equal(fast(x), expected)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), expected)
    assert torch.equal(torch.compile(fast.features, fullgraph=True, backend="aot_eager")(x), features)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(fast, (x,), dynamic_shapes={"x": {0: batch}})
    assert torch.equal(program.module()(x), expected)
    assert torch.equal(program.module()(x[:1]), expected[:1])


def test_opcheck() -> None:
    fast = fuse(network_of(3, 8, 4))
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for x in (image(2, 3, 9, 12), torch.zeros(1, 3, 5, 5, dtype=torch.uint8)):
        torch.library.opcheck(torch.ops.lgld_ops.lgldnet, (x, fast.weights, 8, 4), test_utils=tests)


@pytest.mark.core
def test_pickle_and_copy() -> None:
    fast = fuse(network_of(3, 16, 4), image_size=(20, 30), classes=["a", "b", "c", "d"])
    x = image(1, 3, 20, 30)
    fast(x)
    data = pickle.dumps(fast)
    assert len(data) < 4 * fast.weights.numel() + 4096  # nothing packed travels
    for other in (pickle.loads(data), copy.deepcopy(fast)):
        assert torch.equal(other(x), fast(x))
        assert (other.image_size, other.classes, other.training) == ((20, 30), ("a", "b", "c", "d"), False)


def test_a_pickle_runs_on_another_instruction_set(tmp_path: Path, run_python: Callable[..., CompletedProcess[str]]) -> None:
    fast = fuse(network_of(3, 16, 4))
    x = image(1, 3, 24, 40)
    expected = fast(x)
    torch.save({"x": x, "expected": expected}, tmp_path / "io.pt")
    (tmp_path / "fast.pickle").write_bytes(pickle.dumps(fast))
    for variant in [v.name for v in _native.variants() if v.supported]:
        run_python(
            f"import pickle, torch; fast = pickle.load(open({str(tmp_path / 'fast.pickle')!r}, 'rb'))\n"
            f"io = torch.load({str(tmp_path / 'io.pt')!r})\n"
            "torch.testing.assert_close(fast(io['x']), io['expected'], rtol=2e-6, atol=1e-6)",
            LGLD_CPU_VARIANT=variant,
        )


def test_a_forked_worker(run_python: Callable[..., CompletedProcess[str]]) -> None:
    # One thread in the child, as DataLoader workers have it: OpenMP's pool does not survive a fork.
    done = run_python("""
import os, threading, torch, lgld_ops
torch.manual_seed(0)
fast = lgld_ops.fuse(lgld_ops.LGLDNet(3, 16, 4).eval())
x = torch.rand(1, 3, 40, 40)
expected = fast(x)
stop = threading.Event()
def keep_calling():
    while not stop.is_set():
        fast(x)
torch.set_num_threads(1)
busy = threading.Thread(target=keep_calling)
busy.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if torch.equal(fast(x), expected) else 3)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
busy.join()
print("ok")
""")
    assert done.stdout.strip() == "ok"


def test_calls_keep_no_memory_but_their_results() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("the C library does not count its allocations")

    class Info(ctypes.Structure):
        # Of the arena: size, free blocks, ...; bytes in use are number 7, those mapped one by one number 4.
        _fields_ = [(f"field{k}", ctypes.c_size_t) for k in range(10)]

    libc.mallinfo2.restype = Info
    fast = fuse(network_of(3, 16, 4))
    x = image(1, 3, 64, 64)
    results = [fast(x) for _ in range(3)]
    before = libc.mallinfo2()
    results += [fast(x) for _ in range(50)]
    after = libc.mallinfo2()
    # 50 results of 4 logits, with what Python and torch keep for a tensor.
    assert (after.field7 + after.field4) - (before.field7 + before.field4) < 50 * 2048
    assert len(results) == 53


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads until the test is over, which ends without workspaces."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
    fused.drop_workspaces()


def made(fast: fused.FusedLGLDNet, x: Tensor, calls: int = 3) -> int:
    """How many workspaces so many calls make."""
    before = fused.cached()["made"]
    for _ in range(calls):
        fast(x)
    return fused.cached()["made"] - before


def test_repeated_calls_make_no_workspace(threads: Callable[[int], None]) -> None:
    fast = fuse(network_of(3, 8, 4))
    fused.drop_workspaces()  # that of the image which fuse() compares
    x = image(1, 3, 64, 64)
    for count in range(1, 11):  # each needs a workspace larger than all before, and eight are kept
        threads(count)
        fast(x)
        assert made(fast, x, 20) == 0
    assert fused.cached()["workspaces"] == 8


def side_of(fast: fused.FusedLGLDNet, workspace: float) -> int:
    """Of images whose workspace has that many MiB, about."""
    return round(1000 * (workspace * 2**20 / fused.plan(fast, 1000, 1000).workspace) ** 0.5)


def test_the_size_in_use_is_kept_where_others_fill_the_bounds(threads: Callable[[int], None]) -> None:
    threads(2)
    fast = fuse(network_of(1, 4, 1))
    for workspace in (200, 201, 202):  # MiB; 512 are kept
        x = image(1, 1, *2 * [side_of(fast, workspace)])
        fast(x)
        assert made(fast, x) == 0
    assert fused.cached()["workspaces"] == 2


def test_a_size_beyond_the_bounds_is_kept_while_it_is_in_use(threads: Callable[[int], None]) -> None:
    threads(2)
    fast = fuse(network_of(1, 4, 1))
    small, huge = image(1, 1, 8, 8), image(1, 1, *2 * [side_of(fast, 540)])
    fast(small)
    fast(huge)
    assert fused.cached()["bytes"] > 512 * 2**20
    assert made(fast, huge) == 0
    fast(small)
    assert fused.cached()["bytes"] < 2**20


def test_as_many_workspaces_are_kept_as_were_in_use_at_once(threads: Callable[[int], None]) -> None:
    fast = fuse(network_of(3, 8, 4))
    fused.drop_workspaces()
    x = image(1, 3, 300, 300)
    callers = 16
    ready = threading.Barrier(callers)

    def call() -> None:
        for _ in range(5):
            ready.wait()
            fast(x)

    workers = [threading.Thread(target=call) for _ in range(callers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert fused.cached()["made"] <= callers


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_eval_only() -> None:
    fast = fuse(network_of(3, 8, 4))
    assert fast.eval() is fast
    assert not fast.training
    with pytest.raises(RuntimeError, match="inference only"):
        fast.train()
    with pytest.raises(RuntimeError, match="has none"):
        fast(image(1, 3, 8, 8).requires_grad_())
    assert not list(fast.parameters())


def test_no_silent_zero_gradient() -> None:
    fast = fuse(network_of(3, 8, 4))
    x = image(1, 3, 8, 8)
    with pytest.raises(RuntimeError, match="x requires a gradient"):
        torch.func.jvp(fast, (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="x requires a gradient"):
        fast.features(forward_ad.make_dual(x, x))
    with pytest.raises(RuntimeError, match="weights require a gradient"):
        torch.func.jvp(
            lambda w: torch.func.functional_call(fast, {"weights": w}, (x,)), (fast.weights,), (torch.ones_like(fast.weights),)
        )
    expected = fast(x)
    fast.weights.requires_grad_()
    for call in (fast, fast.features, lambda x: fast.predict((255 * x).to(torch.uint8))):
        with pytest.raises(RuntimeError, match="weights require a gradient"):
            call(x)
    with torch.no_grad():
        assert torch.equal(fast(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_stay_float32(dtype: torch.dtype) -> None:
    fast = fuse(network_of(3, 8, 4)).to(dtype)
    x = image(1, 3, 8, 8)
    for argument in (x, x.to(dtype)):
        with pytest.raises(TypeError, match=f"weights must be float32, but are {dtype}"):
            fast(argument)
    with pytest.raises(TypeError, match=f"weights must be float32, but are {dtype}"):
        fast.predict((255 * x).to(torch.uint8))


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (np.zeros((1, 3, 8, 8), np.float32), TypeError, "must be a torch.Tensor, but is a ndarray"),
        (torch.zeros(3, 8, 8), ValueError, r"must have shape \[B, 3, H, W\], but has \[3, 8, 8\]"),
        (torch.zeros(1, 4, 8, 8), ValueError, r"but has \[1, 4, 8, 8\]"),
        (torch.zeros(1, 3, 0, 8), ValueError, "at least one row and column"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), TypeError, "must be float32, but is torch.float64"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, r"predict\(\) takes uint8"),
        (torch.zeros(1, 3, 8, 8, device="meta"), ValueError, "must be on the CPU, but are on meta"),
    ],
)
def test_bad_images(x: Tensor, kind: type[Exception], message: str) -> None:
    fast = fuse(network_of(3, 8, 4))
    with pytest.raises(kind, match=message):
        fast(x)
    with pytest.raises(kind, match=message):
        fast.features(x)


@pytest.mark.parametrize(
    ("images", "layout", "kind", "message"),
    [
        (torch.zeros(1, 8, 8, 3), None, TypeError, "must be uint8, but are torch.float32"),
        ([1, 2], None, TypeError, r"images must be a torch\.Tensor or a numpy\.ndarray, but are a list"),
        ("abc", None, TypeError, "but are a str"),
        (None, None, TypeError, "but are a NoneType"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), None, ValueError, "must have 4 dimensions"),
        (torch.zeros(1, 8, 8, 5, dtype=torch.uint8), None, ValueError, r"\[B, H, W, 3\] or \[B, 3, H, W\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "NHWC", ValueError, r"must have shape \[B, H, W, 3\], but have"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "CHW", ValueError, "layout must be 'NHWC', 'NCHW' or None"),
        (torch.zeros(1, 0, 8, 3, dtype=torch.uint8), None, ValueError, "at least one row and column"),
    ],
)
def test_bad_bytes(images: Tensor, layout: str | None, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        fuse(network_of(3, 8, 4)).predict(images, layout=layout)


def test_bad_models() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, but is a dict"):
        fuse({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"local_stem\.conv\.weight"):
        fuse(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="base_channels must be a multiple of 4 to be fused, but is 10"):
        fuse(reference.LGLDNet(3, 10, 4))
    network = network_of(3, 8, 4)
    network.gce.dil4 = nn.Conv2d(8, 8, 3, padding=3, dilation=3)
    with pytest.raises(ValueError, match=r"gce\.dil4\.padding is \(3, 3\), must be \(4, 4\)"):
        fuse(network)
    network = network_of(3, 8, 4)
    network.lfa.project = nn.Conv2d(16, 8, 1)
    with pytest.raises(ValueError, match=r"unexpected lfa\.project\.bias"):
        fuse(network)
    network = network_of(3, 8, 4)
    network.gce.compress = nn.Conv2d(16, 8, 1)
    with pytest.raises(ValueError, match=r"gce\.compress\.weight is \(8, 16, 1, 1\), must be \(8, 24, 1, 1\)"):
        fuse(network)
    with pytest.raises(ValueError, match="classes must name 4 classes, but names 2"):
        fuse(network_of(3, 8, 4), classes=["a", "b"])
    with pytest.raises(ValueError, match="image_size must be two positive ints"):
        fuse(network_of(3, 8, 4), image_size=(0, 4))


class Altered(reference.LGLDNet):
    """LGLD-Net with something behind the logits."""

    def __init__(self, *sizes: int, behind: Callable[[Tensor], object]) -> None:
        super().__init__(*sizes)
        self.behind = behind

    def forward(self, x: Tensor) -> Any:
        return self.behind(super().forward(x))


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        (lambda y: y.softmax(1), "computes something else: the logits of an image differ by up to"),
        (lambda y: y[:, :2], r"logits of shape \[1, 4\], but they have \[1, 2\]"),
        (lambda y: {"logits": y}, r"into logits, but fails: AttributeError: 'dict'"),
        (lambda y: y @ y, r"image of shape \[1, 3, 16, 16\] into logits, but fails: RuntimeError"),
    ],
)
def test_models_that_compute_something_else(behind: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse(Altered(3, 8, 4, behind=behind))


@pytest.mark.parametrize("name", ["local_stem.act", "lfa.dw5.2", "gce.act", "head.2"])
def test_other_activations_are_noticed(name: str) -> None:
    network = network_of(3, 8, 4)
    network.set_submodule(name, nn.ReLU())
    with pytest.raises(ValueError, match="computes something else"):
        fuse(network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_fused(dtype: torch.dtype) -> None:
    for seed in range(10):
        network = network_of(3, 4 * (1 + seed), 1 + seed % 4, seed).to(dtype)
        x = image(1, 3, 20, 20)
        assert torch.equal(fuse(network)(x), fuse(network.float())(x))


def test_fuse_leaves_the_model_as_it_was() -> None:
    network = network_of(3, 8, 4).train()
    network.gce.eval()
    modes = [module.training for module in network.modules()]
    state = copy.deepcopy(network.state_dict())
    random = torch.get_rng_state()
    fuse(network)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(ValueError, match="but is on the meta device"):
        fuse(network.to("meta"))


def test_bad_arguments_of_the_op() -> None:
    fast = fuse(network_of(3, 8, 4))
    x = image(1, 3, 8, 8)
    op = torch.ops.lgld_ops.lgldnet
    for arguments, message in [
        ((x[0], fast.weights, 8, 4), "x must have 4 dimensions"),
        ((x.double(), fast.weights, 8, 4), "x must be float32, or uint8"),
        ((x, fast.weights[1:], 8, 4), "parameters must be contiguous with shape"),
        ((x, fast.weights.double(), 8, 4), "parameters must be float32"),
        ((x, fast.weights, 6, 4), "base_channels must be a multiple of 4"),
        ((x, fast.weights, 8, 0), "num_classes must be at least 1"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            op(*arguments)
        with pytest.raises(RuntimeError, match=message), torch._subclasses.FakeTensorMode() as mode:
            op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_says_what_runs() -> None:
    fast = fuse(network_of())
    found = fused.plan(fast, 224, 224)
    assert [stage.phase for stage in found.stages] == [0, 0, 1, 2, 2, 3, 4, 5]
    # The published network does 1.88 G; the merged one with F(4, 3) for every dilation 0.70 G.
    assert 0.6e9 < sum(stage.multiply_adds for stage in found.stages) < 0.7e9
    assert 5.7e6 < sum(stage.silus for stage in found.stages) < 5.9e6
    # Some 14 MB and 0.4 MB a thread.
    assert found.workspace + 16 * found.scratch < 24e6
    assert [stage.kernel for stage in found.stages if "dilation" in stage.name] == ["F(4x4, 5x5)", "F(4x4, 3x3)"]
    small = fused.plan(fast, 22, 22).stages
    assert [stage.kernel for stage in small if "dilation" in stage.name] == ["17 taps", "9 taps"]
    # What a stage reads an earlier phase has written; buffers follow one another and end where the workspace does.
    for stage in found.stages:
        known = {name for other in found.stages if other.phase < stage.phase for name in other.writes}
        assert set(stage.reads) <= known | {"image"}, stage.name
    assert {name for stage in found.stages for name in stage.writes} == {*found.buffers, "results"}
    end = 0
    for begin, size in found.buffers.values():
        assert begin >= end
        end = begin + size
    assert end <= found.workspace < end + 64
    times = fused.stage_times(fast, image(1, 3, 224, 224), rounds=2)
    assert times.shape == (2, len(found.stages))
    assert bool((times > 0).all())
    for size in ((0, 5), (2**62, 2**62), (2**15, 2**14)):
        with pytest.raises(ValueError, match="must be at least 1 and at most 2\\^28 pixels together"):
            fused.plan(fast, *size)


def test_memory_of_one_image() -> None:
    """All that is kept for one network and size: workspace, two threads' scratch, packed weights, tables."""
    fast = fuse(network_of())
    fused.drop_workspaces()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fast(image(1, 3, 224, 224))
    finally:
        torch.set_num_threads(threads)
    assert fused.cached()["workspaces"] == 1
    assert 15e6 < fused.cached()["bytes"] < 24e6
