"""``python -m datasets.check``: every kind of damage, every state of every stage, runs, and the command that comes next."""

from __future__ import annotations

import json
import os

import h5py
import numpy as np
import pytest
import torch
from commands import call, errors
from PIL import Image
from raw_data import SMALL, make_raw
from test_report import RECORDED, add
from training_runs import Tiny, clean, make_data, train

import train_gs
from datasets.crowd import load_annotations
from GS2D.gaussians import Gaussians2D
from GS2D.kernel import StoredKernel, csr, params_hash, save_kernel
from utils.files import file_hash, gaussians_path, kernel_path, list_images, points_path
from utils.lock import lock_folder

POINTS = np.array([[5, 5], [20, 20], [40, 30]], np.float32)


def check(root, *options, code=0):
    """The check of everything -> stdout, stderr, its errors, which are those of the report."""
    out, err = call("datasets/check.py", "--data-dir", root, "--crop-size", 32, "--workers", 1, *options, code=code)
    lines = errors(err)
    assert lines == [f"error: {e}" for e in json.loads((root / "dataset_report.json").read_text())["errors"]]
    return out, err, lines


def look(data):
    """The quick look -> what it says, and the images that are done, missing, stale and failed by split and stage."""
    options = "--data-dir", data, "--runs", data / "runs", "--crop-size", 32
    status = json.loads(call("datasets/check.py", *options, "--json")[0])
    states = "done", "missing", "stale", "failed"
    return status, {(row["split"], row["stage"]): [row[state] for state in states] for row in status["stages"]}


def fit(image, **columns):
    """Write Gaussians and a kernel, all of it background; ``columns`` replace what is written."""
    n = len(POINTS)
    values = {
        "means": POINTS,
        "scales": np.full((n, 2), 3.0),
        "rotations": np.zeros((n, 1)),
        "colors": np.zeros((n, 3)),
    }
    for path in (gaussians_path(image), kernel_path(image)):
        path.parent.mkdir(exist_ok=True)
    Gaussians2D(*(torch.as_tensor(value).float() for value in (values | columns).values())).save(gaussians_path(image))
    if not columns:
        points, _, *shapes = load_annotations(image)
        kernel = csr(np.r_[np.zeros(n + 1, int), 48], np.arange(48), np.ones(48), 48)
        save_kernel(kernel_path(image), StoredKernel(kernel, (6, 8), {"params_hash": params_hash(points, *shapes)}))


@pytest.fixture
def root(tmp_path):
    for name in ("train/a.jpg", "train/b.jpg", "val/c.jpg", "test/d.jpg"):
        image = add(tmp_path, name, POINTS)
        if name.startswith("train"):
            fit(image)
    return tmp_path


def test_of_a_sound_set_nothing_but_the_report_is_written(root):
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    out, err, _ = check(root)
    assert "checked 4 images: 0 errors, 0 warnings" in out and not err
    assert f"\nnext: python train_gs.py --data-dir {root}\n" in out
    head, row, *_ = ([cell for cell in line.split()] for line in out.splitlines())
    assert (
        dict(zip(head, row)).items() >= {"images": "2/2", "points": "6", "Gaussians": "2/2", "kernels": "2/2"}.items()
    )
    report = json.loads((root / "dataset_report.json").read_text())
    assert report["splits"]["train"]["points"] == 6 and report["crop_size"] == 32
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert set(after) - set(before) == {root / "dataset_report.json"} and before.items() <= after.items()


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-500])


def text(path):
    path.write_text("something else")


def widen(path):
    fit(path, scales=np.full((3, 2), 4.0))


PREPARE, FIT, BUILD = "preprocess_dataset_", "2dgs_counting_1gs_gsplat.py", "GS2D/build_kernels.py"


