"""``test.py``: what it counts, what it writes, what it says when something is missing."""

from __future__ import annotations

import base64
import functools
import json
import shutil
import socket

import cv2
import h5py
import numpy as np
import pytest
import torch
from commands import errors, evaluate, table
from training_runs import make_data

from utils.files import file_hash
from utils.images import save_jpeg


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three test images: the last larger than a window of 64, one without people."""
    root = make_data(tmp_path_factory.mktemp("evaluate") / "data")
    shutil.copytree(root / "val", root / "test", ignore=shutil.ignore_patterns("gs_params"))
    random = np.random.default_rng(1)
    for name, count, size in (("IMG_0001", 0, (64, 80)), ("IMG_0002", 9, (150, 200))):
        save_jpeg(random.integers(0, 256, (*size, 3), dtype=np.uint8), root / "test" / f"{name}.jpg", 90)
        np.save(root / "test" / f"{name}.npy", random.uniform(1, 60, (count, 2)).astype(np.float32))
    return root


def test_everything_that_is_written_agrees(data, weights, tmp_path):
    out = tmp_path / "results"
    text, _ = evaluate(weights, "--data-dir", data, "--out", out, "--window", 64, "--save-density", "npy")
    rows = table(out / "results.csv")
    assert [row["image"] for row in rows] == ["IMG_0000", "IMG_0001", "IMG_0002"]
    assert [int(row["truth"]) for row in rows] == [6, 0, 9] and rows[1]["relative_error"] == ""
    assert (rows[2]["width"], rows[2]["height"]) == ("200", "150")
    for row in rows:
        predicted = float(row["predicted"])
        assert float(row["error"]) == pytest.approx(predicted - int(row["truth"]), abs=1e-3)
        density = np.load(out / "densities" / f"{row['image']}.npy")
        assert density.dtype == np.float32 and density.shape == (int(row["height"]), int(row["width"]))
        assert density.sum() == pytest.approx(predicted, rel=1e-4)
        assert f"{row['image']}: truth {row['truth']}, predicted {predicted:.2f}" in text
    summary = json.loads((out / "summary.json").read_text())
    deviations = np.array([float(row["error"]) for row in rows])
    assert summary["mae"]["value"] == pytest.approx(np.abs(deviations).mean(), abs=1e-3)
    assert summary["mse"]["value"] == pytest.approx(np.sqrt((deviations**2).mean()), abs=1e-3)
    assert summary["images"] == summary["scored"] == 3 and summary["failed"] == []
    assert summary["weights_sha256"] == file_hash(weights) and summary["configuration"]["window"] == 64
    assert set(summary["localisation"]) == {"4", "8"} and summary["versions"]["packages"]["torch"]
    lines = (out / "report_data.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["points"]) for line in lines] == [6, 0, 9]
    page = (out / "report.html").read_text()
    assert all(row["image"] in page for row in rows) and not list(tmp_path.rglob("*.partial*"))

    # The first of these images is that of val.
    folders = tmp_path / "one", tmp_path / "again"
    left = [folders[0] / "densities" / "clip" / f".IMG_0002.{socket.gethostname()}.999999999.partial.h5"]
    left += [folders[0] / "figures" / f".IMG_0002.{socket.gethostname()}.999999999.partial.png"]
    for partial in left:  # of a run that was killed
        partial.parent.mkdir(parents=True)
        partial.touch()
    for folder in folders:
        options = "--out", folder, "--window", 64, "--save-density", "h5", "--figures"
        evaluate(weights, "--data-dir", data, "--split", "val", *options)
        assert (folder / "report_data.jsonl").read_text().splitlines() == lines[:1]
    assert not any(partial.exists() for partial in left)
    for suffix, begin in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        one, other = ((folder / "figures" / f"IMG_0000{suffix}").read_bytes() for folder in folders)
        assert one == other and one.startswith(begin)
    with h5py.File(folders[0] / "densities" / "IMG_0000.h5") as file:
        assert np.array_equal(file["density"], np.load(out / "densities" / "IMG_0000.npy"))


def test_the_cells_of_the_report_add_up_to_the_count(weights, tmp_path):
    """At sides that are no multiples of 8 too."""
    sizes = [(667, 1001), (1001, 667), (16, 23), (25, 97), (64, 80)]
    for height, width in sizes:
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{height}x{width}.png"), pixels)
    evaluate(weights, "--images", *(tmp_path / f"{h}x{w}.png" for h, w in sizes), "--out", tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "report_data.jsonl").read_text().splitlines()]
    for (height, width), line, row in zip(sizes, lines, table(tmp_path / "out" / "results.csv"), strict=True):
        cells = cv2.imdecode(np.frombuffer(base64.b64decode(line["density"]), np.uint8), cv2.IMREAD_UNCHANGED)
        assert cells.shape == (-(-height // 8), -(-width // 8))
        total = cells.sum() * line["density_max"] / 255
        assert total == pytest.approx(float(row["predicted"]), rel=1e-3), line["image"]


def test_compiled_once_for_all_sizes_the_counts_stay(data, weights, tmp_path, monkeypatch):
    """Traced by the compiler, and run without its C++, which is PyTorch's to test."""
    traced, torch_compile = [], torch.compile

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    def no_compiler(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    evaluate(weights, "--data-dir", data, "--out", tmp_path / "plain", "--window", 64)
    monkeypatch.setattr(torch, "compile", functools.partial(torch_compile, backend=backend))
    evaluate(weights, "--data-dir", data, "--out", tmp_path / "compiled", "--window", 64, "--compile")
    plain, compiled = (table(tmp_path / name / "results.csv") for name in ("plain", "compiled"))
    assert len(traced) <= 3 < len({(row["width"], row["height"]) for row in plain}) + 2
    for one, other in zip(plain, compiled, strict=True):
        assert float(other["predicted"]) == pytest.approx(float(one["predicted"]), rel=1e-5)
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch_compile, backend=no_compiler))
    _, err = evaluate(weights, "--data-dir", data, "--compile", code=1)
    (line,) = errors(err)
    assert line.startswith("error: --compile: ") and line.endswith("; leave it out, or install a C++ compiler")


