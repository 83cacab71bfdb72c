"""Counts over time of videos, and the video that shows them."""

from __future__ import annotations

import contextlib
import csv
import json

import cv2
import numpy as np
import pytest
import torch
from commands import call, errors
from training_runs import Tiny

import models
from utils.evaluation import Window
from utils.evaluation.video import SHOWN, VideoCounts, draw_density
from utils.training.run_folder import save_weights


def write_video(path, frames, rate=5, size=(96, 64), code="MJPG"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), rate, size)
    for i in range(frames):
        writer.write(np.full((size[1], size[0], 3), 255 * i // max(frames - 1, 1), np.uint8))
    writer.release()
    return path


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build_model", Tiny)
    torch.manual_seed(0)
    path = tmp_path / "best_model.pth"
    save_weights(path, Tiny().state_dict(), {"model_name": "vgg"})
    return path


def evaluate(weights, *options, code=0):
    return call("test.py", "--save-path", weights, "--device", "cpu", *options, code=code)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_counts_over_time_and_the_annotated_video(weights, tmp_path):
    clip, out = write_video(tmp_path / "clip.avi", 9), tmp_path / "results"
    options = "--every", 2, "--out", out, "--video-out", tmp_path / "films" / "shown.mp4"
    text, _ = evaluate(weights, "--images", clip, *options)
    table = rows(out / "videos" / "clip.avi.csv")
    assert [(row["frame"], row["time"]) for row in table] == [
        (str(frame), f"{frame / 5:.3f}") for frame in (0, 2, 4, 6, 8)
    ]
    counts = [float(row["count"]) for row in table]
    assert counts == [float(row["predicted"]) for row in rows(out / "results.csv")]
    facts = json.loads((out / "summary.json").read_text())["videos"]["clip.avi"]
    peak = int(np.argmax(counts))
    assert facts["frames"] == 5 and facts["mean"] == pytest.approx(np.mean(counts), abs=1e-3)
    assert facts["peak"] == pytest.approx(max(counts), abs=1e-3) and facts["peak_time"] == 2 * peak / 5
    assert f"{tmp_path / 'films' / 'shown.mp4'}: " in text
    assert f"clip.avi: 5 frames counted, mean {np.mean(counts):.2f}, peak {max(counts):.2f} at 00:0" in text
    assert cv2.imread(str(out / "videos" / "clip.avi.png")).shape[1] > 1000
    shown = cv2.VideoCapture(str(tmp_path / "films" / "shown.mp4"))
    assert shown.get(cv2.CAP_PROP_FPS) == pytest.approx(2.5) and shown.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    pictures = [shown.read()[1] for _ in range(5)]
    assert (
        pictures[0].shape == (64, 96, 3)
        and abs(int(pictures[-1][60, 90].mean()) - int(pictures[0][60, 90].mean())) > 60
    )
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_long_video_shows_some_of_its_frames_and_counts_all(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.evaluation.video.SHOWN", 4)
    clip, out = write_video(tmp_path / "clip.avi", 30, size=(32, 16)), tmp_path / "results"
    text, _ = evaluate(weights, "--images", clip, "--out", out)
    assert "30 images counted, 0 scored, 0 failed" in text and len(rows(out / "videos" / "clip.avi.csv")) == 30
    names = [row["image"] for row in rows(out / "results.csv")]
    assert names == [f"clip.avi frame {frame:06d}" for frame in (0, 8, 16, 24)]
    evaluate(weights, "--images", clip, "--out", tmp_path / "all", "--save-density", "npy")
    assert len(list((tmp_path / "all" / "densities").iterdir())) == 30


def test_frames_that_no_header_announced_are_shown_ever_farther_apart(tmp_path):
    (tmp_path / "live.avi").touch()  # announces nothing
    videos = VideoCounts({"live.avi": tmp_path / "live.avi"}, 1, contextlib.ExitStack())
    image, parts = np.zeros((16, 16, 3), np.uint8), [Window(0, 0, 16, 16, torch.ones(2, 2))]
    assert not videos.add("picture.png", image, parts, 4.0)
    shown = [i for i in range(20_000) if not videos.add(f"live.avi frame {i:06d}", image, parts, float(i))]
    said = videos.save()
    assert shown[:SHOWN] == list(range(SHOWN)) and len(shown) < 8 * SHOWN and shown[-1] > 19_900
    assert videos.left_out == 20_000 - len(shown)
    assert videos.facts["live.avi"] == {
        "frames": 20_000,
        "frames_per_second": 25.0,
        "mean": 9999.5,
        "peak": 19_999.0,
        "peak_time": 799.96,
    }
    assert said == ["live.avi: 20000 frames counted, mean 9999.50, peak 19999.00 at 13:19"]


def test_the_density_is_drawn_where_it_is():
    image = np.full((64, 96, 3), (200, 100, 50), np.uint8)
    density = np.zeros((64, 96), np.float32)
    density[40:48, 80:88] = 1
    drawn = draw_density(image, density, 1.0, "3.0")
    assert drawn[60, 10].tolist() == [50, 100, 200]  # BGR, nothing drawn there
    assert np.abs(drawn[44, 84].astype(int) - (50, 100, 200)).max() > 40
    assert (drawn[:12, :12] == 0).any() and (draw_density(image, density * 0, 0.0, "")[44, 84] == (50, 100, 200)).all()


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (("--data-dir", "x", "--video-out", "a.mp4"), 2, "--video-out needs a video in --images"),
        (("--images", "clip.avi", "more.avi", "--video-out", "a.mp4"), 1, "a.mp4: one file for 2 videos"),
        (("--images", "photo.png", "--video-out", "a.mp4"), 1, "a.mp4: one file for 0 videos; name one in --images"),
        (("--images", "clip.avi", "--video-out", "a.gif"), 1, "a.gif: must end in .mp4 or .avi"),
    ],
)
def test_wrong_usage(weights, tmp_path, monkeypatch, options, code, part):
    monkeypatch.chdir(tmp_path)
    for name in ("clip.avi", "more.avi"):
        write_video(tmp_path / name, 2)
    cv2.imwrite("photo.png", np.zeros((32, 32, 3), np.uint8))
    _, err = evaluate(weights, *options, code=code)
    assert part in errors(err)[-1] and not list(tmp_path.glob("a.*")) and not list(tmp_path.glob(".a*"))
