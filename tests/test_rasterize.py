"""The plain PyTorch rasterizer against a loop over pixels, and how the other backends are called."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from GS2D.gaussians import Gaussians2D
from GS2D.rasterize import conics, rasterize, rasterize_reference, resolve_backend


def draw_pixel(x, y, means, shape, colors, opacities):
    """One pixel, straight from the rules: the ground truth of this file. Works on floats and on scalar tensors."""
    color, transmittance = [0.0, 0.0, 0.0], 1.0
    for n in range(len(means)):
        dx, dy = x + 0.5 - means[n, 0], y + 0.5 - means[n, 1]
        q = shape[n, 0] * dx**2 / 2 + shape[n, 1] * dx * dy + shape[n, 2] * dy**2 / 2
        alpha = opacities[n] * torch.exp(-q)
        if alpha > 0.999:
            alpha = torch.tensor(0.999, dtype=means.dtype)
        if alpha < 1 / 255:
            continue
        if transmittance * (1 - alpha) <= 1e-4:
            break
        color = [total + transmittance * alpha * channel for total, channel in zip(color, colors[n])]
        transmittance = transmittance * (1 - alpha)
    return torch.stack([torch.as_tensor(channel, dtype=means.dtype) for channel in color])


def draw_by_loop(means, shape, colors, opacities, width, height):
    pixels = [draw_pixel(x, y, means, shape, colors, opacities) for y in range(height) for x in range(width)]
    return torch.stack(pixels).reshape(height, width, 3)


def scene(count, width, height, seed, low=0.8, high=6.0):
    random = np.random.default_rng(seed)
    means = random.uniform((-3, -3), (width + 3, height + 3), (count, 2))
    scales = random.uniform(low, high, (count, 2))
    parts = means, scales, random.uniform(0, math.pi, (count, 1)), random.uniform(0, 1, (count, 3))
    means, scales, rotations, colors = (torch.tensor(part, dtype=torch.float64) for part in parts)
    return means, conics(scales, rotations), colors, torch.tensor(random.uniform(0.5, 1, count))


@pytest.mark.parametrize(("count", "width", "height", "seed"), [(6, 21, 19, 0), (12, 33, 18, 1), (1, 5, 40, 2)])
def test_values_and_gradients_equal_the_loop(count, width, height, seed):
    tensors = scene(count, width, height, seed)
    weights = torch.tensor(np.random.default_rng(9).standard_normal((height, width, 3)))
    gradients = []
    for function in (rasterize_reference, draw_by_loop):
        leaves = [t.clone().requires_grad_() for t in tensors]
        image = function(*leaves, width, height)
        gradients.append((image.detach(), torch.autograd.grad((image * weights).sum(), leaves)))
    (image, got), (expected_image, expected) = gradients
    torch.testing.assert_close(image, expected_image, rtol=0, atol=1e-13)
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_without_gaussians_the_image_is_black():
    empty = [torch.zeros(0, width) for width in (2, 2, 1, 3)]
    assert torch.equal(rasterize(Gaussians2D(*empty), 5, 3, backend="reference"), torch.zeros(3, 5, 3))


def test_the_stop_ends_a_pixel_before_transmittance_reaches_1e_4():
    # Opaque centres: alpha = 0.999 leaves 1e-3, a second would leave 1e-6 and is not drawn, nor is anything behind it,
    # though the third alone (alpha about 0.04) would leave 9.6e-4.
    means = torch.full((3, 2), 8.5, dtype=torch.float64)
    shape = conics(torch.full((3, 2), 4.0, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64))
    colors = torch.eye(3, dtype=torch.float64)
    opacities = torch.tensor([1.0, 1.0, 0.04], dtype=torch.float64)
    image = rasterize_reference(means, shape, colors, opacities, 17, 17)
    torch.testing.assert_close(image[8, 8], torch.tensor([0.999, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(image, draw_by_loop(means, shape, colors, opacities, 17, 17), rtol=0, atol=1e-13)


def test_under_the_clamp_only_the_color_gets_a_gradient():
    means, opacities = torch.tensor([[2.5, 2.5]], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    shape = conics(torch.full((1, 2), 50.0, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    leaves = [
        t.clone().requires_grad_() for t in (means, shape, torch.full((1, 3), 0.5, dtype=torch.float64), opacities)
    ]
    image = rasterize_reference(*leaves, 5, 5)
    assert (
        torch.exp(torch.tensor(-(2**2 + 2**2) / 2 / 50**2)) > 0.998
    )  # the corners come close to the clamp, the middle meets it
    grads = torch.autograd.grad(image[2, 2].sum(), leaves)
    assert [float(g.abs().sum()) for g in grads] == [0.0, 0.0, pytest.approx(3 * 0.999), 0.0]


def test_a_contribution_below_1_255_is_skipped():
    gaussians = Gaussians2D(np.array([[10.5, 0.5]]), np.array([[2.0, 2.0]]), np.zeros((1, 1)), np.ones((1, 3)))
    row = rasterize(gaussians, 21, 1, backend="reference")[0, :, 0]
    reach = 2 * math.sqrt(2 * math.log(255))  # 6.66 px
    assert torch.equal(row > 0, (torch.arange(21) - 10).abs() <= reach)


def test_drawing_is_equivariant():
    means, shape, colors, opacities = scene(8, 32, 32, 4)
    image = rasterize_reference(means, shape, colors, opacities, 32, 32)
    mirrored = torch.stack([32 - means[:, 0], means[:, 1]], dim=1)
    flipped = rasterize_reference(mirrored, shape * torch.tensor([1, -1, 1]), colors, opacities, 32, 32)
    torch.testing.assert_close(flipped, image.flip(1), rtol=0, atol=1e-12)
    moved = rasterize_reference(means + torch.tensor([16, 32]), shape, colors, opacities, 48, 64)
    torch.testing.assert_close(moved[32:, 16:], image, rtol=0, atol=1e-12)
    transposed = rasterize_reference(means.flip(1), shape.flip(1), colors, opacities, 32, 32)
    torch.testing.assert_close(transposed, image.transpose(0, 1), rtol=0, atol=1e-12)


def test_conics_invert_the_covariance():
    random = np.random.default_rng(5)
    scales, theta = torch.tensor(random.uniform(0.5, 30, (50, 2))), torch.tensor(random.uniform(-4, 4, (50, 1)))
    cos, sin = torch.cos(theta[:, 0]), torch.sin(theta[:, 0])
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    inverse = torch.linalg.inv(rotation @ torch.diag_embed(scales**2) @ rotation.transpose(1, 2))
    expected = torch.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], dim=1)
    torch.testing.assert_close(conics(scales, theta), expected, rtol=1e-9, atol=1e-12)


def test_gradient_by_differences():
    means, shape, colors, opacities = scene(3, 12, 12, 6, low=6, high=9)  # wide: no pixel crosses 1/255 or the clamp
    inside = torch.tensor([[4.3, 5.2], [7.1, 6.3], [5.8, 3.9]], dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (inside, shape, colors, opacities * 0.6)]
    assert torch.autograd.gradcheck(lambda *leaves: rasterize_reference(*leaves, 12, 12), inputs, eps=1e-7, atol=1e-6)


def test_unusable_arguments_are_named():
    gaussians = Gaussians2D(np.zeros((1, 2)), np.ones((1, 2)), np.zeros((1, 1)), np.ones((1, 3)))
    with pytest.raises(ValueError, match="backend: 'opengl' is not one of"):
        rasterize(gaussians, 4, 4, backend="opengl")
    with pytest.raises(ValueError, match="width x height: 0 x 4"):
        rasterize(gaussians, 0, 4, backend="reference")
    with pytest.raises(ValueError, match=r"scales: shape \[2, 2\], expected \[1, 2\]"):
        Gaussians2D(np.zeros((1, 2)), np.ones((2, 2)), np.zeros((1, 1)), np.ones((1, 3)))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="gsplat needs a CUDA device"):
            resolve_backend("gsplat")
