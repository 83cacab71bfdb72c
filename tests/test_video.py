"""Pictures and frames of files, folders and videos; counts over time, and the video that shows them."""

from __future__ import annotations

import contextlib
import json

import cv2
import numpy as np
import pytest
import torch
from commands import errors, evaluate, table

from utils.evaluation import Window
from utils.evaluation.sources import find_sources, open_pictures
from utils.evaluation.video import SHOWN, VideoCounts, draw_density


def write_video(path, frames, rate=5, size=(96, 64), code="MJPG"):
    """Frames ever brighter, without red."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), rate, size)
    for i in range(frames):
        value = 255 * i // max(frames - 1, 1)
        writer.write(np.full((*size[::-1], 3), (value, value, 0), np.uint8))
    writer.release()
    return path


def announce(path, frames):
    """Write another number of frames into the header of an AVI file, as programs do that only guess it."""
    data = bytearray(path.read_bytes())
    for at in data.index(b"avih") + 24, data.index(b"strh") + 40:
        data[at : at + 4] = frames.to_bytes(4, "little")
    path.write_bytes(data)


def picture(path, value=0, size=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))
    return path


def opened(*paths, every=1):
    """What ``test.py`` gets: (name, image or one-line reason) of each, and the notes."""
    sources, notes = find_sources(paths)
    return [picture[:2] for picture in open_pictures(sources, every, 1)], notes


def test_mixed_folders_are_read_with_their_subfolders(tmp_path):
    for name in ("b.png", "a.jpg", "sub/c.BMP", "sub/a.jpg", ".hidden.png", ".cache/d.png"):
        picture(tmp_path / "in" / name, 7)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "sub" / "truth.npy").touch()
    found, notes = opened(tmp_path / "in")
    assert [name for name, _ in found] == ["a.jpg", "b.png", "sub/a.jpg", "sub/c.BMP"]
    for _, image in found:
        assert image.shape == (20, 30, 3) and image.dtype == np.uint8 and abs(int(image[0, 0, 0]) - 7) <= 1
    assert notes == [f"{tmp_path / 'in'}: skipped 2 of 6 files, neither pictures nor videos"]


def test_names_are_unique_files_taken_once_and_links_to_folders_followed_once(tmp_path):
    first, second = picture(tmp_path / "x" / "a.png"), picture(tmp_path / "y" / "a.png", 200)
    (tmp_path / "link.png").symlink_to(first)
    names = [name for name, _ in opened(first, tmp_path / "y", first, tmp_path / "link.png")[0]]
    assert names == [str(first), str(second)]
    assert [name for name, _ in opened(tmp_path / "x", str(first))[0]] == ["a.png"]
    picture(tmp_path / "z" / "b.png")
    (tmp_path / "x" / "link").symlink_to(tmp_path / "z")
    (tmp_path / "z" / "back").symlink_to(tmp_path / "x")
    assert [name for name, _ in opened(tmp_path / "x")[0]] == ["a.png", "link/b.png"]


def test_what_cannot_be_opened_is_named_and_the_rest_goes_on(tmp_path):
    good, cut = picture(tmp_path / "good.png", 9), picture(tmp_path / "cut.png", 9, (200, 300))
    cut.write_bytes(cut.read_bytes()[:60])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("named itself, so it counts")
    paths = [tmp_path / name for name in ("no.png", "cut.png", "empty.jpg", "empty", "notes.txt")]
    found, notes = opened(*paths, good)
    names = ["no.png", "cut.png", "empty.jpg", str(tmp_path / "empty"), "notes.txt", "good.png"]
    assert [name for name, _ in found] == names
    for (_, reason), path in zip(found, paths):
        assert str(path) in reason and "\n" not in reason
    assert "no such file or folder" in found[0][1] and "holds no picture or video" in found[3][1]
    assert "cut off or no image" in found[4][1] and found[5][1].shape == (20, 30, 3) and not notes


def test_frames_of_a_video_and_of_one_that_announces_too_many(weights, tmp_path):
    """video2x#742, annolid#2, PosePipeline#59, opencv#16821: an estimate, where the rate varies or the sound is longer."""
    path = write_video(tmp_path / "clip.avi", 10)
    found, _ = opened(path)
    assert [name for name, _ in found] == [f"clip.avi frame {i:06d}" for i in range(10)]
    for i, (_, image) in enumerate(found):
        assert image.shape == (64, 96, 3) and image.dtype == np.uint8
        assert np.abs(image.astype(int) - (0, 255 * i // 9, 255 * i // 9)).max() < 12
    announce(path, 11)
    assert [name[-6:] for name, _ in opened(path, every=4)[0]] == ["000000", "000004", "000008"]
    out, err = evaluate(weights, "--images", path)
    assert "10 images counted, 0 scored, 0 failed" in out and not errors(err)
    announce(path, 66)
    out, err = evaluate(weights, "--images", path, code=1)
    assert "10 images counted, 0 scored, 1 failed" in out and "about 66 frames, 10 could be read; it is cut off" in err


@pytest.mark.parametrize("suffix, code", [(".avi", "MJPG"), (".mp4", "mp4v"), (".mkv", "MJPG")])
def test_a_video_that_was_cut_off_is_shorter_than_it_says(tmp_path, suffix, code):
    path = write_video(tmp_path / f"clip{suffix}", 50, code=code)
    assert len(opened(path)[0]) == 50
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    assert "cut off" in opened(path)[0][-1][1]
    path.write_bytes(b"no video at all")
    ((name, reason),) = opened(path)[0]
    assert (
        name == path.name and reason.startswith(f"{path}: ") and "0 could be read; it is cut off or of a kind" in reason
    )


def test_counts_of_pictures_folders_and_a_video_over_time_and_the_annotated_video(weights, tmp_path):
    clip, out = write_video(tmp_path / "clip.avi", 9), tmp_path / "results"
    picture(tmp_path / "photos" / "sub" / "<b>.PNG"), (tmp_path / "photos" / "notes.txt").touch()
    sources = picture(tmp_path / "a.png"), tmp_path / "no.jpg", tmp_path / "photos", clip
    options = "--every", 2, "--out", out, "--video-out", tmp_path / "films" / "shown.mp4"
    text, err = evaluate(weights, "--images", *sources, *options, code=1)
    assert "skipped 1 of 2 files" in err and "7 images counted, 0 scored, 1 failed" in text
    assert ["no.jpg: no such file" in line for line in errors(err)] == [True]
    all_rows, rows = table(out / "results.csv"), table(out / "videos" / "clip.avi.csv")
    names = [f"clip.avi frame {i:06d}" for i in (0, 2, 4, 6, 8)]
    assert [row["image"] for row in all_rows] == ["a.png", "sub/<b>.PNG", *names]
    assert "<b>" not in (out / "report.html").read_text().partition("</title>")[0]
    assert [(row["frame"], row["time"]) for row in rows] == [(str(i), f"{i / 5:.3f}") for i in (0, 2, 4, 6, 8)]
    counts = [float(row["count"]) for row in rows]
    assert counts == [float(row["predicted"]) for row in all_rows[2:]]
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
    brightness = [int(picture[60, 90].mean()) for picture in pictures]
    assert pictures[0].shape == (64, 96, 3) and abs(brightness[-1] - brightness[0]) > 60
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_long_video_shows_some_of_its_frames_and_counts_all(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.evaluation.video.SHOWN", 4)
    clip, out = write_video(tmp_path / "clip.avi", 30, size=(32, 16)), tmp_path / "results"
    text, _ = evaluate(weights, "--images", clip, "--out", out)
    assert "30 images counted, 0 scored, 0 failed" in text and len(table(out / "videos" / "clip.avi.csv")) == 30
    names = [row["image"] for row in table(out / "results.csv")]
    assert names == [f"clip.avi frame {frame:06d}" for frame in (0, 8, 16, 24)]
    evaluate(weights, "--images", clip, "--out", tmp_path / "all", "--save-density", "npy")
    assert len(list((tmp_path / "all" / "densities").iterdir())) == 30


def test_frames_that_no_header_announced_are_shown_ever_farther_apart(tmp_path):
    (tmp_path / "live.avi").touch()  # announces nothing
    video = VideoCounts(tmp_path / "live.avi", 1, contextlib.ExitStack())
    image, parts = np.zeros((16, 16, 3), np.uint8), [Window(0, 0, 16, 16, torch.ones(2, 2))]
    shown = [i for i in range(20_000) if video.add(i, image, parts, float(i))]
    assert shown[:SHOWN] == list(range(SHOWN)) and len(shown) < 8 * SHOWN and shown[-1] > 19_900
    facts = {"frames": 20_000, "frames_per_second": 25.0, "mean": 9999.5, "peak": 19_999.0, "peak_time": 799.96}
    assert video.save("live.avi", None) == facts


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
        (("--images", "clip.avi", "--video-out", "a.gif"), 2, "a.gif: must end in .mp4 or .avi"),
    ],
)
def test_wrong_usage(weights, tmp_path, monkeypatch, options, code, part):
    monkeypatch.chdir(tmp_path)
    for name in ("clip.avi", "more.avi"):
        write_video(tmp_path / name, 2)
    cv2.imwrite("photo.png", np.zeros((32, 32, 3), np.uint8))
    _, err = evaluate(weights, *options, code=code)
    assert part in errors(err)[-1] and not list(tmp_path.glob("a.*")) and not list(tmp_path.glob(".a*"))
