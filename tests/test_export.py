"""`lgld_ops.decompositions` and `lgld_ops.export_onnx`: programs without our ops, run by torch and by ONNX Runtime."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import unfolded
from hypothesis import given
from oracle import Problem, assert_like_reference, problems, with_gradients
from torch import Tensor, nn

import lgld_ops
from lgld_ops import decompositions, export_onnx
from lgld_ops.checkpoint import load_network
from lgld_ops.export import _involution2d
from lgld_ops.ops.schemas import SCHEMAS

# What an involution may become, and nothing else.
SHIFTED = {"Pad", "Slice", "Mul", "Add", "Reshape", "Unsqueeze", "Squeeze", "Cast", "Identity"}
SHAPES = {"Shape", "Concat", "Constant", "Gather", "Sub"}  # of free dimensions


class Op(nn.Module):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.arguments = problem.arguments

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return lgld_ops.involution2d(x, weight, *self.arguments)


PROBLEMS = [
    Problem(),
    Problem(kernel_size=(7, 7), padding=(3, 3), groups=2),
    Problem(kernel_size=(3, 5), stride=(2, 3), padding=(0, 2), groups=6),
    Problem(kernel_size=(2, 3), dilation=(3, 2), padding=(4, 1), groups=3),
    Problem(kernel_size=(1, 1), stride=(2, 2), padding=(0, 0)),
    Problem(kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 2), groups=2, dtype=torch.float64),
]


@given(problems())
def test_the_decomposition_is_the_op(problem: Problem) -> None:
    operands = problem.operands()
    assert_like_reference(with_gradients(_involution2d, problem, operands), problem, operands)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_decomposition_sums_in_float32(dtype: torch.dtype) -> None:
    """One rounding of the exact result, where a narrow sum of 49 products would have many."""
    x, weight, _ = Problem(kernel_size=(7, 7), padding=(3, 3)).operands()
    x, weight = x.to(dtype), weight.to(dtype)
    exact = lgld_ops.reference.involution2d_unfold(x.double(), weight.double(), 7, padding=3)
    y = _involution2d(x, weight, [7, 7], padding=[3, 3])
    assert y.dtype == dtype
    error = (y.double() - exact).abs()
    assert (error <= torch.finfo(dtype).eps / 2 * exact.abs() * 1.01 + 1e-5).all()


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_decomposed_programs_have_none_of_our_ops(problem: Problem) -> None:
    x, weight, _ = problem.operands()
    program = torch.export.export(Op(problem), (x, weight))
    assert "lgld_ops" in str(program.graph)
    plain = program.run_decompositions(decompositions())
    assert "lgld_ops" not in str(plain.graph)
    assert "im2col" not in str(plain.graph)
    torch.testing.assert_close(plain.module()(x, weight), lgld_ops.involution2d(x, weight, *problem.arguments))


class FusedLayer(nn.Module):
    """The involution layer as one op."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = lgld_ops.Involution2d(8, kernel_size=5, reduction=2)
        self.layer.fused = True

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def test_the_fused_layer_decomposes() -> None:
    model, x = FusedLayer().eval(), torch.randn(2, 8, 7, 6)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert "involution_layer" in str(program.graph)
        plain = program.run_decompositions(decompositions())
        assert "lgld_ops" not in str(plain.graph)
        torch.testing.assert_close(plain.module()(x), model(x))


def test_every_forward_op_has_a_decomposition() -> None:
    names = {schema.partition("(")[0] for schema in SCHEMAS if schema.startswith(("involution", "fourier"))}
    forward = {name for name in names if "grad" not in name and "backward" not in name}
    assert {op._schema.name.removeprefix("lgld_ops::") for op in decompositions()} >= forward >= {"involution2d"}


# --- ONNX ---------------------------------------------------------------------------------------------------------------


