"""Kernels and batches of the prepared data set: what a training step receives."""

import h5py
import numpy as np
import pytest
import torch
from crowd_data import CROP, assert_equal, make_root, one_line

from datasets.crowd import Batch, Crowd, collate
from GS2D.build_kernels import KernelJob
from GS2D.build_kernels import build_kernel as build_stored_kernel
from GS2D.kernel import block_diagonal, load_kernel, save_kernel, transport_kernel
from losses import build_kernel
from utils.files import gaussians_path, kernel_path, points_path, read_points
from utils.images import load_image
from utils.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise, to_planes

PARAMETERS = {
    "stride": 8,
    "cut_off": 3.0,
    "background_ratio": 0.015,
    "scale_ratio": 1.0,
    "post_min": 1.0,
    "post_max": 20.0,
}


@pytest.fixture
def root(tmp_path):
    torch.set_num_threads(1)
    return make_root(tmp_path / "data")


@pytest.fixture
def with_kernels(root):
    for image in (root / "train").glob("*.jpg"):
        kernel_path(image).parent.mkdir(exist_ok=True)
        build_stored_kernel(KernelJob(image, PARAMETERS))
    return root


@pytest.mark.parametrize("loss", ["gst", "bl", "bl+", "dm-count"])
def test_collate_puts_samples_side_by_side(root, loss):
    crowd = Crowd(root, CROP, "train", kernel=build_kernel(loss))
    samples = [crowd[i] for i in range(4)]
    batch = collate(samples)
    assert isinstance(batch, Batch) and batch.names == [f"IMG_{i:04}" for i in range(1, 5)]
    assert batch.images.shape == (4, 3, CROP, CROP) and batch.images.dtype == torch.uint8
    sizes = [len(sample.points) for sample in samples]
    assert batch.sizes == batch.counts.tolist() == sizes and batch.indices == [0, 1, 2, 3] and batch.skipped == []
    assert batch.points.shape == (4, max(sizes), 2) and batch.targets.shape == (4, max(sizes))
    for i, (sample, size) in enumerate(zip(samples, sizes, strict=True)):
        assert torch.equal(batch.images[i], sample.image)
        assert torch.equal(batch.points[i, :size], sample.points) and not batch.points[i, size:].any()
        assert torch.equal(batch.targets[i, :size], sample.targets) and not batch.targets[i, size:].any()
    if loss == "dm-count":
        assert batch.kernel is None and batch.received is None and samples[0].kernel is None
        return
    assert_equal(batch.kernel, block_diagonal([sample.kernel for sample in samples]))
    zero = [0.0] * (loss != "bl")  # what the background ought to receive
    expected = [[*sample.targets.tolist(), *(zero if size else [0.0])] for sample, size in zip(samples, sizes)]
    assert batch.received.tolist() == sum(expected, [])
    tensors = [part for part in [*batch[:4], *batch.kernel, batch.received]]
    assert all(type(part) is torch.Tensor and part.layout == torch.strided for part in tensors)


def test_a_batch_without_any_point(root):
    for loss in ("gst", "bl", "bl+", "dm-count"):
        crowd = Crowd(root, CROP, "train", kernel=build_kernel(loss))
        batch = collate([crowd[1], crowd[1]])
        assert batch.points.shape == (2, 1, 2) and not batch.points.any() and batch.counts.tolist() == [0, 0]
        if loss != "dm-count":
            assert batch.received.tolist() == [0, 0] and (batch.kernel.data == 1).all()


def test_a_kernel_that_cannot_be_made_names_the_image(root):
    def kernel(**_):
        raise ValueError("scales: -1 in row 3, must be finite and not negative")

    with pytest.raises(ValueError) as caught:
        Crowd(root, CROP, "train", kernel=kernel)[0]
    one_line(caught, root / "train" / "IMG_0001.jpg", "scales: -1 in row 3")


def test_bytes_are_normalised_as_images_were():
    """(value / 255 - mean) / std, in this order of operations: bit for bit, for each of the 256 values."""
    values = np.arange(256, dtype=np.uint8)
    image = np.stack([values, values[::-1], np.roll(values, 7)], axis=1).reshape(16, 16, 3)
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
    mean, std = (torch.tensor(constant)[:, None, None] for constant in (IMAGENET_MEAN, IMAGENET_STD))
    expected = pixels.div_(255).sub_(mean).div_(std)
    planes = to_planes(image)
    before = planes.clone()
    assert torch.equal(normalise(planes), expected) and torch.equal(planes, before)
    assert torch.equal(normalise(torch.stack([planes, planes])), torch.stack([expected, expected]))
    assert normalise(expected) is expected


