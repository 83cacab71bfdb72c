"""The card beside a best model, what ``test.py`` adds to it, and the archive of ``scripts/pack.py``."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
import yaml
from commands import call, errors, evaluate
from training_runs import Tiny, make_data, metrics, train

import train_gs
from models import load_model
from utils.evaluation.model_card import write_card
from utils.files import file_hash, split_hashes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs, and its data with a test split."""
    root = tmp_path_factory.mktemp("card")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gs, "build_model", Tiny)
        data = make_data(root / "data")
        shutil.copytree(data / "val", data / "test", ignore=shutil.ignore_patterns("gs_params"))
        options = "--epochs", 2, "--val-start", 0, "--val-every", 1
        train(data, root / "run", *options)
    return root


@pytest.fixture
def run(trained, tmp_path, tiny):
    return shutil.copytree(trained / "run", tmp_path / "run")


def table(card, heading):
    """The rows below a heading of the card, each a list of cells."""
    lines = card.read_text().partition(heading)[2].strip().splitlines()
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("|")][2:]


def test_the_card_says_what_the_run_was(trained, run):
    text = (run / "model_card.md").read_text()
    best = min(metrics(run), key=lambda epoch: 2 * epoch["val_mse"] + epoch["val_mae"])
    assert text.startswith("# vgg, trained on qnrf with gst\n")
    assert f"SHA-256 `{file_hash(run / 'best_model.pth')}`, of epoch {best['epoch']} |" in text
    assert "| data | qnrf, 4 train, 1 val, 1 test images |" in text
    recipe = "Adam, learning rate 5e-06 (constant), weight decay 1e-05, batch 1 x crops of 64, seed 4073"
    assert f"| recipe | {recipe} |" in text
    assert "h for 2 of 2 epochs" in text and "torch 2." in text and "| hardware | CPU, " in text
    assert str(trained) not in text  # no path of this machine
    val, test = table(run / "model_card.md", "## Errors")
    split_hash = split_hashes(str(trained / "data"))["val"][1]
    expected = ["val", "1", f"{best['val_mae']:.2f}", f"{best['val_mse']:.2f}", "windows of 512 px"]
    assert val == [*expected, f"`{split_hash[:16]}`"]
    assert test[:3] == ["test", "", "not evaluated yet"]


def test_an_evaluation_is_added_once_and_linked(trained, run, tmp_path):
    out = tmp_path / "results"
    for _ in range(2):
        evaluate(run, "--data-dir", trained / "data", "--out", out)
    evaluate(run, "--data-dir", trained / "data", "--window", 64, "--flip-average")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["model_card"] == "../run/model_card.md" and (out / summary["model_card"]).is_file()
    assert 'href="../run/model_card.md"' in (out / "report.html").read_text()
    _, published, other = table(run / "model_card.md", "## Errors")
    mae, mse = (f"{summary[name]['value']:.2f}" for name in ("mae", "mse"))
    assert published[:5] == ["test", "1", mae, mse, "windows of 512 px"]
    assert other[0] == "test" and other[4] == "windows of 64 px, mirrored too"
    # Of other weights these are no scores any more.
    shutil.copy(next(run.glob("*_ckpt.tar")), run / "best_model.pth")
    assert [row[0] for row in table(write_card(run), "## Errors")] == ["val", "test"]
    assert "not evaluated yet" in (run / "model_card.md").read_text()


def test_weights_without_a_card_get_none(trained, run, tmp_path):
    alone = tmp_path / "alone.pth"
    shutil.copy(run / "best_model.pth", alone)
    before = sorted(tmp_path.iterdir())
    evaluate(alone, "--data-dir", trained / "data", "--out", tmp_path / "o")
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["model_card"] is None
    assert sorted(path for path in tmp_path.iterdir() if path.name != "o") == before
    assert write_card(tmp_path) is None


def test_the_hash_of_a_split_is_that_of_names_and_points(trained, tmp_path):
    data = shutil.copytree(trained / "data", tmp_path / "data")
    found = split_hashes(str(data))
    points = hashlib.sha256((data / "val" / "IMG_0000.npy").read_bytes()).hexdigest()
    assert found["val"] == (1, hashlib.sha256(f"IMG_0000 {points}\n".encode()).hexdigest())
    assert found == split_hashes(str(trained / "data")) and found["test"] == found["val"]
    split_hashes.cache_clear()
    np.save(data / "val" / "IMG_0000.npy", np.zeros((1, 2)))
    (data / "train" / "IMG_0003.jpg").unlink()
    (data / "train" / "IMG_0003.npy").unlink()
    changed = split_hashes(str(data))
    assert changed["train"][0] == 3 and all(changed[split] != found[split] for split in ("train", "val"))
    assert changed["test"] == found["test"] and split_hashes(str(tmp_path / "none")) == {}


def pack(root, *options, code=0):
    pytest.importorskip("safetensors", reason="pip install -r requirements-export.txt")
    return call("scripts/pack.py", root / "run", *options, code=code)


def test_the_archive_holds_weights_and_the_results_of_these(trained, run, tmp_path):
    results = "--results", tmp_path / "results"
    evaluate(run, "--data-dir", trained / "data", "--out", results[1])
    out, _ = pack(tmp_path, *results, "--data-dir", trained / "data")
    assert "unpacked, both forms of the weights load and are equal" in out and "mind their licence" in out
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
        names = {name.removeprefix("run/") for name in archive.namelist()}
    weights = {"best_model.pth", "model.safetensors", "model_card.md"}
    files = {f"results/{name}" for name in ("results.csv", "summary.json", "report.html")}
    assert names == weights | files | {"config.yml", "metrics.jsonl", "environment.json"}
    folder = tmp_path / "unpacked" / "run"
    assert (folder / "best_model.pth").read_bytes() == (run / "best_model.pth").read_bytes()
    options = yaml.safe_load((folder / "config.yml").read_text())
    assert options["lr"] == 5e-6 and "data_dir" not in options
    assert "| test | 1 |" in (folder / "model_card.md").read_text()
    network, said = load_model(folder / "model.safetensors")
    assert said["dataset"] == "qnrf" and torch.equal(network.layers[0].weight, load_model(run)[0].layers[0].weight)
    first = (tmp_path / "run.zip").read_bytes()
    pack(tmp_path, *results)
    assert (tmp_path / "run.zip").read_bytes() == first
    (tmp_path / "run.zip").unlink()
    shutil.copy(next(run.glob("*_ckpt.tar")), run / "best_model.pth")
    _, err = pack(tmp_path, *results, code=1)
    assert f"--results {results[1]}: not of this best_model.pth" in errors(err)[0]
    assert not (tmp_path / "run.zip").exists()


def test_what_is_no_run_is_one_line(run, tmp_path):
    (run / "config.yml").unlink()
    _, err = pack(tmp_path, code=1)
    reason = "holds no best_model.pth or no config.yml; give the folder that train_gs.py wrote"
    assert errors(err) == [f"error: {run}: {reason}"] and not (tmp_path / "run.zip").exists()
