"""``python -m datasets.check --quick``: every state of every stage, runs, and the command that comes next."""

import json
import os

import h5py
import numpy as np
import pytest
from commands import call
from training_runs import Tiny, clean, make_data, train

import train_gs
from GS2D.gaussians import Gaussians2D
from utils.files import file_hash, gaussians_path, kernel_path, list_images, points_path
from utils.lock import lock_folder


@pytest.fixture
def data(tmp_path):
    """Four fitted training images with round Gaussians, one of validation without any."""
    return clean(make_data(tmp_path / "data"))


def look(data, *options):
    status = json.loads(call("datasets/check.py", "--data-dir", data, "--runs", data / "runs", "--json", *options)[0])
    states = "done", "missing", "stale", "failed"
    return status, {(row["split"], row["stage"]): [row[state] for state in states] for row in status["stages"]}


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
    status, _ = look(data)
    assert status["next"] == f"python train_gs.py --data-dir {data}"

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
    assert counts[("train", "kernels")] == [0, 3, 0, 1]
    assert status["trouble"][0].startswith(f"{points_path(images[0])}: ")
    assert any("centres lie up to 5.0 pixels from the points" in line for line in status["trouble"])
    assert status["next"].startswith("python preprocess_dataset_*.py")
    out, err = call("datasets/check.py", "--quick", "--data-dir", data)
    assert err.splitlines() == [f"warning: {line}" for line in status["trouble"]]
    assert out.splitlines()[2].split() == ["train", "images", "3", "0", "0", "1"]


def test_images_that_are_missing_or_whose_source_changed(tmp_path):
    from raw_data import SMALL, make_raw

    raw, data = make_raw(tmp_path / "raw"), tmp_path / "data"
    paths = ["--input-dataset-path", raw, "--output-dataset-path", data, *SMALL]
    call("preprocess_dataset_ucf.py", *paths)
    one, two = list_images(data / "train")[:2]
    one.unlink()
    os.utime(raw / "Train" / f"{two.stem.replace('IMG', 'img')}.jpg", (1, 1))
    status, counts = look(data)
    assert counts[("train", "images")] == [len(list_images(data / "train")) - 1, 1, 1, 0]
    assert any(line.startswith(f"{two}: ") for line in status["trouble"])
    call("preprocess_dataset_ucf.py", *paths)
    status, counts = look(data)
    assert counts[("train", "images")][1:] == [0, 0, 0]
    assert status["next"] == f"python 2dgs_counting_1gs_gsplat.py --root-path {data}"


def test_nothing_is_there_yet(tmp_path):
    out, _ = call("datasets/check.py", "--quick", "--data-dir", tmp_path)
    assert out.splitlines()[-1].startswith("next: python preprocess_dataset_*.py")
