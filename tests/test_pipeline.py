"""The scripts as a user runs them, on the real trees: each stage reads what the previous one wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import ROOT, call, errors, run
from golden_weights import fill

from models import build_model
from utils.files import gaussians_path, kernel_path, list_images, points_path, read_points
from utils.images import load_image, save_jpeg

RAW = "--input-dataset-path", ROOT / "examples" / "trees", "--output-dataset-path"
SMALL = "--device cpu --crop-size 64 --backbone-weights none --num-workers 0 --batch-size 4".split()


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The trees after preprocess, splat (few iterations), clean and kernels; started as files where their names need it."""
    data = tmp_path_factory.mktemp("trees") / "prepared"
    out, _ = call("preprocess_dataset_ucf.py", *RAW, data)
    assert "9 train and 1 val" in out
    out, _ = run("2dgs_counting_1gs_gsplat.py", "--root-path", data, "--num-epochs", 30, "--workers", 2)
    assert "9 to fit" in out
    run("GS2D/process_gaussians.py", "--root-path", data)
    call("GS2D/build_kernels.py", "--root-path", data, "--workers", 1)
    return data


@pytest.fixture
def copy(prepared, tmp_path):
    return Path(shutil.copytree(prepared, tmp_path / "data"))


@pytest.fixture(scope="module")
def small(prepared, tmp_path_factory):
    """Four training images, one of validation and one of test, cut to 160 x 120: for what must only run."""
    data = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("small") / "data"))
    for image in [*list_images(data / "train")[4:], *list_images(data / "test")[1:]]:
        for path in (image, points_path(image), gaussians_path(image), kernel_path(image)):
            path.unlink(missing_ok=True)
    for split in ("val", "test"):
        (image,) = list_images(data / split)
        points = read_points(points_path(image))
        np.save(points_path(image), points[(points < [160, 120]).all(axis=1)])
        save_jpeg(load_image(image)[:120, :160], image, 90)
    return data


def test_every_stage_leaves_its_files(prepared):
    images = list_images(prepared / "train")
    assert len(images) == 9
    for image in images:
        points = read_points(points_path(image))
        with h5py.File(gaussians_path(image)) as file:
            params = file["params"][()]
        np.testing.assert_array_equal(params[:, :2], points[:, :2])
        assert (params[:, 2:4].max(1) <= 1.5 * params[:, 2:4].min(1) * (1 + 1e-6)).all()
        with h5py.File(kernel_path(image)) as file:
            assert file["shape"][0] == len(points) + 1 and file.attrs["stride"] == 8
            mass = np.bincount(file["indices"][()], file["data"][()], minlength=file["shape"][1])
            np.testing.assert_allclose(mass, 1, atol=1e-4)
    rows = (prepared / "train" / "gs_params" / "loss_results.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == [gaussians_path(image).name for image in images]
    assert all(0 < float(row.split(",")[1]) < 2 for row in rows)
    assert sum(len(read_points(points_path(image))) for image in list_images(prepared / "test")) == 279
    assert len(list_images(prepared / "test")) == 4 and not list(prepared.rglob("*.partial*"))


def test_rerunning_a_finished_stage_does_nothing_and_says_so(prepared):
    before = snapshot(prepared)
    for line, script, *options in (
        ("nothing to do: all 14 images", "preprocess_dataset_ucf.py", *RAW, prepared),
        ("9 already there, 0 to fit", "2dgs_counting_1gs_gsplat.py", "--root-path", prepared, "--num-epochs", 30),
        ("nothing to do", "GS2D/process_gaussians.py", "--root-path", prepared),
        ("0 kernels built (0 stored shares), 9 were up to date", "GS2D/build_kernels.py", "--root-path", prepared),
    ):
        assert line in call(script, *options)[0]
    assert snapshot(prepared) == before


def test_kernels_are_rebuilt_when_gaussians_or_parameters_change(copy):
    out, _ = call("GS2D/build_kernels.py", "--gs-dir", copy / "train" / "gs_params", "--cut-off", 2.5)
    assert "9 kernels built" in out
    path = next((copy / "train" / "gs_params").glob("IMG_0002*.h5"))
    with h5py.File(path, "r+") as file:
        file["params"][0, 2] += 1
    assert "1 kernels built" in call("GS2D/build_kernels.py", "--root-path", copy, "--cut-off", 2.5)[0]


def test_train_then_test(small, tmp_path):
    """With the larger network, on stored kernels."""
    save, options = (tmp_path / "run", ["--model-name", "vgg_trans", "--kernels", "h5", *SMALL, "--epochs", 1])
    out, _ = run("train_gs.py", "--dataset", "qnrf", "--data-dir", small, "--save-dir", save, *options)
    assert "4 training and 1 validation images" in out
    files = "0_ckpt.tar best_model.pth config.yml environment.json metrics.jsonl model_card.md run.json tensorboard"
    assert sorted(path.name for path in save.iterdir()) == files.split()
    before = {path: content for path, (_, content) in snapshot(save).items()}
    assert "nothing to do" in call("train_gs.py", "--data-dir", small, "--save-dir", save, *options)[0]
    assert {path: content for path, (_, content) in snapshot(save).items()} == before
    data = "--data-dir", small, "--device", "cpu"
    out, _ = call("test.py", "--save-path", save / "best_model.pth", *data, "--out", tmp_path / "o")
    again, _ = call("test.py", "--save-dir", save, *data, "--model-name", "vgg_trans")
    rows = (tmp_path / "o" / "results.csv").read_text().splitlines()
    assert len(rows) == 2 and rows[1].startswith("IMG_0051,") and "1 images: MAE" in out
    assert out.splitlines()[:2] == again.splitlines()[:2]


def test_a_released_checkpoint_is_evaluated(small, tmp_path):
    torch.save(dict(fill(build_model("vgg_trans")).state_dict()), tmp_path / "released.pth")
    options = "--save-path", tmp_path / "released.pth", "--data-dir", small, "--device", "cpu", "--model-name"
    assert "1 images: MAE" in call("test.py", *options, "vgg_trans")[0]
    _, err = call("test.py", *options, "vgg", code=1)
    assert len(errors(err)) == 1 and "released.pth" in err and "--model-name vgg_trans" in err


def test_one_bad_image_does_not_stop_the_others(copy):
    """A truncated image, an annotation with NaN, Gaussians of another number of points: each named, the rest fitted."""
    train = copy / "train"
    images = list_images(train)
    cut, nan, other, gone = images[:4]
    for image in (cut, nan):
        gaussians_path(image).unlink()
    gaussians_path(images[5]).unlink()
    cut.write_bytes(cut.read_bytes()[:5000])
    np.save(points_path(nan), np.array([[1, 2, 3], [np.nan, 4, 5]], np.float32))
    np.save(points_path(other), read_points(points_path(other))[:-1])
    points_path(gone).unlink()
    out, err = call("2dgs_counting_1gs_gsplat.py", "--root-path", copy, "--num-epochs", 30, "--workers", 1, code=1)
    assert len(errors(err)) == 5 and "4 of " in errors(err)[-1]
    for path in (cut, points_path(nan), gaussians_path(other), points_path(gone)):
        assert str(path) in err
    assert gaussians_path(images[5]).exists() and not gaussians_path(cut).exists()
    assert not list(copy.rglob("*.partial*"))
