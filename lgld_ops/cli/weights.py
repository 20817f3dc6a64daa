"""What the commands that read weights share: the network of a file, the options that complete it, errors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from torch import nn

from lgld_ops import fuse, reference
from lgld_ops.checkpoint import CheckpointError, CheckpointInfo, load_network

EXIT_UNUSABLE = 2


class Unusable(click.ClickException):
    """Nothing can be done: no usable weights, or options that do not fit them."""

    exit_code = EXIT_UNUSABLE

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", err=True)


def printable(path: Path | str) -> str:
    """A file's name without what could disturb a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in os.fspath(path))


def read_network(
    weights: Path, network: Callable[[int, int, int], nn.Module] | None = None
) -> tuple[nn.Module, CheckpointInfo]:
    """As `lgld_ops.checkpoint.load_network`, with errors for people."""
    try:
        return load_network(weights, network=network)
    except CheckpointError as error:
        raise Unusable(printable(str(error))) from error
    except OSError as error:
        raise Unusable(printable(f"{weights}: {error.strerror or 'no such weights file'}")) from error


def open_network(weights: Path, fast: bool) -> tuple[nn.Module, CheckpointInfo, str]:
    """The published network, or the fastest of this package's that runs here; and why it is not the fused one."""
    model, info = read_network(weights, None if fast else reference.LGLDNet)
    if not fast:
        return model, info, ""
    try:
        return fuse(model, image_size=info.image_size, classes=info.classes), info, ""
    except (ValueError, RuntimeError) as error:
        return model, info, f"the network runs block by block, which is slower than fused: {error}"


def check_classes(classes: tuple[str, ...], info: CheckpointInfo) -> None:
    """Raises Unusable where these are no names for that network's classes."""
    if len(classes) != info.num_classes:
        raise Unusable(f"--classes must name {info.num_classes} classes, got {len(classes)}: {','.join(classes)}")
    if len(set(classes)) != len(classes):
        raise Unusable(f"class names must differ from one another, got {','.join(classes)}")


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


def size_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--size``: (height, width) or None."""
    return click.option("--size", callback=_parse_size, metavar="N|HxW", help=text)


def classes_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--classes``: a tuple of names or None."""
    return click.option("--classes", callback=_parse_classes, metavar="A,B,...", help=text)
