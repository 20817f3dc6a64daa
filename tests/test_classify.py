"""The command line: ``lgld-ops classify``, its exit codes and the examples that README names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

import lgld_ops
from lgld_ops import _native
from lgld_ops.cli import main
from lgld_ops.cli.images import read_image
from lgld_ops.reference import LGLDNet

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "lgldnet_bccd.safetensors"


def classify(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["classify", *map(str, arguments)])


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code in (0, 1), result.output
    content: list[dict[str, Any]] = json.loads(result.stdout)["results"]
    return content


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network with 3 classes that were never trained, without metadata."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(LGLDNet(base_channels=8, num_classes=3).state_dict(), path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with five images at two levels, and files that are none."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "deeper/c.bmp", "deeper/d.tiff", "e.webp"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes((folder / "b.png").read_bytes())
    return folder


SETTINGS = ("--size", "24x32", "--classes", "Alpha, Beta,Gamma")


@pytest.mark.parametrize(("network", "step"), [("--fast", 1), ("--reference", 3)])
def test_real_cells_give_the_golden_logits(shared_dir: Path, network: str, step: int) -> None:
    golden = np.load(shared_dir / "golden" / "lgldnet_bccd_val.npz")
    folder = shared_dir / "data" / "bccd-cells"
    names = [str(name) for name in golden["names"][::step]]
    truth, labels = golden["logits"][::step], golden["labels"][::step]
    for name, pixels in zip(names, golden["uint8_nhwc"][::step], strict=True):
        assert np.array_equal(read_image(folder / name, (96, 96)), pixels)
    paths = [folder / "val"] if step == 1 else [folder / name for name in names]
    result = classify(*paths, "--weights", EXAMPLE, "--json", "--batch-size", 16, network)
    assert result.exit_code == 0
    assert result.stderr == "" or not _native.loaded()
    fastest = lgld_ops.FusedLGLDNet if _native.loaded() else lgld_ops.LGLDNet
    cls = fastest if network == "--fast" else LGLDNet
    assert json.loads(result.stdout)["network"] == f"{cls.__module__}.{cls.__qualname__}"
    found = {Path(row["path"]).relative_to(folder).as_posix(): row for row in rows(result)}
    assert found.keys() == set(names)
    logits = np.array([found[name]["logits"] for name in names])
    assert np.linalg.norm(logits - truth) / np.linalg.norm(truth) < 1e-6
    classes = np.array(["Platelets", "RBC", "WBC"])
    named = np.array([found[name]["class"] for name in names])
    assert np.array_equal(named, classes[truth.argmax(1)])
    if step == 1:
        assert (named == classes[labels]).mean() == pytest.approx(0.957, abs=5e-4)
    exponentials = np.exp(truth)
    shares = np.array([[found[name]["probabilities"][c] for c in classes] for name in names])
    np.testing.assert_allclose(shares, exponentials / exponentials.sum(1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose([found[name]["probability"] for name in names], shares.max(1))


def test_readme_command(tmp_path: Path) -> None:
    """Draw smears, then classify them and one broken file in a process of their own."""
    out = tmp_path / "out"
    draw = [sys.executable, ROOT / "examples" / "make_smears.py", out, "--count", "8"]
    subprocess.run(draw, check=True, capture_output=True)
    (out / "broken.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "lgld_ops", "classify", out, "--weights", EXAMPLE, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr == f"error: {out / 'broken.png'}: not an image that Pillow can read\n"
    results = json.loads(done.stdout)["results"]
    assert len(results) == 24
    right = sum(row["class"] == Path(row["path"]).parent.name for row in results)
    assert right >= 20


def test_smears_repeat(tmp_path: Path) -> None:
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        arguments = [tmp_path / folder, "--count", "1", "--seed", seed, "--size", "96"]
        subprocess.run(
            [sys.executable, ROOT / "examples" / "make_smears.py", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    for kind in ("Platelets", "RBC", "WBC"):
        a, b, c = (np.asarray(Image.open(tmp_path / folder / kind / f"{kind}_000.png")) for folder in "abc")
        assert a.shape == (96, 96, 3)
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


def test_folder_is_searched_in_order(images: Path, small: Path) -> None:
    found = rows(classify(images, "--weights", small, "--json", *SETTINGS))
    names = [Path(row["path"]).relative_to(images).as_posix() for row in found]
    assert names == ["a.JPG", "b.png", "e.webp", "deeper/c.bmp", "deeper/d.tiff"]


def test_result_is_that_of_the_network(images: Path, small: Path) -> None:
    result = classify(images / "b.png", "--weights", small, "--json", *SETTINGS)
    assert result.exit_code == 0
    content = json.loads(result.stdout)
    assert content["classes"] == ["Alpha", "Beta", "Gamma"]
    assert content["image_size"] == [24, 32]
    assert content["errors"] == []
    network = LGLDNet(base_channels=8, num_classes=3).eval()
    network.load_state_dict(torch.load(small))
    resized = Image.open(images / "b.png").resize((32, 24), Image.Resampling.BILINEAR)
    with torch.no_grad():
        logits = network(torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 255)[0]
    (row,) = content["results"]
    torch.testing.assert_close(torch.tensor(row["logits"]), logits, rtol=1e-5, atol=1e-6)
    shares = torch.tensor([row["probabilities"][name] for name in content["classes"]])
    torch.testing.assert_close(shares, logits.softmax(0), rtol=1e-5, atol=1e-6)
    assert row["class"] == content["classes"][int(logits.argmax())]
    assert row["probability"] == max(row["probabilities"].values())


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_errors_leave_the_other_images_alone(images: Path, small: Path, batch_size: int) -> None:
    clean = rows(classify(images, "--weights", small, "--json", *SETTINGS))
    (images / "aa.png").write_bytes(b"not a png")
    (images / "c.jpg").write_bytes((images / "a.JPG").read_bytes()[:-100])
    missing = images / "gone.png"
    arguments = (images, missing, images / "notes.txt", "--batch-size", batch_size)
    result = classify(*arguments, "--weights", small, "--json", *SETTINGS)
    assert result.exit_code == 1
    found = rows(result)
    assert [row["path"] for row in found] == [row["path"] for row in clean]
    for ours, theirs in zip(found, clean, strict=True):
        np.testing.assert_allclose(ours["logits"], theirs["logits"], rtol=1e-5, atol=1e-6)
    errors = {Path(item["path"]).name: item["error"] for item in json.loads(result.stdout)["errors"]}
    assert list(errors) == ["aa.png", "c.jpg", "gone.png", "notes.txt"]
    assert "truncated" in errors["c.jpg"]
    lines = [f"error: {Path(item['path'])}: {item['error']}" for item in json.loads(result.stdout)["errors"]]
    assert result.stderr.splitlines() == lines
    assert errors["gone.png"] == "no such file or folder"
    assert errors["notes.txt"] == errors["aa.png"] == "not an image that Pillow can read"


def test_empty_folder(tmp_path: Path, small: Path) -> None:
    result = classify(tmp_path, "--weights", small, *SETTINGS)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path}: no image in this folder")
    assert "0 classified" in result.stdout


def test_table(images: Path, small: Path) -> None:
    deep = images / ("long-name-" * 12)
    deep.mkdir()
    (images / "b.png").rename(deep / "b[red]x.png")
    result = classify(images, images / "gone", "--weights", small, *SETTINGS)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    for name in ("image", "class", "probability", "Alpha", "Beta", "Gamma"):
        assert name in lines[0]
    assert sum("%" in line for line in lines) == 5
    assert any(str(deep / "b[red]x.png") in line for line in lines), "no name is cut or taken for markup"
    counts = [int(word.rstrip("),")) for word in lines[-1].split() if word.rstrip("),").isdigit()]
    assert lines[-1].startswith("5 classified (Alpha ")
    assert sum(counts[1:-1]) == 5
    assert lines[-1].endswith(", 1 failed")


def test_name_cannot_drive_the_terminal(images: Path, small: Path) -> None:
    (images / "b.png").rename(images / "x\x1b[2Jy\nz.png")
    result = classify(images, images / "\x1b[2J", "--weights", small, *SETTINGS)
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert "x\ufffd[2Jy\ufffdz.png" in result.stdout


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_8_bit_mode_becomes_rgb(images: Path, mode: str) -> None:
    image = Image.open(images / "b.png").convert(mode)
    path = images / f"mode.{'tiff' if mode == 'CMYK' else 'png'}"
    image.save(path)
    expected = np.asarray(image.convert("RGB").resize((32, 24), Image.Resampling.BILINEAR))
    assert np.array_equal(read_image(path, (24, 32)), expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_pixels_are_refused(tmp_path: Path, small: Path, dtype: type) -> None:
    path = tmp_path / "deep.tiff"
    Image.fromarray(np.full((20, 20), 300, dtype=dtype)).save(path)
    result = classify(path, "--weights", small, *SETTINGS)
    assert result.exit_code == 1
    assert "pixels must have 8 bits a channel" in result.stderr


def test_decoder_remarks_name_the_file(monkeypatch: pytest.MonkeyPatch, images: Path, small: Path) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # Pillow warns above it, and refuses twice as much
    Image.new("RGB", (30, 30)).save(images / "huge.png")
    result = classify(images / "a.JPG", images / "huge.png", "--weights", small, "--json", *SETTINGS)
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert first.startswith(f"warning: {images / 'a.JPG'}: Image size (600 pixels) exceeds limit of 400")
    assert second.startswith(f"error: {images / 'huge.png'}: cannot be read as an image: Image size (900 pixels)")
    assert len(rows(result)) == 1


def test_exif_orientation(images: Path) -> None:
    upright = Image.open(images / "b.png")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned by 90 degrees clockwise
    turned.save(images / "turned.png", exif=exif)
    assert np.array_equal(read_image(images / "turned.png", (20, 30)), np.asarray(upright))


def test_not_finite(tmp_path: Path, images: Path) -> None:
    network = LGLDNet(base_channels=8, num_classes=3)
    with torch.no_grad():
        network.head[6].bias[1] = torch.nan
    torch.save(network.state_dict(), tmp_path / "nan.pt")
    result = classify(images / "b.png", "--weights", tmp_path / "nan.pt", "--json", *SETTINGS)
    assert result.exit_code == 1
    assert "logits are not finite" in result.stderr
    assert rows(result) == []


def unusable(message: str, *arguments: object) -> None:
    result = classify(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in " ".join(result.stderr.split())


def test_weights_without_size_or_classes(images: Path, small: Path) -> None:
    unusable("pass --size, like --size 224; nor its 3 class names: pass --classes", images, "--weights", small)
    unusable("class names: pass --classes", images, "--weights", small, "--size", 24)
    unusable("images: pass --size", images, "--weights", small, "--classes", "a,b,c")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--classes", "a,b", "must name 3 classes, got 2: a,b"),
        ("--classes", "a,b,b", "class names must differ"),
        ("--classes", "a,,b", "--classes"),
        ("--size", "0", "--size"),
        ("--size", "24x", "--size"),
        ("--size", "-5", "--size"),
        ("--batch-size", "0", "--batch-size"),
    ],
)
def test_bad_options(images: Path, small: Path, option: str, value: str, message: str) -> None:
    unusable(message, images, "--weights", small, *SETTINGS, option, value)


def test_unusable_weights(tmp_path: Path, images: Path) -> None:
    gone = tmp_path / "gone.pth"
    unusable(f"error: {gone}: no such weights file", images, "--weights", gone)
    text = tmp_path / "text.safetensors"
    text.write_text("hello, hello, hello")
    unusable(f"error: {text}: truncated, or not a safetensors file", images, "--weights", text)
    other = tmp_path / "other.safetensors"
    save_file(torch.nn.Linear(2, 2).state_dict(), other)
    unusable(f"error: {other}: not a checkpoint of LGLD-Net: missing", images, "--weights", other)
    grey = tmp_path / "grey.pth"
    torch.save(LGLDNet(in_channels=1, base_channels=8).state_dict(), grey)
    unusable("in_channels must be 3 for RGB images, got 1", images, "--weights", grey)


def test_options_override_the_file(images: Path) -> None:
    settings = ("--size", "40", "--classes", "x,y,z")
    result = classify(images / "b.png", "--weights", EXAMPLE, "--json", "--reference", *settings)
    content = json.loads(result.stdout)
    assert content["image_size"] == [40, 40]
    assert content["classes"] == ["x", "y", "z"]


def test_group_imports_no_subcommand() -> None:
    code = (
        "import sys; from lgld_ops.cli import main; main(['--help'], standalone_mode=False);"
        "assert not {m for m in sys.modules if m.startswith(('lgld_ops.cli.', 'rich', 'PIL', 'safetensors'))}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("classify", "export", "info", "bench"):
        assert f"  {command} " in done.stdout


def test_version_and_unknown_command() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.output == f"lgld-ops, version {lgld_ops.__version__}\n"
    assert CliRunner().invoke(main, ["nonsense"]).exit_code == 2
