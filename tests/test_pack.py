"""``scripts/pack.py``: what an archive holds, and that it is looked at again."""

from __future__ import annotations

import shutil
import zipfile

import pytest
import torch
import yaml
from commands import call, errors
from training_runs import Tiny, make_data, train

import models
import train_gs
from models import load_model

pytest.importorskip("safetensors", reason="pip install -r requirements-export.txt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("pack")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gs, "build_model", Tiny)
        patch.setattr(models, "build_model", Tiny)
        data = make_data(root / "data")
        shutil.copytree(data / "val", data / "test", ignore=shutil.ignore_patterns("gs_params"))
        train(data, root / "run", "--epochs", 1)
        options = "--save-path", root / "run", "--device", "cpu", "--data-dir", data, "--out", root / "results"
        call("test.py", *options)
    return root


@pytest.fixture
def root(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build_model", Tiny)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def pack(root, *options, code=0):
    return call("scripts/pack.py", root / "run", "--device", "cpu", *options, code=code)


def test_the_archive_holds_all_and_counts_the_same(root):
    out, _ = pack(root, "--results", root / "results", "--data-dir", root / "data")
    assert "unpacked: both forms of the weights load and are equal; 1 images counted as in its results" in out
    assert "mind their licence" in out
    with zipfile.ZipFile(root / "run.zip") as archive:
        archive.extractall(root / "unpacked")
        names = {name.removeprefix("run/") for name in archive.namelist()}
    run, results = (
        "best_model.pth model.safetensors model_card.md config.yml metrics.jsonl environment.json",
        "results.csv",
    )
    assert names == {*run.split(), *(f"results/{name}" for name in (results, "summary.json", "report.html"))}
    folder = root / "unpacked" / "run"
    assert (folder / "best_model.pth").read_bytes() == (root / "run" / "best_model.pth").read_bytes()
    options = yaml.safe_load((folder / "config.yml").read_text())
    assert (
        options["lr"] == 5e-6 and "data_dir" not in options and "| test | 1 |" in (folder / "model_card.md").read_text()
    )
    network, said = load_model(folder / "model.safetensors")
    assert said["dataset"] == "qnrf" and torch.equal(
        network.layers[0].weight, load_model(root / "run")[0].layers[0].weight
    )
    first = (root / "run.zip").read_bytes()
    pack(root, "--results", root / "results")
    assert (root / "run.zip").read_bytes() == first


def test_results_that_are_counted_otherwise_are_found_out(root):
    table = root / "results" / "results.csv"
    head, row = table.read_text().splitlines()
    name, truth, predicted, *rest = row.split(",")
    table.write_text("\n".join([head, ",".join([name, truth, str(float(predicted) + 1), *rest])]))
    _, err = pack(root, "--results", root / "results", "--data-dir", root / "data", code=1)
    assert errors(err)[0].startswith("error: run: IMG_0000: ") and "counted, the results say" in errors(err)[0]
    assert not (root / "run.zip").exists()


def test_results_are_counted_again_with_their_own_windows(root, trained):
    windows = "--window", 48, "--overlap", 16, "--flip-average", "--split", "val"
    common = "--save-path", root / "run", "--device", "cpu", "--data-dir", root / "data"
    call("test.py", *common, "--out", root / "more", *windows)
    out, _ = pack(root, "--results", root / "more", "--data-dir", root / "data")
    assert "1 images counted as in its results" in out
    call("test.py", *common, "--out", root / "half", "--precision", "bf16-mixed")
    out, _ = pack(root, "--results", root / "half", "--data-dir", root / "data")
    assert "not counted again, since its results are of --precision bf16-mixed" in out


def test_results_of_other_weights_are_found_out_without_data(root):
    shutil.copy(next((root / "run").glob("*_ckpt.tar")), root / "run" / "best_model.pth")
    _, err = pack(root, "--results", root / "results", code=1)
    assert f"--results {root / 'results'}: not of this best_model.pth" in errors(err)[0]
    assert not (root / "run.zip").exists()
    _, err = pack(root, "--data-dir", root / "data", code=2)
    assert "add --results" in errors(err)[-1]


def test_what_is_no_run_is_one_line(root, tmp_path):
    (root / "run" / "config.yml").unlink()
    _, err = pack(root, code=1)
    reason = "holds no best_model.pth or no config.yml; give the folder that train_gs.py wrote"
    assert errors(err) == [f"error: {root / 'run'}: {reason}"] and not (root / "run.zip").exists()