@pytest.mark.parametrize(
    "name, damage, parts",
    [
        ("train/a.jpg", cut_off, ("a.jpg: cannot read this image", "get the file again")),
        ("val/c.npy", text, ("c.npy: not a readable npy file", PREPARE)),
        ("train/b.jpg", lambda path: fit(path, means=POINTS + 2), ("up to 2.0 pixels from the points", "delete", FIT)),
        ("train/gs_params/b_gs_params.h5", os.remove, ("b_gs_params.h5: no such file of fitted Gaussians", FIT)),
        ("train/kernels/b_kernel.h5", text, ("b_kernel.h5: not a readable kernel", "delete", BUILD)),
        ("train/b.jpg", widen, ("b_kernel.h5: was not built from the Gaussians", "delete", BUILD)),
    ],
)
def test_damage_is_one_error_with_its_remedy(root, name, damage, parts):
    damage(root / name)
    *_, lines = check(root, code=1)
    lines = [line for line in lines if "not built" not in line or BUILD in parts]
    assert len(lines) == 1 and all(part in lines[0] for part in parts), lines


def test_what_the_pixels_say_and_the_record_does_not(root):
    path = root / "val" / "c.jpg"
    Image.open(path).convert("L").convert("RGB").save(path)
    entry = RECORDED | {"image": "val/c.jpg", "points": 5, "height": 99, "width": 64}
    (root / "preprocess.jsonl").write_text(json.dumps(entry) + "\n")
    _, err, lines = check(root, code=1)
    assert len(lines) == 1 and "val/c.jpg: 64 x 48 pixels, prepared as 64 x 99" in lines[0]
    assert "warning: " in err and "c.npy: 3 points, prepared with 5" in err
    assert json.loads((root / "dataset_report.json").read_text())["findings"]["grey"] == ["val/c.jpg"]


def test_a_stage_that_is_half_done(root):
    kernel_path(root / "train" / "b.jpg").unlink()
    assert f"next: python GS2D/build_kernels.py --root-path {root}\n" in check(root)[0]


@pytest.fixture
def data(tmp_path):
    """Four fitted training images with round Gaussians, one of validation without any."""
    return clean(make_data(tmp_path / "data"))


def test_the_way_of_a_data_set(data, monkeypatch):
    """What is next leads from the Gaussians to the last result."""
    _, counts = look(data)
    assert counts[("train", "images")] == [4, 0, 0, 0] and counts[("val", "images")] == [1, 0, 0, 0]
    assert ("val", "Gaussians") not in counts and counts[("train", "kernels")] == [0, 4, 0, 0]
    image = list_images(data / "train")[0]
    gaussians_path(image).unlink()
    status, counts = look(data)
    assert counts[("train", "Gaussians")] == [3, 1, 0, 0] and counts[("train", "cleaned")] == [3, 1, 0, 0]
    assert status["next"] == f"python 2dgs_counting_1gs_gsplat.py --root-path {data}"
    call("2dgs_counting_1gs_gsplat.py", "--root-path", data, "--num-epochs", 5)
    gaussians = Gaussians2D.load(gaussians_path(image))
    gaussians.scales[0, 0] = 2 * gaussians.scales[0, 1]
    gaussians.save(gaussians_path(image))
    status, counts = look(data)
    assert counts[("train", "cleaned")] == [3, 1, 0, 0]
    assert status["next"] == f"python GS2D/process_gaussians.py --root-path {data}"
    call("GS2D/process_gaussians.py", "--root-path", data)
    assert look(data)[0]["next"] == f"python train_gs.py --data-dir {data}"

    call("GS2D/build_kernels.py", "--root-path", data)
    assert look(data)[1][("train", "kernels")] == [4, 0, 0, 0]
    with h5py.File(gaussians_path(image), "r+") as file:
        file["params"][0, 2:4] += 1
    status, counts = look(data)
    assert counts[("train", "kernels")] == [3, 0, 1, 0] and str(kernel_path(image)) in status["trouble"][0]
    assert status["next"] == f"python GS2D/build_kernels.py --root-path {data}"
    call("GS2D/build_kernels.py", "--root-path", data)

    monkeypatch.setattr(train_gs, "build_model", Tiny)
    folder = data / "runs" / "one"
    train(data, folder, "--epochs", 1)
    config, progress = ((folder / name).read_text() for name in ("config.yml", "run.json"))
    (folder / "run.json").write_text(progress.replace('"epochs": 1', '"epochs": 2'))
    status, _ = look(data)
    assert status["next"] == f"python train_gs.py --config {folder}/config.yml"
    assert [(one["state"], one["epochs_done"], one["epochs"]) for one in status["runs"]] == [("interrupted", 1, 2)]
    with lock_folder(folder):
        status, _ = look(data)
        assert status["runs"][0]["state"].startswith(f"running (process {os.getpid()} on ")
        assert status["next"] == "wait for the run that is under way"
    (folder / "run.json").write_text(progress)
    status, _ = look(data)
    assert status["runs"][0]["best"]["epoch"] == 0 and status["runs"][0]["state"] == "done"
    assert status["next"] == f"python test.py --save-path {folder} --data-dir {data} --out {folder}/test"
    for sha256, results in (("0", []), (file_hash(folder / "best_model.pth"), [f"{folder}/test"])):
        (folder / "test").mkdir(exist_ok=True)
        (folder / "test" / "summary.json").write_text(json.dumps({"weights_sha256": sha256}))
        status, _ = look(data)
        assert status["runs"][0]["results"] == results
        assert (status["next"] == "nothing; every stage is done") == bool(results)
    (folder / "config.yml").write_text(config.replace(f"data_dir: {data}", "data_dir: /elsewhere"))
    status, _ = look(data)
    assert status["runs"] == [] and status["other_runs"] == 1


