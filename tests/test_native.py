"""The native engine's fit: gradients and Adam against the PyTorch twin. Its drawing is tested in test_rasterize.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_rasterize import draw_slowly

from GS2D import native
from GS2D.fitting import activate, has_stalled
from GS2D.native import build
from GS2D.rasterize import conics, draw

if not build.compilers():
    pytest.skip("no C++ compiler here", allow_module_level=True)


def twin_losses(image, foreground, params):
    """Render loss and shape loss by the twin."""
    wanted = torch.from_numpy(image).to(params) / 255 * torch.from_numpy(foreground)[:, :, None]
    gaussians, (u1, u2) = activate(params), params[:, 2:4].unbind(1)
    shape = conics(gaussians.scales, gaussians.rotations)
    drawing = draw(gaussians.means, shape, gaussians.colors, image.shape[1], image.shape[0], "reference")
    ratio = torch.maximum(u1 / (u2 + 1e-10), u2 / (u1 + 1e-10))
    return (drawing - wanted).abs().sum() / (3 * foreground.sum()), 0.2 * torch.relu(ratio - 1.5).max()


def make_fit(seed, n, width, height):
    """image, foreground, params whose loss has no kink within rounding."""
    for attempt in range(seed, seed + 100):
        random = np.random.default_rng(attempt)
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        foreground = random.random((height, width)) < 0.6
        means, u = random.uniform((-8, -8), (width + 8, height + 8), (n, 2)), random.uniform(-1, 6, (n, 2))
        params = np.c_[means, u, random.normal(0, 2, (n, 4))].astype(np.float32)
        gaussians = activate(torch.from_numpy(params))
        scene = gaussians.means, conics(gaussians.scales, gaussians.rotations), gaussians.colors
        drawing, margin = draw_slowly(*(part.double() for part in scene), width, height)
        differences = np.abs(drawing.numpy() - image / 255 * foreground[:, :, None])
        if min(margin.min(), differences[differences > 0].min()) > 2e-6:
            return image, foreground, params
    raise AssertionError("no clear fit")


@pytest.mark.parametrize("n, width, height", [(60, 101, 77), (5, 16, 64), (12, 1, 40)])
def test_losses_and_10_iterations_are_those_of_torch(n, width, height):
    """Adam of float32 parameters over the twin's gradients, some means free."""
    image, foreground, start = make_fit(0, n, width, height)
    first = native.fit(image, foreground, start, iterations=1)
    fitted, render, shape, iterations = native.fit(image, foreground, start, iterations=10, fixed_means=n // 2)
    leaf = torch.from_numpy(start).clone().requires_grad_()
    adam, losses = torch.optim.Adam([leaf], lr=0.01), []
    for _ in range(10):
        losses.append(twin_losses(image, foreground, leaf))
        (leaf.grad,) = torch.autograd.grad(sum(losses[-1]), leaf)
        leaf.grad[: n // 2, :2] = 0
        adam.step()
    assert first[1:3] == pytest.approx([loss.item() for loss in losses[0]], rel=1e-6) and first[2] > 0
    assert iterations == 10 and [render, shape] == pytest.approx([loss.item() for loss in losses[-1]], rel=1e-5)
    np.testing.assert_allclose(fitted, leaf.detach().numpy(), rtol=0, atol=2e-4)
    assert np.abs(fitted - start).max(axis=0).min() > 1e-3  # every kind of parameter moved


def test_a_tolerance_ends_the_fit_where_the_rule_says():
    problem = make_fit(1, 40, 90, 70)
    early = native.fit(*problem, iterations=1000, tolerance=0.05)
    fits = [native.fit(*problem, iterations=n) for n in range(50, early[3] + 1, 50)]
    losses = [(math.inf, math.inf), *(result[1:3] for result in fits)]
    stalled = [has_stalled(before, now, 0.05) for before, now in zip(losses, losses[1:])]
    assert len(fits) > 1 and stalled == [False] * (len(fits) - 1) + [True]
    assert early[1:] == fits[-1][1:] and (early[0] == fits[-1][0]).all()


def test_a_thousand_identical_points_and_points_far_outside():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    params = np.tile(np.float32([20.25, 20.25, 4, 4, 0, 0, 0, 0]), (1003, 1))
    params[1000:, :2] = [[-1e30, 5], [1e9, 1e9], [25, -3e38]]
    fitted, render, _, _ = native.fit(image, np.ones((40, 50), bool), params, iterations=20, fixed_means=1003)
    assert math.isfinite(render) and np.isfinite(fitted).all()
    assert (fitted[1000:, 5:] == 0).all() and (fitted[0, 5:] != 0).all()  # those outside learn nothing


def test_not_a_number_inside_the_fit_is_survived():
    """u2 = -1e-10 makes the ratio of the scales infinite, and every parameter of that Gaussian NaN after a step."""
    params = np.float32([[9, 9, 1, -1e-10, 0, 0, 0, 0], [9, 9, 3, 3, 0, 0, 0, 0]])
    fitted, *_ = native.fit(np.zeros((20, 20, 3), np.uint8), np.ones((20, 20), bool), params, iterations=5)
    assert np.isnan(fitted[0]).any() and np.isfinite(fitted[1]).all()


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda a: a.astype(np.uint16), "image, foreground: uint16"),
        (1, lambda a: a[1:], r"image, foreground: uint8 \[20, 20, 3\], bool \[19, 20\]; expected uint8"),
        (2, lambda a: a * np.float32([1, 1, 1, 1, 1, 1, 1, np.nan]), "params: row 0 is .*nan"),
        (2, lambda a: a[:, :7], r"params: shape \[4, 7\], expected \[4, 8\]"),
    ],
)
def test_bad_inputs(position, change, message):
    arguments = list(make_fit(0, 4, 20, 20))
    arguments[position] = change(arguments[position])
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        native.fit(*arguments, iterations=1)
