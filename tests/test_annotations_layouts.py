"""JHU-Crowd++, NWPU-Crowd and ShanghaiTech: finding and reading their annotations."""

import json

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_data import draw_points, image_info, make_jhu, make_nwpu, make_sh, save_noise, write

from datasets.raw.annotations import find_jhu, find_nwpu, find_sh, find_sh_part, read_jhu, read_nwpu, read_sh


def one_line(function, *arguments, kind=ValueError):
    with pytest.raises(kind) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message and ";" in message
    return message


def test_jhu_heads(tmp_path):
    path = write(tmp_path / "0001.txt", "10 20 6 8 1 0\n30.5 40.25 7 9.5 3 1\n")
    read = read_jhu(path)
    assert read.dtype == np.float64 and read.tolist() == [[10, 20, 8], [30.5, 40.25, 9.5]]


@pytest.mark.parametrize("text", ["", "\n", "\r\n \n", b"\xef\xbb\xbf"])
def test_jhu_files_without_heads(tmp_path, text):
    assert read_jhu(write(tmp_path / "0001.txt", text)).shape == (0, 3)


def test_jhu_windows_files(tmp_path):
    path = write(tmp_path / "0001.txt", b"\xef\xbb\xbf10 20 6 8 1 0\r\n\r\n30\t40 7 9 3 1\r\n")
    assert read_jhu(path).tolist() == [[10, 20, 8], [30, 40, 9]]


@pytest.mark.parametrize(
    "line, cause",
    [
        ("10 20 6 8 1", "5 values"),
        ("10,20,6,8,1,0", "1 values"),
        ("10,5 20 6 8 1 0", "'10,5'"),
        ("10 20 6 8 1 0 0", "7 values"),
        ("x y w h occlusion blur", "'x'"),
        ("10 nan 6 8 1 0", "'nan'"),
        ("10 1e999 6 8 1 0", "'1e999'"),
        ("1_0 20 6 8 1 0", "'1_0'"),
        ("١٢ 20 6 8 1 0", "is no finite number"),
        ("10 20 6 -8 1 0", "6 x -8"),
    ],
)
def test_jhu_lines_that_are_wrong(tmp_path, line, cause):
    path = write(tmp_path / "0001.txt", f"10 20 6 8 1 0\n\n{line}\n")
    message = one_line(read_jhu, path)
    assert f"{path}: line 3: " in message and cause in message


def test_jhu_text_of_another_encoding(tmp_path):
    assert "UTF-8" in one_line(read_jhu, write(tmp_path / "0001.txt", "10 20 6 8 1 0".encode("utf-16")))


def test_huge_numbers_stay_numbers(tmp_path):
    assert read_jhu(write(tmp_path / "a.txt", "1e300 -1e300 1 1 0 0")).tolist() == [[1e300, -1e300, 1]]


def test_find_jhu(tmp_path):
    make_jhu(tmp_path)
    (tmp_path / "train" / "gt" / "0001.txt").rename(tmp_path / "train" / "gt" / "0001.TXT")
    (tmp_path / "train" / "images" / "0002.jpg").rename(tmp_path / "train" / "images" / "0002.JPG")
    (tmp_path / "train" / "gt" / "0003.txt").rename(tmp_path / "train" / "gt" / "0004.txt")
    write(tmp_path / "train" / "gt" / "._0001.txt", b"what a Mac leaves in archives")
    pairs, problems = find_jhu(tmp_path / "train")
    named = {image.name: annotation and annotation.name for image, annotation in pairs.items()}
    assert named == {"0001.jpg": "0001.TXT", "0002.JPG": "0002.txt", "0003.jpg": None}
    assert ["0003.txt is missing" in problems[0], "0004.jpg is missing" in problems[1], len(problems)] == [
        True,
        True,
        2,
    ]
    assert "no such folder" in one_line(find_jhu, tmp_path / "nowhere", kind=FileNotFoundError)


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("kind", ["mat", "json"])
def test_nwpu(tmp_path, parts, kind):
    make_nwpu(tmp_path, parts, kind)
    pairs, problems = find_nwpu(tmp_path)
    assert problems == [] and [image.name for image in pairs] == [f"{i:04}.jpg" for i in range(1, 7)]
    for i, annotation in enumerate(pairs.values(), start=1):
        if i < 5:
            assert annotation.suffix == f".{kind}"
            np.testing.assert_array_equal(read_nwpu(annotation), draw_points(i - 1))
            assert read_nwpu(annotation).dtype == np.float64
        else:
            assert annotation is None