def test_a_stored_kernel_equals_the_one_computed_online(with_kernels):
    """Where no point is cut by the crop's border; crops of the whole width, so that all points are inside."""
    path = with_kernels / "train" / "IMG_0004.jpg"
    points = read_points(points_path(path))
    points[:, :2] = np.clip(points[:, :2], 24, 40)  # in the middle of every crop of 64 of a 70 x 90 image
    points[:, 0] += 10
    points[:, 2] = 4
    np.save(points_path(path), points)
    with h5py.File(gaussians_path(path), "r+") as file:
        file["params"][:, :2] = points[:, :2]
    build_stored_kernel(KernelJob(path, PARAMETERS))
    crowd = Crowd(with_kernels, 64, "train", kernel_parameters=PARAMETERS)
    for epoch in range(6):
        crowd.set_epoch(epoch)
        sample = crowd[3]
        assert (sample.targets == 1).all() and len(sample.targets) == len(points)
        stored = sample.kernel.to_dense()
        online = transport_kernel(sample.points, sample.scales, sample.rotations, 64, **PARAMETERS).to_dense()
        np.testing.assert_allclose(stored, online, rtol=0, atol=2e-6)


def test_rows_of_points_outside_go_and_columns_still_sum_to_one(with_kernels):
    crowd = Crowd(with_kernels, CROP, "train", kernel_parameters=PARAMETERS)
    fewer = False
    for epoch in range(8):
        crowd.set_epoch(epoch)
        for sample in (crowd[i] for i in range(4)):
            assert sample.kernel.shape == (len(sample.targets) + 1, 36) and sample.kernel.layout == torch.sparse_csr
            np.testing.assert_allclose(sample.kernel.to_dense().sum(0), 1, atol=1e-5)
        fewer |= len(sample.targets) < 30
    assert fewer


def test_a_kernel_of_other_gaussians_or_parameters_is_refused(with_kernels):
    crowd = Crowd(with_kernels, CROP, "train", kernel_parameters={**PARAMETERS, "cut_off": 2.0})
    with pytest.raises(ValueError) as caught:
        crowd[0]
    one_line(caught, "IMG_0001_kernel.h5", "cut_off 3.0 instead of 2.0", "python GS2D/build_kernels.py --root-path")
    path = with_kernels / "train" / "IMG_0001.jpg"
    np.save(points_path(path), read_points(points_path(path)) + 0.5)
    with pytest.raises(ValueError) as caught:
        Crowd(with_kernels, CROP, "train", kernel_parameters=PARAMETERS)[0]
    one_line(caught, "IMG_0001_kernel.h5", "other Gaussians", "build_kernels.py")
    kernel_path(path).write_bytes(kernel_path(path).read_bytes()[:900])
    with pytest.raises(ValueError) as caught:
        Crowd(with_kernels, CROP, "train", kernel_parameters=PARAMETERS)[0]
    one_line(caught, "IMG_0001_kernel.h5", "not a readable kernel", "build_kernels.py")
    kernel_path(path).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        Crowd(with_kernels, CROP, "train", kernel_parameters=PARAMETERS)
    one_line(caught, "IMG_0001_kernel.h5", "build_kernels.py")


@pytest.mark.parametrize("more", [-1, 1])
def test_a_kernel_of_another_grid_is_refused(with_kernels, more):
    """Also one that holds the crop: of an image that was smaller, or larger, with the same points."""
    path = with_kernels / "train" / "IMG_0001.jpg"
    stored = load_kernel(kernel_path(path))
    height, width = stored.grid
    kernel = torch.zeros(stored.kernel.shape[0], height * (width + more)).to_sparse_csr()
    save_kernel(kernel_path(path), stored._replace(kernel=kernel, grid=(height, width + more)))
    with pytest.raises(ValueError) as caught:
        Crowd(with_kernels, CROP, "train", kernel_parameters=PARAMETERS)[0]
    sizes = f"grid {(height, width + more)} instead of {(height, width)}"
    one_line(caught, "IMG_0001_kernel.h5: ", sizes, "run python GS2D/build_kernels.py")
    build_stored_kernel(KernelJob(path, PARAMETERS))  # the remedy
    Crowd(with_kernels, CROP, "train", kernel_parameters=PARAMETERS)[0]


def test_the_short_side_is_that_of_the_rescaled_image(root):
    data = Crowd(root, CROP, "train")
    height, width = load_image(data.images[2]).shape[:2]
    seen = set()
    for epoch in range(4):
        data.set_epoch(epoch)
        seen.add(round(data[2].short_side / min(height, width), 3))
    assert len(seen) > 1 and all(0.75 <= factor <= 1.25 for factor in seen)
    given = []
    data = Crowd(root, CROP, "train", kernel=lambda **arguments: given.append(arguments) or torch.ones(1, 1))
    assert data[2].short_side == given[0]["short_side"] and given[0]["crop_size"] == CROP
    assert sorted(given[0]) == ["crop_size", "points", "rotations", "scales", "short_side"]
