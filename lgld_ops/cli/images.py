"""Finding and reading the images that a command is given; what cannot be read is a result with an error, not an exception."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


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


def read(item: Result, size: tuple[int, int]) -> tuple[Result, np.ndarray[Any, np.dtype[np.uint8]] | None]:
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
