"""The scripts as a user runs them, on the real trees: each stage reads what the previous one wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from commands import ROOT, call, errors, run
from golden_weights import fill
from training_runs import metrics

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


def test_the_same_fit_at_any_number_of_workers(copy, prepared):
    again = sorted((copy / "train" / "gs_params").glob("*.h5"))[::4]
    before = [path.read_bytes() for path in again]
    for path in again:
        path.unlink()
    call("2dgs_counting_1gs_gsplat.py", "--root-path", copy, "--num-epochs", 30, "--workers", 1)
    call("GS2D/process_gaussians.py", "--root-path", copy)
    assert [path.read_bytes() for path in again] == before and len(again) == 3


def test_train_then_test(small, tmp_path):
    """With the larger network."""
    save = tmp_path / "run"
    options = "--dataset", "qnrf", "--model-name", "vgg_trans", *SMALL, "--crop-size", 32, "--epochs", 2
    out, _ = run("train_gs.py", *options, "--data-dir", small, "--save-dir", save)
    assert "4 training and 1 validation images" in out
    lines = metrics(save)
    assert [line["epoch"] for line in lines] == [0, 1] and "val_mae" in lines[1] and "val_mae" not in lines[0]
    config = yaml.safe_load((save / "config.yml").read_text())
    assert config["crop_size"] == 32 and config["lr"] == 5e-6 and config["seed"] == 4073
    files = "1_ckpt.tar best_model.pth config.yml environment.json metrics.jsonl model_card.md run.json tensorboard"
    assert sorted(path.name for path in save.iterdir()) == files.split()

    data = "--data-dir", small, "--device", "cpu"
    out, _ = call("test.py", "--save-path", save / "best_model.pth", *data, "--out", tmp_path / "o")
    again, _ = call("test.py", "--save-dir", save, *data, "--model-name", "vgg_trans")
    rows = (tmp_path / "o" / "results.csv").read_text().splitlines()
    assert len(rows) == 2 and rows[1].startswith("IMG_0051,") and "1 images: MAE" in out
    assert out.splitlines()[:2] == again.splitlines()[:2]


def test_a_run_goes_on_where_it_stopped_and_says_when_nothing_is_left(small, tmp_path, tiny):
    save = tmp_path / "run"
    options = "--data-dir", small, *SMALL, "--save-dir", save, "--epochs"
    call("train_gs.py", *options, 1)
    out, _ = call("train_gs.py", *options, 2)
    assert "0_ckpt.tar: going on with epoch 1" in out
    assert [line["epoch"] for line in metrics(save)] == [0, 1]
    assert (save / "1_ckpt.tar").exists() and not (save / "0_ckpt.tar").exists()
    before = snapshot(save)
    assert "nothing to do" in call("train_gs.py", *options, 2)[0]
    assert {path: content for path, (_, content) in snapshot(save).items()} == {p: c for p, (_, c) in before.items()}
    _, err = call("train_gs.py", *options, 2, "--lr", 1e-3, code=1)
    assert "holds a run with --lr 5e-06, not 0.001" in err
    assert "1 images: MAE" in call("test.py", "--save-path", save, "--data-dir", small, "--device", "cpu")[0]


def test_training_on_stored_kernels(small, tmp_path, tiny):
    options = "--data-dir", small, *SMALL, "--epochs", 1, "--kernels", "h5", "--save-dir"
    call("train_gs.py", *options, tmp_path / "run")
    _, err = call("train_gs.py", *options, tmp_path / "o", "--cut-off", 2, code=1)
    assert "cut_off 3.0 instead of 2.0" in err and "python GS2D/build_kernels.py" in err


def test_a_released_checkpoint_is_evaluated(small, tmp_path):
    torch.save(dict(fill(build_model("vgg_trans")).state_dict()), tmp_path / "released.pth")
    options = "--save-path", tmp_path / "released.pth", "--data-dir", small, "--device", "cpu", "--model-name"
    assert "1 images: MAE" in call("test.py", *options, "vgg_trans")[0]
    _, err = call("test.py", *options, "vgg", code=1)
    assert len(errors(err)) == 1 and "released.pth" in err and "--model-name vgg_trans" in err


FIT, BUILD = "2dgs_counting_1gs_gsplat.py", "GS2D/build_kernels.py --root-path"


@pytest.mark.parametrize(
    ("command", "code", "parts"),
    [
        (f"{FIT} --root-path /no/such", 1, ["/no/such/train: no such folder"]),
        (f"{FIT} --config no.yml", 2, ["no.yml: No such file"]),
        (f"{FIT} --root-path x --num-epochs 0", 2, ["--num-epochs: 0 is impossible"]),
        ("GS2D/process_gaussians.py --gs-dir /no/such", 1, ["/no/such: no *_gs_params.h5 there"]),
        (f"{BUILD} /no/such", 1, ["/no/such: no *_gs_params.h5 there", "2dgs_counting"]),
        (f"{BUILD} x --post-max 5", 2, ["--post-max 5: below the smallest scale, 8"]),
        ("train_gs.py --data-dir /no/such --device cpu", 1, ["/no/such/train: no such folder"]),
        ("train_gs.py --data-dir x --device 99", 1, ["--device 99: this machine has", "--device cpu"]),
        ("train_gs.py --data-dir x --model-name resnet", 2, ["resnet", "vgg_trans"]),
        ("train_gs.py --data-dir x --device cpu --save-dir /proc/run", 1, ["/proc/run"]),
        ("train_gs.py", 2, ["--data-dir"]),
        ("test.py --save-path /no/such.pth --data-dir x", 1, ["/no/such.pth"]),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, monkeypatch, command, code, parts):
    monkeypatch.chdir(tmp_path)
    gaussians_path(Path("x/train/a.jpg")).parent.mkdir(parents=True)
    gaussians_path(Path("x/train/a.jpg")).touch()
    _, err = call(*command.split(), code=code)
    assert len(errors(err)) == 1 and all(part in err for part in parts), err


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

    _, err = call("train_gs.py", "--data-dir", copy, "--device", "cpu", "--save-dir", copy / "run", code=1)
    assert len(errors(err)) == 1 and "1 of 9" in err
    assert not list(copy.rglob("*.partial*"))


def test_an_output_folder_that_cannot_be_written_is_named(copy):
    shutil.rmtree(copy / "train" / "gs_params")
    (copy / "train" / "gs_params").write_text("a file where the folder should be")
    _, err = call("2dgs_counting_1gs_gsplat.py", "--root-path", copy, code=1)
    assert len(errors(err)) == 1 and "gs_params" in err
