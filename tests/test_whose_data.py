"""A prepared folder knows what it is: preset, run, card and summary name the data that were used, and no others."""

from __future__ import annotations

import json
import re

import pytest
from commands import call, errors
from own_folders import photos, prepare
from raw_data import write
from training_runs import Tiny, make_data

import models
from GS2D.options import KERNEL_OPTIONS
from losses import LOSSES
from models import MODELS
from utils.training.train_options import parse_train_options

PUBLISHED = ("qnrf", "jhu", "nwpu", "sha", "shb", "ucf50")
CROPS = {"qnrf": 512, "jhu": 512, "nwpu": 384, "sha": 256, "shb": 512, "ucf50": 512}


def options(*argv):
    return parse_train_options(tuple(MODELS), tuple(LOSSES), KERNEL_OPTIONS, list(map(str, argv)))


def says(root, **report):
    root.mkdir(exist_ok=True)
    (root / "dataset_report.json").write_text(json.dumps(report))
    return root


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_the_preset_of_the_data_applies(tmp_path, dataset):
    root = says(tmp_path / "data", dataset=dataset, crop_size=CROPS[dataset])
    for given in (("--data-dir", root), ("--root-path", root), ("--data-dir", "x", "--dataset", dataset)):
        found = options(*given)
        assert (found.dataset, found.crop_size) == (dataset, CROPS[dataset])
        assert found.val_every == (50 if dataset == "nwpu" else 5)
        assert str(found.save_dir) == f"runs/{dataset}_vgg"
    config = tmp_path / "own.yml"
    config.write_text(f"root-path: {root}\nval_every: 7\n")
    found = options("--config", config)
    assert (found.dataset, found.crop_size, found.val_every) == (dataset, CROPS[dataset], 7)
    assert options("--data-dir", root, "--crop-size", 64).crop_size == 64


@pytest.mark.parametrize("name", ["--data-dir", "--root-path"])
def test_comparing_sets_the_folder_of_each_run(tmp_path, name):
    _, err = call("scripts/compare_losses.py", tmp_path, name, tmp_path, code=2)
    assert f"{name}: this script sets it for each run" in errors(err)[0]


@pytest.mark.parametrize(("said", "way"), [("qnrf", "command line"), ("own", "file")])
def test_another_dataset_is_refused(tmp_path, capsys, said, way):
    root = says(tmp_path / "data", dataset=said, crop_size=512)
    (tmp_path / "own.yml").write_text("dataset: sha\n")
    given = ("--dataset", "sha") if way == "command line" else ("--config", tmp_path / "own.yml")
    with pytest.raises(SystemExit) as stop:
        options("--data-dir", root, *given)
    line = f"error: --dataset sha: {root / 'dataset_report.json'} says {said}; leave the option out, or"
    assert stop.value.code == 2 and line in capsys.readouterr().err


@pytest.mark.parametrize("contents", [None, "{", "{}", '{"dataset": null, "crop_size": 512}'])
def test_a_folder_that_says_nothing(tmp_path, contents):
    """Or whose report, of one's own data, is of before there was a name for them."""
    root = tmp_path / "data"
    root.mkdir()
    if contents is not None:
        (root / "dataset_report.json").write_text(contents)
    own = contents is not None and "dataset" in contents
    found = options("--data-dir", root)
    assert (found.dataset, found.crop_size) == ("own" if own else "qnrf", 512)
    assert str(found.save_dir) == ("runs/data_vgg" if own else "runs/qnrf_vgg")
    assert options("--data-dir", root, "--dataset", "own", "--loss", "bl").save_dir.name == "data_vgg_bl"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build_model", Tiny)
    monkeypatch.setattr("train_gs.build_model", Tiny)
    monkeypatch.chdir(tmp_path)


TRAIN = ("--backbone-weights", "none", "--max-epoch", 1, "--device", "cpu", "--num-workers", 0)


def test_own_data_are_called_by_their_folder(tmp_path, tiny):
    """From photographs to the summary, no published data set is named."""
    folder = photos(tmp_path / "holiday", "train/a.jpg", "train/b.jpg", "val/c.jpg", "test/d.jpg")
    for stem in ("train/a", "train/b", "val/c", "test/d"):
        write(folder / f"{stem}.txt", "30 40\n50 60\n")
    out, *_ = prepare(folder, "xy", "--min-size", 64, "--crop-size", 64)
    report = json.loads((out / "dataset_report.json").read_text())
    assert (report["dataset"], report["crop_size"]) == ("own", 64)
    call("2dgs_counting_1gs_gsplat.py", "--data-dir", out, "--num-epochs", 2, "--workers", 1)
    said, _ = call("train_gs.py", "--data-dir", out, *TRAIN)
    assert "vgg on holiday_out: 2 training and 1 validation images" in said and "crop_size 64" in said
    run = tmp_path / "runs" / "holiday_out_vgg"
    card = (run / "model_card.md").read_text()
    assert card.startswith("# vgg, trained on holiday_out with gst\n") and "| data | holiday_out, 2 train, " in card
    call("test.py", "--save-path", run, "--data-dir", out, "--device", "cpu", "--out", tmp_path / "results")
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["model"]["dataset"] == "holiday_out"
    del summary["localisation"]  # one of whose measures has QNRF's name
    for text in (card, json.dumps(summary), said, (run / "config.yml").read_text()):
        assert not re.search(rf"\b({'|'.join(PUBLISHED)})\b", text)
    before = (out / "dataset_report.json").read_bytes()
    call("datasets/check.py", "--data-dir", out, "--workers", 1)  # with the crop that the folder was prepared for
    assert json.loads(before)["dataset"] == json.loads((out / "dataset_report.json").read_text())["dataset"]


def test_a_folder_without_a_report_is_said_to_be_taken_for_qnrf(tmp_path, tiny):
    root = make_data(tmp_path / "data")
    said, _ = call("train_gs.py", "--data-dir", root, "--crop-size", 64, *TRAIN)
    assert f"{root}: no dataset_report.json says what the data are; taken for qnrf (--dataset)" in said
    assert "vgg on qnrf: 4 training" in said


@pytest.mark.parametrize(
    "dataset, crop, given, expected",
    [
        ("nwpu", 384, (), ("nwpu", 384)),
        ("own", 64, (), ("own", 64)),
        ("own", 64, ("--crop-size", 72), ("own", 72)),
        (None, 64, (), (None, 64)),
        ("own", 64, ("--dataset", "sha"), ("sha", 256)),
        ("none", 0, (), (None, 512)),
    ],
)
def test_the_check_keeps_what_the_folder_was_prepared_for(tmp_path, dataset, crop, given, expected):
    root = make_data(tmp_path / "data")
    if dataset != "none":
        says(root, dataset=dataset, crop_size=crop)
    code = 0 if expected[1] <= 80 else 1  # images of 80 x 96 pixels
    call("datasets/check.py", "--data-dir", root, "--workers", 1, *given, code=code)
    report = json.loads((root / "dataset_report.json").read_text())
    assert (report["dataset"], report["crop_size"]) == expected
    assert bool(report["findings"]["smaller_than_crop"]) == (code == 1)
