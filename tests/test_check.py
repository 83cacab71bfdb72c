"""python -m datasets.check on every kind of damage."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from commands import call, errors
from PIL import Image
from test_report import add

from datasets.crowd import load_annotations
from GS2D.gaussians import Gaussians2D
from GS2D.kernel import StoredKernel, csr, params_hash, save_kernel
from utils.files import gaussians_path, kernel_path, points_path, read_points

POINTS = np.array([[5, 5], [20, 20], [40, 30]], np.float32)


def check(root, *options, code=0):
    out, err = call("datasets/check.py", "--data-dir", root, "--crop-size", 32, "--workers", 1, *options, code=code)
    lines = errors(err)
    assert lines == [f"error: {e}" for e in report_errors(root)]
    return out, err, lines


def report_errors(root):
    return json.loads((root / "dataset_report.json").read_text())["errors"]


def fit(image, **columns):
    """Write Gaussians and their kernel; ``columns`` replace what is written."""
    points = read_points(points_path(image))[:, :2]
    n = len(points)
    values = {
        "means": points,
        "scales": np.full((n, 2), 3.0),
        "rotations": np.zeros((n, 1)),
        "colors": np.zeros((n, 3)),
    }
    gaussians_path(image).parent.mkdir(exist_ok=True)
    Gaussians2D(*(torch.as_tensor(value).float() for value in (values | columns).values())).save(gaussians_path(image))


def build(image, grid=(6, 8), **changes):
    """A kernel whose every cell belongs to the background."""
    points, _, scales, rotations = load_annotations(image)
    cells = grid[0] * grid[1]
    arrays = {
        "indptr": np.r_[np.zeros(len(points) + 1, int), cells],
        "indices": np.arange(cells),
        "data": np.ones(cells),
    }
    attributes = {"params_hash": params_hash(points, scales, rotations), "stride": 8}
    kernel_path(image).parent.mkdir(exist_ok=True)
    save_kernel(kernel_path(image), StoredKernel(csr(**(arrays | changes), columns=cells), grid, attributes))


@pytest.fixture
def root(tmp_path):
    for name in ("train/a.jpg", "train/b.jpg", "val/c.jpg", "test/d.jpg"):
        image = add(tmp_path, name, POINTS)
        if name.startswith("train"):
            fit(image)
            build(image)
    return tmp_path


def test_a_sound_set(root):
    out, err, _ = check(root)
    assert "checked 4 images, 2 files of Gaussians, 2 kernels: 0 errors, 0 warnings" in out and not err
    assert f"\nnext: python train_gs.py --data-dir {root}\n" in out
    report = json.loads((root / "dataset_report.json").read_text())
    assert report["splits"]["train"]["points"] == 6 and report["crop_size"] == 32


def test_nothing_but_the_report_is_written(root):
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    check(root)
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert set(after) - set(before) == {root / "dataset_report.json"} and before.items() <= after.items()


def assert_one_error(root, *parts):
    _, _, lines = check(root, code=1)
    assert len(lines) == 1 and all(part in lines[0] for part in parts), lines
    return lines[0]


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("train/a.jpg", cut_off, "cannot read this image"),
        ("val/c.jpg", lambda path: path.write_text("no image"), "cannot read this image"),
        ("val/c.npy", lambda path: path.write_text("no npy"), "not a readable npy file"),
    ],
)
def test_images_and_annotations(root, name, damage, message):
    damage(root / name)
    assert_one_error(root, f"{name}: {message}")
    assert "\nnext: python preprocess_dataset_*.py" in check(root, code=1)[0]


def test_grey_is_told_by_the_pixels(root):
    path = root / "val" / "c.jpg"
    Image.open(path).convert("L").convert("RGB").save(path)
    out, *_ = check(root)
    assert json.loads((root / "dataset_report.json").read_text())["findings"]["grey"] == ["val/c.jpg"]


def test_another_size_and_number_than_recorded(root):
    entry = {"image": "val/c.jpg", "points": 5, "dropped": 0, "height": 99, "width": 64, "grey": False}
    (root / "preprocess.jsonl").write_text(json.dumps(entry) + "\n")
    _, err, lines = check(root, code=1)
    assert len(lines) == 1 and "val/c.jpg: 64 x 48 pixels, prepared as 64 x 99" in lines[0]
    assert "warning: " in err and "c.npy: 3 points, prepared with 5" in err


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"means": POINTS + 2}, "centres lie up to 2.0 pixels from the points"),
        ({"colors": np.full((3, 3), np.inf)}, "3 Gaussians as in row 0"),
        ({"scales": np.array([[3, 3], [3, 0.5], [3, 3]])}, "1 Gaussians as in row 1: [20.0, 20.0, 3.0, 0.5"),
        ({"scales": np.array([[3, 3], [3, 90], [3, 3]])}, "scales from 1 to 80 pixels"),
    ],
)
def test_gaussians(root, columns, message):
    image = root / "train" / "b.jpg"
    kernel_path(image).unlink()
    fit(image, **columns)
    line = assert_one_error(root, "b_gs_params.h5", message, "2dgs_counting_1gs_gsplat.py")
    assert "delete" in line


def test_a_kernel_without_its_gaussians(root):
    path = gaussians_path(root / "train" / "b.jpg")
    path.unlink()
    assert_one_error(root, "b_gs_params.h5: no such file of fitted Gaussians")


def test_nan_scales_are_a_warning_since_training_replaces_them(root):
    image = root / "train" / "b.jpg"
    fit(image, scales=np.array([[3, 3], [np.nan, 3], [3, 3]]))
    build(image)
    out, err, lines = check(root)
    assert not lines and "warning: " in err and "b_gs_params.h5: 1 of 3 scales are NaN" in err and "1 warnings" in out


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"indptr": np.array([0, 48])}, "1 rows"),
        ({"indices": np.arange(48) + 1}, "not a readable kernel"),
        ({"data": np.r_[np.ones(47), 0.5]}, "shares of a cell add up to 0.500"),
        (None, "was built from other Gaussians"),
    ],
)
def test_a_kernel_that_is_no_transport_plan_or_stale(root, changes, message):
    image = root / "train" / "b.jpg"
    fit(image, scales=np.full((3, 2), 4.0))
    if changes is not None:
        build(image, **changes)
    assert_one_error(root, "b_kernel.h5: ", message, "delete it and run python GS2D/build_kernels.py")


def test_a_stage_that_is_half_done(root):
    kernel_path(root / "train" / "a.jpg").unlink()
    out, _, lines = check(root)
    assert not lines and ["train", "kernels", "1", "1", "0", "0"] in [line.split() for line in out.splitlines()]
    assert f"next: python GS2D/build_kernels.py --root-path {root}\n" in out
