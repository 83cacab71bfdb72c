"""The prepared data set as torch sees it: samples, kernels and batches, what a training step receives."""

import math
import pickle
import shutil
from multiprocessing.reduction import ForkingPickler

import h5py
import numpy as np
import pytest
import torch
from crowd_data import CROP, assert_equal, make_root, refused

from datasets.crowd import Batch, Crowd, EvalSample, TrainSample, collate, load_annotations
from datasets.loading import PackedBatch
from datasets.transforms import Sample, augment, draw_augmentation
from GS2D.build_kernels import KernelJob
from GS2D.build_kernels import build_kernel as build_stored_kernel
from GS2D.gaussians import Gaussians2D
from GS2D.kernel import block_diagonal, load_kernel, save_kernel, transport_kernel
from losses import build_kernel
from utils.files import gaussians_path, kernel_path, points_path, read_points
from utils.images import Pieces, load_image, open_image
from utils.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise, to_planes


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "data")


def test_a_training_sample_is_the_augmented_image(root):
    """A function of seed, epoch and index alone, whose pixels are read piece by piece."""
    crowd = Crowd(root, CROP, "train", seed=11)
    crowd.set_epoch(3)
    assert isinstance(open_image(crowd.images[0]), Pieces)
    for index, path in enumerate(crowd.images):
        stored = np.load(points_path(path)).reshape(-1, 3)
        gaussians = Gaussians2D.load(gaussians_path(path))
        arrays = (stored[:, :2], stored[:, 2], gaussians.scales.numpy(), gaussians.rotations.numpy())
        generator = np.random.default_rng(np.random.SeedSequence([11, 3, index]))
        drawn = draw_augmentation(generator, 70, 90, CROP, path.name)
        expected, targets, _ = augment(Sample(load_image(path), *arrays), drawn, CROP)
        found = crowd[index]
        assert isinstance(found, TrainSample) and found.name == path.stem
        assert found.image.shape == (3, CROP, CROP) and found.image.dtype == torch.uint8
        np.testing.assert_array_equal(found.image.permute(1, 2, 0), expected.image)
        kernel = transport_kernel(expected.points, expected.scales, expected.rotations, CROP)
        assert_equal(found.kernel, kernel)
        assert found.index == index and found.skipped == () and found.short_side == 70 * drawn.scale
        for name in ("points", "scales", "rotations"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        np.testing.assert_array_equal(found.targets, targets)
        assert all(tensor.dtype == torch.float32 for tensor in found[1:5])


@pytest.mark.parametrize("shape", [(0,), (0, 2), (0, 3)])
def test_an_image_without_points(root, shape):
    for split in ("train", "val"):
        np.save(root / split / "IMG_0002.npy", np.zeros(shape))
    sample = Crowd(root, CROP, "train")[1]
    assert [tuple(tensor.shape) for tensor in sample[1:5]] == [(0, 2), (0, 2), (0, 1), (0,)]
    assert Crowd(root, CROP, "val")[1].count == 0


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_sees_whole_images_and_needs_no_gaussians(root, split):
    crowd = Crowd(root, CROP, split)
    assert len(crowd) == 4 and [sample.count for sample in crowd] == [5, 0, 1, 30]
    sample = crowd[3]
    assert isinstance(sample, EvalSample) and isinstance(sample.count, float) and sample.name == "IMG_0004"
    assert torch.equal(sample.image, to_planes(load_image(root / split / "IMG_0004.jpg")))
    assert sample.image.shape == (3, 70, 90) and sample.image.dtype == torch.uint8


def test_whole_targets_and_jitter_change_nothing_else(root):
    plain, whole = Crowd(root, CROP, "train")[3], Crowd(root, CROP, "train", whole_targets=0.3)[3]
    assert plain.targets.min() < 1 and (whole.targets == 1).all()
    assert_equal(whole._replace(targets=plain.targets), plain)
    jittered = Crowd(root, CROP, "train", jitter=0.5)[3]
    assert not torch.equal(jittered.image, plain.image)
    assert_equal(jittered._replace(image=plain.image), plain)


@pytest.mark.parametrize("kernel", [False, True])
def test_from_one_process_to_another_and_to_a_device_a_batch_goes_as_one_tensor(root, kernel):
    crowd = Crowd(root, CROP, "train", **({} if kernel else {"kernel": None}))
    samples = [crowd[0], crowd[1]]
    batch, packed = collate(samples), PackedBatch.collate(samples)
    assert (batch.kernel is not None) == kernel
    assert packed.packed.dtype == torch.uint8 and packed.packed.is_contiguous()
    assert not any(isinstance(other, torch.Tensor) for other in packed.others)
    received = pickle.loads(ForkingPickler.dumps(packed))
    copied = received.packed.clone()
    unpacked = received.unpack(copied)
    assert_equal(unpacked, batch)
    tensors = [value for value in (*unpacked, *(unpacked.kernel or ())) if torch.is_tensor(value)]
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors} == {copied.untyped_storage().data_ptr()}


