"""JHU-Crowd++, NWPU-Crowd and ShanghaiTech through their scripts, compared with the truth point by point."""

import json
import shutil

import numpy as np
import pytest
from commands import call
from PIL import Image
from raw_data import contents, draw_points, errors, make_jhu, make_nwpu, make_sh, partials, record, times, write

from GS2D.points import FARTHEST, mean_neighbour_distance
from utils.files import list_images, points_path, read_points

SIZE = ["--min-size", "96", "--max-size", "96", "--workers", "1"]  # the raw images are 48 x 64: everything doubles


def run(name, source, output, *options, code=0):
    arguments = ["--input-dataset-path", source, "--output-dataset-path", output, *SIZE, *options]
    return call(f"preprocess_dataset_{name}.py", *arguments, code=code)


def check(image, truth, distance=None):
    """The prepared image holds the truth, doubled; a train npy the distance too."""
    stored = read_points(points_path(image))
    assert Image.open(image).size == (128, 96)
    assert stored.shape == (len(truth), 2 if distance is None else 3)
    np.testing.assert_allclose(stored[:, :2], 2 * np.asarray(truth).reshape(-1, 2), rtol=1e-6)
    if distance is not None:
        np.testing.assert_allclose(stored[:, 2], distance, rtol=1e-5)


def test_jhu(tmp_path):
    raw, out = make_jhu(tmp_path / "raw"), tmp_path / "out"
    before, raw_times = contents(raw), times(raw)
    run("jhu", raw, out)
    for split, counts in (("train", (0, 1, 5)), ("val", (2, 3)), ("test", (4, 0))):
        assert [image.name for image in list_images(out / split)] == [f"{i:04}.jpg" for i in range(1, len(counts) + 1)]
        for image, count in zip(list_images(out / split), counts, strict=True):
            heights = [2 * (4 + j) for j in range(count)] if split == "train" else None
            check(image, draw_points(count), heights)
    assert contents(raw) == before and times(raw) == raw_times
    report = json.loads((out / "dataset_report.json").read_text())
    assert (report["dataset"], report["crop_size"]) == ("jhu", 512)
    assert "nothing to do: all 7" in run("jhu", raw, out)[0]


def test_jhu_points_outside_and_wrong_files(tmp_path):
    raw = make_jhu(tmp_path / "raw")
    write(
        raw / "val" / "gt" / "0001.txt", "10 20 3 4 1 0\n64 48 3 4 1 0\n65 20 3 4 1 0\n-1 20 3 4 1 0\n1e300 2 3 4 0 0\n"
    )
    write(raw / "val" / "gt" / "0002.txt", "10 20 3 4 1 0\n10 20 3\n")
    write(raw / "train" / "gt" / "0002.txt", "10 20 3 1e300 1 0\n")
    out, err = run("jhu", raw, tmp_path / "out", code=1)
    assert "0001.jpg: 3 of 5 points lie outside" in out
    wrong = errors(err)
    assert len(wrong) == 3 and "0002.jpg: the annotated size" in wrong[0] and "0002.txt: line 2: 3 values" in wrong[1]
    check(tmp_path / "out" / "val" / "0001.jpg", [[10, 20], [64, 48]])
    assert not (tmp_path / "out" / "val" / "0002.jpg").exists() and not partials(tmp_path)


@pytest.mark.parametrize("kind, lists", [("mat", "{:04} 0 1\n"), ("json", "{:04}\r\n"), ("mat", "{:04}.jpg\n\n")])
def test_nwpu(tmp_path, kind, lists):
    raw, out = make_nwpu(tmp_path / "raw", kind == "mat", kind, lists), tmp_path / "out"
    before = contents(raw)
    text, err = run("nwpu", raw, out)
    for i in (1, 2, 3):
        truth = draw_points(i - 1)
        check(out / "train" / f"{i:04}.jpg", truth, mean_neighbour_distance(2 * truth))
    assert np.load(out / "train" / "0002.npy")[0, 2] == FARTHEST
    check(out / "val" / "0004.jpg", draw_points(3))
    assert {path.name for path in (out / "test").iterdir()} == {"0005.jpg", "0006.jpg"}
    entry = record(out)["test/0005.jpg"]
    assert (entry["points"], entry["dropped"], entry["height"], entry["width"]) == (None, 0, 96, 128)
    assert "its 2 images are written without points" in text and contents(raw) == before
    assert "nothing to do: all 6" in run("nwpu", raw, out)[0]
    (out / "test" / "0005.jpg").unlink()
    np.save(out / "test" / "0006.npy", np.zeros((3, 2)))  # as of a run before the lists changed
    assert "prepared 2 images" in run("nwpu", raw, out)[0]
    assert {path.name for path in (out / "test").iterdir()} == {"0005.jpg", "0006.jpg"}


