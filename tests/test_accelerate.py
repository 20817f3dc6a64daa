"""`lgld_ops.accelerate`: what it replaces, what it keeps, what it leaves and why."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import unfolded
from hypothesis import given
from hypothesis import strategies as st
from test_compat import agree, step
from test_modules import kept_bytes
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.testing._internal.distributed.fake_pg import FakeStore

import lgld_ops
from lgld_ops import Report, accelerate, compat, reference

LAYERS: dict[str, tuple[Callable[[], nn.Module], type[nn.Module], str]] = {
    "lgld_net": (lambda: reference.InvolutionLayer(16, 5, 2), lgld_ops.Involution2d, "lgld_ops.Involution2d"),
    "d_li14": (lambda: unfolded.DLi14(16, 7, 1), compat.d_li14.involution, "lgld_ops.compat.d_li14.involution"),
    "d_li14 stride": (lambda: unfolded.DLi14(16, 3, 2, 2), compat.d_li14.involution, "lgld_ops.compat.d_li14.involution"),
    "timm": (lambda: unfolded.Timm(16, 3, 2, 4), compat.timm.Involution, "lgld_ops.compat.timm.Involution"),
    "christophreich1996": (
        lambda: unfolded.ChristophReich1996(16, 24, None, (3, 5), 2, 4, 2, 1, (1, 2), True),
        compat.christophreich1996.Involution2d,
        "lgld_ops.compat.christophreich1996.Involution2d",
    ),
    "force_shape_match": (
        lambda: unfolded.ChristophReich1996(16, 16, kernel_size=3, force_shape_match=True),
        compat.christophreich1996.Involution2d,
        "lgld_ops.compat.christophreich1996.Involution2d",
    ),
    "shikishima": (
        lambda: unfolded.Shikishima(16, 16),
        compat.shikishima.Involution2d,
        "lgld_ops.compat.shikishima.Involution2d",
    ),
    "holocron": (
        lambda: unfolded.Holocron(16, 3, 2, 1, 4, 2, 4),
        compat.holocron.Involution2d,
        "lgld_ops.compat.holocron.Involution2d",
    ),
}


def built(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    return make().to(dtype)


def state_of(module: nn.Module) -> dict[str, Any]:
    """Everything of a module that has to survive, by identity where identity counts."""
    kept: dict[str, Any] = {}
    for name, m in module.named_modules():
        kept[f"{name} module"] = id(m)
        kept[f"{name} training"] = m.training
        for kind in ("_parameters", "_buffers", "_modules"):
            kept[f"{name} {kind}"] = [(key, id(value)) for key, value in getattr(m, kind).items()]
        for key, value in vars(m).items():
            if "_hooks" in key:
                kept[f"{name} {key}"] = (id(value), list(value.items()))
    return kept


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_replaced_and_computes_the_same(name: str, dtype: torch.dtype) -> None:
    make, by, by_name = LAYERS[name]
    original = built(make, dtype)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), copy.deepcopy(original)).to(dtype)
    report = accelerate(model)
    assert report.left == ()
    (entry,) = report.replaced
    assert (entry.name, entry.kind, entry.by) == ("1", f"{type(original).__module__}.{type(original).__qualname__}", by_name)
    assert entry.error <= 4 * entry.error_before + 1e-14 if dtype == torch.float64 else entry.error < 1e-6
    assert isinstance(model[1], by)
    assert isinstance(model[1], type(original))
    assert type(model[1]).forward is by.forward
    x = torch.randn(2, 16, 8, 12, dtype=dtype)
    for training in (False, True):
        model.train(training)
        original.train(training)
        agree(step(model[1], x), step(original, x), 1e-11 if dtype == torch.float64 else 1e-5)
    # The second call finds nothing to do, and says so.
    assert accelerate(model) == Report((), ())
    assert str(accelerate(model)) == "0 replaced, 0 left"


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_of_the_model_changes_but_the_computation(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 1), built(LAYERS[name][0]).eval(), nn.BatchNorm2d(16)).double()
    layer = model[1]
    next(layer.parameters()).requires_grad_(False)
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    layer.register_forward_hook(lambda *_: None)
    layer.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    layer.register_full_backward_hook(lambda *_: None)
    layer.register_state_dict_post_hook(lambda *_: None)
    layer.register_load_state_dict_post_hook(lambda *_: None)
    list(layer.modules())[-1].register_forward_hook(lambda *_: None)
    before, values = state_of(model), copy.deepcopy(model.state_dict())
    attributes = dict(vars(layer))
    random = torch.get_rng_state()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert len(accelerate(model).replaced) == 1
    assert torch.equal(random, torch.get_rng_state())
    assert state_of(model) == before
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    assert list(model.state_dict()) == list(values)
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in layer.parameters())
    assert not next(layer.parameters()).requires_grad
    assert {key: vars(layer)[key] for key in attributes} == attributes
    assert {id(p) for p in model.parameters()} == {id(p) for p in optimizer.param_groups[0]["params"]}


def test_hooks_fire_and_change_results() -> None:
    """Of the layer itself and of the modules in its generator, in a model and its accelerated twin."""
    for name in LAYERS:
        models = [built(LAYERS[name][0]) for _ in range(2)]
        calls: list[list[str]] = [[], []]
        for model, called in zip(models, calls, strict=True):
            for path, module in model.named_modules():
                if isinstance(module, nn.Unfold):
                    continue
                module.register_forward_pre_hook(lambda _m, _a, path=path, called=called: called.append(f"pre {path}"))
                module.register_forward_hook(lambda _m, _a, out, path=path, called=called: called.append(path) or 1.25 * out)
            model.register_full_backward_hook(lambda _m, _i, _o, called=called: called.append("backward"))
            model.register_full_backward_pre_hook(lambda _m, _o, called=called: called.append("backward pre"))
        assert len(accelerate(models[1]).replaced) == 1
        assert calls[1] == []  # not even the comparison calls them
        x = torch.randn(2, 16, 8, 12, dtype=torch.float64)
        agree(step(models[1], x), step(models[0], x))
        assert sorted(calls[0]) == sorted(calls[1])


def test_hooks_with_large_or_uncopyable_owners_are_not_copied() -> None:
    class Owner:
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("copied")

        def hook(self, *_: Any) -> None:
            pass

    layer = built(LAYERS["d_li14"][0])
    layer.register_forward_hook(Owner().hook)
    layer.conv1.bn.register_state_dict_pre_hook(Owner().hook)
    assert len(accelerate(layer).replaced) == 1


def test_the_model_itself() -> None:
    layer = built(LAYERS["timm"][0])
    report = accelerate(layer)
    assert report.replaced[0].name == ""
    assert "(the model)" in str(report)
    assert isinstance(layer, compat.timm.Involution)


def test_shared_modules_and_parameters() -> None:
    first, second = built(LAYERS["d_li14"][0]), built(LAYERS["d_li14"][0])
    second.conv1.conv.weight = first.conv1.conv.weight
    model = nn.ModuleDict({"a": first, "b": nn.Sequential(first, second)})
    listed = [first]  # a reference that no module registers
    report = accelerate(model)
    assert [r.name for r in report.replaced] == ["a, b.0", "b.1"]
    assert model["a"] is model["b"][0] is listed[0]
    assert second.conv1.conv.weight is first.conv1.conv.weight
    assert all(isinstance(m, compat.d_li14.involution) for m in (*model["b"], listed[0]))


def test_copies_pickles_and_subclass_behaviour() -> None:
    class_ = type(built(lambda: Frozen(16, 3, 1)))
    model = nn.Sequential(built(lambda: Frozen(16, 3, 1))).eval()
    assert len(accelerate(model).replaced) == 1
    x = torch.randn(2, 16, 8, 12, dtype=torch.float64)
    expected = step(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert isinstance(other[0], class_)
        assert isinstance(other[0], compat.d_li14.involution)
        agree(step(other, x), expected, 1e-15)
        assert accelerate(other) == Report((), ())
    # Its own methods stay: this one keeps BatchNorm in eval mode, and describes itself.
    assert not model.train()[0].conv1.bn.training
    assert model[0].describe() == "frozen 16"
    assert "Accelerated_Frozen" in repr(model)


class Frozen(unfolded.DLi14):
    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.conv1.bn.eval()
        return self

    def describe(self) -> str:
        return f"frozen {self.channels}"


# --- what is left -------------------------------------------------------------------------------------------------------


class Scaled(unfolded.DLi14):
    def forward(self, x: Tensor) -> Tensor:
        return 1.001 * super().forward(x)


class InTrainingOnly(unfolded.DLi14):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 2 * y if self.training else y


class DetachedKernel(unfolded.Timm):
    def forward(self, x: Tensor) -> Tensor:
        kernel = self.conv2(self.conv1(self.avgpool(x))).detach()
        return unfolded.weighted(kernel, self.unfold(x), self.groups, self.channels, self.kernel_size**2)


class CountsCalls(unfolded.DLi14):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class KeepsKernel(unfolded.DLi14):
    def forward(self, x: Tensor) -> Tensor:
        self.kernel = self.conv2(self.conv1(x)).detach()
        return super().forward(x)


class KeepsSizes(unfolded.DLi14):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.conv1.sizes = []

    def forward(self, x: Tensor) -> Tensor:
        self.conv1.sizes.append(x.shape)
        return super().forward(x)


class Weighted(unfolded.DLi14):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.weight = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * super().forward(x)


class Masked(unfolded.DLi14):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        return y if mask is None else y * mask


class CropsOddSizes(unfolded.DLi14):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2])


class CudaOnly(unfolded.DLi14):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("no CPU path")


class ReturnsPair(unfolded.DLi14):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


def with_own_forward() -> nn.Module:
    layer = unfolded.DLi14(16, 3, 1)
    layer.forward = lambda x: x
    return layer


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def parametrized_itself() -> nn.Module:
    layer = unfolded.DLi14(16, 3, 1)
    layer.scale = nn.Parameter(torch.ones(()))
    parametrize.register_parametrization(layer, "scale", Zero())
    return layer


def taken_attribute() -> nn.Module:
    layer = unfolded.DLi14(16, 3, 1)
    layer._window = "hann"
    return layer


class Raises(nn.Module):
    """Not an involution, and rude when asked."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.span, self.unfold = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 9, 1), nn.Unfold(3)

    @property
    def groups(self) -> int:
        raise RuntimeError("not built yet")


