"""Every GPU kernel once on small shapes, against the CPU: what compute-sanitizer watches. Exits with 1 where one differs."""

from __future__ import annotations

import itertools
import sys

import torch

import lgld_ops

# Relative error of norms against float64 on the CPU: a few roundings of the result, and of sums in float32.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}

# batch, channels, height, width, kernel, stride, padding, dilation, groups
SHAPES = (
    (2, 6, 13, 17, 3, 1, 1, 1, 2),
    (1, 16, 9, 34, 5, 1, 2, 1, 1),
    (1, 32, 7, 7, 7, 1, 3, 1, 2),
    (1, 8, 5, 131, 3, 1, 0, 1, 1),
    (2, 8, 11, 10, 7, 2, 3, 1, 2),
    (1, 12, 20, 33, 3, 2, 1, 1, 2),
    (1, 5, 6, 9, 2, 3, 4, 2, 5),
    (1, 70, 1, 1, 3, 1, 1, 1, 1),
    (1, 600, 2, 1, 1, 1, 0, 1, 1),  # few sums over many channels: they are split
)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in norm; infinite where something is not finite."""
    error = (found.cpu().double() - expected).norm() / expected.norm().clamp_min(1e-30)
    return float(error) if torch.isfinite(error) else float("inf")


def involutions() -> int:
    """Number of results that are wrong."""
    wrong = 0
    for shape, dtype, channels_last in itertools.product(SHAPES, TOLERANCE, (False, True)):
        batch, channels, height, width, kernel, stride, padding, dilation, groups = shape
        out = [(n + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1 for n in (height, width)]
        torch.manual_seed(0)
        x = torch.randn(batch, channels, height, width, dtype=torch.float64).to(dtype)
        w = torch.randn(batch, groups * kernel**2, *out, dtype=torch.float64).to(dtype)
        g = torch.randn(batch, channels, *out, dtype=torch.float64).to(dtype)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        gpu = [t.cuda().contiguous(memory_format=layout) for t in (x, w, g)]
        window = ([kernel] * 2, [stride] * 2, [padding] * 2, [dilation] * 2, groups)
        for name, arguments in {
            "involution2d": (0, 1),
            "involution2d_grad_x": (2, 1, height, width),
            "involution2d_grad_weight": (2, 0),
        }.items():
            op = getattr(torch.ops.lgld_ops, name).default
            expected = op(*((x, w, g)[i].double() for i in arguments[:2]), *arguments[2:], *window)
            found = op(*(gpu[i] for i in arguments[:2]), *arguments[2:], *window)
            again = op(*(gpu[i] for i in arguments[:2]), *arguments[2:], *window)
            error = difference(found, expected)
            if error > TOLERANCE[dtype] or not torch.equal(found, again):
                wrong += 1
                repeats = torch.equal(found, again)
                print(f"{name} {shape} {dtype} channels_last={channels_last}: error {error:.2e}, repeats {repeats}")
    # Both gradients in one kernel, with channels in slices and several images side by side.
    for dtype, size in itertools.product(TOLERANCE, ((2, 6, 13, 17), (3, 40, 6, 8))):
        batch, channels, height, width = size
        torch.manual_seed(0)
        x, g, w = (torch.randn(batch, c, height, width, dtype=torch.float64).to(dtype) for c in (channels, channels, 9))
        op = torch.ops.lgld_ops.involution2d_gradients.default
        expected, found, again = (
            op(*(t.to(kind) for t in (g, x, w)), [3, 3], [1, 1], [1, 1]) for kind in (torch.float64, "cuda", "cuda")
        )
        for index in range(2):
            error, repeats = difference(found[index], expected[index]), torch.equal(found[index], again[index])
            if error > TOLERANCE[dtype] or not repeats:
                wrong += 1
                print(f"involution2d_gradients {size} {dtype}, result {index}: error {error:.2e}, repeats {repeats}")
    return wrong


def layers() -> int:
    """Number of results of the layer with its kernel generator that are wrong."""
    wrong = 0
    ops = torch.ops.lgld_ops
    # 20 hidden channels are more than a thread of backward has registers for.
    for dtype, kernel, hidden in itertools.product(TOLERANCE, (3, 7), (3, 20)):
        torch.manual_seed(0)
        sizes = ((2, 5, 13, 18), (2, 5, 13, 18), (hidden, 5), (hidden,), (kernel**2, hidden), (kernel**2,))
        grad_y, *operands = (torch.randn(size, dtype=torch.float64).to(dtype) for size in sizes)
        gpu = [t.cuda() for t in operands]
        expected = [ops.involution_layer(*(t.double() for t in operands), kernel)]
        expected += ops.involution_layer_backward(grad_y.double(), *(t.double() for t in operands), kernel)
        found = [ops.involution_layer(*gpu, kernel), *ops.involution_layer_backward(grad_y.cuda(), *gpu, kernel)]
        again = [ops.involution_layer(*gpu, kernel), *ops.involution_layer_backward(grad_y.cuda(), *gpu, kernel)]
        for index, (mine, twice, exact) in enumerate(zip(found, again, expected, strict=True)):
            error, repeats = difference(mine, exact), torch.equal(mine, twice)
            if error > TOLERANCE[dtype] * 4 or not repeats:
                wrong += 1
                print(f"layer {dtype} K {kernel} hidden {hidden}, result {index}: error {error:.2e}, repeats {repeats}")
    return wrong


def mixers() -> int:
    """Number of results that are wrong."""
    wrong = 0
    for dtype, channels_last, training in itertools.product(TOLERANCE, (False, True), (False, True)):
        torch.manual_seed(0)
        x = torch.rand(2, 3, 13, 18, dtype=torch.float64).to(dtype)
        mixer = lgld_ops.FourierFeatureMixer(3, 16).train(training)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        gradient = torch.randn(2, 16, 7, 9, dtype=torch.float64).to(dtype)
        results = []
        for device, kind in (("cpu", torch.float64), ("cuda", dtype)):
            torch.manual_seed(1)
            here = lgld_ops.FourierFeatureMixer(3, 16).train(training).to(device)
            here.load_state_dict(mixer.state_dict())
            image = x.to(device, kind).contiguous(memory_format=layout).requires_grad_()
            y = here(image)
            results.append([y, *torch.autograd.grad(y, [image, *here.parameters()], gradient.to(device, kind))])
        for index, (expected, found) in enumerate(zip(*results, strict=True)):
            # Parameters are float32 in both; gradients sum over few elements.
            error = difference(found.detach(), expected.detach().double())
            if error > max(TOLERANCE[dtype] * 4, 1e-5):
                wrong += 1
                print(f"mixer {dtype} channels_last={channels_last} training={training}, result {index}: {error:.2e}")
    return wrong


if __name__ == "__main__":
    if not torch.cuda.is_available():
        raise SystemExit("gpu_small: there is no GPU")
    count = involutions() + layers() + mixers()
    print(f"{count} wrong")
    sys.exit(count > 0)