def test_nan_scales_become_a_sixth_of_the_distance(root):
    path = root / "train" / "IMG_0004.jpg"
    gaussians = Gaussians2D.load(gaussians_path(path))
    scales, rotations = gaussians.scales.clone(), gaussians.rotations.clone()
    scales[[3, 7]], scales[9, 1], rotations[7] = torch.nan, torch.nan, torch.nan
    Gaussians2D(gaussians.means, scales, rotations, gaussians.colors).save(gaussians_path(path))
    distance = torch.from_numpy(np.load(points_path(path))[:, 2:])
    _, _, found, angles = load_annotations(path)
    np.testing.assert_allclose(found, torch.where(scales.isnan(), distance / 6, scales), rtol=1e-6)
    np.testing.assert_array_equal(angles, rotations.nan_to_num(0))
    assert found.dtype == angles.dtype == np.float32


def test_points_are_those_of_the_npy_and_files_of_the_authors_hold_params_only(root):
    path = gaussians_path(root / "train" / "IMG_0004.jpg")
    before, params = Crowd(root, CROP, "train")[3], Gaussians2D.load(path).params.numpy()
    params[:, :2] += 0.9
    with h5py.File(path, "w") as file:
        file.create_dataset("params", data=params, compression="gzip")
    assert_equal(Crowd(root, CROP, "train")[3], before)


@pytest.mark.parametrize("change", [lambda means: means[::-1], lambda means: means * np.nan])
def test_gaussians_of_other_points_are_refused(root, change):
    path = root / "train" / "IMG_0004.jpg"
    with h5py.File(gaussians_path(path), "r+") as file:
        file["params"][:, :2] = change(file["params"][:, :2])
    points = read_points(points_path(path))[:, :2]
    gap = f"up to {np.abs(change(points) - points).max():.1f} pixels from the points of {points_path(path)};"
    remedy = f"delete the former and run python 2dgs_counting_1gs_gsplat.py --root-path {root}"
    crowd, skipping = Crowd(root, CROP, "train"), Crowd(root, CROP, "train", skip_bad=True)
    for read in (crowd.read_once, lambda: crowd[3]):
        refused(read, f"{gaussians_path(path)}: centres lie {gap}", remedy)
    Crowd(root, CROP, "train", use_gaussians=False).read_once()
    skipping.read_once()
    assert str(gaussians_path(path)) in skipping[3].skipped[0]


def test_distances_are_computed_where_the_npy_has_none(root):
    expected = list(map(Crowd(root, CROP, "train").__getitem__, range(4)))
    for path in (root / "train").glob("*.npy"):
        np.save(path, np.load(path).reshape(-1, 3)[:, :2])
    assert_equal(list(map(Crowd(root, CROP, "train").__getitem__, range(4))), expected)


