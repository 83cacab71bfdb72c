"""Pictures and frames of files, folders and videos."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from test import own_images
from utils.evaluation.sources import find_sources


def picture(path, value=0, size=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))
    return path


def video(path, frames=10):
    """Frames of growing blue (RGB), one after the other."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for i in range(frames):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[..., 0] = 10 * i
        frame[::2, ::3] += np.uint8(i)
        writer.write(frame)
    writer.release()
    return path


def opened(*paths, every=1):
    """What ``test.py`` gets: (name, image or one-line reason) of each, and the notes."""
    sources, notes = find_sources(paths)
    return [picture[:2] for picture in own_images(sources, every, 1, lambda text: None)], notes


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


def test_names_are_unique_and_files_taken_once(tmp_path):
    first, second = picture(tmp_path / "x" / "a.png"), picture(tmp_path / "y" / "a.png", 200)
    (tmp_path / "link.png").symlink_to(first)
    names = [name for name, _ in opened(first, tmp_path / "y", first, tmp_path / "link.png")[0]]
    assert names == [str(first), str(second)]
    assert [name for name, _ in opened(tmp_path / "x", str(first))[0]] == ["a.png"]


def test_what_cannot_be_opened_is_named_and_the_rest_goes_on(tmp_path):
    good, cut = picture(tmp_path / "good.png", 9), picture(tmp_path / "cut.png", 9, (200, 300))
    cut.write_bytes(cut.read_bytes()[:60])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("named itself, so it counts")
    paths = [tmp_path / name for name in ("no.png", "cut.png", "empty.jpg", "empty", "notes.txt")]
    found, notes = opened(*paths, good)
    assert [name for name, _ in found] == [
        "no.png",
        "cut.png",
        "empty.jpg",
        str(tmp_path / "empty"),
        "notes.txt",
        "good.png",
    ]
    for (_, reason), path in zip(found, paths):
        assert str(path) in reason and "\n" not in reason
    assert "no such file or folder" in found[0][1] and "holds no picture or video" in found[3][1]
    assert "cut off or no image" in found[4][1] and found[5][1].shape == (20, 30, 3) and not notes


def test_links_to_folders_are_followed_once(tmp_path):
    picture(tmp_path / "in" / "a.png"), picture(tmp_path / "other" / "b.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "in")
    assert [name for name, _ in opened(tmp_path / "in")[0]] == ["a.png", "link/b.png"]


def test_frames_of_a_video(tmp_path):
    path = video(tmp_path / "clip.avi")
    found, _ = opened(path)
    assert [name for name, _ in found] == [f"clip.avi frame {i:06d}" for i in range(10)]
    for i, (_, image) in enumerate(found):
        assert image.shape == (48, 64, 3) and image.dtype == np.uint8
        red, _, blue = image.reshape(-1, 3).mean(axis=0)
        assert abs(blue - 10 * i) < 8 and red < 8
    assert [name[-6:] for name, _ in opened(path, every=4)[0]] == ["000000", "000004", "000008"]


@pytest.mark.parametrize("content", [b"", b"no video at all"])
def test_a_video_that_cannot_be_decoded_is_reported(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    (found,), _ = opened(tmp_path)
    assert found == (
        "clip.mp4",
        f"{tmp_path / 'clip.mp4'}: cannot decode this video; it is cut off or of a kind that OpenCV does not know",
    )
