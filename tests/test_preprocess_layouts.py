"""The published data sets through their scripts, compared with the truth point by point."""

import json
import shutil

import numpy as np
import pytest
from commands import call, errors
from PIL import Image
from raw_data import contents, make_jhu, make_nwpu, make_ucf50, partials, record, save_noise, times, write

from datasets.raw.annotations import prepared_stem
from datasets.raw.preprocess import resized_size
from GS2D.points import FARTHEST, mean_neighbour_distance
from utils.files import points_path, read_points

SCRIPTS = {"qnrf": "ucf", "jhu": "jhu", "nwpu": "nwpu", "sha": "sh", "shb": "sh", "ucf50": "ucf50"}
CROPS = {"sha": 256, "nwpu": 384}


def run(name, source, output, *options, code=0):
    arguments = ["--input-dataset-path", source, "--output-dataset-path", output, "--min-size", 32, "--workers", 1]
    return call(f"preprocess_dataset_{name}.py", *arguments, *options, code=code)


def points(image):
    return read_points(points_path(image))[:, :2].tolist()


@pytest.mark.parametrize("layout", SCRIPTS)
def test_every_layout_gives_the_truth(tmp_path, layout):
    raw, out = tmp_path / "raw", tmp_path / "out"
    options = ["--images", 10, "--height", 64, "--width", 80, "--min-people", 3, "--max-people", 40, "--workers", 1]
    call("datasets/synthetic.py", "--layout", layout, "--out", raw, *options)
    before, raw_times = contents(raw), times(raw)
    size = ("--min-size", 100, "--max-size", 110, *(("--fold", 3) if layout == "ucf50" else ()))
    text, err = run(SCRIPTS[layout], raw, out, *size)
    assert not errors(err) and contents(raw) == before and times(raw) == raw_times
    assert ("no official val split" in text) == (layout in ("sha", "shb"))
    report = json.loads((out / "dataset_report.json").read_text())
    assert (report["dataset"], report["crop_size"]) == (layout, CROPS.get(layout, 512))

    entries = record(out)
    by_source = {entry["source"]: entry for entry in entries.values()}
    truth = json.loads((raw / "truth.json").read_text())["images"]
    assert len(truth) == len(entries) == 10 and sum(len(item["points"]) for item in truth) > 20
    for item in truth:
        entry = by_source[str(raw / item["image"])]
        prepared = out / entry["image"]
        split = item["split"].split("_")[0].lower()
        assert prepared.stem == prepared_stem((raw / item["image"]).stem)
        assert prepared.parent.name in {"train": ("train", "val"), "": ("train", "val", "test")}.get(split, (split,))
        assert layout != "shb" or (item["height"], item["width"]) == (64, 80)  # the one data set of one size
        height, width, ratio = resized_size(item["height"], item["width"], 100, 110)
        assert Image.open(prepared).size == (width, height) == (entry["width"], entry["height"])
        if layout == "nwpu" and split == "test":
            assert entry["points"] is None and not points_path(prepared).exists()
            continue
        stored = read_points(points_path(prepared))
        assert len(stored) == entry["points"] == len(item["points"]) and entry["dropped"] == 0
        rounding = 0.5 if layout == "jhu" else 1e-4  # JHU-Crowd++ is annotated in whole pixels
        expected = np.reshape(item["points"], (-1, 2)) * ratio
        np.testing.assert_allclose(stored[:, :2], expected, rtol=1e-6, atol=rounding * ratio)
        assert stored.shape[1] == (3 if prepared.parent.name == "train" else 2)
        if prepared.parent.name == "train":
            heads = (raw / item["image"]).parents[1] / "gt" / f"{prepared.stem}.txt"
            distances = mean_neighbour_distance(stored[:, :2])
            distances = np.loadtxt(heads, ndmin=2)[:, 3] * ratio if layout == "jhu" else distances
            np.testing.assert_allclose(stored[:, 2], distances, rtol=1e-6)
    assert "nothing to do: all 10" in run(SCRIPTS[layout], raw, out, *size)[0]


