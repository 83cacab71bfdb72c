"""The report of a prepared data set, against cases made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from datasets.report import RECORD, read_record, write_report

RECORDED = {"source": "raw.jpg", "points": 2, "dropped": 0, "grey": False, "orientation": 1, "made_from": {}}


def add(root, name, points=((5, 5), (20, 20)), size=(64, 48), seed=None, mode="RGB", **entry):
    """One prepared image of noise; ``points`` None: without annotations; an entry of the record if there is one."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(map(ord, name)) * 31 if seed is None else seed)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode)
    image.save(path)
    if points is not None:
        np.save(path.with_suffix(".npy"), np.array(points, np.float32).reshape(-1, 2))
    if entry:
        line = RECORDED | {"image": name, "width": size[0], "height": size[1]} | entry
        with (root / RECORD).open("a") as file:
            file.write(json.dumps(line) + "\n")
    return path


def report_of(root, capsys, dataset=None, crop_size=32):
    write_report(root, dataset, crop_size)
    out, err = capsys.readouterr()
    report = json.loads((root / "dataset_report.json").read_text())
    assert [line for line in err.splitlines()] == [f"warning: {w}" for w in report["errors"] + report["warnings"]]
    return report, out


@pytest.fixture
def plain(tmp_path):
    """Nothing is odd about this one."""
    for name in ("train/a.jpg", "train/b.jpg", "val/c.jpg", "test/d.jpg"):
        add(tmp_path, name)
    return tmp_path


def test_a_plain_set_has_neither_errors_nor_warnings(plain, capsys):
    add(plain, "train/e.jpg", [(1, 1), (9, 9), (30, 9), (40, 40), (50, 5)])
    report, out = report_of(plain, capsys)
    assert report["errors"] == report["warnings"] == [] and report["published"] == {}
    assert not any(report["findings"].values())
    train = report["splits"]["train"]
    assert (train["images"], train["annotated"], train["points"]) == (3, 3, 9)
    assert (train["min"], train["median"], train["mean"], train["max"]) == (2, 2, 3, 5)
    head, *rows = (line.split() for line in out.splitlines())
    assert head[:8] == ["split", "images", "annotated", "points", "min", "median", "mean", "max"]
    assert rows[0][:8] == ["train", "3", "3", "9", "2.0", "2.0", "3.0", "5.0"]
    assert [row[0] for row in rows] == ["train", "val", "test"]


def test_numbers_of_the_published_sets(plain, capsys):
    report, out = report_of(plain, capsys, "qnrf")
    assert report["published"]["images"] == {"train+val": [3, 1201], "test": [1, 334]}
    assert f"{plain}: 3 images in train and val, published are 1201" in report["warnings"]
    assert f"{plain}: 8 points with the dropped ones, published are 1,251,642" in report["warnings"]
    assert report["published"]["points"] == [8, 1_251_642]
    report, _ = report_of(plain, capsys, "jhu")
    assert report["warnings"][0].endswith("2 images in train, published are 2272") and len(report["warnings"]) == 3


