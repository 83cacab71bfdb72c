"""preprocess_dataset_ucf.py as it is run: first, again, interrupted, and on what cannot be."""

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
from PIL import Image
from raw_data import ROOT, SMALL, TREES, contents, errors, make_raw, partials, prepared, record, script, times

import preprocess_dataset_ucf
from datasets.raw.annotations import read_ucf
from GS2D.points import mean_neighbour_distance
from utils.files import list_images, points_path
from utils.images import load_image


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the script in this process, which is faster, without its report -> (exit code, stdout, stderr)."""
    monkeypatch.setattr("datasets.raw.preprocess.write_report", lambda *arguments: None)

    def run(source, output, *options):
        paths = ["--input-dataset-path", str(source), "--output-dataset-path", str(output)]
        monkeypatch.setattr(sys, "argv", ["preprocess_dataset_ucf.py", *paths, *SMALL, *map(str, options)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            preprocess_dataset_ucf.run_script(preprocess_dataset_ucf.main)
        return (caught.value.code, *capsys.readouterr())

    return run


def test_trees(tmp_path):
    raw, one, two = tmp_path / "raw", tmp_path / "one", tmp_path / "two"
    shutil.copytree(TREES, raw)
    before, raw_times = contents(raw), times(raw)
    code, out, err = script(raw, one, "--workers", "1")
    assert code == 0 and not errors(err)
    assert "9 train and 1 val images (no lists given, seed 4073" in out and "prepared 14 images" in out
    done = [(name.split("/")[0], entry) for name, entry in record(one).items()]
    assert [sum(split == name for split, _ in done) for name in ("train", "val", "test")] == [9, 1, 4]
    assert sum(entry["points"] for split, entry in done if split != "test") == 327
    assert sum(entry["points"] for split, entry in done if split == "test") == 279
    assert all(entry["dropped"] == 0 and entry["grey"] is False for _, entry in done)
    assert all(Image.open(one / name).size == (e["width"], e["height"]) for name, e in record(one).items())
    report = json.loads((one / "dataset_report.json").read_text())
    assert report["dataset"] == "qnrf" and report["crop_size"] == 512 and report["splits"]["test"]["points"] == 279
    assert any("published are 334" in line for line in err.splitlines())

    split = json.loads((one / "split.json").read_text())
    split["test"] = [f"img_{i:04}.jpg" for i in range(51, 55)]
    for target, names in (("train", split["train"]), ("val", split["val"]), ("test", split["test"])):
        folder = "Test" if target == "test" else "Train"
        for name in names:
            output = one / target / name.replace("img_", "IMG_")
            height, width = load_image(raw / folder / name).shape[:2]
            ratio = max(512 / min(height, width), 1)
            points = read_ucf(raw / folder / f"{name[:-4]}_ann.mat")
            stored = np.load(points_path(output))
            assert min(Image.open(output).size) == max(512, min(height, width))
            assert stored.shape == (len(points), 3 if target == "train" else 2)
            np.testing.assert_allclose(stored[:, :2], points * ratio, rtol=1e-6)
            if target == "train":
                np.testing.assert_allclose(stored[:, 2], mean_neighbour_distance(stored[:, :2]), rtol=1e-6)
    assert [len(list_images(one / split)) for split in ("train", "val", "test")] == [9, 1, 4]
    assert np.load(one / "train" / "IMG_0001.npy")[0, 2] == 128

    code, out, err = script(raw, two, "--workers", "2")
    assert code == 0 and prepared(one) == prepared(two) and not partials(tmp_path)

    written = times(one)
    code, out, err = script(raw, one, "--workers", "2")
    assert code == 0 and "nothing to do: all 14 images" in out
    assert times(one) == written
    assert contents(raw) == before and times(raw) == raw_times


def test_what_can_be_done_is_done_and_the_rest_is_named(tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(TREES, raw)
    train = raw / "Train"
    (train / "img_0001_ann.mat").unlink()
    (raw / "Test" / "img_0053_ann.mat").unlink()
    (train / "img_0002.jpg").unlink()
    (train / "img_0003.jpg").write_bytes(b"")
    (train / "img_0004.jpg").write_bytes((train / "img_0004.jpg").read_bytes()[:50_000])
    scipy.io.savemat(train / "img_0005_ann.mat", {"points": np.ones((2, 2))})
    scipy.io.savemat(train / "img_0006_ann.mat", {"annPoints": [[1.0, 2.0], [np.nan, 3.0]]})
    (train / "img_0007.jpg").unlink()
    (train / "img_0007.jpg").symlink_to(tmp_path / "gone.jpg")
    scipy.io.savemat(raw / "Test" / "img_0051_ann.mat", {"annPoints": "many"})
    scipy.io.savemat(raw / "Test" / "img_0052_ann.mat", {"annPoints": [[1.0, 2.0], [9000.0, 3.0]]})
    code, out, err = script(raw, tmp_path / "out", "--workers", "2", "--max-size", "600", "--min-size", "64")
    assert code == 1
    lines = errors(err)
    assert len(lines) == 10 and lines[-1].startswith("error: 9 of 14 ")
    expected = {
        "img_0001.jpg": "img_0001_ann.mat is missing",
        "img_0002_ann.mat": "img_0002.jpg is missing",
        "img_0003.jpg": "cannot read",
        "img_0004.jpg": "truncated",
        "img_0005_ann.mat": "annPoints",
        "img_0006_ann.mat": "row 2",
        "img_0007.jpg": "No such file",
        "img_0051_ann.mat": "numeric",
        "img_0053.jpg": "img_0053_ann.mat is missing",
    }
    for name, cause in expected.items():
        named = [line for line in lines if name in line and cause in line]
        assert len(named) == 1 and named[0].startswith("error: ") and ";" in named[0], name
    assert "img_0052.jpg: 1 of 2 points lie outside the image and are dropped" in out
    finished = {path.name for path in (tmp_path / "out").glob("*/*.jpg")}
    assert finished == {f"IMG_{i:04}.jpg" for i in (8, 9, 10, 52, 54)}
    assert {path.with_suffix(".jpg").name for path in (tmp_path / "out").glob("*/*.npy")} == finished
    assert not partials(tmp_path)


def test_a_disk_that_takes_no_more_leaves_nothing_half_written(tmp_path):
    raw = make_raw(tmp_path / "raw", size=(300, 300))
    limit = 20_000  # bytes a file; the images need more, the rest does not

    def set_limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    options = [*SMALL, "--quality", "95", "--max-size", "300"]
    code, out, err = script(raw, tmp_path / "out", *options, preexec_fn=set_limit)
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == 9 and all("IMG_" in line and "cannot write this file" in line for line in lines[:-1])
    assert not list((tmp_path / "out").glob("*/*")) and not list((tmp_path / "out").glob("*/.*"))


def test_points_outside_are_reported_by_image_and_in_total(tmp_path, run):
    code, out, err = run(make_raw(tmp_path / "raw"), tmp_path / "out")
    assert (code, err) == (0, "")
    assert "img_0001.jpg: 1 of 3 points lie outside" in out
    entries = [entry for name, entry in record(tmp_path / "out").items() if not name.startswith("test")]
    assert sum(entry["dropped"] for entry in entries) == 1 and sum(entry["points"] for entry in entries) == 12


def test_only_what_changed_is_done_again(tmp_path, run):
    raw, out = make_raw(tmp_path / "raw"), tmp_path / "out"
    run(raw, out)
    names = {path.stem: path for path in out.glob("*/*.jpg") if path.parent.name != "test"}

    def redone(*options):
        before = times(out)
        code, text, err = run(raw, out, *options)
        assert (code, err) == (0, "")
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


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, run):
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
    code, text, err = run(raw, out)
    assert (code, err) == (0, "") and "prepared 5 images" in text and "3 were up to date" in text
    assert not stale.exists() and (out / names[0]).stat().st_mtime_ns == kept
    assert contents(out) == contents(whole)


def test_an_image_that_changes_its_split_leaves_the_old_one(tmp_path, run):
    raw, out = make_raw(tmp_path / "raw"), tmp_path / "out"
    (tmp_path / "val.txt").write_text("img_0002.jpg\n")
    run(raw, out, "--val-list", tmp_path / "val.txt")
    assert {path.name for path in (out / "val").iterdir()} == {"IMG_0002.jpg", "IMG_0002.npy"}
    (tmp_path / "val.txt").write_text("img_0003.jpg\n")
    code, text, err = run(raw, out, "--val-list", tmp_path / "val.txt")
    assert (code, err) == (0, "") and "2 images changed their split" in text and "prepared 2 images" in text
    assert {path.name for path in (out / "val").iterdir()} == {"IMG_0003.jpg", "IMG_0003.npy"}
    assert {path.stem for path in (out / "train").iterdir()} == {f"IMG_{i:04}" for i in (1, 2, 4, 5, 6)}
    assert np.load(out / "train" / "IMG_0002.npy").shape[1] == 3
    assert "nothing to do" in run(raw, out, "--val-list", tmp_path / "val.txt")[1]


def test_strange_images_in_the_output_are_pointed_out_and_kept(tmp_path, run):
    raw, out = make_raw(tmp_path / "raw"), tmp_path / "out"
    (out / "train").mkdir(parents=True)
    (out / "train" / "mine.jpg").write_bytes(b"mine")
    code, _, err = run(raw, out)
    assert code == 0 and err.count("\n") == 1 and "mine.jpg" in err
    assert (out / "train" / "mine.jpg").read_bytes() == b"mine"


def test_gaussians_of_images_done_again_are_pointed_out(tmp_path, run):
    raw, out = make_raw(tmp_path / "raw"), tmp_path / "out"
    run(raw, out)
    name = next((out / "train").glob("*.jpg")).stem
    (out / "train" / "gs_params").mkdir()
    (out / "train" / "gs_params" / f"{name}_gs_params.h5").write_bytes(b"")
    assert run(raw, out)[2] == ""
    code, _, err = run(raw, out, "--min-size", "40")
    assert code == 0 and err.startswith("warning: 1 of these images had Gaussians") and err.count("\n") == 1


def test_configuration_file(tmp_path, run):
    raw = make_raw(tmp_path / "raw")
    (tmp_path / "a.yml").write_text("min-size: 96\nmax_size: 96\nworkers: 1\n")
    command = [sys.executable, "preprocess_dataset_ucf.py", "--origin-dir", raw, "--data-dir", tmp_path / "out"]
    command += ["--config", tmp_path / "a.yml"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out" / "test" / "IMG_0001.jpg").size == (128, 96)
    code, _, err = run(raw, tmp_path / "out", "--config", tmp_path / "none.yml")
    assert code == 2 and "none.yml" in err


def test_missing_folders(tmp_path, run):
    (tmp_path / "Test").mkdir()
    code, out, err = run(tmp_path, tmp_path.parent / "out")
    assert code == 1 and err.count("\n") == 1 and f"{tmp_path / 'Train'}: no such folder" in err
    assert not (tmp_path.parent / "out").exists()
    code, out, err = run(tmp_path / "nowhere", tmp_path / "out")
    assert code == 1 and err.count("\n") == 1 and "nowhere/Train" in err


@pytest.mark.parametrize("inside", ["", "prepared", "Train"])
def test_output_in_the_input_is_refused(tmp_path, run, inside):
    raw = make_raw(tmp_path / "raw")
    before = contents(raw)
    (tmp_path / "link").symlink_to(raw)
    for path in (raw / inside, tmp_path / "link" / inside):
        code, _, err = run(raw, path)
        assert code == 1 and err.count("\n") == 1 and "input folder" in err
    assert contents(raw) == before


@pytest.mark.parametrize("where", ["file/out", "file"])
def test_output_that_cannot_be_created(tmp_path, run, where):
    (tmp_path / "file").write_text("a file")
    code, _, err = run(make_raw(tmp_path / "raw"), tmp_path / where)
    assert code == 1 and err.count("\n") == 1 and str(tmp_path / where) in err and "another output path" in err


def test_a_range_that_is_none(tmp_path, run):
    code, _, err = run(make_raw(tmp_path / "raw"), tmp_path / "out", "--min-size", "300")
    assert code == 2 and "--min-size 300 is greater than --max-size 256" in err
