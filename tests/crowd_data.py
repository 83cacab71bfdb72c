"""A small prepared data set, and what its samples are compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from GS2D.gaussians import Gaussians2D
from GS2D.kernel import block_diagonal
from GS2D.points import mean_neighbour_distance
from utils.files import gaussians_path, points_path
from utils.images import save_jpeg

CROP = 48


def make_root(root, counts=(5, 0, 1, 30), size=(70, 90)):
    """A prepared data set: train and val with the same images, Gaussians for train."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        (root / split / "gs_params").mkdir(parents=True)
        for i, count in enumerate(counts, start=1):
            image = root / split / f"IMG_{i:04}.jpg"
            save_jpeg(rng.integers(0, 256, (*size, 3), dtype=np.uint8), image, 90)
            points = (rng.random((count, 2)) * size[::-1]).astype(np.float32)
            if split != "train":
                np.save(points_path(image), points)
                continue
            np.save(
                points_path(image), np.hstack([points, mean_neighbour_distance(points)[:, None]]).astype(np.float32)
            )
            scales, colors = rng.uniform(1, 9, (count, 2)), rng.random((count, 3))
            Gaussians2D(points, scales, rng.uniform(0, 3, (count, 1)), colors).save(gaussians_path(image))
    return root


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, (tuple, list)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor) and one.layout == torch.sparse_csr:
        assert_equal(tuple(block_diagonal([one])), tuple(block_diagonal([other])))
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def refused(read, *parts, error=ValueError):
    """``read`` raises an error of one line with these parts."""
    with pytest.raises(error) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message and all(str(part) in message for part in parts), message