def test_all_that_is_odd_is_found_and_named(plain, capsys):
    add(plain, "train/dropped.jpg", dropped=3)
    add(plain, "test/dropped.jpg", dropped=4)
    add(plain, "train/empty.jpg", [])
    np.save(plain / "val" / "c.npy", np.zeros(0, np.float32))
    add(plain, "train/twice.jpg", [(5, 5), (5, 5), (5, 5), (20, 20), (20.3, 20.3), (40, 20), (40.5, 20)])
    add(plain, "train/chain.jpg", [(1, 1), (1.4, 1), (1.8, 1)])
    add(plain, "train/small.jpg", size=(100, 31))
    add(plain, "test/small.jpg", size=(31, 100))
    add(plain, "train/cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    add(plain, "val/grey.jpg", grey=True)
    for name in ("train/x.jpg", "train/y.jpg", "test/z.jpg"):
        add(plain, name, seed=7)
    for name in ("val/u.jpg", "val/v.jpg"):  # in one split
        add(plain, name, seed=8)
    for name in ("train/lost.npy", "test/lost.npy"):
        add(plain, name.replace("npy", "jpg"), None)
    add(plain, "train/gone.jpg", dropped=0).unlink()
    (plain / "train" / "gone.npy").unlink()
    report, _ = report_of(plain, capsys, "own")
    assert report["findings"] == {
        "without_annotations": ["train/lost.jpg", "test/lost.jpg"],
        "without_points": ["train/empty.jpg", "val/c.jpg"],
        "dropped": {"train/dropped.jpg": 3, "test/dropped.jpg": 4},
        "duplicates": {"train/twice.jpg": 2},
        "close": {"train/twice.jpg": 2, "train/chain.jpg": 3},
        "smaller_than_crop": ["train/small.jpg", "test/small.jpg"],
        "jpeg_problems": {"train/cut.jpg": report["findings"]["jpeg_problems"]["train/cut.jpg"]},
        "grey": ["val/grey.jpg"],
        "turned": {},
        "in_two_splits": [["train/x.jpg", "train/y.jpg", "test/z.jpg"]],
    }
    again = "run preprocess_dataset_*.py again"
    expected = [
        f"{plain / 'test/lost.npy'}: no such annotation file; {again}",
        f"{plain / 'train/cut.jpg'}: cannot read this image (",
        f"{plain / 'train/gone.jpg'}: was prepared but is missing; {again}",
        f"{plain / 'train/lost.npy'}: no such annotation file; {again}",
        f"{plain / 'train/small.jpg'}: smaller than the crop of 32, so it cannot be trained on; lower --crop-size, or pre",
    ]
    assert all(error.startswith(line) for error, line in zip(sorted(report["errors"]), expected, strict=True))
    expected = [
        "train/x.jpg and train/y.jpg and test/z.jpg: the same picture in two splits; keep it in one",
        "7 points lay outside their image and were dropped, in 2 images (most in test/dropped.jpg: 4)",
        "2 points repeat another",
        "5 points lie closer than 0.5 pixels",
    ]
    assert all(warning.startswith(line) for warning, line in zip(report["warnings"], expected, strict=True))
    train, val = report["splits"]["train"], report["splits"]["val"]
    assert (train["dropped"], train["smaller_than_crop"], val["dropped"], val["without_points"]) == (3, 1, 0, 1)


def test_bad_annotations(plain, capsys):
    outside = "1 points lie outside the image of 64 x 48, as "
    for contents, message in (
        ([[1, np.nan]], "points must be finite"),
        ([[60.0, 20.0], [66.0, 20.0]], f"{outside}[66.0, 20.0]"),
        ([[-1.1, 5.0]], outside),
    ):
        np.save(plain / "train" / "a.npy", np.array(contents))
        (error,) = report_of(plain, capsys)[0]["errors"]
        assert message in error and "train/a.npy" in error


def test_a_test_split_without_annotations(tmp_path, capsys):
    for name in ("train/a.jpg", "val/b.jpg"):
        add(tmp_path, name)
    for name in ("test/c.jpg", "test/d.jpg"):
        add(tmp_path, name, None)
    report, out = report_of(tmp_path, capsys)
    assert report["findings"]["without_annotations"] == ["test/c.jpg", "test/d.jpg"] and not report["errors"]
    assert len(report["warnings"]) == 1 and "no image has annotations" in report["warnings"][0]
    assert report["splits"]["test"]["annotated"] == 0 and report["splits"]["test"]["mean"] is None and " - " in out
    report, _ = report_of(tmp_path, capsys, "nwpu")
    assert not any("annotations" in warning for warning in report["warnings"])


def test_the_record_survives_damage(tmp_path):
    assert read_record(tmp_path) == {}
    entry = RECORDED | {"image": "train/a.jpg", "height": 48, "width": 64}
    lines = [entry, [1], 5, {"image": 3}, entry | {"dropped": "many"}, entry | {"dropped": 2}]
    text = "\n".join(map(json.dumps, lines)).encode()
    (tmp_path / RECORD).write_bytes(text + b'\n\xff\xfe\n{"image": "train/b.j')
    assert read_record(tmp_path) == {"train/a.jpg": entry | {"dropped": 2}}


def test_missing_and_empty_folders(tmp_path, capsys):
    (tmp_path / "val").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "notes.txt").touch()
    report, _ = report_of(tmp_path, capsys)
    assert report["splits"] == {} and "holds no images in train, val or test" in report["errors"][0]
    add(tmp_path, "train/a.jpg")
    report, _ = report_of(tmp_path, capsys)
    assert list(report["splits"]) == ["train"] and report["errors"] == []
