"""``lgld-ops classify``: class names and probabilities for images, with trained weights."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from lgld_ops import reference
from lgld_ops.checkpoint import CheckpointError, CheckpointInfo, load_network

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

EXIT_SOME_FAILED = 1
EXIT_UNUSABLE = 2


class _Unusable(click.ClickException):
    """Nothing can be classified: no usable weights, or options that do not fit them."""

    exit_code = EXIT_UNUSABLE

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", err=True)


@dataclass(frozen=True)
class Result:
    """One image's outcome: ``logits`` [num_classes] and their softmax, or ``error``.

    ``remarks`` is what the image's decoder warned of.
    """

    path: Path
    logits: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""
    remarks: tuple[str, ...] = ()


def find_images(paths: Iterable[Path]) -> Iterator[Result]:
    """Each image file to read, folders searched recursively in the order of names; or what stands in the way.

    A file that is named itself is taken whatever its suffix; in folders only files with a suffix of
    ``IMAGE_SUFFIXES`` are, and names that begin with a dot are passed over.
    """
    for path in paths:
        if not path.is_dir():
            yield Result(path) if path.exists() else Result(path, error="no such file or folder")
            continue
        found = False
        unreadable: list[OSError] = []
        for folder, subfolders, names in os.walk(path, onerror=unreadable.append):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                    found = True
                    yield Result(Path(folder, name))
        for error in unreadable:
            yield Result(Path(error.filename or path), error=error.strerror or str(error))
        if not found and not unreadable:
            yield Result(path, error=f"no image in this folder (looked for {' '.join(sorted(IMAGE_SUFFIXES))})")


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The image as uint8 ``[height, width, 3]``: upright by its EXIF tag, RGB, resized bilinearly to
    ``size``.

    Of a file with several pages or frames it is the first one.

    Raises:
        OSError: the file cannot be read, or is truncated; ``UnidentifiedImageError`` if it is no image.
        ValueError: its pixels are not of 8 bits a channel.
    """
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"pixels must have 8 bits a channel, got Pillow mode {image.mode}; convert it first")
        upright = ImageOps.exif_transpose(image)
        height, width = size
        return np.asarray(upright.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))


def _read(item: Result, size: tuple[int, int]) -> tuple[Result, np.ndarray[Any, np.dtype[np.uint8]] | None]:
    """``item`` with what came up while reading, and its pixels unless that was an error."""
    if item.error:
        return item, None
    pixels, error = None, ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pixels = read_image(item.path, size)
        except UnidentifiedImageError:
            error = "not an image that Pillow can read"
        except OSError as problem:
            error = problem.strerror or str(problem)
        # The decoders of damaged files raise SyntaxError, struct.error, DecompressionBombError and more.
        except Exception as problem:
            error = f"cannot be read as an image: {problem or type(problem).__name__}"
    remarks = tuple(dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught))
    return Result(item.path, error=error, remarks=remarks), pixels


def classify_batch(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and probabilities, both ``[B, num_classes]``, of uint8 images ``[B, H, W, 3]``."""
    with torch.inference_mode():
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
        read, image = _read(item, size)
        batch.append(read)
        if image is not None:
            pixels.append(image)
        if len(batch) == batch_size:
            yield run()
    if batch:
        yield run()


def _printable(path: Path | str) -> str:
    """A file's name without what could disturb a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in os.fspath(path))


def _parse_size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", value)
    if match is None:
        raise click.BadParameter(f"must be pixels, like 96, or HEIGHTxWIDTH, like 96x128; got {value!r}")
    return int(match[1]), int(match[2] or match[1])


def _parse_classes(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(","))
    if not all(names):
        raise click.BadParameter(f"must be names with commas between, like RBC,WBC; got {value!r}")
    return names


def _settle(
    info: CheckpointInfo, size: tuple[int, int] | None, classes: tuple[str, ...] | None
) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Size and class names to use: those of the options, else those of the weights file."""
    if info.in_channels != 3:
        raise _Unusable(f"{info.path}: in_channels must be 3 for RGB images, got {info.in_channels}")
    size, classes = size or info.image_size, classes or info.classes
    absent = []
    if size is None:
        absent.append("the size of its images: pass --size, like --size 224")
    if classes is None:
        absent.append(f"its {info.num_classes} class names: pass --classes, like --classes Benign,Early,Pre,Pro")
    if absent:
        raise _Unusable(f"{info.path}: the file does not say {'; nor '.join(absent)}")
    assert size is not None
    assert classes is not None
    if len(classes) != info.num_classes:
        raise _Unusable(f"--classes must name {info.num_classes} classes, got {len(classes)}: {','.join(classes)}")
    if len(set(classes)) != len(classes):
        raise _Unusable(f"class names must differ from one another, got {','.join(classes)}")
    return size, classes


def _print_table(results: list[Result], classes: tuple[str, ...]) -> None:
    done = [result for result in results if not result.error]
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("class", no_wrap=True)
    table.add_column("probability", justify="right", no_wrap=True)
    for name in classes:
        table.add_column(Text(_printable(name)), justify="right", no_wrap=True, style="dim")
    tally: Counter[str] = Counter()
    for result in done:
        best = max(range(len(classes)), key=result.probabilities.__getitem__)
        tally[classes[best]] += 1
        table.add_row(
            Text(_printable(result.path)),
            Text(_printable(classes[best]), style="bold"),
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
    counts = ", ".join(f"{_printable(name)} {tally[name]}" for name in classes)
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
    help="Weights of LGLD-Net: a .safetensors, .pth or .pt file. Read as tensors only, never as code.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, logits included, instead of a table.")
@click.option(
    "--size",
    callback=_parse_size,
    metavar="N|HxW",
    help="Resize to N x N pixels, or to height x width. Default: as the weights file says.",
)
@click.option(
    "--classes",
    callback=_parse_classes,
    metavar="A,B,...",
    help="Class names in the order of the logits. Default: as the weights file says.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Images at a time.")
@click.option(
    "--fast/--reference",
    default=True,
    show_default=True,
    help="This package's network, or the published one.",
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
    try:
        model, info = load_network(weights, network=None if fast else reference.LGLDNet)
    except CheckpointError as error:
        raise _Unusable(_printable(str(error))) from error
    except OSError as error:
        raise _Unusable(_printable(f"{weights}: {error.strerror or 'no such weights file'}")) from error
    size, classes = _settle(info, size, classes)

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
                lines = [f"warning: {_printable(result.path)}: {_printable(text)}" for text in result.remarks]
                if result.error:
                    lines.append(f"error: {_printable(result.path)}: {_printable(result.error)}")
                for line in lines:
                    progress.console.print(Text(line), soft_wrap=True)
    if as_json:
        click.echo(_json(results, classes, size, model, info))
    else:
        _print_table(results, classes)
    if any(result.error for result in results):
        sys.exit(EXIT_SOME_FAILED)
