"""Writes a network in another runtime's format: ``python -m lgld_ops.bench.opponents.convert NETWORK CASE FILE``.

CASE is `case_to_dict` as JSON; FILE ends in ``.onnx`` or ``.ncnn.param``. It appears when it is complete.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgld_ops import reference
from lgld_ops.bench.cases import NetworkCase, case_from_dict
from lgld_ops.bench.opponents.network import network
from lgld_ops.bench.opponents.other_networks import other_network
from lgld_ops.bench.opponents.runtimes import LGLD_NET


class _SlicedInvolution(reference.InvolutionLayer):
    """Nine shifted products, one after the other: ncnn has no tensors of the unfolded window's rank."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.shared_mlp(self.reduce(x))
        k, height, width = self.kernel_size, int(x.shape[2]), int(x.shape[3])
        padded = F.pad(x, (k // 2,) * 4)
        result: Tensor | None = None
        for tap in range(k * k):
            u, v = divmod(tap, k)
            product = padded[:, :, u : u + height, v : v + width] * kernel[:, tap : tap + 1]
            result = product if result is None else result + product
        assert result is not None
        return result


class _SlicedFusion(reference.LGFM):
    """The two weights as slices of one map of two channels: the converter gets single columns of a matrix wrong."""

    def forward(self, local_map: Tensor, global_map: Tensor) -> Tensor:
        w = self.fc(torch.cat([local_map, global_map], dim=1)).view(-1, 2, 1, 1)
        fused: Tensor = w[:, 0:1] * local_map + w[:, 1:2] * global_map
        return fused


class _SlicedLGLDNet(reference.LGLDNet):
    involution_type = _SlicedInvolution
    lgfm_type = _SlicedFusion


def _to_onnx(net: nn.Module, x: Tensor, path: Path) -> None:
    from lgld_ops.export import export_onnx

    partial = path.with_suffix(".part")
    export_onnx(net, (x,), str(partial), external_data=False)
    partial.replace(path)


def _to_ncnn(net: nn.Module, x: Tensor, path: Path) -> None:
    import pnnx

    with tempfile.TemporaryDirectory(dir=path.parent) as folder, torch.inference_mode():
        # fp16: whether the weights are stored in 16 bits.
        pnnx.export(net, str(Path(folder) / "network.pt"), x, fp16=False, check_trace=False)
        (Path(folder) / "network.ncnn.bin").replace(path.with_suffix(".bin"))
        (Path(folder) / "network.ncnn.param").replace(path)


def main(name: str, case_json: str, file: str) -> None:
    case, path = case_from_dict(json.loads(case_json)), Path(file)
    assert isinstance(case, NetworkCase)
    to_ncnn = path.name.endswith(".ncnn.param")
    kind = _SlicedLGLDNet if to_ncnn else reference.LGLDNet
    net = network(kind, case) if name == LGLD_NET else other_network(name)
    x = torch.from_numpy(case.arrays()["x"])
    if to_ncnn:
        _to_ncnn(net, x[:1], path)
    else:
        _to_onnx(net, x, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