def test_options_of_the_prediction_reach_it(data, weights, tmp_path):
    counts = {}
    for name, options in {
        "published": (),
        "small": ("--window", 64),
        "mirrored": ("--flip-average",),
        "bf16": ("--precision", "bf16-mixed"),
    }.items():
        evaluate(weights, "--data-dir", data, "--out", tmp_path / name, *options)
        counts[name] = np.array([float(row["predicted"]) for row in table(tmp_path / name / "results.csv")])
    assert len({values[2] for values in counts.values()}) == 4
    assert counts["published"][1] == pytest.approx(counts["mirrored"][1], rel=0.3)
    assert 0 < np.abs(counts["bf16"] - counts["published"]).max() < 1
    _, err = evaluate(weights, "--data-dir", data, "--precision", "16-mixed", code=1)
    assert "needs a GPU" in err


def test_secret_annotations_are_predicted_and_submitted(data, weights, tmp_path):
    secret = tmp_path / "nwpu"
    shutil.copytree(data / "test", secret / "test", ignore=shutil.ignore_patterns("*.npy"))
    options = "--data-dir", secret, "--out", tmp_path / "o", "--nwpu-submission", tmp_path / "sub" / "nwpu.txt"
    text, _ = evaluate(weights, *options)
    assert "MAE" not in text and "3 images counted, 0 scored, 0 failed" in text
    rows = table(tmp_path / "o" / "results.csv")
    assert [row["truth"] + row["error"] for row in rows] == ["", "", ""]
    lines = [line.split() for line in (tmp_path / "sub" / "nwpu.txt").read_text().splitlines()]
    assert lines == [[row["image"], row["predicted"]] for row in rows]
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["mae"]["value"] is None and summary["localisation"] is None


def test_what_cannot_be_counted_is_named_and_the_rest_is_scored(data, weights, tmp_path):
    copy, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data / "test", copy / "test")
    (copy / "test" / "IMG_0001.jpg").write_bytes(b"no picture")
    save_jpeg(np.zeros((12, 40, 3), np.uint8), copy / "test" / "IMG_0003.jpg", 90)
    for number in (3, 9):
        np.save(copy / "test" / f"IMG_000{number}.npy", np.zeros((0, 2)))
    options = "--out", out, "--nwpu-submission", tmp_path / "sub.txt"
    text, err = evaluate(weights, "--data-dir", copy, *options, code=1)
    assert "2 images counted, 2 scored, 3 failed" in text
    named = errors(err)
    assert len(named) == 4 and "IMG_0001.jpg" in named[0] and "12 x 40" in named[1]
    assert "IMG_0009.npy: its image is missing" in named[2] and "sub.txt: not written, since 3 images" in named[3]
    failed = json.loads((out / "summary.json").read_text())["failed"]
    assert [name[-1] for name, _ in failed] == list("139") and not (tmp_path / "sub.txt").exists()
    assert [row["image"][-1] for row in table(out / "results.csv")] == list("02")
    for path in (copy / "test").glob("*.jpg"):
        path.write_bytes(b"no picture")
    _, err = evaluate(weights, "--data-dir", copy, "--out", tmp_path / "none", code=1)
    assert "none of 5 images could be counted" in errors(err)[-1]


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (("--data-dir", "x", "--images", "y.jpg"), 2, "give either --data-dir or --images"),
        (("--data-dir", "x", "--figures"), 2, "add --out DIR"),
        (("--data-dir", "/no/such"), 1, "/no/such/test: no such folder"),
        (("--images", "/no/such.jpg", "--every", "0"), 2, "--every: 0 is impossible"),
    ],
)
def test_wrong_usage(weights, options, code, part):
    _, err = evaluate(weights, *options, code=code)
    assert part in errors(err)[-1]
