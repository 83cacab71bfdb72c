"""The demo's last step: what it says of its numbers, and the page."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest
import torch
import yaml
from commands import ROOT, call
from training_runs import Tiny

from GS2D.gaussians import Gaussians2D
from GS2D.options import KERNEL_OPTIONS
from scripts import demo_report, demo_time
from utils.evaluation import Window
from utils.evaluation.results import Counted, write_results
from utils.files import gaussians_path, points_path
from utils.images import save_jpeg
from utils.training.train_options import parse_train_options


@pytest.fixture
def finished(tmp_path):
    """Data and results of a demo with two test images; the second is counted wrong."""
    random, data, run = np.random.default_rng(0), tmp_path / "nuclei", tmp_path / "run"
    run.mkdir()
    (run / "config.yml").write_text(yaml.dump({"cut_off": 1.0, "scale_ratio": 0.5, "round_shapes": False}))
    epochs = [{"epoch": 0, "loss": 90.0}, {"epoch": 1, "loss": 9.0, "val_mae": 4.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    counted = []
    for split, number in (("train", 1), ("val", 4), ("test", 2), ("test", 3)):
        path = data / split / f"IMG_{number:04}.jpg"
        gaussians_path(path).parent.mkdir(parents=True, exist_ok=True)
        image = random.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        points = np.array([[20.0, 20.0], [60.0, 44.0], [80.0, 12.0], [36.0, 50.0]], np.float32)
        save_jpeg(image, path, 90)
        np.save(points_path(path), np.c_[points, np.full(4, 30)].astype(np.float32))
        Gaussians2D(points, np.full((4, 2), 8.0), np.zeros((4, 1)), np.full((4, 3), 0.5)).save(gaussians_path(path))
        if split == "test":
            cells, (x, y) = torch.zeros(8, 12), points.T.astype(int) // 8
            wrong = [0, 0, 7, 7], [5, 7, 0, 11]  # far from every point
            cells[wrong if number == 3 else (y, x)] = 1
            parts = [Window(0, 0, 64, 96, cells)]
            counted.append(Counted(path.stem, image, points, parts, 4.0 + 2 * (number == 3), 1.0))
    assert len(list(write_results(tmp_path, counted, "npy", figures=False))) == 2
    return tmp_path


def test_the_demo_says_what_it_reached_and_shows_every_step(finished, monkeypatch):
    monkeypatch.setattr(demo_report, "F1", {8.0: 0.5, 12.0: 0.75})
    options = "--data-dir", finished / "nuclei", "--run", finished / "run", "--out", finished
    out, _ = call("scripts/demo_report.py", *options)
    assert "| IMG_0003 | 4 | 6.0 | +2.0 | 4.0 |" in out and "| MAE |  |  | 1.0 | 0.0 |" in out
    # Heads of the second image are 14 px away: matched within neither radius.
    assert "| F1 within 8 px | 0.50 | 0.50 or more | yes |" in out
    assert "| F1 within 12 px | 0.50 | 0.75 or more | no |" in out
    assert "reached: not MAE, nuclei an image, not F1 within 12 px" in out
    assert (finished / "results.md").read_text() in out
    page = (finished / "index.html").read_text()
    assert re.findall(r"<h2><b>(\d)</b>", page) == list("123456") and "default-src 'none'" in html.unescape(page)
    assert page.count("data:image/jpeg;base64,") == 2 + 2 and page.count("data:image/png;base64,") == 2 + 2 * 2
    assert page.count("<ellipse") == 4 and page.count("<circle") == 4 + 2 * 4


@pytest.mark.parametrize("name", ["demo", "own"])
def test_the_recipe_is_one_of_training(name):
    path = ROOT / "configs" / f"{name}.yml"
    arguments = parse_train_options(("vgg",), ("gst",), KERNEL_OPTIONS, ["--data-dir", "data", "--config", str(path)])
    for name, value in yaml.safe_load(path.read_text()).items():
        assert getattr(arguments, name) == value


def test_the_demo_says_how_long_it_will_take(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.demo_time.seconds_of_a_step", lambda crop_size: crop_size / 128)
    (tmp_path / "recipe.yml").write_text("crop_size: 256\nepochs: 10\n")
    monkeypatch.setattr("scripts.demo_time.RECIPE", tmp_path / "recipe.yml")
    out, _ = call("scripts/demo_time.py")
    assert re.fullmatch(r"about \d+ minutes on this machine: 140 steps of training take 5\.4 of them\n", out)
    monkeypatch.undo()
    monkeypatch.setattr("scripts.demo_time.build_model", Tiny)
    assert 0 < demo_time.seconds_of_a_step(64) < 5
