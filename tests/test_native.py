"""The native engine's fit: gradients and Adam against the PyTorch twin. Its drawing is tested in test_rasterize.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_rasterize import draw_slowly

from GS2D import native
from GS2D.fitting import has_stalled
from GS2D.native import build
from GS2D.rasterize import conics, rasterize_reference

if not build.compilers():
    pytest.skip("no C++ compiler here", allow_module_level=True)


def twin_losses(image, foreground, means, u, v, c, shape_weight=0.2):
    """Render loss and shape loss by the twin, in the type of the parameters."""
    wanted = torch.from_numpy(image).to(means) / 255 * torch.from_numpy(foreground)[:, :, None]
    shape = conics(torch.relu(u) + 1, math.pi * torch.sigmoid(v))
    drawing = rasterize_reference(means, shape, torch.sigmoid(c), image.shape[1], image.shape[0])
    ratio = torch.maximum(u[:, 0] / (u[:, 1] + 1e-10), u[:, 1] / (u[:, 0] + 1e-10))
    return (drawing - wanted).abs().sum() / (3 * foreground.sum()), shape_weight * torch.relu(ratio - 1.5).max()


def make_fit(seed, n, width, height):
    """image, foreground, means, u, v, c whose loss has no kink within rounding."""
    for attempt in range(seed, seed + 100):
        random = np.random.default_rng(attempt)
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        foreground = random.random((height, width)) < 0.6
        means = random.uniform((-8, -8), (width + 8, height + 8), (n, 2))
        parameters = means, random.uniform(-1, 6, (n, 2)), random.normal(0, 2, (n, 1)), random.normal(0, 2, (n, 3))
        parameters = [part.astype(np.float32) for part in parameters]
        means, u, v, c = (torch.from_numpy(part).double() for part in parameters)
        shape = conics(torch.relu(u) + 1, math.pi * torch.sigmoid(v))
        drawing, margin = draw_slowly(means, shape, torch.sigmoid(c), width, height)
        differences = np.abs(drawing.numpy() - image / 255 * foreground[:, :, None])
        if min(margin.min(), differences[differences > 0].min()) > 2e-6:
            return image, foreground, *parameters
    raise AssertionError("no clear fit")


@pytest.mark.parametrize("n, width, height", [(60, 101, 77), (5, 16, 64), (12, 1, 40), (1, 30, 20)])
@pytest.mark.parametrize("shape_weight", [0.0, 0.2])
def test_loss_and_gradients(n, width, height, shape_weight):
    image, foreground, *parameters = make_fit(0, n, width, height)
    *losses, g_means, g_u, g_v, g_c = native.loss_and_gradients(
        image, foreground, *parameters, shape_weight=shape_weight
    )
    leaves = [torch.from_numpy(part).double().requires_grad_() for part in parameters]
    render, shape = twin_losses(image, foreground, *leaves, shape_weight)
    (render + shape).backward()
    assert losses == pytest.approx([render.item(), shape.item()], rel=1e-6)
    for part, gradient, leaf in zip(("means", "u", "v", "c"), (g_means, g_u, g_v, g_c), leaves):
        largest = leaf.grad.abs().max().item()
        error = np.abs(gradient - leaf.grad.numpy()).max()
        assert largest > 0 and error <= 1e-4 * largest, f"{part}: {error:.1e} of {largest:.1e}"


def test_shape_gradient_is_shared_among_ties():
    """u1 = u2 would tie within a Gaussian too, but only where the ratio of 1 is below the threshold."""
    u = np.array([[4, 2], [2, 4], [3, 3], [4, 2], [1, -5]], np.float32)
    zeros = np.zeros((5, 3), np.float32)
    image, foreground = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), bool)
    render, shape, _, g_u, _, _ = native.loss_and_gradients(image, foreground, zeros[:, :2], u, zeros[:, :1], zeros)
    assert (render, shape) == (0, pytest.approx(0.1))  # without foreground the rendering counts nothing
    leaf = torch.from_numpy(u).requires_grad_()
    ratio = torch.maximum(leaf[:, 0] / (leaf[:, 1] + 1e-10), leaf[:, 1] / (leaf[:, 0] + 1e-10))
    (0.2 * torch.relu(ratio - 1.5).max()).backward()
    np.testing.assert_allclose(g_u, leaf.grad.numpy(), rtol=1e-6)


def test_gradient_is_zero_where_the_image_is_met():
    """L1 has subgradient 0 at 0. Among the floats around the right color, one gives the pixel's 100 exactly."""
    image, foreground = np.full((1, 1, 3), 100, np.uint8), np.ones((1, 1), bool)
    opaque = np.full((1, 2), 0.5, np.float32), np.full((1, 2), 3, np.float32), np.zeros((1, 1), np.float32)
    color = np.float32(math.log(100 / (0.999 * 255 - 100)))
    signs = []
    for c in color + np.spacing(abs(color)) * np.arange(-60, 61, dtype=np.float32):
        loss, _, _, _, _, g_c = native.loss_and_gradients(image, foreground, *opaque, np.full((1, 3), c))
        assert (loss == 0) == (not g_c.any())
        signs.append(np.sign(g_c[0, 0]))
    assert signs == sorted(signs) and set(signs) == {-1, 0, 1}