def run(
    model: nn.Module, example: tuple[Tensor, ...], *inputs: tuple[Tensor, ...], **options: Any
) -> tuple[list[Tensor], set[str]]:
    """Outputs of ONNX Runtime for each of `inputs`, and the operators of the exported graph."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program = export_onnx(model, example, **options)
    buffer = io.BytesIO()
    program.save(buffer)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(buffer.getvalue(), settings)
    names = [node.name for node in session.get_inputs()]
    outputs = [
        torch.from_numpy(np.asarray(session.run(None, {n: t.numpy() for n, t in zip(names, given_, strict=True)})[0]))
        for given_ in inputs or (example,)
    ]
    return outputs, {node.op_type for node in program.model.graph}


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_op_in_onnx_runtime(problem: Problem) -> None:
    x, weight, _ = problem.operands()
    (y,), operators = run(Op(problem).eval(), (x, weight))
    assert operators <= SHIFTED, operators
    exact = lgld_ops.reference.involution2d_unfold(x.double(), weight.double(), *problem.arguments)
    eager = lgld_ops.reference.involution2d_unfold(x, weight, *problem.arguments)
    assert y.dtype == problem.dtype
    unit = torch.finfo(problem.dtype).eps
    allowed = 4 * (eager.double() - exact).abs().max() + 4 * unit * exact.abs().max()
    assert (y.double() - exact).abs().max() <= allowed


def test_free_sizes_in_onnx_runtime() -> None:
    torch.manual_seed(0)
    layer = lgld_ops.Involution2d(12, 5, groups=3, dilation=2).eval()
    sizes = ((2, 12, 11, 14), (1, 12, 8, 30), (5, 12, 9, 8))
    inputs = [(torch.randn(size),) for size in sizes]
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=8), 3: torch.export.Dim("width", min=8)}
    outputs, operators = run(layer, inputs[0], *inputs, dynamic_shapes=(dims,))
    assert operators <= SHIFTED | SHAPES | {"Conv", "Sigmoid"}, operators
    for (x,), y in zip(inputs, outputs, strict=True):
        torch.testing.assert_close(y, layer(x).detach())


def test_networks_in_onnx_runtime(shared_dir: Path) -> None:
    """A trained LGLD-Net on its validation images, and an accelerated RedNet."""
    pytest.importorskip("onnxscript")
    net = load_network(shared_dir / "golden" / "lgldnet_bccd.safetensors")[0]
    with np.load(shared_dir / "golden" / "lgldnet_bccd_val.npz") as data:
        x = torch.from_numpy(data["uint8_nhwc"][:8]).permute(0, 3, 1, 2).float() / 255
        logits = torch.from_numpy(data["logits"][:8])
    (y,), operators = run(net, (x,))
    assert not {"Im2Col", "involution2d"} & operators
    torch.testing.assert_close(y.double(), logits.double(), rtol=1e-4, atol=1e-4)


def test_accelerated_model_in_onnx_runtime() -> None:
    torch.manual_seed(0)
    model = unfolded.RedNet((1, 1), width=32, num_classes=5).eval()
    x = torch.rand(2, 3, 32, 48)
    expected = model(x).detach()
    lgld_ops.accelerate(model)
    (y,), _ = run(model, (x,))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_files_and_names(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = tmp_path / "layer.onnx"
    export_onnx(lgld_ops.Involution2d(4).eval(), (torch.randn(1, 4, 5, 5),), path, input_names=["map"], output_names=["out"])
    graph = onnx.load(path).graph
    assert [graph.input[0].name, graph.output[0].name] == ["map", "out"]


@pytest.mark.parametrize(
    ("model", "args", "error", "parts"),
    [
        (lgld_ops.Involution2d(4), (torch.zeros(1, 4, 5, 5),), ValueError, ("model", "eval mode")),
        (lgld_ops.Involution2d(4).eval(), torch.zeros(1, 4, 5, 5), TypeError, ("args", "tuple", "Tensor")),
        (lambda x: x, (torch.zeros(1),), TypeError, ("model", "Module", "function")),
        (nn.Sequential(lgld_ops.fuse(lgld_ops.LGLDNet(3, 8))).eval(), (torch.zeros(1, 3, 8, 8),), TypeError, ("was fused",)),
    ],
)
def test_wrong_arguments(model: Any, args: Any, error: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        export_onnx(model, args)
    assert all(part in str(caught.value) for part in parts)


def test_missing_folder_is_named_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "export", None)
    path = tmp_path / "nope" / "x.onnx"
    with pytest.raises(FileNotFoundError, match=f"path must be in a folder that exists, but is '{path}'"):
        export_onnx(lgld_ops.Involution2d(4).eval(), (torch.zeros(1, 4, 5, 5),), path)


def test_missing_package_is_named(run_python: Any) -> None:
    done = run_python(
        "import sys; sys.modules['onnxscript'] = None\n"
        "import torch, lgld_ops\n"
        "try: lgld_ops.export_onnx(lgld_ops.Involution2d(4).eval(), (torch.zeros(1, 4, 5, 5),))\n"
        "except RuntimeError as error: print(error)"
    )
    assert "pip install onnx onnxscript" in done.stdout
