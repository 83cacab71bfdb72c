"""Drawing: the plain PyTorch rasterizer and the native engine against a loop over the Gaussians, values and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from GS2D import native
from GS2D.backends import resolve_backend
from GS2D.gaussians import Gaussians2D
from GS2D.rasterize import conics, draw, rasterize


def draw_slowly(means, conics, colors, width, height):
    """Image [H, W, 3] straight from the rules, and how near a pixel comes to a cut of alpha or transmittance, relatively [H, W]."""
    y, x = torch.meshgrid(*(torch.arange(side).double() + 0.5 for side in (height, width)), indexing="ij")
    image, transmittance = torch.zeros(height, width, 3, dtype=torch.float64), torch.ones_like(x)
    is_open, margin = torch.ones_like(x, dtype=torch.bool), torch.ones_like(x)
    for (mean_x, mean_y), (a, b, c), color in zip(means, conics, colors):
        dx, dy = x - mean_x, y - mean_y
        raw = torch.exp(-(a * dx * dx / 2 + b * dx * dy + c * dy * dy / 2))
        alpha = torch.where(raw > 0.999, 0.999, raw)
        seen = is_open & (alpha >= 1 / 255)
        after = transmittance * (1 - alpha)
        for where, cut in ((is_open, raw * 255), (is_open, raw / 0.999), (seen, after / 1e-4)):
            margin = torch.where(where, margin.minimum((cut.detach() - 1).abs()), margin)
        is_open = is_open & (~seen | (after > 1e-4))
        image = image + torch.where(seen & is_open, transmittance * alpha, 0)[:, :, None] * color
        transmittance = torch.where(seen & is_open, after, transmittance)
    return image, margin


def make_scene(width, height, n, low, high, margin=20.0, centers=None, seed=0):
    """means, conics, colors, float32 numbers in float64, of the first seed from ``seed`` on whose decisions are all clear.

    Two correct float32 programs differ where an alpha lies within rounding of 1/255 (or a transmittance of 1e-4).
    """
    for attempt in range(seed, seed + 100):
        random = np.random.default_rng(attempt)
        means = random.uniform((-margin, -margin), (width + margin, height + margin), (n, 2))
        means = means if centers is None else centers
        scales = np.exp(random.uniform(np.log(low), np.log(high), (n, 1))) * random.uniform(0.6, 1.6, (n, 2))
        shape = conics(torch.from_numpy(scales), torch.from_numpy(random.uniform(0, math.pi, n)))
        scene = [part.float().double() for part in (torch.tensor(means), shape, torch.tensor(random.random((n, 3))))]
        if draw_slowly(*scene, width, height)[1].min() > 2e-6:
            return scene
    raise AssertionError("no clear scene")


STACKS = np.repeat(np.random.default_rng(5).uniform(5, 60, (9, 2)), 7, axis=0)
PIXEL_CENTERS = np.random.default_rng(6).integers(0, 60, (25, 2)) + 0.5
TILE_BORDERS = np.random.default_rng(7).integers(0, 5, (40, 2)) * 16 + np.random.default_rng(8).normal(0, 0.5, (40, 2))
SCENES = {
    "overlaps": (101, 77, dict(n=80, low=1, high=9)),
    "clamped": (61, 60, dict(n=25, low=1, high=4, centers=PIXEL_CENTERS)),
    "stacks": (67, 63, dict(n=63, low=2, high=9, centers=STACKS)),
    "tile borders": (80, 70, dict(n=40, low=1, high=3, centers=TILE_BORDERS)),
    "image borders": (50, 35, dict(n=60, low=3, high=12, margin=30.0)),
    "tiny": (40, 33, dict(n=200, low=0.02, high=0.6, margin=0.0)),
    "huge": (45, 70, dict(n=30, low=60, high=900, margin=1500.0)),
    "one pixel": (1, 1, dict(n=10, low=0.5, high=3, margin=2.0)),
    "one row": (70, 1, dict(n=10, low=1, high=5, margin=2.0)),
    "one column": (1, 70, dict(n=10, low=1, high=5, margin=2.0)),
}


@pytest.mark.parametrize("name", SCENES)
def test_drawing_and_its_gradients(name):
    width, height, options = SCENES[name]
    scene = make_scene(width, height, **options)
    weights = torch.randn(height, width, 3, generator=torch.manual_seed(1), dtype=torch.float64)

    def run(function, dtype):
        leaves = [part.to(dtype).requires_grad_() for part in scene]
        image = function(*leaves, width, height)
        return image.detach(), torch.autograd.grad((image * weights.to(dtype)).sum(), leaves)

    expected, slopes = run(lambda *scene: draw_slowly(*scene)[0], torch.float64)
    image, gradients = run(lambda *scene: draw(*scene, "reference"), torch.float64)
    assert expected.max() > 0.05
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-12)
    for gradient, slope in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-11 * float(slope.abs().max()))
    if not native.works():
        return
    image, gradients = run(lambda *scene: draw(*scene, "native"), torch.float32)
    torch.testing.assert_close(image.double(), expected, rtol=0, atol=2e-6)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert 0 < slope.abs().max() and (gradient - slope).abs().max() <= 1e-4 * slope.abs().max()


def test_the_stop_and_the_clamp(backend):
    """Opaque centres: alpha = 0.999 leaves 1e-3, a second would leave 1e-6 and is not drawn, nor is anything behind it."""
    shape = conics(torch.tensor([[4.0, 4]] * 2 + [[0.4, 0.4]]), torch.zeros(3, 1))
    leaves = [t.requires_grad_() for t in (torch.tensor([[8.5, 8.5], [8.5, 8.5], [9.5, 8.5]]), shape, torch.eye(3))]
    pixel = draw(*leaves, 17, 17, backend)[8, 8]  # the third alone, alpha about 0.04, would leave 9.6e-4
    torch.testing.assert_close(pixel.detach(), torch.tensor([0.999, 0, 0]))
    by_means, by_conics, by_colors = torch.autograd.grad(pixel.sum(), leaves)
    assert not by_means.any() and not by_conics.any()  # under the clamp
    torch.testing.assert_close(by_colors, torch.tensor([[0.999], [0], [0]]).expand(3, 3))


def test_a_contribution_below_1_255_is_skipped(backend):
    gaussians = Gaussians2D(np.array([[10.5, 0.5]]), np.array([[2.0, 2.0]]), np.zeros((1, 1)), np.ones((1, 3)))
    row = rasterize(gaussians, 21, 1, backend)[0, :, 0]
    assert torch.equal(row > 0, (torch.arange(21) - 10).abs() <= 2 * math.sqrt(2 * math.log(255)))  # 6.66 px


def test_nothing_to_draw(backend):
    empty = [torch.zeros(0, width, requires_grad=True) for width in (2, 3, 3)]
    image = draw(*empty, 5, 3, backend)
    assert torch.equal(image, torch.zeros(3, 5, 3))
    assert [len(gradient) for gradient in torch.autograd.grad(image.sum(), empty)] == [0, 0, 0]


def test_drawing_is_equivariant_but_to_the_order():
    means, shape, colors = make_scene(32, 32, n=8, low=2, high=6, margin=3.0)
    image = draw(means, shape, colors, 32, 32, "reference")
    mirrored = torch.stack([32 - means[:, 0], means[:, 1]], dim=1)
    flipped = draw(mirrored, shape * torch.tensor([1, -1, 1]), colors, 32, 32, "reference")
    torch.testing.assert_close(flipped, image.flip(1), rtol=0, atol=1e-12)
    moved = draw(means + torch.tensor([16, 32]), shape, colors, 48, 64, "reference")
    torch.testing.assert_close(moved[32:, 16:], image, rtol=0, atol=1e-12)
    transposed = draw(means.flip(1), shape.flip(1), colors, 32, 32, "reference")
    torch.testing.assert_close(transposed, image.transpose(0, 1), rtol=0, atol=1e-12)
    assert (draw(means.flip(0), shape.flip(0), colors.flip(0), 32, 32, "reference") - image).abs().max() > 0.01


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
