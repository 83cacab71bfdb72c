"""Readers of raw annotation formats."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from datasets.raw.annotations import find_ucf, prepared_stem, read_ucf

TREES = Path(__file__).resolve().parents[1] / "examples" / "trees"


def save(path, **contents):
    scipy.io.savemat(path, contents)
    return path


def one_line_error(path, kind=ValueError):
    with pytest.raises(kind) as caught:
        read_ucf(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and ";" in message
    return message


def test_points_come_back_exactly(tmp_path):
    points = np.array([[0.1, 0.2], [1234.5678901234567, 3.0], [-4.5, 9e9]])
    read = read_ucf(save(tmp_path / "a_ann.mat", annPoints=points))
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, points)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float32])
def test_any_kind_of_number_becomes_float64(tmp_path, kind):
    read = read_ucf(save(tmp_path / "a_ann.mat", annPoints=np.array([[1, 2], [3, 4]], kind)))
    assert read.dtype == np.float64 and read.tolist() == [[1, 2], [3, 4]]


def test_one_point_keeps_its_row(tmp_path):
    assert read_ucf(save(tmp_path / "a_ann.mat", annPoints=[[5.0, 6.0]])).tolist() == [[5, 6]]


@pytest.mark.parametrize("shape", [(0,), (0, 0), (0, 2), (1, 0), (2, 0)])
def test_no_points(tmp_path, shape):
    assert read_ucf(save(tmp_path / "a_ann.mat", annPoints=np.zeros(shape))).shape == (0, 2)


def test_trees_have_the_counts_of_their_readme():
    counts = {path.name[4:8]: len(read_ucf(path)) for path in sorted(TREES.glob("*/*_ann.mat"))}
    assert counts["0001"] == 1 and counts["0003"] == 3
    assert sum(counts[key] for key in counts if key < "0050") == 327
    assert sum(counts[key] for key in counts if key > "0050") == 279


def test_missing_file(tmp_path):
    assert "a_ann.mat" in one_line_error(tmp_path / "a_ann.mat", FileNotFoundError)


def test_missing_key_names_the_keys_found(tmp_path):
    message = one_line_error(save(tmp_path / "a_ann.mat", points=np.ones((3, 2)), image_info=1))
    assert "annPoints" in message and "image_info, points" in message


@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (1, 1), (4, 2, 2)])
def test_wrong_shape(tmp_path, shape):
    assert str(list(shape)) in one_line_error(save(tmp_path / "a_ann.mat", annPoints=np.ones(shape)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_names_the_row(tmp_path, value):
    points = np.ones((5, 2))
    points[3, 1] = value
    assert "row 4" in one_line_error(save(tmp_path / "a_ann.mat", annPoints=points))


@pytest.mark.parametrize(
    "value",
    [
        "text",
        np.array([["1", "2"]]),
        {"x": 1.0},
        np.array([[1 + 2j, 3]]),
        np.array([[1.0, "two"]], object),
        scipy.sparse.csc_array(np.eye(2)),
    ],
    ids=["text", "strings", "struct", "complex", "cells", "sparse"],
)
def test_not_numeric(tmp_path, value):
    assert "numeric array" in one_line_error(save(tmp_path / "a_ann.mat", annPoints=value))


@pytest.mark.parametrize("compressed", [False, True])
def test_every_truncation_is_one_line(tmp_path, compressed):
    path = tmp_path / "a_ann.mat"
    scipy.io.savemat(path, {"annPoints": np.arange(12.0).reshape(6, 2)}, do_compression=compressed)
    whole = path.read_bytes()
    for length in range(0, len(whole)):
        path.write_bytes(whole[:length])
        assert "a_ann.mat" in one_line_error(path)


def test_matlab_7_3_is_named(tmp_path):
    path = tmp_path / "a_ann.mat"
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    path.write_bytes(header + bytes(400))
    assert "-v7" in one_line_error(path)


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "a_ann.mat").mkdir()
    with pytest.raises(OSError, match="a_ann.mat"):
        read_ucf(tmp_path / "a_ann.mat")


def test_find_pairs_by_stem_and_reports_what_is_single(tmp_path):
    shutil.copytree(TREES / "Train", tmp_path / "Train")
    (tmp_path / "Train" / "img_0002_ann.mat").unlink()
    (tmp_path / "Train" / "img_0005.jpg").unlink()
    (tmp_path / "Train" / "._img_0007_ann.mat").write_bytes(b"what a Mac leaves in archives")
    (tmp_path / "Train" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "Train" / "img_0004.jpg").rename(tmp_path / "Train" / "img_0004.JPG")
    pairs, problems = find_ucf(tmp_path / "Train")
    assert [image.name for image in pairs] == [
        f"img_{i:04}.{'JPG' if i == 4 else 'jpg'}" for i in (1, 2, 3, 4, 6, 7, 8, 9, 10)
    ]
    assert all(annotation.name == f"{image.stem}_ann.mat" for image, annotation in pairs.items() if annotation)
    assert [image.name for image, annotation in pairs.items() if not annotation] == ["img_0002.jpg"]
    assert len(problems) == 2
    assert "img_0002.jpg" in problems[0] and "img_0002_ann.mat" in problems[0]
    assert "img_0005_ann.mat" in problems[1] and "img_0005.jpg" in problems[1]


def test_find_refuses_missing_empty_and_ambiguous_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="Train: no such folder"):
        find_ucf(tmp_path / "Train")
    (tmp_path / "Train").mkdir()
    with pytest.raises(FileNotFoundError, match="no image"):
        find_ucf(tmp_path / "Train")
    for name in ("img_0001.jpg", "IMG_0001.jpg"):
        (tmp_path / "Train" / name).write_bytes(b"")
    with pytest.raises(ValueError, match="would be written under the name of IMG_0001.jpg too"):
        find_ucf(tmp_path / "Train")


def test_prepared_names():
    assert prepared_stem("img_0001") == "IMG_0001"
    for stem in ("0001", "IMG_7", "my_img_1", "image"):
        assert prepared_stem(stem) == stem
