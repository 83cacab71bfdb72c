"""Many images on one atlas: equal to single fits, exact gradients, packing, and how memory that runs out is met."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from GS2D import atlas as atlas_module
from GS2D.atlas import COLUMNS, Atlas, Entry
from GS2D.fitting import (
    MAX_RATIO,
    SHAPE_WEIGHT,
    FitConfig,
    Parameters,
    fit_image,
    fit_images,
    fit_side_by_side,
    loss_terms,
    prepare,
)

SIZES = ((40, 61), (64, 48), (33, 80), (17, 16), (70, 20))  # height, width


def photograph(height, width, seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


def crowd():
    """Five images of different sizes, one without points, with points on borders and outside."""
    images = [photograph(*size, seed) for seed, size in enumerate(SIZES)]
    random = np.random.default_rng(3)
    points = [random.uniform((0, 0), (w, h), (n, 2)) for (h, w), n in zip(SIZES, (12, 7, 9, 0, 5))]
    points[0][:4] = [[0, 0], [61, 40], [61, 12.5], [30, 0]]
    points[1][:2] = [[-5, 10], [51, 70]]
    points[2][0] = [300, 300]
    return images, points


def assert_same_fits(results, images, points, config, seeds):
    for result, image, some, seed in zip(results, images, points, seeds, strict=True):
        alone = fit_image(image, some, config, backend="reference", seed=seed)
        assert result.iterations == alone.iterations
        assert result.render_loss == pytest.approx(alone.render_loss, abs=1e-5)
        assert result.shape_loss == pytest.approx(alone.shape_loss, abs=1e-5)
        for got, expected in ((result.gaussians, alone.gaussians), (result.background, alone.background)):
            assert len(got) == len(expected)
            torch.testing.assert_close(got.scales, expected.scales, rtol=0, atol=1e-4)
            torch.testing.assert_close(got.params, expected.params, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{"iterations": 100}, {"background_gaussians": 3}, {"learn_means": True}, {"use_background_mask": False}],
    ids=["default", "background", "means", "unmasked"],
)
def test_an_atlas_equals_single_fits(options):
    images, points = crowd()
    config, seeds = FitConfig(**{"iterations": 40} | options), (4, 0, 7, 1, 2)
    results = fit_images(images, points, config, backend="reference", seeds=seeds)
    assert [len(result.gaussians) for result in results] == [12, 7, 9, 0, 5]
    assert_same_fits(results, images, points, config, seeds)


def test_images_that_are_done_leave_and_others_come_in(monkeypatch):
    """Pages for two images: five pass through, each stops when its own loss stalls."""
    monkeypatch.setattr(atlas_module, "capacity", lambda device: 2 * 80 * 80)
    held, hold = [], Atlas.hold
    monkeypatch.setattr(Atlas, "hold", lambda atlas, entries: (held.append(len(entries)), hold(atlas, entries)))
    images, points = crowd()
    config = FitConfig(iterations=180, tolerance=0.2)
    results = fit_images(images, points, config, backend="reference")
    assert max(held) == 2 and len({result.iterations for result in results}) >= 3
    assert_same_fits(results, images, points, config, [0] * 5)


def test_the_gradient_is_that_of_the_readable_loss():
    """One image's entry against autograd of ``loss_terms``, far enough along that a shape is punished."""
    image, some = photograph(48, 64, 1), np.random.default_rng(2).uniform((0, 0), (64, 48), (9, 2))
    problem = prepare(image, some, FitConfig(background_gaussians=2), seed=5)
    start = problem.start._replace(scale=torch.rand(11, 2, generator=torch.manual_seed(0)) * 6 - 1)
    entry = Entry(image, problem.mask, torch.cat(start, dim=1), fixed=9)
    atlas = Atlas("reference", torch.device("cpu"), SHAPE_WEIGHT, MAX_RATIO)
    atlas.hold([entry])
    render, shape = atlas._gradient(losses=True)

    leaves = Parameters(*(tensor.clone().requires_grad_() for tensor in start))
    tensors = torch.from_numpy(image).float() / 255, torch.from_numpy(problem.mask).float()
    expected = loss_terms(leaves, *tensors, "reference")
    assert float(expected[1].detach()) > 0
    assert (float(render), float(shape)) == pytest.approx([float(term.detach()) for term in expected], rel=1e-5)
    gradients = torch.autograd.grad(sum(expected), leaves)
    assert (entry.gradient[:9, :2] == 0).all()  # the annotated means stay
    torch.testing.assert_close(entry.gradient[9:, :2], gradients[0][9:], rtol=1e-4, atol=1e-7)
    for columns, gradient in zip(COLUMNS[1:], gradients[1:]):
        torch.testing.assert_close(entry.gradient[:, columns], gradient, rtol=1e-4, atol=1e-7)


@pytest.fixture
def memory(monkeypatch):
    """Memory for as many Gaussians on the device as ``memory[0]`` says; each step's images are counted in ``memory[1]``."""
    gradient, found = Atlas._gradient, [math.inf, Counter()]

    def fail(atlas, losses):
        found[1][len(atlas.entries)] += 1
        if sum(map(len, atlas.entries)) > found[0] and found[1][len(atlas.entries)] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradient(atlas, losses)

    monkeypatch.setattr(Atlas, "_gradient", fail)
    return found


def test_memory_that_runs_out_halves_the_atlas(memory):
    """It fails at the third step of four images: every one is fitted all the same."""
    images = [photograph(48, 64, seed) for seed in range(4)]
    points = [np.random.default_rng(seed).uniform((0, 0), (64, 48), (4 + seed, 2)) for seed in range(4)]
    memory[0] = 13
    results = fit_images(images, points, FitConfig(iterations=30), backend="reference")
    assert memory[1] == {4: 3, 2: 28 + 28}  # two steps together, the other 28 in two halves
    memory[0] = math.inf
    assert_same_fits(results, images, points, FitConfig(iterations=30), [0] * 4)


def test_an_image_that_is_too_large_even_alone_is_named(memory):
    images, points = crowd()
    problems = [prepare(image, some, FitConfig(), 0) for image, some in zip(images, points)]
    loads = [lambda problem=problem: problem for problem in problems]
    memory[0] = 8
    outcomes = dict(fit_side_by_side(SIZES, loads, FitConfig(iterations=9), "reference"))
    for index, size in ((0, "61 x 40"), (2, "80 x 33")):  # 12 and 9 Gaussians
        assert str(outcomes.pop(index)) == f"{size} pixels: too large for cpu's memory; use --backend native"
    assert sorted(outcomes) == [1, 3, 4] and all(result.iterations in (0, 9) for result in outcomes.values())


def test_unusable_images_are_named_before_anything_is_fitted():
    images, points = crowd()
    points[2][1] = np.nan
    with pytest.raises(ValueError, match=r"image 2: points: row 1 is \[nan, nan\]; coordinates must be finite numbers"):
        fit_images(images, points)
    with pytest.raises(ValueError, match="images, points, seeds: 5, 4 and 5; one each an image"):
        fit_images(images, points[:4])
    assert fit_images([], []) == []
