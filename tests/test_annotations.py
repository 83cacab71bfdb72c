"""The published data sets: finding their annotations, and reading them."""

import shutil

import numpy as np
import pytest
import scipy.io
from raw_data import TREES, draw_points, image_info, make_nwpu, make_sh, save_noise, write

from datasets.raw.annotations import find_nwpu, find_sh, find_sh_part, find_ucf, read_jhu, read_nwpu, read_sh, read_ucf


def refused(function, *arguments, kind=ValueError):
    with pytest.raises(kind) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message and ";" in message and str(arguments[0]) in message and len(message) < 400
    return message


def save(path, **contents):
    scipy.io.savemat(path, contents)
    return path


@pytest.mark.parametrize("shape", [(0,), (0, 0), (0, 2), (1, 0), (2, 0)])
def test_no_points(tmp_path, shape):
    assert read_ucf(save(tmp_path / "a_ann.mat", annPoints=np.zeros(shape))).shape == (0, 2)


NAN = np.ones((5, 2))
NAN[3, 1] = np.nan


@pytest.mark.parametrize(
    "read, contents, cause",
    [
        (read_ucf, {"points": np.ones((3, 2)), "other": 1}, "no key annPoints (keys found: other, points)"),
        (read_ucf, {"annPoints": np.ones((3, 3))}, "shape [3, 3]"),
        (read_ucf, {"annPoints": NAN}, "row 4"),
        (read_ucf, {"annPoints": "text"}, "instead of numbers; store the points as a numeric array"),
        (read_ucf, {"annPoints": {"x": 1.0}}, "a struct without location (fields: x)"),
        (read_ucf, {"annPoints": np.array([[1 + 2j, 3]])}, "complex numbers"),
        (read_ucf, {"annPoints": np.array([[1.0, "two"]], object)}, "an array of 2 cells"),
        (read_ucf, {"annPoints": scipy.sparse.csc_array(np.eye(2))}, "instead of numbers"),
    ],
)
def test_matlab_files_that_are_wrong(tmp_path, read, contents, cause):
    assert cause in refused(read, save(tmp_path / "a_ann.mat", **contents))


def test_matlab_files_that_are_none(tmp_path):
    path = tmp_path / "a_ann.mat"
    refused(read_ucf, path, kind=FileNotFoundError)
    path.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(400))
    assert "-v7" in refused(read_ucf, path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(300))
    assert "-v7" in refused(read_ucf, path)
    scipy.io.savemat(path, {"annPoints": np.ones((3, 2))}, format="4")
    assert "-v7" in refused(read_ucf, path)
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="a_ann.mat"):
        read_ucf(path)


def test_ucf(tmp_path):
    train = tmp_path / "Train"
    refused(find_ucf, train, kind=FileNotFoundError)
    shutil.copytree(TREES / "Train", train)
    (train / "img_0002_ann.mat").unlink()
    (train / "img_0005.jpg").unlink()
    (train / "._img_0007_ann.mat").write_bytes(b"what a Mac leaves in archives")
    (train / "img_0004.jpg").rename(train / "img_0004.JPG")
    (train / "img_0006_ann.mat").rename(train / "img_0006_ann.MAT")
    pairs, (first, second) = find_ucf(train)
    annotations = {image.name: annotation and annotation.name for image, annotation in pairs.items()}
    expected = {f"img_{i:04}.{'JPG' if i == 4 else 'jpg'}": f"img_{i:04}_ann.mat" for i in range(1, 11) if i != 5}
    assert annotations == expected | {"img_0002.jpg": None, "img_0006.jpg": "img_0006_ann.MAT"}
    assert "img_0002.jpg: its annotation img_0002_ann.mat is missing" in first
    assert "img_0005_ann.mat: its image img_0005.jpg is missing" in second
    (train / "IMG_0001.jpg").write_bytes(b"")
    assert "would be written under the name of IMG_0001.jpg too" in refused(find_ucf, train)
    (tmp_path / "Test").mkdir()
    assert "no image" in refused(find_ucf, tmp_path / "Test", kind=FileNotFoundError)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("10 20 6 8 1 0\n30.5 40.25 7 9.5 3 1\n", [[10, 20, 8], [30.5, 40.25, 9.5]]),
        (b"\xef\xbb\xbf10 20 6 8 1 0\r\n\r\n30\t40 7 9 3 1\r\n", [[10, 20, 8], [30, 40, 9]]),
        ("", []),
    ],
)
def test_jhu_heads(tmp_path, text, expected):
    read = read_jhu(write(tmp_path / "0001.txt", text))
    assert read.dtype == np.float64 and read.shape == (len(expected), 3) and read.tolist() == expected


