"""Draws plausible crops of stained blood smears: red cells, white cells and platelets, one folder for each.

    python examples/make_smears.py out/ [--count 12] [--size 128] [--seed 0]

Light passes through layers of stain: with the background's colour b, a layer of thickness d and absorption a
(one number each for red, green and blue) leaves b * exp(-d * a), after Beer and Lambert. The cells are
outlines with a few random harmonics. A camera then blurs, adds noise and compresses; a platelet is small, so
its crop has few pixels and is enlarged. Colours follow the photographs of the BCCD collection, so that one
can try a classifier trained on them; these are drawings all the same, and say nothing about how well it does
on blood.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Array = NDArray[np.float64]

# Medians over photographed crops: the background around platelets; for each stain, at thickness 1, the
# logarithm of background over stain.
BACKGROUND = np.array([0.775, 0.788, 0.775])
HAEMOGLOBIN = np.array([0.12, 0.31, 0.31])
NUCLEUS = np.array([0.53, 0.82, 0.03])
CYTOPLASM = np.array([0.11, 0.24, 0.01])
PLATELET = np.array([0.26, 0.36, 0.01])


class Field:
    """The field of view: x and y run from -1 to 1; ``light`` is [size, size, 3] in [0, 1]."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng = rng
        axis = (np.arange(size) + 0.5) / size * 2 - 1
        self.x, self.y = np.meshgrid(axis, axis)
        slope = rng.normal(0, 0.012, 2)
        tint = BACKGROUND + rng.normal(0, 0.007, 3) + rng.normal(0, 0.02)
        self.light = tint * (1 + slope[0] * self.x + slope[1] * self.y)[..., None]

    def outline(self, x: float, y: float, radius: float, *, stretch: float = 1.15, wobble: float = 0.04) -> Array:
        """Distance from (x, y) over that of the outline in the same direction: below 1 is inside."""
        angle = self.rng.uniform(0, 2 * np.pi)
        ratio = np.sqrt(self.rng.uniform(1, stretch))
        u = (self.x - x) * np.cos(angle) + (self.y - y) * np.sin(angle)
        v = (self.y - y) * np.cos(angle) - (self.x - x) * np.sin(angle)
        phi = np.arctan2(v * ratio, u / ratio)
        edge = np.ones_like(phi)
        for k in range(2, 6):
            edge += self.rng.normal(0, wobble / k) * np.cos(k * phi + self.rng.uniform(0, 2 * np.pi))
        return np.hypot(u / ratio, v * ratio) / (radius * edge)

    def grain(self, cell: int) -> Array:
        """Smooth noise of mean 0 and spread 1 whose grains are about ``cell`` pixels wide."""
        size = len(self.x)
        coarse = self.rng.normal(0, 1, (size // cell + 2,) * 2).astype(np.float32)
        return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), np.float64)

    def stain(self, thickness: Array, absorption: Array) -> None:
        self.light *= np.exp(-np.maximum(thickness, 0)[..., None] * absorption)


def inside(rho: Array, softness: float) -> Array:
    """1 within an outline, 0 without, over an edge of about ``softness`` times its radius."""
    return 1 / (1 + np.exp(np.clip((rho - 1) / (0.25 * softness), -60, 60)))


def red_cell(field: Field, x: float, y: float, radius: float) -> None:
    """A disc that is thin in its middle, with a rim."""
    rng = field.rng
    rho = field.outline(x, y, radius, stretch=1.35)
    dip = rng.uniform(0.15, 0.9) * np.exp(-((rho / rng.uniform(0.4, 0.6)) ** 2) * 1.5)
    rim = 0.25 * np.exp(-(((rho - 0.93) / 0.06) ** 2))
    field.stain(rng.uniform(0.75, 1.15) * inside(rho, 0.12) * (1 - dip + rim), HAEMOGLOBIN)


def neighbours(field: Field, count: int, radius: float, nearest: float) -> None:
    """Red cells around the middle, most of them cut by the edge of the image."""
    turn = field.rng.uniform(0, 2 * np.pi)
    for k in range(count):
        angle = turn + (k + field.rng.uniform(-0.3, 0.3)) * 2 * np.pi / max(count, 1)
        away = nearest + radius * field.rng.uniform(0.95, 1.25)
        red_cell(field, away * np.cos(angle), away * np.sin(angle), radius * field.rng.uniform(0.9, 1.1))


