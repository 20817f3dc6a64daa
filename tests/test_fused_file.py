"""Files of a fused network: what is written comes back, and whatever is not such a file is refused with a reason."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_fused import image, network_of

import lgld_ops
from lgld_ops import fuse, reference
from lgld_ops.checkpoint import CheckpointError, load_network


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "cell.lgld"
    network = network_of(3, 8, 4)
    network.head[1].eps = 0.01
    fuse(network, image_size=(96, 128), classes=["a", "b", "ü", "d"]).save(path)
    return path


def test_comes_back_as_it_was(saved: Path) -> None:
    fast = lgld_ops.load(saved)
    network = network_of(3, 8, 4)
    network.head[1].eps = 0.01
    x = image(2, 3, 30, 20)
    assert torch.equal(fast(x), fuse(network)(x))
    assert (fast.image_size, fast.classes) == ((96, 128), ("a", "b", "ü", "d"))
    assert (fast.in_channels, fast.base_channels, fast.num_classes) == (3, 8, 4)


def test_without_metadata_of_the_data_set(tmp_path: Path) -> None:
    fast = fuse(network_of(3, 8, 4))
    fast.save(tmp_path / "plain")
    again = lgld_ops.load(tmp_path / "plain")
    assert (again.image_size, again.classes) == (None, None)
    fast.save(tmp_path / "plain", image_size=(8, 9), classes=["1", "2", "3", "4"])
    again = lgld_ops.load(str(tmp_path / "plain"))
    assert (again.image_size, again.classes) == ((8, 9), ("1", "2", "3", "4"))
    assert [file.name for file in tmp_path.iterdir()] == ["plain"]
    with pytest.raises(ValueError, match="must name 4 classes"):
        fast.save(tmp_path / "other", classes=["1"])
    assert not (tmp_path / "other").exists()


def test_holds_the_published_state_dict(saved: Path, tmp_path: Path) -> None:
    with safe_open(saved, "pt") as file:
        assert set(file.keys()) == set(network_of(3, 8, 4).state_dict())
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == ["a", "b", "ü", "d"]
    named = tmp_path / "cell.safetensors"
    named.write_bytes(saved.read_bytes())
    x = image(2, 3, 30, 20)
    for path in (named, saved):
        network, info = load_network(path, network=reference.LGLDNet)
        assert (info.image_size, info.classes) == ((96, 128), ("a", "b", "ü", "d"))
        assert network.head[1].eps == pytest.approx(0.01)  # no tensor says so
        torch.testing.assert_close(network(x), lgld_ops.load(saved)(x), rtol=1e-5, atol=1e-6)


def test_the_network_is_checked_as_the_fused_one(saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-100] ^= 0x10
    for name in ("altered.lgld", "altered.safetensors"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match="checksum does not fit"):
            load_network(tmp_path / name)
    save_file(network_of(3, 8, 4).state_dict(), tmp_path / "foreign.lgld")
    with pytest.raises(CheckpointError, match="not written by FusedLGLDNet"):
        load_network(tmp_path / "foreign.lgld")


@pytest.mark.parametrize("keep", [0, 5, 8, 100, 2000, -1])
def test_truncated(saved: Path, keep: int) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match="truncated, or not a safetensors file"):
        lgld_ops.load(saved)


@pytest.mark.parametrize("where", [0.3, 0.6, 0.999])
def test_an_altered_weight(saved: Path, where: float) -> None:
    data = bytearray(saved.read_bytes())
    header = int.from_bytes(data[:8], "little") + 8
    index = header + int((len(data) - header) * where)
    data[index] ^= 0x10
    saved.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum does not fit"):
        lgld_ops.load(saved)


def test_any_altered_byte(tmp_path: Path) -> None:
    path = tmp_path / "cell.lgld"
    fuse(network_of(1, 4, 1), image_size=(9, 8), classes=["ü"]).save(path)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    # All that the checksum does not cover, and a sample of the rest.
    name = "num_batches_tracked"
    counters = [at + k for at in (found.start() for found in re.finditer(name.encode(), data)) for k in range(-16, 80)]
    begins = [end + entry["data_offsets"][0] for key, entry in json.loads(data[8:end]).items() if key.endswith(name)]
    counters += [begin + k for begin in begins for k in range(8)]
    assert len(counters) == 3 * (96 + 8)
    for index in {*counters, *range(0, len(data), 29)}:
        for bit in (0, 5):
            altered = bytearray(data)
            altered[index] ^= 1 << bit
            path.write_bytes(altered)
            with pytest.raises(CheckpointError):
                lgld_ops.load(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", '["a","b","c","d"]', "checksum"),
        ("image_size", "[96,96]", "checksum"),
        ("eps", "[1,1,1]", "checksum"),
        ("eps", "[1,1]", "altered"),
        ("eps", "nonsense", "altered"),
        ("sha256", "", "checksum"),
        ("num_classes", "5", "sizes in its metadata"),
        ("format_version", "2", "format version is '2', this lgld_ops reads version 1"),
        ("format", "lgld_ops.other", "not written by FusedLGLDNet"),
    ],
)
def test_altered_metadata(saved: Path, key: str, value: str, message: str) -> None:
    with safe_open(saved, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    metadata[key] = value
    save_file(tensors, saved, metadata)
    with pytest.raises(CheckpointError, match=message):
        lgld_ops.load(saved)


def test_altered_tensors(saved: Path) -> None:
    with safe_open(saved, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    for change, message in [
        ({"head.0.bias": None}, "missing head.0.bias"),
        ({"head.0.bias": torch.zeros(9)}, r"head\.0\.bias is \(9,\), must be \(8,\)"),
        ({"more": torch.zeros(1)}, "unexpected more"),
        ({"head.0.bias": torch.zeros(8, dtype=torch.int32)}, "not floating point"),
    ]:
        altered = {name: value for name, value in {**tensors, **change}.items() if value is not None}
        save_file(altered, saved, metadata)
        with pytest.raises(CheckpointError, match=message):
            lgld_ops.load(saved)


def test_several_threads_save_to_one_path(tmp_path: Path) -> None:
    fast = fuse(network_of(3, 8, 4))
    errors: list[Exception] = []

    def save() -> None:
        try:
            for _ in range(20):
                fast.save(tmp_path / "cell.lgld")
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=save) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    assert [file.name for file in tmp_path.iterdir()] == ["cell.lgld"]
    assert torch.equal(lgld_ops.load(tmp_path / "cell.lgld").weights, fast.weights)


def test_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        lgld_ops.load(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is no file"):
        lgld_ops.load(tmp_path)
    weights = tmp_path / "weights.safetensors"
    save_file(network_of(3, 8, 4).state_dict(), weights)
    with pytest.raises(CheckpointError, match="not written by FusedLGLDNet"):
        lgld_ops.load(weights)
    torch.save(network_of(3, 8, 4).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        lgld_ops.load(tmp_path / "weights.pth")