def with_attribute(name: str, value: object) -> nn.Module:
    layer = unfolded.DLi14(16, 3, 1)
    setattr(layer, name, value)
    return layer


def without_groups() -> nn.Module:
    layer = unfolded.ChristophReich1996(16, 16)
    del layer.groups
    return layer


def old_weight_norm() -> nn.Module:
    layer = unfolded.DLi14(16, 3, 1)
    nn.utils.weight_norm(layer.conv2.conv)
    return layer


LEFT: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "computes something else": (lambda: Scaled(16, 3, 1), ("differs in eval mode", "output")),
    "in training only": (lambda: InTrainingOnly(16, 3, 1), ("differs in train mode", "output")),
    "other gradients": (lambda: DetachedKernel(16), ("differs in eval mode", "gradient of conv1.conv.weight")),
    "changes a buffer": (lambda: CountsCalls(16, 3, 1), ("differs", "buffer calls")),
    "stores a map": (lambda: KeepsKernel(16, 3, 1), ("its own forward stores kernel in eval mode",)),
    "fills a list": (lambda: KeepsSizes(16, 3, 1), ("its own forward stores conv1.sizes in eval mode",)),
    "scaled by 1": (lambda: Weighted(16, 3, 1), ("differs in eval mode", "output")),
    "unreadable": (lambda: with_attribute("stride", "same"), ("stride must be an int or a pair of ints, but is 'same'",)),
    "incomplete": (without_groups, ("AttributeError", "groups")),
    "takes more": (lambda: Masked(16, 3, 1), ("mask", "not one tensor")),
    "other sizes": (lambda: CropsOddSizes(16, 3, 2), ("replacement in float64 fails", "kernels")),
    "can't run": (lambda: CudaOnly(16, 3, 1), ("its own forward fails", "NotImplementedError: no CPU path")),
    "returns no tensor": (lambda: ReturnsPair(16, 3, 1), ("its own forward fails", "tuple")),
    "defect of the source": (lambda: unfolded.Shikishima(16, 16, 3), ("its own forward fails", "RuntimeError")),
    "forward of its own": (with_own_forward, ("replaced on the instance",)),
    "parametrized": (parametrized_itself, ("parametrized",)),
    "meta": (lambda: unfolded.DLi14(16, 3, 1).to("meta"), ("meta",)),
    "attribute taken": (taken_attribute, ("_window",)),
    "uncopyable": (old_weight_norm, ("can't be copied", "deepcopy")),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_with_a_reason(name: str) -> None:
    make, parts = LEFT[name]
    torch.manual_seed(0)
    layer = make()
    model = nn.ModuleDict({"mine": layer})
    before, kind = state_of(model), type(layer)
    report = accelerate(model)
    assert report.replaced == ()
    (entry,) = report.left
    assert entry.name == "mine"
    assert all(part in entry.reason for part in parts), entry.reason
    assert entry.reason in str(report)
    assert type(layer) is kind
    assert state_of(model) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_dtypes(dtype: torch.dtype) -> None:
    """Replaced where equal in float64; a difference far below their rounding is still found."""
    for name, (make, _, _) in LAYERS.items():
        layer = built(make, dtype)
        original = copy.deepcopy(layer)
        report = accelerate(layer)
        assert len(report.replaced) == 1, (name, report)
        x = torch.randn(2, 16, 8, 12).to(dtype)
        exact = copy.deepcopy(original).double().eval()(x.double())
        errors = [float((m.eval()(x).double() - exact).norm()) for m in (layer, original)]
        assert errors[0] <= 4 * errors[1] + torch.finfo(dtype).eps * float(exact.norm())
    assert "in float64" in accelerate(Scaled(16, 3, 1).to(dtype)).left[0].reason


