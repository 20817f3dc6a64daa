"""Relative float32 error of Winograd's convolutions of 64 channels for a choice of interpolation points: no arguments.

Inputs are normal, cut off at SiLU's minimum, weights normal; the 5x5 kernel has the 17 taps of dilations 1 and 2 together. The
points of kernels/cpu/lgldnet/lgldnet.h come first, then others.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def product(a: list[Fraction], b: list[Fraction]) -> list[Fraction]:
    """Product of two polynomials, lowest power first."""
    out = [Fraction(0)] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] += x * y
    return out


def transforms(points: list[Fraction], outputs: int, taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """A^T, G and B^T for these points and infinity (Toom and Cook's construction, exact until it becomes float64)."""
    count = outputs + taps - 1
    inverse, kernel, data = [], [], []
    for i, p in enumerate(points):
        others, distances = [Fraction(1)], Fraction(1)
        for k, q in enumerate(points):
            if k != i:
                others, distances = product(others, [-q, Fraction(1)]), distances * (p - q)
        kernel.append([p**t / distances for t in range(taps)])
        data.append([*others, Fraction(0)])
    everything = [Fraction(1)]
    for p in points:
        everything = product(everything, [-p, Fraction(1)])
    kernel.append([Fraction(int(t == taps - 1)) for t in range(taps)])
    data.append(everything)
    inverse = [[*(p**k for p in points), Fraction(int(k == outputs - 1))] for k in range(outputs)]
    a, g, b = (np.array([[float(v) for v in row] for row in matrix]) for matrix in (inverse, kernel, data))
    assert g.shape == (count, taps)
    return a, g, b


def errors(points: list[Fraction], outputs: int, taps: int) -> tuple[float, float]:
    """Norm of the error relative to the result's, by Winograd and by direct sums, both in float32."""
    a, g, b = transforms(points, outputs, taps)
    random = np.random.default_rng(0)
    size = outputs + taps - 1
    x = np.maximum(random.normal(size=(200, size, size, 64)), -0.28)
    w = random.normal(size=(taps, taps, 64, 32))
    if taps == 5:
        mask = np.zeros((5, 5))
        mask[::2, ::2] = mask[1:4, 1:4] = 1
        w *= mask[..., None, None]

    def direct(dtype: type) -> npt.NDArray[np.floating]:
        xs: npt.NDArray[np.floating] = x.astype(dtype)
        ws: npt.NDArray[np.floating] = w.astype(dtype)
        windows = ((xs[:, u : u + outputs, v : v + outputs], ws[u, v]) for u in range(taps) for v in range(taps))
        return sum((np.matmul(part, weight) for part, weight in windows), np.zeros((), dtype))

    a32, b32, u32 = a.astype(np.float32), b.astype(np.float32), np.einsum("iu,jv,uvco->ijco", g, g, w).astype(np.float32)
    v32 = np.einsum("bj,tajc->abtc", b32, np.einsum("ai,tijc->tajc", b32, x.astype(np.float32)))
    y = np.einsum("nb,mbto->tmno", a32, np.einsum("ma,abto->mbto", a32, np.matmul(v32, u32)))
    truth = direct(np.float64)
    norm = np.linalg.norm(truth)
    return float(np.linalg.norm(y - truth) / norm), float(np.linalg.norm(direct(np.float32) - truth) / norm)


def main() -> None:
    """Print a row for each choice."""
    for taps, choices in (
        (3, ("5/8 -5/8 3/2 -3/2", "1 -1 1/2 -2", "1 -1 2 -2")),
        (5, ("1/2 -1/2 1 -1 2 -2", "5/8 -5/8 1 -1 2 -2")),
    ):
        for choice in choices:
            winograd, direct = errors([Fraction(0), *map(Fraction, choice.split())], 4, taps)
            print(f"F(4x4, {taps}x{taps}) at 0 {choice} inf: {winograd:.1e}, direct {direct:.1e}")


if __name__ == "__main__":
    main()