@pytest.mark.parametrize(
    "line, cause",
    [
        ("10,20,6,8,1,0", "1 values"),
        ("10,5 20 6 8 1 0", "'10,5'"),
        ("1_0 20 6 8 1 0", "'1_0'"),
        ("١٢ 20 6 8 1 0", "is no finite number"),
        ("10 20 6 -8 1 0", "6 x -8"),
    ],
)
def test_jhu_lines_that_are_wrong(tmp_path, line, cause):
    path = write(tmp_path / "0001.txt", f"10 20 6 8 1 0\n\n{line}\n")
    message = refused(read_jhu, path)
    assert f"{path}: line 3: " in message and cause in message


@pytest.mark.parametrize("parts, kind", [(False, "mat"), (True, "json")])
def test_nwpu(tmp_path, parts, kind):
    make_nwpu(tmp_path, parts, kind)
    pairs, problems = find_nwpu(tmp_path)
    assert problems == [] and [image.name for image in pairs] == [f"{i:04}.jpg" for i in range(1, 7)]
    *annotated, fifth, sixth = pairs.values()
    assert fifth is None and sixth is None
    for i, annotation in enumerate(annotated):
        assert annotation.suffix == f".{kind}" and read_nwpu(annotation).dtype == np.float64
        np.testing.assert_array_equal(read_nwpu(annotation), draw_points(i))


def test_nwpu_prefers_mats_and_fills_up_from_jsons(tmp_path):
    make_nwpu(tmp_path)
    for i in (1, 5, 9):
        write(tmp_path / "jsons" / f"{i:04}.json", {"points": []})
    pairs, problems = find_nwpu(tmp_path)
    assert [path and path.parent.name for path in pairs.values()] == ["mats"] * 4 + ["jsons", None]
    assert len(problems) == 1 and "0009.jpg is missing" in problems[0]


def test_nwpu_folders_that_cannot_be(tmp_path):
    assert "images_part1" in refused(find_nwpu, tmp_path, kind=FileNotFoundError)
    save_noise(tmp_path / "images_part1" / "0001.jpg")
    assert "mats/ or jsons/" in refused(find_nwpu, tmp_path, kind=FileNotFoundError)


@pytest.mark.parametrize(
    "contents, cause",
    [
        ([[1, 2]], "no list 'points'"),
        ({"points": [[1, 2], [3]]}, "point 2"),
        ({"points": [[1, "2"]]}, "'2' is no finite number"),
        ('{"points": [[1, 1' + "0" * 400 + "]]}", "is no finite"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_nwpu_json_that_is_wrong(tmp_path, contents, cause):
    assert cause in refused(read_nwpu, write(tmp_path / "0001.json", contents))


@pytest.mark.parametrize("folder", ["ground_truth", "ground-truth"])
def test_sh(tmp_path, folder):
    data = make_sh(tmp_path / "part_A_final", folder, train=3, test=1) / "train_data"
    pairs, problems = find_sh(data)
    assert problems == [] and [image.name for image in pairs] == ["IMG_1.jpg", "IMG_2.jpg", "IMG_3.jpg"]
    for i, annotation in enumerate(pairs.values(), start=1):
        np.testing.assert_array_equal(read_sh(annotation), draw_points(i))
    assert read_sh(save(tmp_path / "none.mat", image_info=image_info(np.zeros((0, 2))))).shape == (0, 2)
    (data / folder).rename(data / "truth")
    assert "no such folder; the input path must hold" in refused(find_sh, data, kind=FileNotFoundError)


def test_the_part_of_sh(tmp_path):
    for name in ("part_A_final", "part_B", "elsewhere"):
        (tmp_path / name / "train_data").mkdir(parents=True)
    assert find_sh_part(tmp_path, "A") == (tmp_path / "part_A_final", "A")
    assert find_sh_part(tmp_path, "B") == (tmp_path / "part_B", "B")
    assert find_sh_part(tmp_path / "part_B", None) == (tmp_path / "part_B", "B")
    assert find_sh_part(tmp_path / "elsewhere", "B") == (tmp_path / "elsewhere", "B")
    assert "--part" in refused(find_sh_part, tmp_path, None)
    assert "--part" in refused(find_sh_part, tmp_path / "elsewhere", None)
    assert "holds no part A by its name" in refused(find_sh_part, tmp_path / "part_B", "A")
    (tmp_path / "part_A" / "train_data").mkdir(parents=True)
    assert "part_A_final and part_A" in refused(find_sh_part, tmp_path, "A")
