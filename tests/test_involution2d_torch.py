"""The involution op inside torch: opcheck, compile, export, functorch, autocast, meta and fake tensors."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from oracle import Problem, with_gradients
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

import lgld_ops
from lgld_ops.reference import involution2d_unfold

involution2d = lgld_ops.involution2d
ops = torch.ops.lgld_ops

DENSE = Problem(2, 4, 6, 7, groups=2)
STRIDED = Problem(2, 6, 8, 9, (3, 2), (2, 3), (2, 1), (1, 2), groups=3, dtype=torch.float64)
PROBLEMS = {"dense": DENSE, "strided": STRIDED}


def op_call(name: str, problem: Problem) -> tuple[Any, tuple[Any, ...]]:
    """One of the three ops and arguments for it, tensors that need gradients first."""
    x, weight, g = problem.operands(requires_grad=True)
    g.requires_grad_()
    if name == "involution2d":
        return ops.involution2d.default, (x, weight, *problem.arguments)
    if name == "involution2d_grad_x":
        return ops.involution2d_grad_x.default, (g, weight, problem.height, problem.width, *problem.arguments)
    return ops.involution2d_grad_weight.default, (g, x, *problem.arguments)


@pytest.mark.parametrize("name", ["involution2d", "involution2d_grad_x", "involution2d_grad_weight"])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_opcheck(name: str, problem: Problem) -> None:
    op, arguments = op_call(name, problem)
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
def test_opcheck_of_views(layout: str) -> None:
    op, arguments = op_call("involution2d", Problem(2, 4, 6, 7, layouts=(layout,) * 3))
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", ["involution2d", "involution2d_grad_x", "involution2d_grad_weight"])
def test_schema_takes_defaults(name: str) -> None:
    op, arguments = op_call(name, Problem(1, 2, 5, 5, (3, 3), padding=(0, 0)))
    fewer = op(*arguments[:-4])
    assert torch.equal(fewer, op(*arguments))


# --- compile and export -----------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """The op between pointwise functions, as a network has it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.sin(involution2d(x.cos(), weight * 2, *self.problem.arguments))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_compiles_forward_and_backward(problem: Problem, dynamic: bool) -> None:
    torch._dynamo.reset()
    layer = Layer(problem)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for height in (problem.height, problem.height + 2):
        sized = Problem(**{**vars(problem), "height": height})
        x, weight, g = sized.operands(requires_grad=True)
        expected = layer(x, weight)
        got = compiled(x, weight)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(torch.autograd.grad(got, (x, weight), g), torch.autograd.grad(expected, (x, weight), g))


def test_compiles_with_inductor() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Layer(DENSE), fullgraph=True)
    for layouts in (("contiguous",) * 3, ("channels_last",) * 3):
        x, weight, g = Problem(**{**vars(DENSE), "layouts": layouts}).operands(requires_grad=True)
        got, expected = compiled(x, weight), Layer(DENSE)(x, weight)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(torch.autograd.grad(got, (x, weight), g), torch.autograd.grad(expected, (x, weight), g))


def test_export_round_trip() -> None:
    x, weight, _ = DENSE.operands()
    batch = torch.export.Dim("batch", max=64)
    program = torch.export.export(Layer(DENSE), (x, weight), dynamic_shapes=({0: batch}, {0: batch}))
    assert "lgld_ops.involution2d" in str(program.graph)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for size in (2, 5):
        x, weight, _ = Problem(**{**vars(DENSE), "batch": size}).operands()
        torch.testing.assert_close(loaded(x, weight), Layer(DENSE)(x, weight), rtol=0, atol=0)


# --- torch.func -------------------------------------------------------------------------------------------------------


def ours(x: Tensor, weight: Tensor) -> Tensor:
    return involution2d(x, weight, *STRIDED.arguments)


def reference(x: Tensor, weight: Tensor) -> Tensor:
    return involution2d_unfold(x, weight, *STRIDED.arguments)


def same(transform: Any, *operands: Tensor) -> None:
    torch.testing.assert_close(transform(ours)(*operands), transform(reference)(*operands))


def scalar(function: Any) -> Any:
    return lambda x, weight: function(x, weight).pow(2).sum()