def test_nwpu_images_that_change_between_test_and_train(tmp_path):
    raw, out = make_nwpu(tmp_path / "raw"), tmp_path / "out"
    run("nwpu", raw, out)
    write(raw / "train.txt", "0001\n0002\n")
    write(raw / "test.txt", "0003\n0005\n0006\n")
    assert "1 images changed their split" in run("nwpu", raw, out)[0]
    assert not (out / "train" / "0003.npy").exists() and not (out / "test" / "0003.npy").exists()
    assert (out / "test" / "0003.jpg").exists()


@pytest.mark.parametrize(
    "name, text, cause",
    [
        ("train", "0001 0 1\n0007 0 1\n", "train.txt: line 2: the input has no image 0007"),
        ("val", "0001 0 1\n", "val.txt: 0001 also in"),
        ("test", "0005\n0004\n", "test.txt: 0004 also in"),
        ("val", "0004 0\n", "val.txt: line 1: the input has no image 0004 0"),
        ("val", "\n", "val.txt: names no image"),
        ("val", None, "val.txt: No such file"),
    ],
)
def test_nwpu_lists_that_cannot_be(tmp_path, name, text, cause):
    raw = make_nwpu(tmp_path / "raw")
    (raw / f"{name}.txt").unlink()
    if text is not None:
        write(raw / f"{name}.txt", text)
    _, err = run("nwpu", raw, tmp_path / "out", code=1)
    assert err.count("\n") == 1 and err.startswith("error: ") and cause in err


def test_nwpu_missing_annotations_and_images_in_no_list(tmp_path):
    raw = make_nwpu(tmp_path / "raw")
    (raw / "mats" / "0002.mat").unlink()
    write(raw / "val.txt", "0003\n")
    write(raw / "train.txt", "0001\n0002\n")
    _, err = run("nwpu", raw, tmp_path / "out", code=1)
    assert "1 images are in none of the lists and are left out (first " in err and "0004.jpg)" in err
    assert len(errors(err)) == 2 and "0002.jpg: has neither mats/0002.mat nor" in errors(err)[0]


@pytest.mark.parametrize(
    "layout, folder, options",
    [
        ("part_A_final", "ground_truth", ["--part", "A"]),
        ("part_A", "ground-truth", []),
        ("part_B_final", "ground-truth", None),
        ("mine", "ground_truth", ["--part", "B"]),
    ],
)
def test_sh(tmp_path, layout, folder, options):
    part = make_sh(tmp_path / "raw" / layout, folder)
    before = contents(part)
    source = part if options is None or layout == "mine" else part.parent
    text, err = run("sh", source, tmp_path / "out", *(options or []))
    assert "split: 9 train and 1 val images (no lists given, seed 4073, val fraction 0.1)" in text
    assert "no official val split" in text and contents(part) == before
    report = json.loads((tmp_path / "out" / "dataset_report.json").read_text())
    assert (report["dataset"], report["crop_size"]) == (("sha", 256) if "A" in layout else ("shb", 512))
    images = {split: list_images(tmp_path / "out" / split) for split in ("train", "val", "test")}
    assert sorted(int(path.stem[4:]) for path in images["train"] + images["val"]) == list(range(1, 11))
    assert [path.stem for path in images["test"]] == ["IMG_1", "IMG_2"]
    for split, paths in images.items():
        for path in paths:
            truth = draw_points(int(path.stem[4:]))
            check(path, truth, mean_neighbour_distance(2 * truth) if split == "train" else None)


@pytest.mark.parametrize("name, make", [("jhu", make_jhu), ("nwpu", make_nwpu)])
def test_missing_folders_are_one_line(tmp_path, name, make):
    _, err = run(name, tmp_path / "nowhere", tmp_path / "out", code=1)
    assert err.startswith("error: ") and err.count("\n") == 1 and "nowhere" in err
    raw = make(tmp_path / "raw")
    shutil.rmtree(raw / ("val" if name == "jhu" else "images_part2"))
    _, err = run(name, raw, tmp_path / "out", code=1)
    assert err.startswith("error: ") and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_odd_images(tmp_path):
    """PNG named jpg, upper-case endings, links, grey and palette images are images like others."""
    raw, out = make_jhu(tmp_path / "raw"), tmp_path / "out"
    images = raw / "train" / "images"
    pixels = Image.open(images / "0001.jpg").copy()
    pixels.save(images / "0001.jpg", "PNG")
    (images / "0002.jpg").rename(images / "0002.JPEG")
    (images / "0003.jpg").rename(tmp_path / "elsewhere.jpg")
    (images / "0003.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    pixels.convert("L").save(raw / "val" / "images" / "0001.jpg")
    pixels.convert("L").convert("RGB").save(raw / "val" / "images" / "0002.png")
    (raw / "val" / "images" / "0002.jpg").unlink()
    run("jhu", raw, out)
    assert {name for name, entry in record(out).items() if entry["grey"]} == {"val/0001.jpg", "val/0002.jpg"}
    assert [image.name for image in list_images(out / "train")] == ["0001.jpg", "0002.jpg", "0003.jpg"]
    check(out / "train" / "0003.jpg", draw_points(5), [8, 10, 12, 14, 16])
    assert Image.open(out / "train" / "0001.jpg").format == "JPEG"
