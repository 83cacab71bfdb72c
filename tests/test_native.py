"""The native engine against a loop in float64 (values), the PyTorch twin (gradients, Adam) and the released fits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from GS2D import native
from GS2D.fitting import has_stalled
from GS2D.native import build
from GS2D.rasterize import conics, rasterize_reference

ROOT = Path(__file__).parents[1]
GOLDEN = np.load(ROOT / "tests/data/fit.npz")

if not build.compilers():
    pytest.skip("no C++ compiler here", allow_module_level=True)


def draw_slowly(means, conics, colors, opacities, width, height):
    """Image [H, W, 3], and the smallest relative distance of an alpha or transmittance from a cut; all float64."""
    y, x = np.mgrid[:height, :width] + 0.5
    image, transmittance, open_ = np.zeros((height, width, 3)), np.ones((height, width)), np.ones((height, width), bool)
    margin = np.inf
    for (mean_x, mean_y), (a, b, c), color, opacity in zip(means, conics, colors, opacities):
        dx, dy = x - mean_x, y - mean_y
        raw = opacity * np.exp(-(a * dx * dx / 2 + b * dx * dy + c * dy * dy / 2))
        alpha = np.minimum(raw, 0.999)
        seen = open_ & (alpha >= 1 / 255)
        after = transmittance * (1 - alpha)
        margin = min(margin, *(abs(v[open_] - 1).min(initial=1) for v in (raw * 255, raw / 0.999)))
        margin = min(margin, abs(after[seen] / 1e-4 - 1).min(initial=1))
        open_ &= ~seen | (after > 1e-4)
        weight = np.where(seen & open_, transmittance * alpha, 0)
        image += weight[:, :, None] * color
        transmittance = np.where(seen & open_, after, transmittance)
    return image, margin


def make_scene(seed, n, width, height, low, high, *, opacity=(0.05, 1.0), margin=20.0, centers=None):
    """means, conics, colors, opacities, float32, of the first seed from ``seed`` on whose decisions are all clear.

    Two correct float32 programs differ where an alpha lies within rounding of 1/255 (or a transmittance of 1e-4).
    """
    for attempt in range(seed, seed + 100):
        random = np.random.default_rng(attempt)
        means = (
            random.uniform((-margin, -margin), (width + margin, height + margin), (n, 2))
            if centers is None
            else centers
        )
        scales = np.exp(random.uniform(np.log(low), np.log(high), (n, 1))) * random.uniform(0.6, 1.6, (n, 2))
        shape = conics(torch.from_numpy(scales), torch.from_numpy(random.uniform(0, math.pi, n))).numpy()
        scene = means, shape, random.uniform(0, 1, (n, 3)), random.uniform(*opacity, n)
        scene = [part.astype(np.float32) for part in scene]
        if draw_slowly(*(part.astype(np.float64) for part in scene), width, height)[1] > 2e-6:
            return scene
    raise AssertionError("no clear scene")


STACKS = np.repeat(np.random.default_rng(5).uniform(5, 60, (9, 2)), 7, axis=0)
PIXEL_CENTERS = np.random.default_rng(6).integers(0, 60, (25, 2)) + 0.5
TILE_BORDERS = np.random.default_rng(7).integers(0, 5, (40, 2)) * 16 + np.random.default_rng(8).normal(0, 0.5, (40, 2))
SCENES = {
    "overlaps": (101, 77, dict(n=80, low=1, high=9)),
    "clamped": (61, 60, dict(n=25, low=1, high=4, opacity=(1, 1), centers=PIXEL_CENTERS)),
    "stacks": (67, 63, dict(n=63, low=2, high=9, opacity=(0.7, 1), centers=STACKS)),
    "tile borders": (80, 70, dict(n=40, low=1, high=3, centers=TILE_BORDERS)),
    "image borders": (50, 35, dict(n=60, low=3, high=12, margin=30.0)),
    "tiny": (40, 33, dict(n=200, low=0.02, high=0.6, opacity=(0.5, 1), margin=0.0)),
    "huge": (45, 70, dict(n=30, low=60, high=900, opacity=(0.005, 0.4), margin=400.0)),
    "one pixel": (1, 1, dict(n=10, low=0.5, high=3, margin=2.0)),
    "one row": (70, 1, dict(n=10, low=1, high=5, margin=2.0)),
    "one column": (1, 70, dict(n=10, low=1, high=5, margin=2.0)),
}


@pytest.mark.parametrize("name", SCENES)
def test_drawing_and_its_gradients(name):
    width, height, options = SCENES[name]
    scene = make_scene(0, width=width, height=height, **options)
    drawing = native.render(*scene, width, height)
    expected, _ = draw_slowly(*(part.astype(np.float64) for part in scene), width, height)
    assert drawing.dtype == np.float32 and expected.max() > 0.05
    np.testing.assert_allclose(drawing, expected, rtol=0, atol=2e-6)

    leaves = [torch.from_numpy(part).double().requires_grad_() for part in scene]
    twin = rasterize_reference(*leaves, width, height)
    np.testing.assert_allclose(twin.detach().numpy(), expected, rtol=0, atol=1e-12)
    grad_image = np.random.default_rng(1).standard_normal(drawing.shape).astype(np.float32)
    twin.backward(torch.from_numpy(grad_image).double())
    gradients = native.render_backward(*scene, width, height, grad_image)
    for part, gradient, leaf in zip(("means", "conics", "colors", "opacities"), gradients, leaves):
        largest = leaf.grad.abs().max().item()
        error = np.abs(gradient - leaf.grad.numpy()).max()
        assert largest > 0 and error <= 1e-4 * largest, f"{part}: {error:.1e} of {largest:.1e}"


def test_the_stop_and_the_clamp_are_met():
    """The scenes above would not notice a missing stop or clamp if nothing came near them."""
    width, height, options = SCENES["stacks"]
    scene = make_scene(0, width=width, height=height, **options)
    _, shape, _, opacities = scene
    center = [
        np.array([[30.5, 30.5]] * 4, np.float32),
        shape[:4],
        np.eye(4, 3, dtype=np.float32),
        np.ones(4, np.float32),
    ]
    pixel = native.render(*center, width, height)[30, 30]
    np.testing.assert_allclose(pixel, [0.999, 0, 0], atol=1e-6)  # the second would leave 1e-6 of the light
    grad_image = np.zeros((height, width, 3), np.float32)
    grad_image[30, 30] = 1
    g_means, g_conics, g_colors, g_opacities = native.render_backward(*center, width, height, grad_image)
    assert not g_means.any() and not g_conics.any() and not g_opacities.any()
    np.testing.assert_allclose(g_colors, np.repeat([[0.999], [0], [0], [0]], 3, axis=1), atol=1e-6)


def twin_losses(image, foreground, means, u, v, c, shape_weight=0.2):
    """Render loss and shape loss by the twin, in the type of the parameters."""
    wanted = torch.from_numpy(image).to(means) / 255 * torch.from_numpy(foreground)[:, :, None]
    shape, opaque = conics(torch.relu(u) + 1, math.pi * torch.sigmoid(v)), torch.ones_like(u[:, 0])
    drawing = rasterize_reference(means, shape, torch.sigmoid(c), opaque, image.shape[1], image.shape[0])
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
        arrays = [part.numpy() for part in (means, shape, torch.sigmoid(c), torch.ones(n))]
        drawing, margin = draw_slowly(*arrays, width, height)
        differences = np.abs(drawing - image / 255 * foreground[:, :, None])
        if min(margin, differences[differences > 0].min()) > 2e-6:
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


def test_200_iterations_stay_with_torch():
    """Native and torch.optim.Adam over the twin, both float32, means of the last 4 Gaussians free."""
    image, foreground, *start = make_fit(3, 12, 64, 48)
    start[1] = np.abs(start[1]) + 1
    *fitted, render, shape, iterations = native.fit(image, foreground, *start, iterations=200, fixed_means=8)
    torch.set_num_threads(1)
    fixed, *learned = (torch.from_numpy(part).clone() for part in (start[0][:8], start[0][8:], *start[1:]))
    adam = torch.optim.Adam([part.requires_grad_() for part in learned], lr=0.01)
    for _ in range(200):
        adam.zero_grad()
        means = torch.cat([fixed, learned[0]])
        losses = twin_losses(image, foreground, means, *learned[1:])
        sum(losses).backward()
        adam.step()
    assert iterations == 200 and (fitted[0][:8] == start[0][:8]).all() and (fitted[0][8:] != start[0][8:]).any()
    expected = [torch.cat([fixed, learned[0]]), *learned[1:]]
    assert [render, shape] == pytest.approx([loss.item() for loss in losses], rel=1e-4)
    for part, twin in zip(fitted, expected):
        np.testing.assert_allclose(part, twin.detach().numpy(), rtol=0, atol=0.005)


def covariances(params):
    """R diag(s^2) R^T [N, 2, 2] of [N, 8] = x, y, s1, s2, theta, ..."""
    cos, sin = np.cos(params[:, 4]), np.sin(params[:, 4])
    rotations = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    return rotations @ (np.eye(2) * params[:, None, 2:4] ** 2) @ rotations.transpose(0, 2, 1)


@pytest.mark.parametrize("case", ["case0", "case1", "case2"])
def test_released_fit(case):
    """From the start of the released code to its result. Its losses are those that its last step started from."""
    golden = {key.split("/")[1]: GOLDEN[key] for key in GOLDEN if key.startswith(case)}
    image, points, reach = golden["image"], golden["points"], golden["mask_scale"][:, 0] * math.sqrt(2 * math.log(255))
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    foreground = (np.hypot(x - points[:, :1, None], y - points[:, 1:, None]) <= reach[:, None, None]).any(axis=0)
    assert foreground.size / foreground.sum() == pytest.approx(golden["bk_ratio"], rel=1e-6)
    start = points, golden["init_scale_param"], golden["init_rotation_param"], golden["init_color_param"]
    settings = dict(iterations=int(golden["iterations"]), learning_rate=float(golden["lr"]))
    means, u, v, c, render, shape, _ = native.fit(image, foreground, *start, **settings)
    assert render == pytest.approx(golden["render_loss"], rel=1e-4)
    assert shape == pytest.approx(golden["shape_loss"], abs=1e-4)
    sigmoid = [1 / (1 + np.exp(-part)) for part in (v, c)]
    params = np.concatenate([means, np.maximum(u, 0) + 1, math.pi * sigmoid[0], sigmoid[1]], axis=1)
    found, expected = covariances(params), covariances(golden["params"])
    assert (np.abs(found - expected).max(axis=(1, 2)) <= 0.02 * np.abs(expected).max(axis=(1, 2))).all()
    np.testing.assert_allclose(params[:, 5:], golden["params"][:, 5:], atol=0.02)
    assert (params[:, :2] == points).all()


def test_a_tolerance_ends_the_fit_where_the_rule_says():
    image, foreground, *start = make_fit(1, 40, 90, 70)
    early = native.fit(image, foreground, *start, iterations=1000, tolerance=0.05)
    fits = [native.fit(image, foreground, *start, iterations=n) for n in range(50, early[6] + 1, 50)]
    losses = [result[4:6] for result in fits]
    stalled = [has_stalled(losses[: i + 1], 0.05) for i in range(len(losses))]
    assert len(losses) > 1 and stalled == [False] * (len(losses) - 1) + [True]
    assert early[4:] == fits[-1][4:] and all((a == b).all() for a, b in zip(early[:4], fits[-1]))


def test_order_of_drawing_is_that_of_the_index():
    scene = make_scene(2, 30, 40, 40, 3, 8)
    reverse = [part[::-1].copy() for part in scene]
    assert np.abs(native.render(*scene, 40, 40) - native.render(*reverse, 40, 40)).max() > 0.01


def test_nothing_to_draw():
    empty = [np.zeros((0, width), np.float32) for width in (2, 3, 3)]
    opacities = np.zeros(0, np.float32)
    drawing = native.render(*empty, opacities, 5, 4)
    assert drawing.shape == (4, 5, 3) and not drawing.any()
    gradients = native.render_backward(*empty, opacities, 5, 4, np.ones((4, 5, 3), np.float32))
    assert [gradient.shape for gradient in gradients] == [(0, 2), (0, 3), (0, 3), (0,)]
    image, foreground = np.full((4, 5, 3), 51, np.uint8), np.ones((4, 5), bool)
    parts = [np.zeros((0, width), np.float32) for width in (2, 2, 1, 3)]
    means, *_, render, shape, _ = native.fit(image, foreground, *parts, iterations=3)
    assert means.shape == (0, 2) and render == pytest.approx(0.2) and shape == 0


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


def test_bad_inputs():
    scene = make_scene(0, 4, 20, 20, 1, 4)
    fitting = make_fit(0, 4, 20, 20)

    def wrong(call, position, change, message):
        arguments = list(call)
        arguments[position] = change(arguments[position].copy())
        with pytest.raises(ValueError, match=message) as caught:
            native.render(*arguments, 20, 20) if call is scene else native.fit(*arguments, iterations=1)
        assert "\n" not in str(caught.value)

    def not_finite(array):
        array[2, 1] = np.nan
        return array

    wrong(scene, 0, not_finite, "means: row 2 is .*nan")
    wrong(scene, 1, lambda a: a * -1, r"conics: row 0 is .*not positive definite")
    wrong(scene, 2, lambda a: a[:, :2], r"colors: shape \[4, 2\], expected \[4, 3\]")
    wrong(scene, 3, lambda a: a[:3], r"opacities: shape \[3\], expected \[4\]")
    wrong(fitting, 0, lambda a: a[:, :, 0], r"image: uint8 \[20, 20\]")
    wrong(fitting, 0, lambda a: a.astype(np.uint16), "image: uint16")
    wrong(fitting, 1, lambda a: a[1:], r"foreground: bool \[19, 20\], expected bool or uint8 \[20, 20\]")
    wrong(fitting, 2, not_finite, "means: row 2 is .*nan")
    wrong(fitting, 3, not_finite, "u: row 2 is .*nan")
    wrong(fitting, 4, lambda a: a[:, 0], r"v: shape \[4\], expected \[4, 1\]")
    with pytest.raises(ValueError, match="width x height: 0 x 5"):
        native.render(*scene, 0, 5)
    with pytest.raises(ValueError, match="iterations: -1"):
        native.fit(*fitting, iterations=-1)
    with pytest.raises(ValueError, match="fixed_means: 5"):
        native.fit(*fitting, iterations=1, fixed_means=5)
