"""Weights files: what is read, and the error for each kind of file that cannot be."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import lgld_ops
from lgld_ops.checkpoint import CheckpointError, load_network, read_state_dict
from lgld_ops.reference import LGLDNet

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "lgldnet_bccd.safetensors"


@pytest.fixture
def network() -> LGLDNet:
    torch.manual_seed(0)
    return LGLDNet(in_channels=2, base_channels=16, num_classes=7).eval()


def assert_same(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, expected[key]), key


def prefixed(state: dict[str, Any]) -> dict[str, Any]:
    return {f"module.{key}": value for key, value in state.items()}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".PTH"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        prefixed,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": prefixed(state), "optimizer": {"lr": 0.01}},
        lambda state: {"model": state},
    ],
    ids=["plain", "module", "state_dict", "model_state_dict", "model"],
)
def test_reads_what_torch_saves(tmp_path: Path, network: LGLDNet, wrap: Callable[[dict[str, Any]], Any], suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(network.state_dict()), path)
    before = torch.random.get_rng_state()
    loaded, info = load_network(path, network=LGLDNet)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(loaded, network)
    assert not any(module.training for module in loaded.modules())
    assert (info.in_channels, info.base_channels, info.num_classes) == (2, 16, 7)
    assert info.path == path
    assert info.image_size is None
    assert info.classes is None


def test_reads_safetensors_with_metadata(tmp_path: Path, network: LGLDNet) -> None:
    path = tmp_path / "weights.safetensors"
    metadata = {
        "in_channels": "2",
        "base_channels": "16",
        "image_size": "[24, 32]",
        "classes": '["a", "b", "c", "d", "e", "f", "g"]',
        "note": "hello",
    }
    save_file(prefixed(network.state_dict()), path, metadata)
    loaded, info = load_network(str(path), network=LGLDNet)
    assert_same(loaded, network)
    assert info.image_size == (24, 32)
    assert info.classes == tuple("abcdefg")
    assert info.metadata == {"note": "hello"}


def test_metadata_beside_a_state_dict(tmp_path: Path, network: LGLDNet) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": network.state_dict(), "image_size": 64, "classes": list("abcdefg")}, path)
    _, info = load_network(path, network=LGLDNet)
    assert info.image_size == (64, 64)
    assert info.classes == tuple("abcdefg")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_become_float32(tmp_path: Path, network: LGLDNet, dtype: torch.dtype) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(network.to(dtype).state_dict(), path)
    loaded, _ = load_network(path, network=LGLDNet)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert_same(loaded, network.float())


def test_example_weights() -> None:
    loaded, info = load_network(EXAMPLE, network=LGLDNet)
    assert (info.in_channels, info.base_channels, info.num_classes) == (3, 64, 3)
    assert info.image_size == (96, 96)
    assert info.classes == ("Platelets", "RBC", "WBC")
    assert loaded(torch.rand(1, 3, 96, 96)).shape == (1, 3)


def test_network_by_default_is_the_fast_one() -> None:
    loaded, _ = load_network(EXAMPLE)
    assert type(loaded) is lgld_ops.LGLDNet
    reference, _ = load_network(EXAMPLE, network=LGLDNet)
    assert_same(loaded, reference)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pth: no such weights file"):
        load_network(tmp_path / "gone.pth")


def refused(path: Path, message: str) -> None:
    """Loading ``path`` says which file and why, in one line."""
    with pytest.raises(CheckpointError, match=message) as caught:
        load_network(path, network=LGLDNet)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < len(str(path)) + 500


def test_folder_and_suffix(tmp_path: Path) -> None:
    refused(tmp_path, "is no file")
    (tmp_path / "weights.bin").write_bytes(b"")
    refused(tmp_path / "weights.bin", r"\.safetensors, \.lgld, \.pth, \.pt file, got suffix '\.bin'")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 10, 3000, -1])
def test_truncated(tmp_path: Path, network: LGLDNet, suffix: str, keep: int) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "truncated, or not")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("content", [b"hello world\n" * 50, b"\x89PNG\r\n\x1a\n" * 50, b"\x80\x02xxxx", b"\0" * 999])
def test_foreign(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    refused(path, "truncated, or not")


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_pickle_with_code_is_not_run(tmp_path: Path, network: LGLDNet, form: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "weights.pth"
    content = {"state_dict": network.state_dict(), "payload": Payload(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"payload": Payload(marker)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    refused(
        path,
        r"needs code to load \(posix\.mkdir\) and was refused" if form != "pickle" else "refused|truncated",
    )
    assert not marker.exists()
    with path.open("rb") as file:
        if form == "pickle":
            pickle.load(file)
        else:
            torch.load(file, weights_only=False)
    assert marker.exists(), "the payload must work, or the test shows nothing"


def test_whole_module_and_script(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    refused(tmp_path / "module.pth", r"needs code to load \(torch\.nn\.modules\.linear\.Linear\)")


def damaged(network: LGLDNet, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    state = dict(network.state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("gce.se.1.bias"), r"missing gce\.se\.1\.bias$"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), r"unexpected extra\.weight$"),
        (
            lambda s: s.update({"lfa.project.weight": torch.zeros(16, 16, 1, 1)}),
            r"lfa\.project\.weight is \(16, 16, 1, 1\), must be \(16, 32, 1, 1\)$",
        ),
        (
            lambda s: s.update({"head.0.bias": torch.zeros(16, dtype=torch.int8)}),
            r"head\.0\.bias is torch\.int8, must be floating point$",
        ),
        (lambda s: s.update({"head.6.weight": torch.zeros(0, 16)}), "num_classes must be at least 1, got 0"),
        (lambda s: s.update({"note": "text"}), r"must hold tensors only, but these are none: note$"),
        (lambda s: s.clear(), r"missing local_stem\.conv\.weight, .* and \d+ more$"),
    ],
    ids=["missing", "unexpected", "shape", "dtype", "classes", "foreign value", "empty"],
)
def test_wrong_checkpoint(tmp_path: Path, network: LGLDNet, change: Callable[[dict[str, Any]], object], message: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(damaged(network, change), path)
    refused(path, message)


def test_other_network(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict(), path)
    refused(path, r"not a checkpoint of LGLD-Net: missing local_stem.* and \d+ more; unexpected 0\.bias")


def test_no_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save([torch.zeros(2)], path)
    refused(path, "holds a list, must hold a state dict")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"base_channels": "64"}, "metadata base_channels is 64, but the tensors have 16"),
        ({"image_size": "big"}, "metadata image_size must be .* got 'big'"),
        ({"image_size": "0"}, "metadata image_size must be"),
        ({"image_size": "[1, 2, 3]"}, "metadata image_size must be"),
        ({"classes": "a,b"}, "metadata classes must be a JSON list of names, got 'a,b'"),
        ({"classes": '["a", "b"]'}, r"names 2 classes, but head\.6\.weight has 7"),
    ],
)
def test_wrong_metadata(tmp_path: Path, network: LGLDNet, metadata: dict[str, str], message: str) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path, metadata)
    refused(path, message)


def test_reads_the_golden_state(shared_dir: Path) -> None:
    state, metadata = read_state_dict(shared_dir / "golden" / "lgldnet_bccd.safetensors")
    ours, _ = read_state_dict(EXAMPLE)
    assert metadata["image_size"] == "96"
    assert state.keys() == ours.keys()
    assert all(torch.equal(state[key], ours[key]) for key in state)