def test_func_grad_and_vjp() -> None:
    x, weight, g = STRIDED.operands()
    for argnums in (0, 1, (0, 1)):
        same(lambda f, argnums=argnums: grad(scalar(f), argnums=argnums), x, weight)
    same(lambda f: lambda x, weight: vjp(f, x, weight)[1](g), x, weight)


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (2, 1), (1, 4)], ids=str)
def test_func_vmap(in_dims: tuple[int | None, int | None]) -> None:
    x, weight, _ = STRIDED.operands()
    copies = [t if dim is None else torch.stack([t, 2 * t, t - 1], dim) for t, dim in zip((x, weight), in_dims, strict=True)]
    same(lambda f: vmap(f, in_dims), *copies)
    same(lambda f: vmap(grad(scalar(f), argnums=(0, 1)), in_dims), *copies)


def test_func_nested_vmap() -> None:
    x, weight, _ = STRIDED.operands()
    x, weight = (torch.stack([torch.stack([t, t + 1]), torch.stack([3 * t, -t]), torch.stack([t, t])]) for t in (x, weight))
    same(lambda f: vmap(vmap(f)), x, weight)
    same(lambda f: vmap(vmap(f, in_dims=(0, None)), in_dims=(1, None)), x.transpose(0, 1), weight[0, 0])
    same(lambda f: vmap(vmap(f, in_dims=(None, 0)), in_dims=(0, 0)), x[:, 0], weight)


def test_func_second_derivatives() -> None:
    problem = Problem(1, 2, 3, 3, dtype=torch.float64)
    x, weight, _ = problem.operands()
    for argnums in (0, 1):
        results = [
            jacrev(jacrev(scalar(lambda x, w, f=f: f(x, w, *problem.arguments)), argnums), argnums)(x, weight)
            for f in (involution2d, involution2d_unfold)
        ]
        torch.testing.assert_close(*results)

        def third_power(f: Any) -> Any:
            first = grad(scalar(lambda x, w: f(x, w, *problem.arguments)))
            return lambda x, w: first(x, w).pow(3).sum()

        twice = [grad(third_power(f), argnums)(x, weight) for f in (involution2d, involution2d_unfold)]
        torch.testing.assert_close(*twice)