def test_jhu_points_outside_and_wrong_files(tmp_path):
    raw, out = make_jhu(tmp_path / "raw"), tmp_path / "out"
    lines = "10 20 3 4 1 0\n64 48 3 4 1 0\n65 20 3 4 1 0\n-1 20 3 4 1 0\n1e300 2 3 4 0 0\n"
    write(raw / "val" / "gt" / "0001.txt", lines)
    write(raw / "val" / "gt" / "0002.txt", "10 20 3 4 1 0\n10 20 3\n")
    write(raw / "train" / "gt" / "0002.txt", "10 20 3 1e300 1 0\n")
    text, err = run("jhu", raw, out, code=1)
    assert "0001.jpg: 3 of 5 points lie outside" in text
    wrong = errors(err)
    assert len(wrong) == 3 and "0002.jpg: the annotated size" in wrong[0] and "0002.txt: line 2: 3 values" in wrong[1]
    assert points(out / "val" / "0001.jpg") == [[10, 20], [64, 48]]
    assert not (out / "val" / "0002.jpg").exists() and not partials(tmp_path)


def test_nwpu_test_images_have_no_points(tmp_path):
    raw, out = make_nwpu(tmp_path / "raw", lists="{:04}.jpg\r\n\n"), tmp_path / "out"
    text, _ = run("nwpu", raw, out)
    assert np.load(out / "train" / "0002.npy")[0, 2] == FARTHEST and "its 2 images are written without points" in text
    (out / "test" / "0005.jpg").unlink()
    np.save(out / "test" / "0006.npy", np.zeros((3, 2)))  # as of a run before the lists changed
    assert "prepared 2 images" in run("nwpu", raw, out)[0]
    assert {path.name for path in (out / "test").iterdir()} == {"0005.jpg", "0006.jpg"}
    write(raw / "train.txt", "0001\n0002\n")
    write(raw / "test.txt", "0003\n0005\n0006\n")
    assert "1 images changed their split" in run("nwpu", raw, out)[0]
    assert not (out / "train" / "0003.npy").exists() and not (out / "test" / "0003.npy").exists()
    assert (out / "test" / "0003.jpg").exists()


def test_nwpu_missing_annotations_and_images_in_no_list(tmp_path):
    raw = make_nwpu(tmp_path / "raw")
    (raw / "mats" / "0002.mat").unlink()
    write(raw / "val.txt", "0003\n")
    write(raw / "train.txt", "0001\n0002\n")
    _, err = run("nwpu", raw, tmp_path / "out", code=1)
    assert "1 images are in none of the lists and are left out (first " in err and "0004.jpg)" in err
    assert len(errors(err)) == 2 and "0002.jpg: has neither mats/0002.mat nor" in errors(err)[0]


def test_the_folds_of_ucf50(tmp_path):
    raw = make_ucf50(tmp_path / "raw" / "UCF_CC_50")
    _, err = run("ucf50", raw.parent, tmp_path / "out", "--fold", 1)  # the folder that holds UCF_CC_50
    entries = record(tmp_path / "out")
    assert len(entries) == 50 and not errors(err)
    assert {name for name in entries if name.startswith("test/")} == {f"test/{i}.jpg" for i in range(1, 11)}
    assert entries["test/7.jpg"]["points"] == 6 and entries["test/7.jpg"]["dropped"] == 1
    assert sum(name.startswith("val/") for name in entries) == 4
    assert "1,275 points with the dropped ones, published are 63,974" in err and "published are 40" not in err


def test_wrong_folds_and_names_of_ucf50(tmp_path):
    assert "argument --fold: invalid choice: 6" in run("ucf50", tmp_path, tmp_path / "out", "--fold", 6, code=2)[1]
    path = save_noise(tmp_path / "in" / "people.jpg")
    for name, remedy in (
        ("people.jpg", "calls its images 1.jpg to 50.jpg; rename"),
        ("3.jpg", "0 image(s) cannot be divided"),
    ):
        path = path.rename(path.with_name(name))
        assert remedy in errors(run("ucf50", tmp_path / "in", tmp_path / "out", "--fold", 1, code=1)[1])[0]


@pytest.mark.parametrize("name, make", [("jhu", make_jhu), ("nwpu", make_nwpu)])
def test_missing_folders_are_one_line(tmp_path, name, make):
    raw = make(tmp_path / "raw")
    shutil.rmtree(raw / ("val" if name == "jhu" else "images_part2"))
    for source in (tmp_path / "nowhere", raw):
        _, err = run(name, source, tmp_path / "out", code=1)
        assert err.startswith("error: ") and str(source) in err
        assert err.count("\n") == 1 and not (tmp_path / "out").exists()
