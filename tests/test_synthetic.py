"""Synthetic scenes: the truth they come with, and the raw layouts they are written in."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from commands import call, errors
from raw_data import contents, partials

from datasets import synthetic
from datasets.synthetic import MAX_HEAD, MIN_HEAD, SPACING, scene

SMALL = ["--images", "6", "--height", "64", "--width", "96", "--max-people", "25"]


def write(layout, out, *options, workers=1, code=0):
    return call(
        "datasets/synthetic.py", "--layout", layout, "--out", out, *SMALL, "--workers", workers, *options, code=code
    )


def truth_of(out):
    return json.loads((out / "truth.json").read_text())["images"]


@pytest.mark.parametrize("people", [0, 1, 40, 300])
@pytest.mark.parametrize("seed", range(3))
def test_truth(seed, people):
    drawn = scene(seed, 192, 256, people)
    assert drawn.image.shape == (192, 256, 3) and drawn.image.dtype == np.uint8
    assert drawn.points.shape == (people, 2) and drawn.points.dtype == drawn.sizes.dtype == np.float64
    assert (drawn.points >= 0).all() and (drawn.points <= (256, 192)).all()
    assert ((drawn.sizes >= MIN_HEAD) & (drawn.sizes <= MAX_HEAD)).all() and drawn.sizes.shape == (people,)
    assert drawn.image.std() > 4


def test_the_picture_shows_every_head_where_the_truth_says(monkeypatch):
    """Painted magenta, which nothing else is, the heads can be counted and their centres measured."""
    for name in ("_SKIN", "_HAIR"):
        monkeypatch.setattr(synthetic, name, np.full((5, 3), (255, 0, 255)))
    measured = 0
    for seed in range(8):
        drawn = scene(seed, 240, 320, 12)
        red, green, blue = (drawn.image[:, :, i].astype(int) for i in range(3))
        heads = (np.minimum(red, blue) - green > 70).astype(np.uint8)
        count, labels, _, centres = cv2.connectedComponentsWithStats(heads)
        columns, rows = drawn.points.astype(int).T
        assert heads[rows, columns].all() and count - 1 <= 12
        # Heads that touch others or the frame have no centre of their own.
        distances = np.linalg.norm(drawn.points[:, None] - drawn.points[None], axis=2) + np.diag(np.full(12, np.inf))
        to_frame = np.hstack([drawn.points, (320, 240) - drawn.points]).min(axis=1)
        alone = (distances > 1.5 * drawn.sizes[:, None]).all(axis=1) & (to_frame > drawn.sizes)
        found = labels[rows, columns][alone]
        np.testing.assert_allclose(centres[found] + 0.5, drawn.points[alone], atol=0.6)
        measured += len(set(found.tolist()))
        assert len(set(found.tolist())) == alone.sum()
    assert measured > 40


def test_a_dense_crowd_fits_and_nobody_hides_anybody():
    drawn = scene(0, 384, 512, 1800)
    assert len(drawn.points) == 1800
    distances = np.linalg.norm(drawn.points[:, None] - drawn.points[None], axis=2) + np.diag(np.full(1800, np.inf))
    assert (distances >= SPACING * np.minimum(drawn.sizes[:, None], drawn.sizes[None])).all()
    assert np.median(distances.min(axis=1)) < 8


def test_too_many_people():
    with pytest.raises(ValueError, match="5000 people do not fit into 64 x 48 pixels"):
        scene(0, 48, 64, 5000)


def test_the_same_bytes_at_any_number_of_workers_and_another_seed_differs(tmp_path):
    for name, workers, seed in (("one", 1, 3), ("two", 2, 3), ("other", 1, 4)):
        write("nwpu", tmp_path / name, "--seed", seed, workers=workers)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two and set(one) == set(other) and one["images/0001.jpg"] != other["images/0001.jpg"]


def test_an_interrupted_run_starts_again(tmp_path):
    write("jhu", tmp_path / "whole")
    write("jhu", tmp_path / "part")
    part = tmp_path / "part"
    # As a kill leaves it: the truth without images, one image missing.
    truth = json.loads((part / "truth.json").read_text())
    (part / "truth.json").write_text(json.dumps(truth | {"images": []}))
    (part / truth["images"][3]["image"]).unlink()
    write("jhu", part)
    assert contents(part) == contents(tmp_path / "whole") and not partials(part)


def test_another_seed_into_the_same_folder_and_other_bad_arguments(tmp_path):
    write("qnrf", tmp_path)
    _, err = write("qnrf", tmp_path, "--seed", 9, code=1)
    assert "holds images of other arguments" in err and len(errors(err)) == 1
    _, err = write("jhu", tmp_path / "b", "--images", 2, code=1)
    assert "--images 2: jhu has 3 splits" in err
    _, err = write("jhu", tmp_path / "b", "--min-people", 90, code=2)
    assert "--min-people 90 is greater than --max-people 25" in err