COMPILED: dict[str, Any] = {
    "grad": lambda f, x, weight: grad(scalar(f))(x, weight),
    "vmap": lambda f, x, weight: vmap(grad(scalar(f)), (0, None))(torch.stack([x, 2 * x]), weight),
    "jvp": lambda f, x, weight: jvp(f, (x, weight), (weight.mean() * x, weight.cos())),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_transforms(name: str) -> None:
    torch._dynamo.reset()
    x, weight, _ = STRIDED.operands()
    same(lambda f: torch.compile(lambda *o: COMPILED[name](f, *o), backend="aot_eager"), x, weight)


def test_func_through_the_layer() -> None:
    torch.manual_seed(0)
    layer = lgld_ops.Involution2d(8).double()
    published = lgld_ops.reference.InvolutionLayer(8).double()
    published.load_state_dict(layer.state_dict())
    images = torch.randn(3, 1, 8, 5, 6, dtype=torch.float64)

    def per_image(module: nn.Module) -> Any:
        parameters = {name: p.detach() for name, p in module.named_parameters()}
        loss = lambda parameters, image: functional_call(module, parameters, (image,)).pow(2).mean()  # noqa: E731
        return vmap(grad(loss), in_dims=(None, 0))(parameters, images)

    torch.testing.assert_close(per_image(layer), per_image(published))


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_forward_mode(problem: Problem) -> None:
    x, weight, _ = problem.operands()
    tangents = (torch.randn_like(x), torch.randn_like(weight))
    with forward_ad.dual_level():
        for operands in ((forward_ad.make_dual(x, tangents[0]), weight), (x, forward_ad.make_dual(weight, tangents[1]))):
            expected = forward_ad.unpack_dual(involution2d_unfold(*operands, *problem.arguments)).tangent
            torch.testing.assert_close(forward_ad.unpack_dual(involution2d(*operands, *problem.arguments)).tangent, expected)
    torch.testing.assert_close(
        jvp(lambda *o: involution2d(*o, *problem.arguments), (x, weight), tangents),
        jvp(lambda *o: involution2d_unfold(*o, *problem.arguments), (x, weight), tangents),
    )


def test_forward_over_reverse() -> None:
    x, weight, _ = STRIDED.operands()
    torch.testing.assert_close(hessian(scalar(ours))(x, weight), hessian(scalar(reference))(x, weight))


def test_transforms_under_autocast() -> None:
    problem = Problem(**{**vars(DENSE), "dtype": torch.float32})
    x, weight, _ = problem.operands()

    def total(x: Tensor, weight: Tensor) -> Tensor:
        y = involution2d(x, weight, *problem.arguments)
        assert y.dtype == torch.bfloat16
        return y.float().sum()

    with torch.autocast("cpu", torch.bfloat16):
        grads = grad(total, argnums=(0, 1))(x, weight)
    rounded = (x.bfloat16().float(), weight.bfloat16().float())
    expected = grad(lambda x, w: involution2d_unfold(x, w, *problem.arguments).sum(), argnums=(0, 1))(*rounded)
    torch.testing.assert_close(grads, expected, rtol=torch.finfo(torch.bfloat16).eps, atol=1e-6)


# --- autocast ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("inputs", ["float32", "reduced", "mixed"])
@pytest.mark.parametrize("raw", [False, True], ids=["function", "op"])
def test_autocast(dtype: torch.dtype, inputs: str, raw: bool) -> None:
    x, weight, g = (t.detach() for t in DENSE.operands())
    if inputs != "float32":
        x = x.to(dtype)
    if inputs == "reduced":
        weight = weight.to(dtype)
    x.requires_grad_(), weight.requires_grad_()
    call = ops.involution2d if raw else involution2d
    with torch.autocast("cpu", dtype):
        y = call(x, weight, *DENSE.arguments)
    assert y.dtype == dtype
    # Operands rounded to the autocast dtype, summed in float32, rounded once.
    wide = tuple(t.detach().to(dtype).float().requires_grad_() for t in (x, weight))
    expected = involution2d(*wide, *DENSE.arguments)
    torch.testing.assert_close(y, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    ours = torch.autograd.grad(y, (x, weight), g.to(dtype))
    for mine, theirs, leaf in zip(ours, torch.autograd.grad(expected, wide, g.to(dtype).float()), (x, weight), strict=True):
        assert mine.dtype == leaf.dtype
        torch.testing.assert_close(mine, theirs.to(dtype).to(leaf.dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_autocast_leaves_float64_alone() -> None:
    operands = STRIDED.operands()
    plain = with_gradients(involution2d, STRIDED, operands)
    with torch.autocast("cpu", torch.bfloat16):
        under = with_gradients(involution2d, STRIDED, operands)
    assert all(torch.equal(a, b) and a.dtype == torch.float64 for a, b in zip(under, plain, strict=True))


def test_autocast_off_inside() -> None:
    x, weight, _ = DENSE.operands()
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert involution2d(x, weight, *DENSE.arguments).dtype == torch.float32


# --- meta and fake tensors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_meta_tensors(problem: Problem) -> None:
    for name in ("involution2d", "involution2d_grad_x", "involution2d_grad_weight"):
        op, arguments = op_call(name, problem)
        real = op(*arguments)
        meta = op(*(a.to("meta") if isinstance(a, Tensor) else a for a in arguments))
        assert meta.is_meta
        assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_fake_tensors_have_the_strides_of_real_ones(layout: str) -> None:
    problem = Problem(**{**vars(DENSE), "layouts": (layout,) * 3})
    real = with_gradients(involution2d, problem, problem.operands())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = with_gradients(involution2d, problem, tuple(mode.from_tensor(t) for t in problem.operands()))
    for a, b in zip(fake, real, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_empty_batch_everywhere() -> None:
    problem = Problem(**{**vars(STRIDED), "batch": 0})
    y, grad_x, grad_weight = with_gradients(involution2d, problem, problem.operands())
    assert (y.shape, grad_x.shape, grad_weight.shape) == (problem.out_shape, problem.x_shape, problem.weight_shape)