def test_nwpu_prefers_mats_and_fills_up_from_jsons(tmp_path):
    make_nwpu(tmp_path)
    for i in (1, 5):
        write(tmp_path / "jsons" / f"{i:04}.json", {"points": []})
    write(tmp_path / "jsons" / "0009.json", {"points": []})
    pairs, problems = find_nwpu(tmp_path)
    assert [path and path.parent.name for path in pairs.values()] == ["mats"] * 4 + ["jsons", None]
    assert len(problems) == 1 and "0009.jpg is missing" in problems[0]


def test_nwpu_folders_that_cannot_be(tmp_path):
    assert "nowhere" in one_line(find_nwpu, tmp_path / "nowhere", kind=FileNotFoundError)
    assert "images_part1" in one_line(find_nwpu, tmp_path, kind=FileNotFoundError)
    save_noise(tmp_path / "images_part1" / "0001.jpg")
    assert "mats/ or jsons/" in one_line(find_nwpu, tmp_path, kind=FileNotFoundError)
    write(tmp_path / "jsons" / "0001.json", {"points": []})
    save_noise(tmp_path / "images_part2" / "0001.jpg")
    message = one_line(find_nwpu, tmp_path)
    assert "images_part1" in message and "images_part2" in message


@pytest.mark.parametrize(
    "contents, cause",
    [
        ({"human_num": 1}, "no list 'points'"),
        ([[1, 2]], "no list 'points'"),
        ({"points": {"x": 1}}, "no list 'points'"),
        ({"points": [[1, 2], [3]]}, "point 2"),
        ({"points": [[1, 2, 3]]}, "point 1"),
        ({"points": [[1, "2"]]}, "'2' is no finite number"),
        ({"points": [[1, True]]}, "True is no finite"),
        ({"points": [[1, None]]}, "None is no finite"),
        ('{"points": [[1, NaN]]}', "nan is no finite"),
        ('{"points": [[1, 1e999]]}', "inf is no finite"),
        ('{"points": [[1, 1' + "0" * 400 + "]]}", "is no finite"),
        ('{"points": [[1, 2]], "points": []}', "there twice"),
        ('{"a": 1,\n"points": [[1, 2], }', "line 2"),
        ("", "line 1"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_nwpu_json_that_is_wrong(tmp_path, contents, cause):
    path = write(tmp_path / "0001.json", contents)
    message = one_line(read_nwpu, path)
    assert str(path) in message and cause in message and len(message) < 400


def test_every_truncated_json_is_one_line(tmp_path):
    whole = json.dumps({"img_id": "0001.jpg", "human_num": 3, "points": [[1, 2.5], [3, 4], [5, 6]]})
    for length in range(len(whole)):
        assert "0001.json: line 1: not valid JSON" in one_line(read_nwpu, write(tmp_path / "0001.json", whole[:length]))


@pytest.mark.parametrize("folder", ["ground_truth", "ground-truth"])
def test_sh(tmp_path, folder):
    make_sh(tmp_path / "part_A_final", folder, train=3, test=1)
    pairs, problems = find_sh(tmp_path / "part_A_final" / "train_data")
    assert problems == [] and [image.name for image in pairs] == ["IMG_1.jpg", "IMG_2.jpg", "IMG_3.jpg"]
    for i, annotation in enumerate(pairs.values(), start=1):
        np.testing.assert_array_equal(read_sh(annotation), draw_points(i))


def test_sh_without_points_and_with_one(tmp_path):
    for points in (np.zeros((0, 2)), [[3.0, 4.0]]):
        scipy.io.savemat(tmp_path / "GT_IMG_1.mat", {"image_info": image_info(points)})
        assert read_sh(tmp_path / "GT_IMG_1.mat").tolist() == np.asarray(points).tolist()


@pytest.mark.parametrize(
    "contents, cause",
    [
        ({"annPoints": np.ones((3, 2))}, "no key image_info (keys found: annPoints)"),
        ({"image_info": np.ones((3, 3))}, "shape [3, 3]"),
        ({"image_info": {"number": 3.0}}, "without location"),
        ({"image_info": "text"}, "text instead of numbers"),
        ({"image_info": np.array([["a", "b"]], object)}, "cells or structs"),
        ({"image_info": np.empty((0, 0), object)}, "cells or structs"),
        ({"image_info": {"location": np.array([[1.0, np.nan]])}}, "row 1"),
    ],
)
def test_sh_that_is_wrong(tmp_path, contents, cause):
    scipy.io.savemat(tmp_path / "GT_IMG_1.mat", contents)
    message = one_line(read_sh, tmp_path / "GT_IMG_1.mat")
    assert "GT_IMG_1.mat" in message and cause in message


def test_find_sh_reports_what_is_single(tmp_path):
    part = make_sh(tmp_path / "part_A", train=3)
    (part / "train_data" / "ground_truth" / "GT_IMG_2.mat").rename(
        part / "train_data" / "ground_truth" / "GT_IMG_9.mat"
    )
    pairs, problems = find_sh(part / "train_data")
    assert [bool(annotation) for annotation in pairs.values()] == [True, False, True]
    assert "GT_IMG_2.mat is missing" in problems[0] and "IMG_9.jpg is missing" in problems[1]
    (part / "train_data" / "ground-truth").mkdir()
    assert "holds both" in one_line(find_sh, part / "train_data", kind=FileNotFoundError)
    for name in ("ground_truth", "ground-truth"):
        (part / "train_data" / name).rename(part / "train_data" / f"no-{name}")
    assert "no such folder; a part of ShanghaiTech holds" in one_line(
        find_sh, part / "train_data", kind=FileNotFoundError
    )


def test_the_part_of_sh(tmp_path):
    for name in ("part_A_final", "part_B", "elsewhere"):
        (tmp_path / name / "train_data").mkdir(parents=True)
    assert find_sh_part(tmp_path, "A") == (tmp_path / "part_A_final", "A")
    assert find_sh_part(tmp_path, "B") == (tmp_path / "part_B", "B")
    assert find_sh_part(tmp_path / "part_B", None) == (tmp_path / "part_B", "B")
    assert find_sh_part(tmp_path / "elsewhere", "B") == (tmp_path / "elsewhere", "B")
    assert "--part" in one_line(find_sh_part, tmp_path, None)
    assert "--part" in one_line(find_sh_part, tmp_path / "elsewhere", None)
    assert "is part B" in one_line(find_sh_part, tmp_path / "part_B", "A")
    assert "holds no part_A" in one_line(find_sh_part, tmp_path / "part_B" / "train_data", "A")


LINES = st.lists(st.one_of(st.just("10 20 6 8 1 0"), st.text(max_size=20), st.just("1e9 2 3 4 5 6")), max_size=6)


@settings(max_examples=150, deadline=None)
@given(LINES, st.sampled_from(["\n", "\r\n", "\r", ","]), st.booleans())
def test_fuzzed_jhu_files(tmp_path_factory, lines, end, mark):
    text = end.join(lines).encode("utf-8", "surrogatepass")
    path = write(tmp_path_factory.getbasetemp() / "fuzz.txt", (b"\xef\xbb\xbf" if mark else b"") + text)
    try:
        heads = read_jhu(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert heads.shape == (len([line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]), 3)
        assert np.isfinite(heads).all()


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["points", "x"]), inner)),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.integers(0, 3))
def test_fuzzed_nwpu_files(tmp_path_factory, value, cut):
    text = json.dumps({"points": value})
    path = write(tmp_path_factory.getbasetemp() / "fuzz.json", text[: len(text) - cut])
    try:
        points = read_nwpu(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert points.tolist() == [[float(x), float(y)] for x, y in value]
