"""The checks of fitting on a GPU, as tests; without one, that they can be imported and what they draw."""

from __future__ import annotations

import pytest
import torch

from scripts.gpu_fit_check import CHECKS, SIZES, photographs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_on_a_gpu(check):
    failed = [f"{name}: {figure}" for name, ok, figure in check() if not ok]
    assert not failed, "\n".join(failed)


def test_the_photographs_have_many_sizes_and_points_outside():
    images, points = photographs(8)
    assert [image.shape[:2] for image in images] == list(SIZES)
    assert any((some < 0).any() for some in points) and all(3 <= len(some) < 60 for some in points)
