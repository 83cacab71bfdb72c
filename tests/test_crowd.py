"""The prepared data set as torch sees it."""

import math
import pickle
import shutil
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import h5py
import numpy as np
import pytest
import simplejpeg
import torch
from crowd_data import CROP, assert_equal, make_root, one_line
from PIL import Image
from torch.utils.data import DataLoader

import preprocess_dataset_ucf
from datasets.crowd import Crowd, EvalSample, TrainSample, collate, load_annotations
from datasets.loading import PackedBatch, one_ahead
from datasets.transforms import Sample, augment, draw_augmentation
from GS2D.gaussians import Gaussians2D
from GS2D.kernel import transport_kernel
from utils.files import gaussians_path, points_path, read_points
from utils.images import load_image, open_image
from utils.pixels import to_planes


@pytest.fixture
def root(tmp_path):
    torch.set_num_threads(1)
    return make_root(tmp_path / "data")


def test_a_training_sample_is_the_augmented_image(root):
    crowd = Crowd(root, CROP, "train", seed=11)
    crowd.set_epoch(3)
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
        assert found.index == index and found.skipped == ()
        for name in ("points", "scales", "rotations"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        np.testing.assert_array_equal(found.targets, targets)
        assert all(tensor.dtype == torch.float32 for tensor in found[1:5])


def test_the_image_without_points(root):
    sample = Crowd(root, CROP, "train")[1]
    assert [tuple(tensor.shape) for tensor in sample[1:5]] == [(0, 2), (0, 2), (0, 1), (0,)]
    assert Crowd(root, CROP, "val")[1].count == 0


@pytest.mark.parametrize("shape", [(0,), (0, 2), (0, 3)])
def test_every_shape_of_an_empty_npy(root, shape):
    for split in ("train", "val"):
        np.save(root / split / "IMG_0002.npy", np.zeros(shape))
    assert Crowd(root, CROP, "train")[1].targets.shape == (0,)
    assert Crowd(root, CROP, "val")[1].count == 0


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_sees_whole_images_and_needs_no_gaussians(root, split):
    crowd = Crowd(root, CROP, split)
    assert len(crowd) == 4 and [sample.count for sample in crowd] == [5, 0, 1, 30]
    sample = crowd[3]
    assert isinstance(sample, EvalSample) and isinstance(sample.count, float) and sample.name == "IMG_0004"
    assert torch.equal(sample.image, to_planes(load_image(root / split / "IMG_0004.jpg")))
    assert sample.image.shape == (3, 70, 90) and sample.image.dtype == torch.uint8


def test_augmentation_depends_on_seed_epoch_and_index_alone(root):
    crowd, again = Crowd(root, CROP, "train"), Crowd(root, CROP, "train")
    first = crowd[3]
    crowd.set_epoch(1)
    second = crowd[3]
    assert not torch.equal(first.image, second.image)
    again.set_epoch(1)
    [again[i] for i in (2, 0, 3)]
    assert_equal(again[3], second)
    again.set_epoch(0)
    assert_equal(again[3], first)
    assert not torch.equal(Crowd(root, CROP, "train", seed=1)[3].image, first.image)


def test_whole_targets_and_jitter_change_nothing_else(root):
    plain, whole = Crowd(root, CROP, "train")[3], Crowd(root, CROP, "train", whole_targets=True)[3]
    assert plain.targets.min() < 1 and (whole.targets == 1).all()
    assert_equal(whole._replace(targets=plain.targets), plain)
    jittered = Crowd(root, CROP, "train", jitter=0.5)[3]
    assert not torch.equal(jittered.image, plain.image)
    assert_equal(jittered._replace(image=plain.image), plain)


def test_workers_change_nothing_and_see_the_epoch(root):
    crowd = Crowd(root, CROP, "train")
    options = {"batch_size": 2, "collate_fn": collate, "num_workers": 2, "persistent_workers": True}
    loader = DataLoader(crowd, **options)
    for epoch in range(2):
        crowd.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == 2
        for k, batch in enumerate(batches):
            assert_equal(batch, collate([crowd[2 * k], crowd[2 * k + 1]]))
    del loader


def test_each_item_is_decoded_once(root, monkeypatch):
    calls, decode = [], simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: calls.append(a) or decode(*a, **k))
    Crowd(root, CROP, "train")[0]
    assert len(calls) == 1