def test_zeros_hide_no_difference() -> None:
    """Zeros of the user's make much agree; the comparison uses weights and buffers of its own."""

    class OtherWindow(unfolded.Holocron):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flip(3)).flip(3)

    class Scheduled(unfolded.Holocron):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.register_buffer("extra", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + self.extra)

    for kind in (OtherWindow, Scheduled):
        layer = kind(4, 3, 1)
        for p in layer.parameters():
            nn.init.zeros_(p)
        assert "differs" in accelerate(layer).left[0].reason


def test_modules_of_other_kinds_are_not_mentioned() -> None:
    class Block(nn.Module):
        """A residual block has conv1 and conv2, too."""

        def __init__(self) -> None:
            super().__init__()
            self.stride, self.groups = 1, 1
            self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reduce, self.shared_mlp = nn.Linear(8, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 9))

    class Squeeze(nn.Module):
        """Names of Holocron's, shapes of something else."""

        def __init__(self) -> None:
            super().__init__()
            self.reduce, self.span, self.groups, self.unfold = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), 1, nn.Unfold(3)

    assert accelerate(nn.Sequential(Block(), Attention(), Squeeze(), Raises(), nn.Conv2d(3, 3, 3))) == Report((), ())


def test_parametrized_children_are_fine() -> None:
    for name in ("lgld_net", "d_li14"):
        models = []
        for _ in range(2):
            model = built(LAYERS[name][0])
            conv = model.reduce if name == "lgld_net" else model.conv2.conv
            torch.manual_seed(0)
            parametrizations.weight_norm(conv)
            models.append(model.double())
        assert len(accelerate(models[1]).replaced) == 1
        x = torch.randn(2, 16, 8, 12, dtype=torch.float64)
        agree(step(models[1], x), step(models[0], x))


