"""Many images fitted side by side: equal to single fits, some leave while others come in, and memory that runs out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from GS2D import fitting
from GS2D.fitting import FitConfig, fit_image, fit_images

SIZES = ((40, 61), (64, 48), (33, 80), (17, 16), (70, 20))  # height, width


def crowd():
    """Five images of different sizes, one without points, with points on borders and outside."""
    images = []
    for seed, (height, width) in enumerate(SIZES):
        coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        images.append(np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]))
    random = np.random.default_rng(3)
    points = [random.uniform((0, 0), (w, h), (n, 2)) for (h, w), n in zip(SIZES, (12, 7, 9, 0, 5))]
    points[0][:4] = [[0, 0], [61, 40], [61, 12.5], [30, 0]]
    points[1][:2] = [[-5, 10], [51, 70]]
    points[2][0] = [300, 300]
    return images, points


def assert_same_fits(results, images, points, config, seeds):
    for result, image, some, seed in zip(results, images, points, seeds, strict=True):
        alone = fit_image(image, some, config, backend="reference", seed=seed)
        assert result[1:3] == pytest.approx(alone[1:3], abs=1e-5) and result.iterations == alone.iterations
        torch.testing.assert_close(result.gaussians.scales, alone.gaussians.scales, rtol=0, atol=1e-4)
        torch.testing.assert_close(result.gaussians.params, alone.gaussians.params, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{"iterations": 80}, {"background_gaussians": 3, "use_background_mask": False}, {"learn_means": True}],
    ids=["default", "background", "means"],
)
def test_images_side_by_side_equal_single_fits(options):
    images, points = crowd()
    config, seeds = FitConfig(**{"iterations": 30} | options), (4, 0, 7, 1, 2)
    results = fit_images(images, points, config, backend="reference", seeds=seeds)
    assert [len(result.gaussians) for result in results] == [12, 7, 9, 0, 5]
    assert_same_fits(results, images, points, config, seeds)


def test_images_that_are_done_leave_and_others_come_in(monkeypatch):
    """Room for two images: five pass through, each stops when its own loss stalls."""
    monkeypatch.setattr(fitting, "capacity", lambda device: 2 * 80 * 80)
    together, advance = [], fitting.advance
    monkeypatch.setattr(
        fitting, "advance", lambda images, *rest: (together.append(len(images)), advance(images, *rest))[1]
    )
    images, points = crowd()
    config = FitConfig(iterations=180, tolerance=0.2)
    results = fit_images(images, points, config, backend="reference")
    iterations = {result.iterations for result in results if len(result.gaussians)}
    assert max(together) == 2 and len(iterations) >= 2 and iterations <= {100, 150, 180}
    assert_same_fits(results, images, points, config, [0] * 5)


def test_memory_that_runs_out_is_one_line(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")

    monkeypatch.setattr(fitting, "draw", fail)
    with pytest.raises(
        ValueError, match="^out of memory; use --device cpu, or free the GPU's memory and run .* again$"
    ):
        fit_images(*crowd(), backend="reference")


def test_unusable_images_are_named_before_anything_is_fitted():
    images, points = crowd()
    points[2][1] = np.nan
    with pytest.raises(ValueError, match=r"image 2: points: row 1 is \[nan, nan\]; coordinates must be finite numbers"):
        fit_images(images, points)
    with pytest.raises(ValueError, match="images, points, seeds: 5, 4 and 5; one each an image"):
        fit_images(images, points[:4])
    assert fit_images([], []) == []