def test_crops_are_the_same_from_pieces_and_from_whole_images(root):
    marked, plain = Crowd(root, CROP, "train"), Crowd(shutil.copytree(root, root.parent / "plain"), CROP, "train")
    for path in plain.images:
        Image.fromarray(load_image(path)).save(path, "PNG")  # the same pixels, which are read whole
        assert isinstance(open_image(path), np.ndarray)
    for epoch in range(4):
        marked.set_epoch(epoch), plain.set_epoch(epoch)
        for index in range(len(marked)):
            assert torch.equal(marked[index].image, plain[index].image)


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


def test_the_next_is_begun_before_one_is_handed_out():
    begun = []
    for number in one_ahead(range(4), lambda item: begun.append(item) or item):
        assert begun == list(range(min(number + 2, 4)))
    assert list(one_ahead([], lambda item: item)) == [] and number == 3


def test_nan_scales_become_a_sixth_of_the_distance(root):
    path = root / "train" / "IMG_0004.jpg"
    gaussians = Gaussians2D.load(gaussians_path(path))
    scales, rotations = gaussians.scales.clone(), gaussians.rotations.clone()
    scales[[3, 7]] = torch.nan
    scales[9, 1] = torch.nan
    rotations[7] = torch.nan
    Gaussians2D(gaussians.means, scales, rotations, gaussians.colors).save(gaussians_path(path))
    distance = torch.from_numpy(np.load(points_path(path))[:, 2:])
    expected = torch.where(torch.isnan(scales), (distance / 6).expand(-1, 2), scales)
    _, _, found, angles = load_annotations(path)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert angles[7] == 0 and (np.delete(angles, 7, 0) == np.delete(rotations.numpy(), 7, 0)).all()
    assert found.dtype == angles.dtype == np.float32
    assert all(torch.isfinite(Crowd(root, CROP, "train")[3][k]).all() for k in range(5))


def test_points_are_those_of_the_npy(root):
    path = root / "train" / "IMG_0004.jpg"
    before = Crowd(root, CROP, "train")[3]
    with h5py.File(gaussians_path(path), "r+") as file:
        file["params"][:, :2] += 0.9
    assert_equal(Crowd(root, CROP, "train")[3], before)


@pytest.mark.parametrize("change", [lambda means: means * 1.5, lambda means: means[::-1], lambda means: means * np.nan])
def test_gaussians_of_other_points_are_refused(root, change):
    path = root / "train" / "IMG_0004.jpg"
    with h5py.File(gaussians_path(path), "r+") as file:
        file["params"][:, :2] = change(file["params"][:, :2])
    gap = np.abs(change(read_points(points_path(path))[:, :2]) - read_points(points_path(path))[:, :2]).max()
    crowd = Crowd(root, CROP, "train")
    for look in (crowd.read_once, lambda: crowd[3]):
        with pytest.raises(ValueError) as caught:
            look()
        one_line(
            caught,
            f"{gaussians_path(path)}: centres lie up to {gap:.1f} pixels from the points of {points_path(path)};",
        )
        one_line(caught, f"delete the former and run python 2dgs_counting_1gs_gsplat.py --root-path {root}")
    Crowd(root, CROP, "train", use_gaussians=False).read_once()
    Crowd(root, CROP, "train", skip_bad=True).read_once()  # it will be skipped
    assert str(gaussians_path(path)) in Crowd(root, CROP, "train", skip_bad=True)[3].skipped[0]


def test_files_of_the_authors_hold_params_only(root):
    path = gaussians_path(root / "train" / "IMG_0004.jpg")
    params = Gaussians2D.load(path).params.numpy()
    before = Crowd(root, CROP, "train")[3]
    with h5py.File(path, "w") as file:
        file.create_dataset("params", data=params, compression="gzip")
    assert_equal(Crowd(root, CROP, "train")[3], before)


def test_distances_are_computed_where_the_npy_has_none(root):
    expected = [Crowd(root, CROP, "train")[i] for i in range(4)]
    for path in (root / "train").glob("*.npy"):
        np.save(path, np.load(path).reshape(-1, 3)[:, :2])
    crowd = Crowd(root, CROP, "train")
    for i in range(4):
        assert_equal(crowd[i], expected[i])


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


# What cannot be


