"""Inference runtimes other than torch: ONNX Runtime, OpenVINO, ncnn.

The network is converted once for a case, in a process of its own (`convert`), so that exporters' memory is not counted as the
runtime's. Thread counts go into each library's own option: none of them asks OMP_NUM_THREADS alone.
"""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cases import FORWARD, NetworkCase, case_to_dict
from .registry import Call, Inputs, Requirement, module, opponent

EXPORT = ("onnx", "onnxscript")
"""The packages that torch.onnx.export needs."""
ONNX_RUNTIME: tuple[Requirement, ...] = (module(*EXPORT, "onnxruntime"),)
OPENVINO: tuple[Requirement, ...] = (module(*EXPORT, "openvino"),)
NCNN: tuple[Requirement, ...] = (module("ncnn", "pnnx"),)


def bfloat16() -> str | None:
    """OpenVINO's bfloat16 needs a processor that has it; on another it would compute in float32 and call it that."""
    import openvino

    has = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return None if has else "needs a processor with bfloat16 arithmetic"


def converted(network: str, case: NetworkCase, kind: str) -> Path:
    """The network as an ONNX file, or as ncnn's .param file with the .bin beside it; made where it is not there yet.

    It lies in the working folder, which all workers of a harness share and which is deleted with them.

    Raises:
        RuntimeError: the conversion failed; with the end of what it printed.
    """
    shape = f"{case.batch if kind == 'onnx' else 1}-{case.size}-{case.num_classes}"
    stem = re.sub(r"\W", "", network).lower() + f"-{shape}"
    path = Path.cwd() / f"{stem}.{'onnx' if kind == 'onnx' else 'ncnn.param'}"
    with open(path.with_name(f"{stem}.{kind}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            command = [
                sys.executable,
                "-m",
                "lgld_ops.bench.opponents.convert",
                network,
                json.dumps(case_to_dict(case)),
                str(path),
            ]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if done.returncode != 0 or not path.exists():
                tail = "\n".join(done.stdout.strip().splitlines()[-10:])
                raise RuntimeError(f"converting {network} to {kind} failed (status {done.returncode}):\n{tail}")
    return path


def run_onnx_runtime(network: str, case: NetworkCase, inputs: Inputs) -> Call:
    """ONNX Runtime on the CPU, float32, all graph optimisations (its default)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    path = str(converted(network, case, "onnx"))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: inputs["x"].numpy()}
    return lambda: {"logits": session.run(None, feed)[0]}


def run_openvino(network: str, case: NetworkCase, inputs: Inputs, precision: str = "f32") -> Call:
    """OpenVINO on the CPU, one stream, in "f32" or "bf16": on processors with bfloat16 it would choose that by itself."""
    import openvino

    path = str(converted(network, case, "onnx"))
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", settings)
    for name in ("INFERENCE_NUM_THREADS", "NUM_STREAMS"):
        if (chosen := model.get_property(name)) != settings[name]:
            raise RuntimeError(f"OpenVINO chose {name} {chosen}, not {settings[name]}")
    request = model.create_infer_request()
    feed = [inputs["x"].numpy()]
    return lambda: {"logits": request.infer(feed, share_inputs=True)[0]}


def run_ncnn(network: str, case: NetworkCase, inputs: Inputs) -> Call:
    """ncnn on the CPU, float32, image by image: its tensors have no batch."""
    import ncnn

    path = converted(network, case, "ncnn")
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    for name in ("vulkan_compute", "fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
        if hasattr(net.opt, f"use_{name}"):
            setattr(net.opt, f"use_{name}", False)
    if net.load_param(str(path)) != 0 or net.load_model(str(path.with_suffix(".bin"))) != 0:
        raise RuntimeError("ncnn cannot read the converted network")
    # Copies, for ncnn would keep a pointer to memory aligned to less than its own.
    images = [ncnn.Mat(image).clone() for image in inputs["x"].numpy()]

    def one(image: Any) -> np.ndarray[Any, Any]:
        with net.create_extractor() as extractor:
            extractor.input("in0", image)
            status, output = extractor.extract("out0")
            if status != 0:
                raise RuntimeError(f"ncnn failed with status {status}")
            return np.array(output)

    return lambda: {"logits": np.stack([one(image) for image in images])}


def runs(network: str, run: Callable[..., Call], *settings: Any) -> Callable[[NetworkCase, Inputs], Call]:
    """An opponent's function: ``run`` with that network."""
    return lambda case, inputs: run(network, case, inputs, *settings)


LGLD_NET = "LGLD-Net"

NCNN_ERROR_FACTOR = 32.0
"""ncnn's logits are 9 times less exact than eager's (8.4e-7 of 0.36), and 4 times would forbid the comparison. Its Winograd
convolutions are not the reason: without them the error is the same. Where it arises was not looked for."""

BF16_ERROR = 0.03
"""bfloat16 keeps 8 bits: a rounding is off by up to 2^-9 = 0.002, a value after a dozen layers, each rounded when stored, by
about sqrt(12) * 0.002 = 0.007; and 4 times that for the worst of the logits. It is not float32, and its error stands beside
its time."""

opponent("ONNX Runtime", "network", modes=(FORWARD,), requires=ONNX_RUNTIME, limited_by_variables=False)(
    runs(LGLD_NET, run_onnx_runtime)
)
opponent("OpenVINO f32", "network", modes=(FORWARD,), requires=OPENVINO)(runs(LGLD_NET, run_openvino))
opponent(
    "OpenVINO bf16",
    "network",
    modes=(FORWARD,),
    requires=(*OPENVINO, bfloat16),
    limited_by_variables=False,
    relative_error=BF16_ERROR,
)(runs(LGLD_NET, run_openvino, "bf16"))
opponent("ncnn", "network", modes=(FORWARD,), requires=NCNN, limited_by_variables=False, error_factor=NCNN_ERROR_FACTOR)(
    runs(LGLD_NET, run_ncnn)
)
