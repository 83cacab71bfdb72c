"""From Bayesian loss to GST in steps: what the two have in common is the same to rounding, so that a difference is the step's."""

from __future__ import annotations

import pytest
import torch
from loss_batches import loss_and_gradient, loss_on_crops, random_crop, random_density

from losses import build_kernel

SIZE = 128


def crops():
    return [random_crop(number, SIZE, seed=5) for number in (40, 1, 7)]


def kernel_of(name, crop, **options):
    annotations = {"points": crop.points, "scales": crop.scales, "rotations": crop.rotations}
    return build_kernel(name, **options)(**annotations, crop_size=SIZE, short_side=SIZE).to_dense()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_round_gaussians_of_8_pixels_without_background_are_bayesian_loss(backend):
    """``--post-max 8`` beside the floor of 8 makes all scales 8: exponents -d^2 / (2 8^2), and determinants that cancel."""
    same = {"post_max": 8.0, "background_ratio": 0.0, "backend": backend}
    for crop in crops():
        gst, bl = kernel_of("gst", crop, **same), kernel_of("bl", crop, backend=backend)
        assert gst.shape == (len(crop.points) + 1, SIZE**2 // 64) and not gst[-1].any()
        torch.testing.assert_close(gst[:-1], bl, rtol=0, atol=1e-6)
    density = random_density(3, 1, SIZE // 8, SIZE // 8)
    value, gradient = loss_and_gradient(loss_on_crops("gst", **same), density, crops())
    expected, expected_gradient = loss_and_gradient(loss_on_crops("bl", backend=backend), density, crops())
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-6)
    published = kernel_of("gst", crops()[0], backend=backend)
    assert (published[:-1] - kernel_of("bl", crops()[0], backend=backend)).abs().max() > 0.1


def test_round_shapes_keep_the_area():
    crop = crops()[0]
    area = crop.scales.prod(dim=1, keepdim=True).sqrt().expand(-1, 2)
    free = {"post_min": 16.0}
    for backend in ("auto", "reference"):
        found = kernel_of("gst", crop, round_shapes=True, backend=backend, **free)
        torch.testing.assert_close(found, kernel_of("gst", crop._replace(scales=area), backend=backend, **free))
    assert (found - kernel_of("gst", crop, **free)).abs().max() > 0.1