def test_without_gaussians(root):
    for path in (root / "train" / "gs_params").iterdir():
        path.unlink()
    crowd = Crowd(root, CROP, "train", use_gaussians=False)
    points = np.load(root / "train" / "IMG_0004.npy")
    _, _, scales, rotations = load_annotations(crowd.images[3], use_gaussians=False)
    np.testing.assert_allclose(scales, np.repeat(points[:, 2:] / 6, 2, axis=1), rtol=1e-6)
    assert (rotations == 0).all() and len(crowd[3].points) > 0


def test_either_kind_of_sample_from_any_split(root):
    assert Crowd(root, None, "train", training=False)[3].count == 30
    assert isinstance(Crowd(root, CROP, "val", training=True, use_gaussians=False)[3], TrainSample)
    with pytest.raises(FileNotFoundError, match="gs_params"):
        Crowd(root, CROP, "val", training=True)


def test_missing_files_are_listed_at_once(root, tmp_path):
    def missing(split, *parts, folder=root):
        refused(lambda: Crowd(folder, CROP, split), *parts, error=FileNotFoundError)

    gaussians_path(root / "train" / "IMG_0001.jpg").unlink()
    missing("train", "1 of 4 files", "IMG_0001_gs_params.h5", "python 2dgs_counting_1gs_gsplat.py")
    shutil.rmtree(root / "train" / "gs_params")
    missing("train", "4 of 4 files", "IMG_0003_gs_params.h5, ...", root / "train" / "gs_params")
    missing("train", tmp_path / "nowhere" / "train", folder=tmp_path / "nowhere")
    refused(lambda: Crowd(root, CROP, "training"), "'training'", "train, val, test")


def test_a_test_split_without_annotations_has_no_truth(root, tmp_path):
    for split in ("val", "test"):
        shutil.copytree(root / split, tmp_path / split, ignore=shutil.ignore_patterns("*.npy"))
    assert all(math.isnan(sample.count) for sample in Crowd(tmp_path, CROP, "test"))
    refused(lambda: Crowd(tmp_path, CROP, "val"), "preprocess_dataset", error=FileNotFoundError)
    np.save(tmp_path / "test" / "IMG_0001.npy", np.zeros((0, 2)))  # some have them: the others are lost
    refused(lambda: Crowd(tmp_path, CROP, "test"), "preprocess_dataset", error=FileNotFoundError)


PARAMETERS = dict(stride=8, cut_off=3.0, background_ratio=0.015, scale_ratio=1.0, post_min=1.0, post_max=20.0)


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
    empty = collate([samples[1], samples[1]])
    assert empty.points.shape == (2, 1, 2) and not empty.points.any() and empty.counts.tolist() == [0, 0]
    assert empty.received.tolist() == [0, 0] and (empty.kernel.data == 1).all()
    tensors = [part for part in [*batch[:4], *batch.kernel, batch.received]]
    assert all(type(part) is torch.Tensor and part.layout == torch.strided for part in tensors)


def test_a_kernel_that_cannot_be_made_names_the_image(root):
    def kernel(points, scales, rotations, crop_size, short_side):
        raise ValueError("scales: -1 in row 3, must be finite and not negative")

    refused(
        lambda: Crowd(root, CROP, "train", kernel=kernel)[0], root / "train" / "IMG_0001.jpg", "scales: -1 in row 3"
    )


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


def test_a_kernel_of_another_grid_is_refused(with_kernels):
    """Also one that holds the crop: of an image that was larger, with the same points."""
    path = with_kernels / "train" / "IMG_0001.jpg"
    stored = load_kernel(kernel_path(path))
    height, width = stored.grid
    kernel = torch.zeros(stored.kernel.shape[0], height * (width + 1)).to_sparse_csr()
    save_kernel(kernel_path(path), stored._replace(kernel=kernel, grid=(height, width + 1)))
    crowd = Crowd(with_kernels, CROP, "train", kernel_parameters=PARAMETERS)
    sizes = f"grid {(height, width + 1)} instead of {(height, width)}"
    refused(lambda: crowd[0], "IMG_0001_kernel.h5: ", sizes, "run python GS2D/build_kernels.py")
