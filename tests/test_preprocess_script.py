"""preprocess_dataset_ucf.py as it is run: first, again, interrupted, and on what cannot be."""

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import scipy.io
from commands import call, errors
from raw_data import SMALL, TREES, contents, make_raw, partials, prepared, record, times

from utils.files import list_images, points_path


def run(source, output, *options, code=0):
    paths = ("--origin-dir", source, "--data-dir", output)  # as the released script has them
    return call("preprocess_dataset_ucf.py", *paths, *SMALL, *options, code=code)


def test_trees(tmp_path):
    raw, one, two = tmp_path / "raw", tmp_path / "one", tmp_path / "two"
    shutil.copytree(TREES, raw)
    before, raw_times = contents(raw), times(raw)
    sizes = ("--min-size", 512, "--max-size", 2048)
    out, err = run(raw, one, *sizes)
    assert not errors(err) and "published are 334" in err
    assert "9 train and 1 val images (no lists given, seed 4073" in out and "prepared 14 images" in out
    done = [(name.split("/")[0], entry) for name, entry in record(one).items()]
    assert [sum(split == name for split, _ in done) for name in ("train", "val", "test")] == [9, 1, 4]
    assert sum(entry["points"] for split, entry in done if split != "test") == 327
    assert sum(entry["points"] for split, entry in done if split == "test") == 279
    assert all(entry["dropped"] == 0 and entry["grey"] is False for _, entry in done)
    assert [len(list_images(one / split)) for split in ("train", "val", "test")] == [9, 1, 4]
    assert np.load(one / "train" / "IMG_0001.npy")[0, 2] == 128

    run(raw, two, *sizes, "--workers", 2)
    assert prepared(one) == prepared(two) and not partials(tmp_path)
    written = times(one)
    assert "nothing to do: all 14 images" in run(raw, one, *sizes)[0] and times(one) == written
    assert contents(raw) == before and times(raw) == raw_times


def test_what_can_be_done_is_done_and_the_rest_is_named(tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(TREES, raw)
    train = raw / "Train"
    (train / "img_0001_ann.mat").unlink()
    (train / "img_0002.jpg").unlink()
    (train / "img_0004.jpg").write_bytes((train / "img_0004.jpg").read_bytes()[:50_000])
    scipy.io.savemat(train / "img_0006_ann.mat", {"annPoints": [[1.0, 2.0], [np.nan, 3.0]]})
    (raw / "Test" / "img_0053_ann.mat").unlink()
    scipy.io.savemat(raw / "Test" / "img_0052_ann.mat", {"annPoints": [[1.0, 2.0], [9000.0, 3.0]]})
    out, err = run(raw, tmp_path / "out", "--min-size", 64, code=1)
    lines = errors(err)
    assert len(lines) == 6 and lines[-1].startswith("error: 5 of 14 ")
    expected = {
        "img_0001.jpg": "img_0001_ann.mat is missing",
        "img_0002_ann.mat": "img_0002.jpg is missing",
        "img_0004.jpg": "truncated",
        "img_0006_ann.mat": "row 2",
        "img_0053.jpg": "img_0053_ann.mat is missing",
    }
    for name, cause in expected.items():
        assert [line for line in lines if name in line and cause in line and ";" in line], name
    assert "img_0052.jpg: 1 of 2 points lie outside the image and are dropped" in out
    finished = {path.name for path in (tmp_path / "out").glob("*/*.jpg")}
    assert finished == {f"IMG_{i:04}.jpg" for i in (3, 5, 7, 8, 9, 10, 51, 52, 54)}
    assert {path.with_suffix(".jpg").name for path in (tmp_path / "out").glob("*/*.npy")} == finished
    assert not partials(tmp_path)


def test_a_disk_that_takes_no_more_leaves_nothing_half_written(tmp_path):
    raw = make_raw(tmp_path / "raw", size=(300, 300))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, limits[1])
    )  # bytes a file; the images need more, the rest does not
    try:
        _, err = run(raw, tmp_path / "out", "--quality", 95, "--max-size", 300, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    lines = err.splitlines()
    assert len(lines) == 9 and all("IMG_" in line and "cannot write this file" in line for line in lines[:-1])
    assert not list((tmp_path / "out").glob("*/*")) and not list((tmp_path / "out").glob("*/.*"))


def test_only_what_changed_is_done_again(tmp_path):
    raw, out = make_raw(tmp_path / "raw"), tmp_path / "out"
    run(raw, out)
    names = {path.stem: path for path in out.glob("*/*.jpg") if path.parent.name != "test"}

    def redone(*options):
        before = times(out)
        text, _ = run(raw, out, *options)
        after = times(out)
        return sorted(name for name in after if after[name] != before.get(name) and name.endswith(".jpg")), text

    assert redone()[0] == []
    points_path(names["IMG_0002"]).unlink()
    assert redone()[0] == [str(names["IMG_0002"].relative_to(out))]
    scipy.io.savemat(raw / "Train" / "img_0003_ann.mat", {"annPoints": [[1.0, 1.0]]})
    assert redone()[0] == [str(names["IMG_0003"].relative_to(out))]
    assert len(np.load(points_path(names["IMG_0003"]))) == 1
    everything, text = redone("--quality", "60")
    assert len(everything) == 8 and "prepared 8 images" in text
    assert redone("--quality", "60")[0] == []


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    raw, out, whole = make_raw(tmp_path / "raw"), tmp_path / "out", tmp_path / "whole"
    run(raw, whole)
    run(raw, out)
    # What a kill in the middle of the fourth image leaves: its JPEG, a partial npy and a cut line in the record.
    record = (out / "preprocess.jsonl").read_text().splitlines(keepends=True)
    names = [json.loads(line)["image"] for line in record]
    for name in names[3:]:
        points_path(out / name).unlink()
    for name in names[4:]:
        (out / name).unlink()
    (out / "preprocess.jsonl").write_text("".join(record[:3]) + record[3][:40])
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = (out / names[3]).parent / f".IMG_0004.{os.uname().nodename}.{dead.pid}.partial.npy"
    stale.write_bytes(b"half")
    kept = (out / names[0]).stat().st_mtime_ns
    text, _ = run(raw, out)
    assert "prepared 5 images" in text and "3 were up to date" in text
    assert not stale.exists() and (out / names[0]).stat().st_mtime_ns == kept
    assert prepared(out) == prepared(whole)


def test_strange_images_and_gaussians_in_the_output_are_pointed_out_and_kept(tmp_path):
    raw, out = make_raw(tmp_path / "raw"), tmp_path / "out"
    (out / "train").mkdir(parents=True)
    (out / "train" / "mine.jpg").write_bytes(b"mine")
    assert "1 images are not of this input and split (first mine.jpg)" in run(raw, out)[1]
    assert (out / "train" / "mine.jpg").read_bytes() == b"mine"
    (out / "train" / "gs_params").mkdir()
    (out / "train" / "gs_params" / "IMG_0001_gs_params.h5").write_bytes(b"")
    what = "warning: 1 of these images had Gaussians already"
    assert what not in run(raw, out)[1] and what in run(raw, out, "--min-size", "40")[1]


def test_output_in_the_input_is_refused(tmp_path):
    raw = make_raw(tmp_path / "raw")
    before = contents(raw)
    (tmp_path / "link").symlink_to(raw)
    for path in (raw, raw / "prepared", tmp_path / "link" / "Train"):
        _, err = run(raw, path, code=1)
        assert err.count("\n") == 1 and "input folder" in err
    assert contents(raw) == before
