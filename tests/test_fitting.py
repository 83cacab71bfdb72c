"""The fit: what the released code computed, and what must hold for any image."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from GS2D.fitting import (
    FitConfig,
    Pages,
    Problem,
    fit_image,
    fit_problems,
    foreground,
    has_stalled,
    initial_parameters,
    loss_terms,
    mask_scales,
    rms_neighbour_distance,
)

GOLDEN = np.load(Path(__file__).parent / "data" / "fit.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN})


def golden(case):
    return {key.split("/")[1]: GOLDEN[key] for key in GOLDEN if key.startswith(f"{case}/")}


def covariances(params):
    """R diag(s^2) R^T [N, 2, 2]: an ellipse has two descriptions by scales and rotation, but one covariance."""
    cos, sin = np.cos(params[:, 4]), np.sin(params[:, 4])
    rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    return rotation @ (params[:, 2:4, None] ** 2 * np.eye(2)) @ rotation.transpose(0, 2, 1)


@pytest.mark.parametrize("case", CASES)
def test_initial_values_are_the_released_ones(case):
    g = golden(case)
    height, width = g["image"].shape[:2]
    start = initial_parameters(g["image"], g["points"], 0, seed=0)
    np.testing.assert_allclose(start[:, 2:4], g["init_scale_param"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(mask_scales(g["points"], height, width), g["mask_scale"][:, 0], rtol=0, atol=1e-4)
    ratio = height * width / foreground(g["points"], height, width).sum()
    assert ratio == pytest.approx(float(g["bk_ratio"]), abs=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_fit_from_the_released_start(case, backend):
    """To its result; the losses are those that the last step started from."""
    g = golden(case)
    names = ("points", "init_scale_param", "init_rotation_param", "init_color_param")
    start = torch.cat([torch.from_numpy(g[name]) for name in names], dim=1)
    mask = foreground(g["points"], *g["image"].shape[:2])
    config = FitConfig(iterations=int(g["iterations"]), learning_rate=float(g["lr"]))
    result = fit_problems([Problem(g["image"], mask, start, len(start), len(start))], config, backend)[0]
    assert result.render_loss == pytest.approx(float(g["render_loss"]), rel=1e-4)
    assert result.shape_loss == pytest.approx(float(g["shape_loss"]), abs=1e-6 if backend == "reference" else 1e-4)
    np.testing.assert_allclose(result.gaussians.colors, g["params"][:, 5:], atol=0.02)
    expected, got = covariances(g["params"]), covariances(result.gaussians.params.numpy())
    error = np.abs(got - expected).max(axis=(1, 2)) / np.abs(expected).max(axis=(1, 2))
    assert error.max() < 0.02
    np.testing.assert_allclose(result.gaussians.means, g["points"])


@pytest.mark.parametrize("case", CASES)
def test_fit_from_a_random_start(case):
    g = golden(case)
    result = fit_image(g["image"], g["points"], FitConfig(iterations=int(g["iterations"])), seed=1)
    assert result.render_loss == pytest.approx(float(g["render_loss"]), rel=0.02)


def test_neighbour_distance_with_few_points():
    assert rms_neighbour_distance(np.zeros((0, 2))).shape == (0,)
    assert rms_neighbour_distance(np.array([[3.0, 4.0]])).tolist() == [8.0]
    assert rms_neighbour_distance(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist() == [5.0, 5.0]
    three = rms_neighbour_distance(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 12.0]]))
    assert three[0] == pytest.approx(np.sqrt((25 + 144) / 2))
    assert rms_neighbour_distance(np.ones((9, 2))).tolist() == [0.0] * 9


def test_mask_scales_between_their_bounds():
    """A sixth of the distance, but at least 2 pixels and at most 0.015 of the long side."""
    pairs = np.array([[100.0, 100.0], [160.0, 100.0]])
    for points, size, expected in ((pairs, (500, 400), 7.5), (pairs, (1000, 2000), 10), (pairs / 6, (500, 400), 2)):
        np.testing.assert_allclose(mask_scales(points, *size), [expected] * 2)


def test_start_of_rotations_and_background_means():
    """v = logit(U(0, 1)); the means of the free Gaussians anywhere in the image."""
    start = initial_parameters(np.zeros((40, 60, 3), np.uint8), np.zeros((0, 2)), 4000, seed=0)
    for share in (0.1, 0.5, 0.9):
        assert abs((torch.sigmoid(start[:, 4]) < share).float().mean() - share) < 0.03
        for axis, side in enumerate((60, 40)):
            assert abs((start[:, axis] < share * side).float().mean() - share) < 0.03
    assert (start[:, :2].amin(dim=0) < 0.2).all() and (start[:, :2].amax(dim=0) > torch.tensor([59.8, 39.8])).all()


def test_start_reads_the_color_under_the_point():
    """Far outside that of the nearest border, also where a coordinate is no 64-bit integer."""
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    points = [[3.9, 2.1], [1e30, 1.5], [2.5, -1e30], [-1e30, 2.5], [1.5, 1e30], [5.0, 4.0]]
    start = initial_parameters(image, np.array(points), 0, seed=0)
    expected = image[[2, 1, 0, 2, 3, 3], [3, 4, 2, 0, 1, 4]] / 255
    np.testing.assert_allclose(torch.sigmoid(start[:, 5:]), expected.clip(0.001), atol=1e-6)
    white = initial_parameters(np.full((4, 5, 3), 255, np.uint8), np.array([[2.0, 2.0], [2.0, 2.0]]), 0, seed=0)
    np.testing.assert_allclose(torch.sigmoid(white[:, 5:]), 0.999, atol=1e-6)
    assert (white[:, 2:4] == 2).all()


def losses(params, image, mask):
    """Render loss and shape loss of one image [H, W, 3] with a mask [H, W]."""
    weight = (torch.ones_like(mask) / (3 * mask.sum())).nan_to_num(posinf=0)[None, :, :, None]
    page, free = torch.zeros(len(params), dtype=torch.int64), torch.zeros(len(params), 1, dtype=torch.bool)
    return loss_terms(params, Pages((image * mask[:, :, None])[None], weight, page, free), "reference")[0]


def test_loss_terms_by_hand():
    """Where nothing is drawn the foreground misses its 0.25, the background nothing; what spills over onto it is punished."""
    image, mask = torch.full((8, 8, 3), 0.25), torch.zeros(8, 8)
    mask[:, :4] = 1
    params = torch.tensor([[99.0, 99, 4, 2, 0, 0, 0, 0]])
    assert losses(params, image, mask).tolist() == pytest.approx((0.25, 0.2 * (2 - 1.5)))
    params[0, :2] = torch.tensor([6.0, 4.0])
    assert losses(params, image, mask)[0] > 0.25


@pytest.mark.parametrize(
    ("u", "expected"),
    [((2.4, 2.0), 0), ((2.0, 4.0), 0.1), ((0.0, 0.0), 0), ((1e-9, 1e-10), 0.2 * (5 - 1.5)), ((1e-10, 1e-9), 0.7)],
)
def test_shape_loss_by_hand(u, expected):
    """0.2 relu(max(u1 / (u2 + 1e-10), u2 / (u1 + 1e-10)) - 1.5) of the worst Gaussian."""
    params = torch.zeros(2, 8)
    params[:, 2:4] = torch.tensor([u, (3.0, 3.0)])
    _, shape = losses(params, torch.zeros(8, 8, 3), torch.ones(8, 8))
    assert float(shape) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("before", "now", "tolerance", "stalled"),
    [
        ((np.inf, np.inf), (10.0, 0.0), 0.01, False),
        ((10.0, 0.0), (9.95, 0.0), 0.01, True),
        ((10.0, 0.0), (9.85, 0.0), 0.01, False),
        ((1.5, 0.0), (1.0, 0.0), 0.5, False),  # by exactly half of itself
        ((10.0, 1.0), (10.0, 0.5), 0.01, False),  # the shape is on its way
        ((10.0, 0.0), (9.0, 1.0), 0.01, False),  # the drawing is
    ],
)
def test_when_a_fit_has_stalled(before, now, tolerance, stalled):
    assert has_stalled(before, now, tolerance) == stalled


def test_options_have_their_effect(backend):
    g = golden("case0")

    def fitted(**options):
        return fit_image(g["image"], g["points"], FitConfig(**{"iterations": 10} | options), backend=backend, seed=2)

    plain, free, moved = fitted(), fitted(background_gaussians=5), fitted(learn_means=True)
    for result in (plain, free):
        np.testing.assert_array_equal(result.gaussians.means, g["points"])
    assert (free.gaussians.colors - plain.gaussians.colors).abs().max() > 1e-4
    assert (moved.gaussians.means.numpy() != g["points"]).any(axis=1).mean() > 0.9
    assert fitted(use_background_mask=False).render_loss != pytest.approx(plain.render_loss, rel=0.05)
    assert fitted(iterations=400, tolerance=0.1).iterations == 100  # by both backends


@pytest.mark.parametrize(
    "points",
    [np.zeros((0, 2)), np.zeros(0), [[5.0, 5.0]], np.full((40, 2), 7.0), [[0.0, 0.0], [20.0, 12.0]], [[500.0, 3.0]]],
    ids=["none", "empty", "one", "identical", "corners", "outside"],
)
def test_any_number_and_place_of_points(points):
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    result = fit_image(image, points, FitConfig(iterations=5), backend="reference")
    assert result.gaussians.params.shape == (len(points), 8)
    assert torch.isfinite(result.gaussians.params).all() and np.isfinite(result.render_loss)


def test_without_points_or_iterations_nothing_is_fitted(backend):
    image = np.full((12, 20, 3), 99, np.uint8)
    for points, iterations in ((np.zeros((0, 2)), 5), (np.ones((3, 2)), 0)):
        found = fit_image(image, points, FitConfig(iterations=iterations), backend=backend)
        assert found[1:4] == (0.0, 0.0, 0) and len(found.gaussians) == len(points)


@pytest.mark.parametrize(
    ("image", "points", "message"),
    [
        (np.zeros((8, 8, 4), np.uint8), [[1, 1]], "image: uint8 [8, 8, 4], expected uint8 [H, W, 3]; convert it"),
        (np.zeros((0, 8, 3), np.uint8), [[1, 1]], "image: uint8 [0, 8, 3], expected uint8 [H, W, 3]"),
        (np.zeros((8, 8, 3)), [[1, 1]], "image: float64 [8, 8, 3], expected uint8 [H, W, 3]"),
        (np.zeros((8, 8, 3), np.uint8), [1, 1, 1], "points: shape [3], expected [N, 2]"),
        (np.zeros((8, 8, 3), np.uint8), np.ones((3, 3)), "points: shape [3, 3], expected [N, 2]"),
    ],
)
def test_unusable_images_and_points_are_named(image, points, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_image(image, points)
