"""The command line: ``lgld-ops export``, and ``lgld-ops classify`` with what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from test_fused import image, network_of

import lgld_ops
from lgld_ops import _native
from lgld_ops.checkpoint import load_network
from lgld_ops.cli import main
from lgld_ops.reference import LGLDNet

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "lgldnet_bccd.safetensors"

pytestmark = pytest.mark.skipif(not _native.loaded(), reason="there is no compiled library")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def export(*arguments: object) -> Result:
    return run("export", *arguments)


def refused(message: str, *arguments: object) -> None:
    result = export(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in " ".join(result.stderr.split())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a small network with 4 classes, without metadata."""
    torch.save(network_of(3, 8, 4).state_dict(), tmp_path / "small.pth")
    return tmp_path / "small.pth"


@pytest.mark.core
def test_a_fused_file_holds_the_checkpoint(tmp_path: Path) -> None:
    output = tmp_path / "cell.lgld"
    result = export(EXAMPLE, "-o", output, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {
        "checkpoint": str(EXAMPLE),
        "output": str(output),
        "format": "lgld",
        "bytes": output.stat().st_size,
        "in_channels": 3,
        "base_channels": 64,
        "num_classes": 3,
        "image_size": [96, 96],
        "classes": ["Platelets", "RBC", "WBC"],
    }
    fast = lgld_ops.load(output)
    network, info = load_network(EXAMPLE)
    assert (fast.image_size, fast.classes) == (info.image_size, info.classes)
    x = image(2, 3, 96, 96)
    assert torch.equal(fast(x), lgld_ops.fuse(network)(x))


def test_options_complete_the_checkpoint(weights: Path, tmp_path: Path) -> None:
    result = export(weights, "-o", tmp_path / "bare.lgld")
    assert result.exit_code == 0
    assert "classify will ask for --size" in result.stdout
    assert "classify will ask for --classes" in result.stdout
    assert lgld_ops.load(tmp_path / "bare.lgld").classes is None
    # A file of the fused network is a checkpoint, too.
    result = export(tmp_path / "bare.lgld", "-o", tmp_path / "full.lgld", "--size", "24x32", "--classes", "a,b,c,d")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1:] == [
        "  network     3 channels in, base_channels 8, 4 classes",
        "  image size  24 x 32",
        "  classes     a, b, c, d",
    ]
    full = lgld_ops.load(tmp_path / "full.lgld")
    assert (full.image_size, full.classes) == ((24, 32), ("a", "b", "c", "d"))
    assert torch.equal(full.weights, lgld_ops.load(tmp_path / "bare.lgld").weights)


def test_onnx(weights: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    output = tmp_path / "cell.onnx"
    result = export(weights, "-o", output, "--size", "20x28", "--classes", "a,b,c,d")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    session = onnxruntime.InferenceSession(output)
    assert [found.name for found in session.get_inputs()] == ["images"]
    metadata = session.get_modelmeta().custom_metadata_map
    assert (json.loads(metadata["image_size"]), json.loads(metadata["classes"])) == ([20, 28], ["a", "b", "c", "d"])
    network = network_of(3, 8, 4)
    for batch in (1, 3):
        x = image(batch, 3, 20, 28, seed=batch)
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(x).detach(), rtol=1e-5, atol=1e-6)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cell.onnx", "small.pth"]


def test_onnx_needs_a_size(weights: Path, tmp_path: Path) -> None:
    refused("pass --size, like --size 224", weights, "-o", tmp_path / "cell.onnx")
    assert not (tmp_path / "cell.onnx").exists()


def test_existing_files_are_kept_unless_forced(weights: Path, tmp_path: Path) -> None:
    output = tmp_path / "cell.lgld"
    output.write_text("precious")
    refused(f"error: {output}: exists; pass --force to replace it", weights, "-o", output)
    assert output.read_text() == "precious"
    assert export(weights, "-o", output, "--force").exit_code == 0
    assert lgld_ops.load(output).num_classes == 4
    # A failure leaves the old file, too.
    before = output.read_bytes()
    weights.write_bytes(b"nonsense")
    refused("truncated, or not a file of weights", weights, "-o", output, "--force")
    assert output.read_bytes() == before