def test_10_iterations_are_those_of_torch():
    """Adam of float32 parameters over the twin's gradients, means of the last 4 Gaussians free."""
    image, foreground, *start = make_fit(3, 12, 64, 48)
    *fitted, render, shape, iterations = native.fit(image, foreground, *start, iterations=10, fixed_means=8)
    leaves = [torch.from_numpy(part).clone().requires_grad_() for part in start]
    adam = torch.optim.Adam(leaves, lr=0.01)
    for _ in range(10):
        losses = twin_losses(image, foreground, *leaves)
        for leaf, gradient in zip(leaves, torch.autograd.grad(sum(losses), leaves)):
            leaf.grad = gradient
        leaves[0].grad[:8] = 0
        adam.step()
    assert iterations == 10 and [render, shape] == pytest.approx([loss.item() for loss in losses], rel=1e-5)
    for part, twin in zip(fitted, leaves):
        np.testing.assert_allclose(part, twin.detach().numpy(), rtol=0, atol=2e-4)


def test_a_tolerance_ends_the_fit_where_the_rule_says():
    image, foreground, *start = make_fit(1, 40, 90, 70)
    early = native.fit(image, foreground, *start, iterations=1000, tolerance=0.05)
    fits = [native.fit(image, foreground, *start, iterations=n) for n in range(50, early[6] + 1, 50)]
    losses = [result[4:6] for result in fits]
    stalled = [has_stalled(losses[: i + 1], 0.05) for i in range(len(losses))]
    assert len(losses) > 1 and stalled == [False] * (len(losses) - 1) + [True]
    assert early[4:] == fits[-1][4:] and all((a == b).all() for a, b in zip(early[:4], fits[-1]))


def test_a_thousand_identical_points_and_points_far_outside():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    means = np.full((1003, 2), 20.25, np.float32)
    means[1000:] = [[-1e30, 5], [1e9, 1e9], [25, -3e38]]
    parts = means, np.full((1003, 2), 4, np.float32), np.zeros((1003, 1), np.float32), np.zeros((1003, 3), np.float32)
    *fitted, render, _, _ = native.fit(image, np.ones((40, 50), bool), *parts, iterations=20)
    assert math.isfinite(render) and all(np.isfinite(part).all() for part in fitted)
    assert (fitted[3][1000:] == 0).all() and (fitted[3][0] != 0).all()  # those outside learn nothing


def test_not_a_number_inside_the_fit_is_survived():
    """u2 = -1e-10 makes the ratio of the scales infinite, and every parameter of that Gaussian NaN after a step."""
    image, foreground = np.zeros((20, 20, 3), np.uint8), np.ones((20, 20), bool)
    u = np.array([[1, -1e-10], [3, 3]], np.float32)
    parts = np.full((2, 2), 9, np.float32), u, np.zeros((2, 1), np.float32), np.zeros((2, 3), np.float32)
    means, u, *_ = native.fit(image, foreground, *parts, iterations=5, fixed_means=0)
    assert np.isnan(u[0]).any() and np.isfinite(u[1]).all() and np.isfinite(means[1]).all()


def not_finite(array):
    array = np.array(array)
    array[2, 1] = np.nan
    return array


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda a: a.astype(np.uint16), "image, foreground: uint16"),
        (1, lambda a: a[1:], r"image, foreground: uint8 \[20, 20, 3\], bool \[19, 20\]; expected uint8"),
        (2, not_finite, "means: row 2 is .*nan"),
        (4, lambda a: a[:, 0], r"v: shape \[4\], expected \[4, 1\]"),
    ],
)
def test_bad_inputs(position, change, message):
    arguments = list(make_fit(0, 4, 20, 20))
    arguments[position] = change(arguments[position])
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        native.fit(*arguments, iterations=1)


def test_conics_that_are_no_ellipses():
    scene = np.ones((4, 2)), np.tile([-1.0, 0, 1], (4, 1)), np.ones((4, 3))
    with pytest.raises(ValueError, match=r"^conics: row 0 is .*not positive definite \(a > 0, a c > b\^2\)$"):
        native.render(*scene, 20, 20)