def test_failed_and_stale_files_are_named(data):
    images = list_images(data / "train")
    points_path(images[0]).write_bytes(b"no npy")
    gaussians_path(images[1]).write_bytes(b"no h5")
    np.save(points_path(images[2]), np.load(points_path(images[2]))[:-1])
    np.save(points_path(images[3]), np.load(points_path(images[3])) + np.float32([5, 5, 0]))
    kernel_path(images[3]).parent.mkdir()
    kernel_path(images[3]).write_bytes(b"no h5")
    status, counts = look(data)
    assert counts[("train", "images")] == [3, 0, 0, 1] and counts[("train", "Gaussians")] == [0, 0, 2, 2]
    assert counts[("train", "kernels")] == [0, 3, 0, 1] and len(status["trouble"]) == 5
    assert status["trouble"][0].startswith(f"{points_path(images[0])}: ")
    assert any("centres lie up to 5.0 pixels from the points" in line for line in status["trouble"])
    assert status["next"].startswith("python preprocess_dataset_*.py")
    _, err = call("datasets/check.py", "--quick", "--data-dir", data, "--crop-size", 32)
    assert err.splitlines() == [f"warning: {line}" for line in status["trouble"]]


def test_images_that_are_missing_or_whose_source_changed(tmp_path):
    raw, data = make_raw(tmp_path / "raw"), tmp_path / "data"
    paths = ["--input-dataset-path", raw, "--output-dataset-path", data, *SMALL]
    call("preprocess_dataset_ucf.py", *paths)
    one, two = list_images(data / "train")[:2]
    one.unlink()
    os.utime(raw / "Train" / f"{two.stem.replace('IMG', 'img')}.jpg", (1, 1))
    status, counts = look(data)
    assert counts[("train", "images")] == [len(list_images(data / "train")) - 1, 1, 1, 0]
    assert all(any(line.startswith(f"{image}: ") for line in status["trouble"]) for image in (one, two))
    call("preprocess_dataset_ucf.py", *paths)
    status, counts = look(data)
    assert counts[("train", "images")][1:] == [0, 0, 0]
    assert status["next"] == f"python 2dgs_counting_1gs_gsplat.py --root-path {data}"


def test_nothing_is_there_yet(tmp_path):
    out, err = call("datasets/check.py", "--quick", "--data-dir", tmp_path)
    assert out.splitlines()[-1].startswith("next: python preprocess_dataset_*.py") and "holds no images" in err