def test_outputs_that_cannot_be(weights: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "cell.lgld"
    refused(f"error: {gone}: no such folder: {gone.parent}", weights, "-o", gone)
    refused("must end in .lgld or .onnx, got suffix '.bin'", weights, "-o", tmp_path / "cell.bin")
    folder = tmp_path / "folder.lgld"
    folder.mkdir()
    refused(f"error: {folder}: is a folder", weights, "-o", folder, "--force")
    refused("Missing option '-o'", weights)


def test_weights_that_cannot_be_fused(tmp_path: Path) -> None:
    output = tmp_path / "cell.lgld"
    refused(f"error: {tmp_path / 'none.pth'}: no such weights file", tmp_path / "none.pth", "-o", output)
    torch.save(LGLDNet(base_channels=10).state_dict(), tmp_path / "ten.pth")
    refused("ten.pth: base_channels must be a multiple of 4 to be fused, but is 10", tmp_path / "ten.pth", "-o", output)
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    refused("not a checkpoint of LGLD-Net: missing", tmp_path / "other.pth", "-o", output)
    refused("--classes must name 3 classes, got 2: a,b", EXAMPLE, "-o", output, "--classes", "a,b")
    assert not output.exists()


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_fused_files(weights: Path, tmp_path: Path, keep: int) -> None:
    whole = tmp_path / "cell.lgld"
    assert export(weights, "-o", whole).exit_code == 0
    broken = tmp_path / "broken.lgld"
    broken.write_bytes(whole.read_bytes()[:keep])
    refused("broken.lgld: truncated, or not a safetensors file", broken, "-o", tmp_path / "again.lgld")


# --- classify with such a file ----------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(5).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.core
def test_classify_runs_the_fused_network_of_the_file(weights: Path, tmp_path: Path, picture: Path) -> None:
    output = tmp_path / "cell.lgld"
    export(weights, "-o", output, "--size", "24x32", "--classes", "a,b,c,d")
    pixels = np.asarray(Image.open(picture).resize((32, 24), Image.Resampling.BILINEAR))[None].copy()
    fast, network = lgld_ops.load(output), network_of(3, 8, 4)
    expected = {
        "--fast": ("lgld_ops.fused.FusedLGLDNet", fast.predict(pixels)),
        "--reference": ("lgld_ops.reference.LGLDNet", network(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).detach()),
    }
    for option, (name, logits) in expected.items():
        result = run("classify", picture, "--weights", output, "--json", option)
        assert (result.exit_code, result.stderr) == (0, "")
        content = json.loads(result.stdout)
        assert content["network"] == name
        assert (content["image_size"], content["classes"]) == ([24, 32], ["a", "b", "c", "d"])
        found = torch.tensor([content["results"][0]["logits"]])
        torch.testing.assert_close(found, logits, **({"rtol": 0, "atol": 0} if option == "--fast" else {}))


def test_classify_gives_the_golden_logits_with_a_fused_file(shared_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "cell.lgld"
    export(EXAMPLE, "-o", output)
    golden = np.load(shared_dir / "golden" / "lgldnet_bccd_val.npz")
    folder = shared_dir / "data" / "bccd-cells"
    result = run("classify", folder / "val", "--weights", output, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = {Path(row["path"]).relative_to(folder).as_posix(): row["logits"] for row in json.loads(result.stdout)["results"]}
    logits = np.array([found[str(name)] for name in golden["names"]])
    assert np.linalg.norm(logits - golden["logits"]) / np.linalg.norm(golden["logits"]) < 1e-6


def test_classify_refuses_an_altered_file(weights: Path, tmp_path: Path, picture: Path) -> None:
    output = tmp_path / "cell.lgld"
    export(weights, "-o", output, "--size", "24", "--classes", "a,b,c,d")
    data = bytearray(output.read_bytes())
    data[-1000] ^= 0x10
    output.write_bytes(data)
    for option in ("--fast", "--reference"):
        result = run("classify", picture, "--weights", output, option)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "cell.lgld: altered since FusedLGLDNet.save wrote it: its checksum does not fit" in result.stderr


def test_classify_says_why_the_network_is_not_fused(tmp_path: Path, picture: Path) -> None:
    torch.save(LGLDNet(base_channels=10).state_dict(), tmp_path / "ten.pth")
    arguments = ("classify", picture, "--weights", tmp_path / "ten.pth", "--json", "--size", "24", "--classes", "a,b,c,d")
    result = run(*arguments)
    assert result.exit_code == 0
    assert result.stderr.startswith("note: the network runs block by block")
    assert "base_channels must be a multiple of 4 to be fused, but is 10" in result.stderr
    assert json.loads(result.stdout)["network"] == "lgld_ops.network.LGLDNet"
    assert run(*arguments, "--reference").stderr == ""