def test_another_number_of_gaussians_names_both_files(root):
    path = root / "train" / "IMG_0004.jpg"
    np.save(points_path(path), np.load(points_path(path))[:-1])
    with pytest.raises(ValueError) as caught:
        Crowd(root, CROP, "train")[3]
    one_line(caught, points_path(path), gaussians_path(path), "30 Gaussians", "29 points")
    one_line(caught, f"python 2dgs_counting_1gs_gsplat.py --root-path {root}")


def test_missing_gaussians_are_listed_at_once(root):
    for i in (1, 2, 3, 4):
        gaussians_path(root / "train" / f"IMG_{i:04}.jpg").unlink()
        with pytest.raises(FileNotFoundError) as caught:
            Crowd(root, CROP, "train")
        one_line(caught, f"{i} of 4 files", "IMG_0001_gs_params.h5", "python 2dgs_counting_1gs_gsplat.py")
    one_line(caught, "IMG_0003_gs_params.h5, ...", root / "train" / "gs_params")
    (root / "train" / "gs_params").rmdir()
    with pytest.raises(FileNotFoundError, match="4 of 4 files"):
        Crowd(root, CROP, "train")


def test_missing_annotations_are_listed_at_once(root):
    (root / "val" / "IMG_0003.npy").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        Crowd(root, CROP, "val")
    one_line(caught, root / "val", "1 of 4 files", "IMG_0003.npy", "preprocess_dataset_")


def test_unknown_split_and_missing_folder(root, tmp_path):
    with pytest.raises(ValueError) as caught:
        Crowd(root, CROP, "training")
    one_line(caught, "'training'", "train, val, test")
    with pytest.raises(FileNotFoundError) as caught:
        Crowd(tmp_path / "nowhere", CROP, "train")
    one_line(caught, tmp_path / "nowhere" / "train")


def test_a_crop_larger_than_the_image(root):
    with pytest.raises(ValueError) as caught:
        Crowd(root, 128, "train")[2]
    one_line(caught, root / "train" / "IMG_0003.jpg", "90 x 70", "128", "--crop-size", "--min-size")


@pytest.mark.parametrize("name", ["IMG_0001.jpg", "IMG_0001.npy", "gs_params/IMG_0001_gs_params.h5"])
def test_damaged_files_are_named(root, name):
    path = root / "train" / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError) as caught:
        Crowd(root, CROP, "train")[0]
    one_line(caught, path)


def test_the_prepared_trees_can_be_read(tmp_path, monkeypatch):
    """Preprocessing and the data set agree on the files."""
    trees = Path(__file__).resolve().parents[1] / "examples" / "trees"
    paths = ["--input-dataset-path", str(trees), "--output-dataset-path", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["preprocess_dataset_ucf.py", *paths, "--workers", "1"])
    assert preprocess_dataset_ucf.main() == 0
    crowd = Crowd(tmp_path / "out", 512, "train", use_gaussians=False)
    assert len(crowd) == 9 and crowd[1].image.shape == (3, 512, 512)
    assert sum(sample.count for sample in Crowd(tmp_path / "out", 512, "test")) == 279


@pytest.mark.parametrize("value", [-1.0, np.inf, -np.inf])
def test_impossible_scales_name_file_and_row(root, value):
    path = gaussians_path(root / "train" / "IMG_0004.jpg")
    gaussians = Gaussians2D.load(path)
    gaussians.scales[4, 1] = value
    gaussians.save(path)
    with pytest.raises(ValueError) as caught:
        Crowd(root, CROP, "train")[3]
    one_line(caught, path, "row 4", str(value), "python 2dgs_counting_1gs_gsplat.py --root-path")


def test_a_test_split_without_annotations_has_no_truth(root, tmp_path):
    secret = shutil.copytree(root / "test", tmp_path / "test", ignore=shutil.ignore_patterns("*.npy"))
    assert all(math.isnan(sample.count) for sample in (Crowd(tmp_path, CROP, "test")[i] for i in range(2)))
    shutil.copytree(root / "val", tmp_path / "val", ignore=shutil.ignore_patterns("*.npy"))
    with pytest.raises(FileNotFoundError, match="preprocess_dataset"):
        Crowd(tmp_path, CROP, "val")
    np.save(next(secret.glob("*.jpg")).with_suffix(".npy"), np.zeros((0, 2)))
    with pytest.raises(FileNotFoundError, match="preprocess_dataset"):  # some have them: the others are lost
        Crowd(tmp_path, CROP, "test")
