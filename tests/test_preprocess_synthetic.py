"""All five raw layouts as the generator writes them, prepared and compared with its truth point by point."""

import json

import numpy as np
import pytest
from commands import call
from PIL import Image
from raw_data import contents, errors, record

from datasets.raw.annotations import prepared_stem
from datasets.raw.preprocess import resized_size
from utils.files import points_path, read_points

SCRIPTS = {"qnrf": "ucf", "jhu": "jhu", "nwpu": "nwpu", "sha": "sh", "shb": "sh"}


@pytest.mark.parametrize("layout", SCRIPTS)
def test_every_layout_gives_the_truth(tmp_path, layout):
    raw, out = tmp_path / "raw", tmp_path / "out"
    options = ["--images", 10, "--height", 64, "--width", 80, "--min-people", 3, "--max-people", 40, "--workers", 1]
    call("datasets/synthetic.py", "--layout", layout, "--out", raw, *options)
    before = contents(raw)
    paths = ["--input-dataset-path", raw, "--output-dataset-path", out]
    size = ["--min-size", 100, "--max-size", 110, "--workers", 1]
    _, err = call(f"preprocess_dataset_{SCRIPTS[layout]}.py", *paths, *size)
    assert not errors(err) and contents(raw) == before

    entries = record(out)
    by_source = {entry["source"]: entry for entry in entries.values()}
    truth = json.loads((raw / "truth.json").read_text())["images"]
    assert len(truth) == len(entries) == 10 and sum(len(item["points"]) for item in truth) > 20
    for item in truth:
        entry = by_source[str(raw / item["image"])]
        prepared = out / entry["image"]
        split = item["split"].split("_")[0].lower()
        assert prepared.stem == prepared_stem((raw / item["image"]).stem)
        assert prepared.parent.name in (("train", "val") if split == "train" else (split,))
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
        if layout == "jhu" and prepared.parent.name == "train":
            lines = (raw / item["image"]).parents[1] / "gt" / f"{prepared.stem}.txt"
            heads = np.loadtxt(lines, ndmin=2)
            np.testing.assert_allclose(stored[:, 2], heads[:, 3] * ratio, rtol=1e-6)