def test_compiled_and_scripted_models() -> None:
    torch._dynamo.reset()
    inner = nn.Sequential(built(LAYERS["d_li14"][0]))
    model = nn.ModuleDict({"a": torch.compile(inner, backend="eager"), "b": inner})
    in_place = nn.Sequential(built(LAYERS["d_li14"][0]))
    in_place.compile(backend="eager")
    for compiled in (model, in_place):
        (entry,) = accelerate(compiled).left
        assert "before torch.compile" in entry.reason
    scripted = nn.Sequential(torch.jit.trace(built(LAYERS["lgld_net"][0]), torch.randn(1, 16, 8, 8, dtype=torch.float64)))
    report = accelerate(scripted)
    assert [(e.name, "before torch.jit" in e.reason) for e in report.left] == [("0", True)]
    # The other order works.
    plain, layer = built(LAYERS["d_li14"][0]).eval(), built(LAYERS["d_li14"][0]).eval()
    accelerate(layer)
    x = torch.randn(2, 16, 8, 12, dtype=torch.float64)
    result = step(torch.compile(layer, fullgraph=True, backend="aot_eager"), x)
    agree({name.replace("_orig_mod.", ""): value for name, value in result.items()}, step(plain, x))
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), plain(x))


def test_distributed_data_parallel() -> None:
    # One process has nobody to talk to. A real backend would open sockets all the same, and waits for ever on a machine whose
    # network is closed in the wrong way; the fake one's reductions give DDP no result, which the hook makes up for.
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        plain = nn.Sequential(built(LAYERS["d_li14"][0]))
        model = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
        buckets = 0

        def alone(_, bucket):  # DDP compares annotations with its types and takes no strings for them
            nonlocal buckets
            buckets += 1
            future: torch.futures.Future[Tensor] = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model.register_comm_hook(None, alone)
        assert [r.name for r in accelerate(model).replaced] == ["module.0"]
        x = torch.randn(2, 16, 8, 12, dtype=torch.float64)
        agree({name.replace("module.", ""): value for name, value in step(model, x).items()}, step(plain, x))
        assert buckets, "DDP reduced no gradient of the replaced layer"
    finally:
        torch.distributed.destroy_process_group()


