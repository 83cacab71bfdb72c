"""The fit: what the released code computed, and what must hold for any image."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from GS2D.fitting import (
    FitConfig,
    Parameters,
    Problem,
    fit_image,
    fit_images,
    fit_problems,
    foreground,
    has_stalled,
    initial_parameters,
    loss_terms,
    mask_scales,
    rms_neighbour_distance,
    schedule,
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
    np.testing.assert_allclose(start.scale, g["init_scale_param"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(mask_scales(g["points"], height, width), g["mask_scale"][:, 0], rtol=0, atol=1e-4)
    ratio = height * width / foreground(g["points"], height, width).sum()
    assert ratio == pytest.approx(float(g["bk_ratio"]), abs=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_fit_from_the_released_start(case, backend):
    """To its result; the losses are those that the last step started from."""
    g = golden(case)
    names = ("points", "init_scale_param", "init_rotation_param", "init_color_param")
    start = Parameters(*(torch.from_numpy(g[name]) for name in names))
    mask = foreground(g["points"], *g["image"].shape[:2])
    config = FitConfig(iterations=int(g["iterations"]), learning_rate=float(g["lr"]))
    result = fit_problems([Problem(g["image"], mask, start, len(start.means))], config, backend)[0]
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
        assert abs((torch.sigmoid(start.rotation) < share).float().mean() - share) < 0.03
        for axis, side in enumerate((60, 40)):
            assert abs((start.means[:, axis] < share * side).float().mean() - share) < 0.03
    assert (start.means.amin(dim=0) < 0.2).all() and (start.means.amax(dim=0) > torch.tensor([59.8, 39.8])).all()


def test_start_reads_the_color_under_the_point():
    """Far outside that of the nearest border, also where a coordinate is no 64-bit integer."""
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    points = [[3.9, 2.1], [1e30, 1.5], [2.5, -1e30], [-1e30, 2.5], [1.5, 1e30], [5.0, 4.0]]
    start = initial_parameters(image, np.array(points), 0, seed=0)
    expected = image[[2, 1, 0, 2, 3, 3], [3, 4, 2, 0, 1, 4]] / 255
    np.testing.assert_allclose(torch.sigmoid(start.color), expected.clip(0.001), atol=1e-6)
    white = initial_parameters(np.full((4, 5, 3), 255, np.uint8), np.array([[2.0, 2.0], [2.0, 2.0]]), 0, seed=0)
    np.testing.assert_allclose(torch.sigmoid(white.color), 0.999, atol=1e-6)
    assert (white.scale == 2).all()


def test_loss_terms_by_hand():
    """Where nothing is drawn the foreground misses its 0.25, the background nothing; what spills over onto it is punished."""
    image, mask = torch.full((8, 8, 3), 0.25), torch.zeros(8, 8)
    mask[:, :4] = 1
    parameters = Parameters(torch.tensor([[99.0, 99]]), torch.tensor([[4.0, 2]]), torch.zeros(1, 1), torch.zeros(1, 3))
    assert loss_terms(parameters, image, mask, "reference") == pytest.approx((0.25, 0.2 * (2 - 1.5)))
    assert loss_terms(parameters._replace(means=torch.tensor([[6.0, 4.0]])), image, mask, "reference")[0] > 0.25


@pytest.mark.parametrize(
    ("u", "expected"),
    [((2.4, 2.0), 0), ((2.0, 4.0), 0.1), ((0.0, 0.0), 0), ((1e-9, 1e-10), 0.2 * (5 - 1.5)), ((1e-10, 1e-9), 0.7)],
)
def test_shape_loss_by_hand(u, expected):
    """0.2 relu(max(u1 / (u2 + 1e-10), u2 / (u1 + 1e-10)) - 1.5) of the worst Gaussian."""
    parameters = Parameters(torch.zeros(2, 2), torch.tensor([u, (3.0, 3.0)]), torch.zeros(2, 1), torch.zeros(2, 3))
    _, shape = loss_terms(parameters, torch.zeros(8, 8, 3), torch.ones(8, 8), "reference")
    assert float(shape) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_without_foreground_the_render_loss_is_0():
    parameters = Parameters(*(torch.ones(1, width, requires_grad=True) for width in (2, 2, 1, 3)))
    render, _ = loss_terms(parameters, torch.ones(8, 8, 3), torch.zeros(8, 8), "reference")
    assert render.shape == () and render.item() == 0
    render.backward()
    assert not parameters.color.grad.any()


@pytest.mark.parametrize(
    ("losses", "tolerance", "stalled"),
    [
        ([(10.0, 0.0)], 0.01, False),
        ([(99.0, 0.0), (10.0, 0.0), (9.95, 0.0)], 0.01, True),
        ([(10.0, 0.0), (9.85, 0.0)], 0.01, False),
        ([(1.5, 0.0), (1.0, 0.0)], 0.5, False),  # by exactly half of itself
        ([(10.0, 1.0), (10.0, 0.5)], 0.01, False),  # the shape is on its way
        ([(10.0, 0.0), (9.0, 1.0)], 0.01, False),  # the drawing is
        ([(10.0, 0.0), (11.0, 0.0)], 0.01, True),
    ],
)
def test_when_a_fit_has_stalled(losses, tolerance, stalled):
    assert has_stalled(losses, tolerance) == stalled


@pytest.mark.parametrize(
    ("config", "losses", "expected"),
    [
        (FitConfig(120), [], [120]),
        (FitConfig(120, tolerance=0.01), [8.0, 4.0], [50, 50, 20]),
        (FitConfig(120, tolerance=0.01), [8.0, 8.0], [50, 50]),
        (FitConfig(0), [], []),
    ],
)
def test_the_iterations_between_two_looks_at_the_losses(config, losses, expected):
    course, steps = schedule(config), []
    with contextlib.suppress(StopIteration):
        steps.append(next(course))
        for loss in losses:
            steps.append(course.send((loss, 0.0)))
    assert steps == expected


def test_options_have_their_effect(backend):
    g = golden("case0")
    start = initial_parameters(g["image"], g["points"], 5, seed=2)

    def fitted(**options):
        return fit_image(g["image"], g["points"], FitConfig(iterations=10, **options), backend=backend, seed=2)

    free = fitted(background_gaussians=5)
    assert len(free.gaussians) == len(g["points"]) and len(free.background) == 5 and free.iterations == 10
    np.testing.assert_array_equal(free.gaussians.means, g["points"])
    assert (free.background.means != start.means[len(g["points"]) :]).any()
    moved = fitted(learn_means=True).gaussians.means.numpy() - g["points"]
    assert (np.abs(moved).max(axis=1) > 0).mean() > 0.9
    masked, whole = fitted(), fitted(use_background_mask=False)
    np.testing.assert_array_equal(masked.gaussians.means, g["points"])
    assert whole.render_loss != pytest.approx(masked.render_loss, rel=0.05)


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
        assert found[1:4] == (0.0, 0.0, 0) and len(found.gaussians) == len(points) and not len(found.background)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (0, 8, 3), (1, 8, 8, 3)])
def test_unusable_images_are_named(shape):
    for kind in ("uint8", "float64"):
        with pytest.raises(ValueError, match=re.escape(f"image: {kind} {list(shape)}, expected uint8 [H, W, 3]")):
            fit_image(np.zeros(shape, kind), np.ones((1, 2)))


@pytest.mark.parametrize("shape", [(3, 3), (3,), (2, 2, 2)])
def test_unusable_points_are_named(shape):
    with pytest.raises(ValueError, match=re.escape(f"points: shape {list(shape)}, expected [N, 2]")):
        fit_image(np.zeros((8, 8, 3), np.uint8), np.ones(shape))


def test_each_of_many_images_has_its_seed(backend):
    image, points = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8), np.array([[5.0, 5], [9, 7]])
    config = FitConfig(iterations=2)
    found = fit_images([image] * 3, [points] * 3, config, backend=backend, seeds=[0, 7, 0])
    alone = [fit_image(image, points, config, backend=backend, seed=seed) for seed in (0, 7)]
    for result, single in zip(found, (*alone, alone[0]), strict=True):
        torch.testing.assert_close(result.gaussians.params, single.gaussians.params, rtol=1e-4, atol=1e-5)
    assert (found[0].gaussians.rotations - found[1].gaussians.rotations).abs().max() > 0.1
