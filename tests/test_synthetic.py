"""Synthetic scenes: the truth they come with, and the raw layouts they are written in."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.io
from commands import call, errors
from PIL import Image
from raw_data import contents, partials, times

from datasets import synthetic_scene
from datasets.synthetic import SPLITS
from datasets.synthetic_people import person, prop
from datasets.synthetic_scene import MAX_HEAD, MIN_HEAD, MIN_VISIBLE, _Canvas, scene

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
    np.testing.assert_allclose(drawn.boxes[:, :2] + drawn.boxes[:, 2:] / 2, drawn.points)
    np.testing.assert_allclose(drawn.boxes[:, 2:], drawn.sizes[:, None] * (0.8, 1))
    assert drawn.image.std() > 8


def test_a_scene_is_a_function_of_its_arguments():
    first, again, other = (scene(seed, 96, 128, 30) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.image, other.image) and not np.array_equal(first.points, other.points)


def test_heads_grow_towards_the_camera_and_reach_both_ends_of_the_range():
    sizes = []
    for seed in range(12):
        drawn = scene(seed, 320, 384, 60)
        sizes.append(drawn.sizes)
        assert np.corrcoef(drawn.points[:, 1], drawn.sizes)[0, 1] > 0.5
    sizes = np.concatenate(sizes)
    assert sizes.min() < 6 and sizes.max() > 40


def test_a_dense_crowd_fits():
    drawn = scene(0, 384, 512, 1800)
    assert len(drawn.points) == 1800
    nearest = np.sort(np.linalg.norm(drawn.points[:, None] - drawn.points[None], axis=2), axis=1)[:, 1]
    assert (nearest > 0).all() and np.median(nearest) < 8


def test_too_many_people():
    with pytest.raises(ValueError, match="5000 people do not fit into 64 x 48 pixels"):
        scene(0, 48, 64, 5000)
    with pytest.raises(ValueError, match="give 32 pixels"):
        scene(0, 31, 64, 1)


def figure(x, y, size, seed=0):
    draw = iter(np.random.default_rng(seed).random(64).tolist()).__next__
    return person(draw, x, y, size, 0.2, 0.0, np.ones((640, 640), np.float32), ((90, 90, 90),))


def test_what_is_put_first_hides_what_comes_later():
    canvas, fog = _Canvas(200, 200), (0.0, np.ones(3))
    assert canvas.visible(100, 100, 20) == 1
    canvas.put(figure(100, 60, 40), *fog)
    assert canvas.visible(100, 100, 20) < 0.02  # behind a chest
    assert canvas.visible(100, 60, 10) < 0.02  # behind a head
    assert canvas.visible(20, 60, 20) == 1
    front = canvas.color.copy()
    canvas.put(figure(100, 100, 20, seed=1), *fog)
    covered = canvas.light < 0.001
    np.testing.assert_allclose(canvas.color[:, 60:90, 95:105], front[:, 60:90, 95:105], atol=0.002)
    assert covered[55:65, 95:105].all() and canvas.light.min() > -1e-5


@pytest.mark.parametrize("seed", range(3))
def test_hidden_heads_and_heads_outside_do_not_count_and_all_others_do(seed, monkeypatch):
    heads, free = [], []
    drawn_person, put = synthetic_scene.person, _Canvas.put

    def note_head(draw, x, y, size, *rest):
        heads.append((x, y, size))
        return drawn_person(draw, x, y, size, *rest)

    def note_light(canvas, *rest):
        if len(heads) > len(free):  # the figure is a person
            x, y, size = heads[-1]
            rows = slice(max(0, round(y - 0.5 * size)), max(0, round(y + 0.5 * size)))
            box = canvas.light[rows, max(0, round(x - 0.4 * size)) : max(0, round(x + 0.4 * size))]
            free.append(box.mean() if box.size else 0)
        put(canvas, *rest)

    monkeypatch.setattr(synthetic_scene, "person", note_head)
    monkeypatch.setattr(_Canvas, "put", note_light)
    drawn = scene(seed, 192, 256, 300)
    counted = {tuple(point) for point in drawn.points.tolist()}
    assert len(counted) == 300 and len(heads) > 300
    for (x, y, _), share in zip(heads, free, strict=True):
        outside = not (0 <= x <= 256 and 0 <= y <= 192)
        if (x, y) in counted:
            assert not outside and share >= MIN_VISIBLE - 0.05
        else:
            assert outside or share < 0.05


def test_heads_are_where_the_truth_says():
    """Scenes that differ only by what is drawn at the heads differ there."""
    grain = np.ones((640, 640), np.float32)
    for seed in range(20):
        shape = figure(100.3, 80.6, 24, seed)
        alpha = shape.patch[3]
        rows, columns = np.nonzero(alpha[: int(92 - shape.top)] > 0.5)  # above the chin
        near = np.abs(columns + shape.left + 0.5 - 100.3) < 9
        assert abs((columns[near] + shape.left + 0.5).mean() - 100.3) < 2.5
        assert (
            abs((rows[near] + shape.top).min() - 68.6) < 10
            and alpha[int(80.6 - shape.top), int(100.3 - shape.left)] == 1
        )
    kinds = set()
    for kind in range(7):
        numbers = np.random.default_rng(kind).random(400)
        numbers[0] = (kind + 0.5) / 7
        patch = prop(iter(numbers.tolist()).__next__, 50, 50, 8, grain).patch
        assert patch[3].max() == 1 and (patch[:3] <= patch[3] + 1e-5).all()
        kinds.add(patch.shape)
    assert len(kinds) > 4


@pytest.mark.parametrize("layout", SPLITS)
def test_layout(layout, tmp_path):
    out, _ = write(layout, tmp_path)
    images = truth_of(tmp_path)
    heads = sum(len(entry["points"]) for entry in images)
    assert len(images) == 6 and f"6 images with {heads:,} heads" in out
    assert list(dict.fromkeys(entry["split"] for entry in images)) == list(SPLITS[layout])
    for entry in images:
        with Image.open(tmp_path / entry["image"]) as image:
            assert image.size == (entry["width"], entry["height"]) and image.format == "JPEG"
        points, sizes = np.array(entry["points"]).reshape(-1, 2), np.array(entry["sizes"])
        path = tmp_path / entry["image"]
        if layout == "qnrf":
            assert path.parent == tmp_path / entry["split"] and path.name.startswith("img_0")
            found = scipy.io.loadmat(path.with_name(f"{path.stem}_ann.mat"))["annPoints"]
            np.testing.assert_array_equal(found, points)
        elif layout == "jhu":
            assert path.parent == tmp_path / entry["split"] / "images"
            text = (path.parents[1] / "gt" / f"{path.stem}.txt").read_text()
            rows = np.array([line.split() for line in text.splitlines()], float).reshape(-1, 6)
            np.testing.assert_array_equal(rows[:, :2], np.rint(points))
            np.testing.assert_array_equal(rows[:, 3], np.rint(sizes))
        elif layout == "nwpu":
            assert path.parent == tmp_path / "images"
            mat, js = tmp_path / "mats" / f"{path.stem}.mat", tmp_path / "jsons" / f"{path.stem}.json"
            assert mat.exists() == js.exists() == (entry["split"] != "test")
            if mat.exists():
                np.testing.assert_array_equal(scipy.io.loadmat(mat)["annPoints"], points)
                np.testing.assert_array_equal(np.array(json.loads(js.read_text())["points"]).reshape(-1, 2), points)
            assert any(line.split()[0] == path.stem for line in (tmp_path / f"{entry['split']}.txt").open())
        else:
            part = tmp_path / f"part_{layout[-1].upper()}_final"
            assert path.parent == part / entry["split"] / "images"
            mat = scipy.io.loadmat(part / entry["split"] / "ground_truth" / f"GT_{path.stem}.mat")
            np.testing.assert_array_equal(mat["image_info"][0, 0][0, 0][0], points)
            assert mat["image_info"][0, 0][0, 0][1].item() == len(points)
            assert layout == "sha" or (entry["height"], entry["width"]) == (64, 96)


def test_the_same_bytes_at_any_number_of_workers_and_another_seed_differs(tmp_path):
    for name, workers, seed in (("one", 1, 3), ("two", 2, 3), ("other", 1, 4)):
        write("nwpu", tmp_path / name, "--seed", seed, workers=workers)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two and set(one) == set(other) and one["images/0001.jpg"] != other["images/0001.jpg"]


def test_an_interrupted_run_goes_on(tmp_path):
    write("jhu", tmp_path / "whole")
    write("jhu", tmp_path / "part")
    part = tmp_path / "part"
    images = truth_of(part)
    # As a kill leaves it: three images done, the line of the third cut off.
    settings = json.loads((part / "truth.json").read_text())["settings"]
    lines = [json.dumps(line) for line in (settings, *images[:3])]
    (part / "truth.jsonl").write_text("\n".join(lines)[:-20])
    (part / "truth.json").unlink()
    for entry in images[3:]:
        (part / entry["image"]).unlink()
    before = times(part)
    out, _ = write("jhu", part)
    assert "2 of them were there" in out and contents(part) == contents(tmp_path / "whole") and not partials(part)
    assert times(part)[images[0]["image"]] == before[images[0]["image"]]
    before = times(part)
    out, _ = write("jhu", part)
    assert "6 of them were there" in out and times(part)["train/images/0001.jpg"] == before["train/images/0001.jpg"]


def test_another_seed_into_the_same_folder_and_other_bad_arguments(tmp_path):
    write("qnrf", tmp_path)
    _, err = write("qnrf", tmp_path, "--seed", 9, code=1)
    assert "holds images of other arguments" in err and len(errors(err)) == 1
    _, err = write("jhu", tmp_path / "b", "--images", 2, code=1)
    assert "--images 2: jhu has 3 splits" in err
    _, err = write("jhu", tmp_path / "b", "--min-people", 90, code=2)
    assert "--min-people 90 is greater than --max-people 25" in err