def test_under_inference_mode_and_autocast() -> None:
    layer = built(LAYERS["d_li14"][0], torch.float32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        report = accelerate(layer)
    assert len(report.replaced) == 1, report


def test_under_another_default_device_and_dtype() -> None:
    layer = built(LAYERS["d_li14"][0], torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            report = accelerate(layer)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(report.replaced) == 1, report


def test_other_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, but is dict"):
        accelerate({})


def test_report_is_a_table() -> None:
    model = nn.ModuleDict({"good": unfolded.DLi14(16, 3, 1), "bad": Scaled(16, 3, 1)})
    lines = str(accelerate(model)).splitlines()
    assert lines[0] == "1 replaced, 1 left"
    assert [line.split()[0] for line in lines[1:]] == ["replaced", "good", "left", "bad"]
    assert lines[1].index("computes as") == lines[2].index("lgld_ops.compat.d_li14.involution")


@given(st.data())
def test_random_layers(data: st.DataObject) -> None:
    """Whatever is replaced computes the same; whatever works at the compared sizes is replaced."""
    k, s, d = (data.draw(st.integers(1, most)) for most in (5, 3, 2))
    source = data.draw(st.sampled_from(["d_li14", "timm", "holocron", "christophreich1996"]))
    torch.manual_seed(0)
    if source == "d_li14":
        layer: nn.Module = unfolded.DLi14(16, k, s, d)
    elif source == "timm":
        layer = unfolded.Timm(16, k, s, data.draw(st.sampled_from([1, 4, 8, 16])))
    elif source == "holocron":
        layer = unfolded.Holocron(16, k, data.draw(st.integers(0, 4)), s, data.draw(st.sampled_from([1, 2, 16])), d)
    else:
        layer = unfolded.ChristophReich1996(
            16, 8, kernel_size=k, stride=s, dilation=d, padding=data.draw(st.integers(0, 4)),
            groups=data.draw(st.sampled_from([1, 4, 8])), force_shape_match=data.draw(st.booleans()),
        )  # fmt: skip
    layer = layer.double()
    original = copy.deepcopy(layer)
    report = accelerate(layer)
    assert len(report.replaced) + len(report.left) == 1
    x = torch.randn(2, 16, 4 * s + 8 * s, 6 * s + 8 * s, dtype=torch.float64)
    if report.replaced:
        agree(step(layer, x), step(original, x), 1e-10)
    elif source == "holocron" and k == 1 and "kernels" in report.left[0].reason:
        # With one tap, Holocron's reshape takes any surplus of windows for more taps and sums them.
        assert "the replacement" in report.left[0].reason
    else:
        assert "its own forward fails" in report.left[0].reason
        with pytest.raises(RuntimeError):
            original(x)


# --- LGLD-Net's Fourier feature mixer -----------------------------------------------------------------------------------


class Mixer(nn.Module):
    """The block as somebody else writes it: names of its state dict, no module for SiLU."""

    def __init__(self, in_channels: int = 3, out_channels: int = 16, momentum: float = 0.1) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels + 4, out_channels, 1, stride=2)
        self.bn = nn.BatchNorm2d(out_channels, momentum=momentum)
        self.fourier_weight_real = nn.Parameter(torch.randn(out_channels // 2))
        self.fourier_weight_imag = nn.Parameter(torch.randn(out_channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        z = self.proj(torch.cat([x, reference.FourierFeatureMixer.position_maps(x)], 1))
        factor = torch.cat([self.fourier_weight_real, self.fourier_weight_imag])
        return F.silu(self.bn(z * factor[:, None, None]))


class Imaginary(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        z = self.proj(torch.cat([x, reference.FourierFeatureMixer.position_maps(x)], 1))
        factor = torch.cat([self.fourier_weight_imag, self.fourier_weight_real])
        return F.silu(self.bn(z * factor[:, None, None]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", [Mixer, reference.FourierFeatureMixer])
def test_fourier_feature_mixers(kind: Callable[[int, int], nn.Module], dtype: torch.dtype) -> None:
    original = built(lambda: kind(3, 16), dtype)
    layer = copy.deepcopy(original)
    keys = list(layer.state_dict())
    (entry,) = accelerate(layer).replaced
    assert entry.by == "lgld_ops.FourierFeatureMixer"
    assert isinstance(layer, lgld_ops.FourierFeatureMixer)
    assert isinstance(layer, type(original))
    assert list(layer.state_dict()) == keys
    assert accelerate(layer) == Report((), ())
    x = torch.rand(2, 3, 15, 12, dtype=dtype)
    for training in (True, False):
        original.train(training)
        layer.train(training)
        agree(step(layer, x), step(original, x), 1e-5)
    other = copy.deepcopy(layer)
    agree(step(other, x), step(layer, x), 1e-15)
    # A hook on a module inside is still called.
    called: list[str] = []
    layer.bn.register_forward_hook(lambda *_: called.append("bn"))
    agree(step(layer, x), step(original, x), 1e-5)
    assert called == ["bn"]


@pytest.mark.parametrize(
    ("name", "part"),
    [("bn", nn.GroupNorm(4, 16)), ("bn", nn.SyncBatchNorm(16)), ("bn", nn.BatchNorm2d(16, eps=0.0)), ("act", nn.ReLU())],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_mixers_that_would_gain_nothing_are_left(name: str, part: nn.Module) -> None:
    layer = reference.FourierFeatureMixer(3, 16)
    setattr(layer, name, part)
    report = accelerate(layer)
    assert report.replaced == ()
    assert "proj, bn or act" in report.left[0].reason
    assert type(layer) is reference.FourierFeatureMixer


def test_other_mixers_are_left() -> None:
    assert "differs" in accelerate(Imaginary()).left[0].reason
    assert "more than 4 input channels, but has 4" in accelerate(Mixer(0)).left[0].reason


# --- whole networks -----------------------------------------------------------------------------------------------------


def train_step(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    grads = {f"grad parameter {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    after = {f"after {name}": p.detach().clone() for name, p in model.named_parameters()}
    return {"loss": loss.detach()} | grads | after | {name: b.clone() for name, b in model.named_buffers()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rednet_26_trains_as_before(dtype: torch.dtype) -> None:
    """A training step of d-li14's RedNet-26, whole: loss, gradients, statistics and new weights of the unfold version."""
    torch.manual_seed(0)
    plain = unfolded.RedNet(num_classes=10).double()
    assert sum(p.numel() for p in unfolded.RedNet().parameters()) == pytest.approx(9.2e6, rel=0.01)  # the paper's table 2
    model = copy.deepcopy(plain).to(dtype)
    report = accelerate(model)
    assert len(report.replaced) == 9
    assert report.left == ()
    x, labels = torch.rand(4, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 3, 9, 5])
    eager = [copy.deepcopy(plain).to(dtype) for _ in range(2)]
    truth = train_step(plain, x, labels)
    mine = train_step(model, x.to(dtype), labels)
    if dtype == torch.float64:
        agree(mine, truth, 1e-9)
        return
    # Where rounding turns a ReLU on or off gradients jump, in eager as in ours: a second eager run starts one rounding away.
    images = (x.to(dtype), x.to(dtype) * (1 + torch.finfo(dtype).eps / 2 * torch.randn(x.shape)))
    theirs = [train_step(m, image, labels) for m, image in zip(eager, images, strict=True)]

    def error(result: dict[str, Tensor], prefix: str) -> float:
        names = [name for name in truth if name.startswith(prefix)]
        return float(torch.stack([(result[name].double() - truth[name]).norm() for name in names]).norm())

    for prefix in ("loss", "grad", "after", "stem", "stages"):
        size = error({name: torch.zeros_like(value) for name, value in truth.items()}, prefix)
        assert error(mine, prefix) <= 4 * max(error(run, prefix) for run in theirs) + 1e-7 * size, prefix


def test_rednet_keeps_less_for_backward() -> None:
    torch.manual_seed(0)
    model = unfolded.RedNet(num_classes=10)
    x = torch.rand(1, 3, 128, 128, requires_grad=True)
    before = kept_bytes(lambda: model(x), *model.parameters())
    accelerate(model)
    after = kept_bytes(lambda: model(x), *model.parameters())
    assert after < 0.35 * before, f"{after / 1e6:.1f} MB of {before / 1e6:.1f} MB"


def test_published_lgld_net() -> None:
    torch.manual_seed(0)
    model = reference.LGLDNet(base_channels=16).double().eval()
    x = torch.rand(2, 3, 30, 31, dtype=torch.float64)
    expected = model(x)
    report = accelerate(model)
    assert [(r.name, r.by) for r in report.replaced] == [
        ("local_stem.invo", "lgld_ops.Involution2d"),
        ("global_stem", "lgld_ops.FourierFeatureMixer"),
    ]
    # The published code computes its sines in float32.
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
