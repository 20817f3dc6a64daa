"""``lgld-ops classify``: class names and probabilities for images, with trained weights."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from lgld_ops import FusedLGLDNet
from lgld_ops.checkpoint import CheckpointInfo
from lgld_ops.cli.images import Result, find_images, read
from lgld_ops.cli.weights import Unusable, check_classes, classes_option, open_network, printable, size_option

EXIT_SOME_FAILED = 1


def classify_batch(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and probabilities, both ``[B, num_classes]``, of uint8 images ``[B, H, W, 3]``."""
    with torch.inference_mode():
        if isinstance(model, FusedLGLDNet):
            logits = model.predict(pixels, layout="NHWC")
        else:
            logits = model(pixels.permute(0, 3, 1, 2).contiguous().float().div_(255))
        return logits, logits.double().softmax(dim=1)


def _classify_all(model: nn.Module, found: Iterable[Result], size: tuple[int, int], batch_size: int) -> Iterator[list[Result]]:
    """Results in the order of ``found``, batch by batch."""
    batch: list[Result] = []
    pixels: list[np.ndarray[Any, np.dtype[np.uint8]]] = []

    def run() -> list[Result]:
        results = list(batch)
        if pixels:
            logits, probabilities = classify_batch(model, torch.from_numpy(np.stack(pixels)))
            rows = iter(zip(logits.tolist(), probabilities.tolist(), strict=True))
            for index, item in enumerate(results):
                if item.error:
                    continue
                row, shares = next(rows)
                if all(np.isfinite(row)):
                    results[index] = replace(item, logits=tuple(row), probabilities=tuple(shares))
                else:
                    results[index] = replace(item, error=f"the network's logits are not finite: {row}")
        batch.clear()
        pixels.clear()
        return results

    for item in found:
        read_item, image = read(item, size)
        batch.append(read_item)
        if image is not None:
            pixels.append(image)
        if len(batch) == batch_size:
            yield run()
    if batch:
        yield run()


def _settle(
    info: CheckpointInfo, size: tuple[int, int] | None, classes: tuple[str, ...] | None
) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Size and class names to use: those of the options, else those of the weights file."""
    if info.in_channels != 3:
        raise Unusable(f"{info.path}: in_channels must be 3 for RGB images, got {info.in_channels}")
    size, classes = size or info.image_size, classes or info.classes
    absent = []
    if size is None:
        absent.append("the size of its images: pass --size, like --size 224")
    if classes is None:
        absent.append(f"its {info.num_classes} class names: pass --classes, like --classes Benign,Early,Pre,Pro")
    if absent:
        raise Unusable(f"{info.path}: the file does not say {'; nor '.join(absent)}")
    assert size is not None
    assert classes is not None
    check_classes(classes, info)
    return size, classes


def _print_table(results: list[Result], classes: tuple[str, ...]) -> None:
    done = [result for result in results if not result.error]
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("class", no_wrap=True)
    table.add_column("probability", justify="right", no_wrap=True)
    for name in classes:
        table.add_column(Text(printable(name)), justify="right", no_wrap=True, style="dim")
    tally: Counter[str] = Counter()
    for result in done:
        best = max(range(len(classes)), key=result.probabilities.__getitem__)
        tally[classes[best]] += 1
        table.add_row(
            Text(printable(result.path)),
            Text(printable(classes[best]), style="bold"),
            f"{result.probabilities[best]:.1%}",
            *(f"{share:.3f}" for share in result.probabilities),
        )
    console = Console()
    if not console.is_terminal:
        # In a pipe or file there is no edge to fold names at.
        console.width = max(80, console.measure(table, options=console.options.update(width=100_000)).maximum)
    if done:
        console.print(table)
    failed = len(results) - len(done)
    counts = ", ".join(f"{printable(name)} {tally[name]}" for name in classes)
    summary = f"{len(done)} classified ({counts})" + (f", {failed} failed" if failed else "")
    console.print(Text(summary), soft_wrap=True)


def _json(
    results: list[Result],
    classes: tuple[str, ...],
    size: tuple[int, int],
    model: nn.Module,
    info: CheckpointInfo,
) -> str:
    rows = []
    for result in results:
        if not result.error:
            best = max(range(len(classes)), key=result.probabilities.__getitem__)
            rows.append(
                {
                    "path": os.fspath(result.path),
                    "class": classes[best],
                    "probability": result.probabilities[best],
                    "probabilities": dict(zip(classes, result.probabilities, strict=True)),
                    "logits": result.logits,
                }
            )
    errors = [{"path": os.fspath(r.path), "error": r.error} for r in results if r.error]
    content = {
        "weights": os.fspath(info.path),
        "network": f"{type(model).__module__}.{type(model).__qualname__}",
        "image_size": size,
        "classes": classes,
        "results": rows,
        "errors": errors,
    }
    return json.dumps(content, indent=2, allow_nan=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", metavar="IMAGE_OR_FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--weights",
    required=True,
    type=click.Path(path_type=Path),
    help="Weights of LGLD-Net: a .lgld, .safetensors, .pth or .pt file. Read as tensors only, never as code.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, logits included, instead of a table.")
@size_option("Resize to N x N pixels, or to height x width. Default: as the weights file says.")
@classes_option("Class names in the order of the logits. Default: as the weights file says.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Images at a time.")
@click.option(
    "--fast/--reference",
    default=True,
    show_default=True,
    help="This package's network, fused where the machine and the weights allow it, or the published one.",
)
def classify(
    paths: tuple[Path, ...],
    weights: Path,
    as_json: bool,
    size: tuple[int, int] | None,
    classes: tuple[str, ...] | None,
    batch_size: int,
    fast: bool,
) -> None:
    """Classify images with trained weights.

    Folders are searched recursively for image files. Every image is turned upright by its EXIF tag, converted
    to RGB, resized bilinearly and divided by 255.

    \b
    Exit codes:
      0  every image was classified
      1  some image could not be; the others were (one line each on stderr)
      2  wrong options or unusable weights; nothing was classified
    """
    model, info, note = open_network(weights, fast)
    size, classes = _settle(info, size, classes)
    if note:
        click.echo(f"note: {note}", err=True)

    found = list(find_images(paths))
    results: list[Result] = []
    stderr = Console(stderr=True)
    columns = (TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task("classifying", total=len(found))
        for batch in _classify_all(model, found, size, batch_size):
            results += batch
            progress.advance(task, len(batch))
            for result in batch:
                lines = [f"warning: {printable(result.path)}: {printable(text)}" for text in result.remarks]
                if result.error:
                    lines.append(f"error: {printable(result.path)}: {printable(result.error)}")
                for line in lines:
                    progress.console.print(Text(line), soft_wrap=True)
    if as_json:
        click.echo(_json(results, classes, size, model, info))
    else:
        _print_table(results, classes)
    if any(result.error for result in results):
        sys.exit(EXIT_SOME_FAILED)
