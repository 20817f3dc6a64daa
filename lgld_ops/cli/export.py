"""``lgld-ops export``: trained weights as one file that runs by itself, fused for this package or as ONNX."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from torch import nn

from lgld_ops import export_onnx, fuse
from lgld_ops.checkpoint import CheckpointInfo
from lgld_ops.cli.weights import Unusable, check_classes, classes_option, printable, read_network, size_option
from lgld_ops.fused_file import SUFFIX, replace_with

ONNX = ".onnx"


def _check_output(output: Path, force: bool) -> None:
    """Before anything is computed: a minute's export should not end in a missing folder."""
    if output.suffix.lower() not in (SUFFIX, ONNX):
        raise Unusable(printable(f"{output}: the file to write must end in {SUFFIX} or {ONNX}, got suffix {output.suffix!r}"))
    if not output.parent.is_dir():
        raise Unusable(printable(f"{output}: no such folder: {output.parent}"))
    if output.is_dir():
        raise Unusable(printable(f"{output}: is a folder"))
    if output.exists() and not force:
        raise Unusable(printable(f"{output}: exists; pass --force to replace it"))


@contextmanager
def _quietly() -> Iterator[None]:
    """torch's exporter tells its own developers what it skips."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _write_onnx(model: nn.Module, info: CheckpointInfo, output: Path) -> None:
    """Images [batch, in_channels, height, width] -> logits, any batch; size and classes in the model's metadata."""
    if info.image_size is None:
        raise Unusable(f"{info.path}: the file does not say the size of its images: pass --size, like --size 224")
    example = torch.zeros(2, info.in_channels, *info.image_size)
    batch = {0: torch.export.Dim("batch")}
    with _quietly():
        program = export_onnx(model, (example,), dynamic_shapes=(batch,), input_names=["images"], output_names=["logits"])
    program.model.metadata_props["image_size"] = json.dumps(info.image_size)
    if info.classes is not None:
        program.model.metadata_props["classes"] = json.dumps(info.classes)
    replace_with(output, lambda partial: program.save(partial, external_data=False))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write: .lgld for lgld_ops.load and lgld-ops classify, .onnx for other runtimes.",
)
@size_option("Size of the images, N x N or height x width, to write into the file. Default: as CHECKPOINT says.")
@classes_option("Class names in the order of the logits, to write into the file. Default: as CHECKPOINT says.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as one JSON object.")
def export(
    checkpoint: Path, output: Path, size: tuple[int, int] | None, classes: tuple[str, ...] | None, force: bool, as_json: bool
) -> None:
    """Make one file of trained weights: .lgld, the fused network, or .onnx.

    CHECKPOINT is a .safetensors, .pth, .pt or .lgld file, read as tensors only, never as code. A .lgld file holds the
    published weights, image size and class names, runs on every processor and is checked when it is read. An .onnx file takes
    float32 images [batch, channels, height, width] with values in [0, 1], RGB, and gives logits; it needs the packages onnx
    and onnxscript.

    \b
    Exit codes:
      0  the file was written
      2  wrong options, unusable weights, or a file that can't be written; nothing was
    """
    _check_output(output, force)
    model, found = read_network(checkpoint)
    info = replace(found, image_size=size or found.image_size, classes=classes or found.classes)
    if info.classes is not None:
        check_classes(info.classes, info)
    stderr = Console(stderr=True)
    try:
        # rich draws nothing where stderr is no terminal.
        with stderr.status(f"writing {printable(output)}"):
            if output.suffix.lower() == ONNX:
                _write_onnx(model, info, output)
            else:
                fuse(model, image_size=info.image_size, classes=info.classes).save(output)
    except (ValueError, RuntimeError) as error:
        raise Unusable(printable(f"{checkpoint}: {error}")) from error
    except OSError as error:
        raise Unusable(printable(f"{output}: {error.strerror or error}")) from error
    _report(info, output, as_json)


def _report(info: CheckpointInfo, output: Path, as_json: bool) -> None:
    content: dict[str, Any] = {
        "checkpoint": os.fspath(info.path),
        "output": os.fspath(output),
        "format": output.suffix.lower().removeprefix("."),
        "bytes": output.stat().st_size,
        "in_channels": info.in_channels,
        "base_channels": info.base_channels,
        "num_classes": info.num_classes,
        "image_size": info.image_size,
        "classes": info.classes,
    }
    if as_json:
        click.echo(json.dumps(content, indent=2))
        return
    size = f"{info.image_size[0]} x {info.image_size[1]}" if info.image_size else "not known (classify will ask for --size)"
    names = ", ".join(map(printable, info.classes)) if info.classes else "not known (classify will ask for --classes)"
    click.echo(f"{printable(output)}: {content['bytes']:,} bytes")
    click.echo(f"  network     {info.in_channels} channels in, base_channels {info.base_channels}, {info.num_classes} classes")
    click.echo(f"  image size  {size}")
    click.echo(f"  classes     {names}")