def draw_rbc(field: Field) -> None:
    rng = field.rng
    radius = rng.uniform(0.58, 0.68)
    neighbours(field, rng.integers(1, 5), radius, nearest=radius)
    red_cell(field, *rng.normal(0, 0.03, 2), radius)


def draw_wbc(field: Field) -> None:
    """A large pale cell with a lobed nucleus, among red cells."""
    rng = field.rng
    radius = rng.uniform(0.58, 0.7)
    neighbours(field, rng.integers(4, 8), radius * rng.uniform(0.45, 0.6), nearest=radius)
    body = inside(field.outline(0, 0, radius), 0.1)
    granules = 1 + 0.25 * field.grain(max(2, len(field.x) // 40))
    field.stain(rng.uniform(0.8, 1.3) * body * granules, CYTOPLASM)
    lobes = rng.integers(2, 5)
    turn, bend = rng.uniform(0, 2 * np.pi), rng.uniform(1.1, 1.7)
    nucleus = np.zeros_like(body)
    for k in range(lobes):
        angle = turn + k * bend
        away = radius * rng.uniform(0.33, 0.45)
        size = radius * rng.uniform(0.36, 0.46)
        lobe = field.outline(away * np.cos(angle), away * np.sin(angle), size, stretch=1.4, wobble=0.1)
        nucleus = np.maximum(nucleus, inside(lobe, 0.16))
    chromatin = 1 + 0.18 * field.grain(max(2, len(field.x) // 20))
    field.stain(rng.uniform(0.75, 1.1) * nucleus * body * chromatin, NUCLEUS)


def draw_platelet(field: Field) -> None:
    """A small smudge; such crops are strongly enlarged, so all is soft and the red cells nearby are huge."""
    rng = field.rng
    neighbours(field, rng.integers(0, 3), radius=1.6, nearest=rng.uniform(0.8, 1.0))
    rho = field.outline(*rng.normal(0, 0.04, 2), rng.uniform(0.42, 0.54), stretch=1.5, wobble=0.15)
    granules = 1 + 0.2 * field.grain(max(2, len(field.x) // 8))
    field.stain(rng.uniform(0.6, 1.3) * inside(rho, rng.uniform(0.4, 0.8)) * granules, PLATELET)


# How to draw each, and how many of the camera's pixels such a crop spans.
CELLS: dict[str, tuple[Callable[[Field], None], int]] = {
    "Platelets": (draw_platelet, 50),
    "RBC": (draw_rbc, 128),
    "WBC": (draw_wbc, 128),
}


def photograph(field: Field, rng: np.random.Generator) -> Image.Image:
    """What the camera makes of the light: half a pixel of blur, noise, JPEG."""
    sharp = Image.fromarray((field.light.clip(0, 1) * 255).round().astype(np.uint8))
    blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(0.7)))
    noisy = blurred + rng.normal(0, 1.5, blurred.shape)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)).save(file, "JPEG", quality=80)
    return Image.open(file)


def make_smear(kind: str, index: int, size: int, seed: int) -> Image.Image:
    """The ``index``-th crop of this kind of cell, RGB, ``size`` x ``size``; equal arguments, equal image."""
    draw, pixels = CELLS[kind]
    rng = np.random.default_rng([seed, list(CELLS).index(kind), index])
    field = Field(rng, pixels)
    draw(field)
    return photograph(field, rng).resize((size, size), Image.Resampling.BICUBIC)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw plausible crops of stained blood smears.")
    parser.add_argument("folder", type=Path, help="where to write them, in one subfolder per kind of cell")
    parser.add_argument("--count", type=int, default=12, help="images of each kind (default 12)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side, at least 32 (default 128)")
    parser.add_argument("--seed", type=int, default=0, help="not negative (default 0)")
    args = parser.parse_args()
    for name, least in (("count", 1), ("size", 32), ("seed", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    for kind in CELLS:
        folder = args.folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(args.count):
            make_smear(kind, index, args.size, args.seed).save(folder / f"{kind}_{index:03d}.png")
    print(f"wrote {args.count * len(CELLS)} images to {args.folder}")


if __name__ == "__main__":
    main()
