"""Annotations that say one thing and could be read as another: poses, columns, corners, units, letters, unknown files."""

import itertools
import math
import unicodedata

import numpy as np
import pytest
from commands import ROOT
from own_folders import of_image, photos, points, prepare, write

from datasets.raw.annotations import read_ucf
from datasets.raw.places import suspect
from datasets.raw.point_folders import find_images, read_annotations
from utils.files import atomic_write, gaussians_path
from utils.images import image_shape

TRUTH = {
    "a": [(40, 30), (120, 80), (160, 110)],
    "b": [(30, 100), (90, 50), (170, 40)],
    "c": [(60, 60), (100, 120), (150, 70)],
}
ROWS = {name: [[*point] for point in found] for name, found in TRUTH.items()}
ALL = [point for found in TRUTH.values() for point in found]
NAMES = ("a.jpg", "b.jpg", "c.jpg")


def close(marks, expected):
    np.testing.assert_allclose([mark[:2] for mark in marks], expected, atol=0.1)


def pose(x, y, number, tail=(), more=()):
    """A row of YOLO: a box of 16 x 20 pixels, keypoints in it, ``tail`` behind one after the other, ``more`` at its end."""
    keypoints = np.random.default_rng([int(x), int(y)]).uniform(-1, 1, (number, 2)) * (8, 10) + (x, y)
    values = [x / 200, y / 150, 16 / 200, 20 / 150]
    for i, (px, py) in enumerate(keypoints / (200, 150)):
        last = [tail[i % len(tail)]] if tail else []
        values += [0, 0, 0] if last == [0] else [px, py, *last]
    return "0 " + " ".join(f"{value:.6g}" for value in [*values, *more])


def outline(x, y, corners, turned=0.3):
    angles = turned + 2 * math.pi * np.arange(corners) / corners
    ring = np.stack([x + 8 * np.cos(angles), y + 8 * np.sin(angles)], axis=1)
    ring += (x, y) - (ring.min(axis=0) + ring.max(axis=0)) / 2
    return "0 " + " ".join(f"{value:.6f}" for value in (ring / (200, 150)).ravel())


YOLO = {  # kpt_shape of the YAML file, and how a row is made
    "different numbers of corners": (None, lambda x, y: outline(x, y, 3 + x % 7)),
    "another number of corners in another file": (None, lambda x, y: outline(x, y, 5 if (x, y) in TRUTH["a"] else 6)),
    "turned boxes": (None, lambda x, y: outline(x, y, 4)),
    "boxes between polygons": (None, lambda x, y: outline(x, y, 3 + x % 7) if x != 90 else pose(x, y, 0)),
    "confidence": (None, lambda x, y: pose(x, y, 0, more=[0.83])),
    "track": (None, lambda x, y: pose(x, y, 0, more=[x])),
    "two values a keypoint": ([4, 2], lambda x, y: pose(x, y, 4)),
    "visibility": ([17, 3], lambda x, y: pose(x, y, 17, (2, 1, 0))),
    "confidences and a track": ([4, 3], lambda x, y: pose(x, y, 4, (0.9, 0.4), [0.83, x])),
    "boxes between": ([6, 2], lambda x, y: pose(x, y, 6 if x != 90 else 0)),
}


@pytest.mark.parametrize("kpt_shape, row", YOLO.values(), ids=YOLO)
def test_rows_of_yolo_and_poses_by_their_yaml_file(tmp_path, kpt_shape, row):
    for folder in (tmp_path / "alone", tmp_path / "whole" / "labels" / "train"):
        for name, truth in TRUTH.items():
            write(folder / f"{name}.txt", "\n".join(row(x, y) for x, y in truth))
    if kpt_shape:
        write(tmp_path / "whole" / "data.yaml", f"kpt_shape: {kpt_shape}\nnames: [head]\n")
    for name, truth in TRUTH.items():
        close(of_image("yolo", tmp_path / "whole" / "labels" / "train" / f"{name}.txt"), truth)
        if kpt_shape:
            with pytest.raises(ValueError, match=rf"{name}.txt: line \d: \d+ values, which may be .* kpt_shape"):
                of_image("yolo", tmp_path / "alone" / f"{name}.txt")


UNCLEAR = {
    "pose and polygon": [pose(40, 30, 4), outline(160, 110, 6)],
    "one number of corners": [outline(40, 30, 5), outline(120, 80, 5)],
    "polygons predicted": [outline(40, 30, 5) + " 0.9", outline(120, 80, 6) + " 0.8"],
    "confidence and track": [pose(40, 30, 0, more=[0.83, 1]), pose(120, 80, 0, more=[0.83, 2])],
}


@pytest.mark.parametrize("rows", UNCLEAR.values(), ids=UNCLEAR)
def test_rows_that_are_not_clear_are_refused(tmp_path, rows):
    path = write(tmp_path / "a.txt", "\n".join(rows))
    with pytest.raises(ValueError, match=r"a.txt: line \d: \d+ values, which may be .* kpt_shape"):
        of_image("yolo", path)


# Columns of ImageJ and others for an object at x, y with a box of 20 x 12 around it; the size is that of the box, if there is one.
CELLS = {
    **dict.fromkeys(("X", "Centroid X px", "Location_Center_X", "cx"), lambda x, y: x),
    **dict.fromkeys(("Y", "YM", "Centroid Y px", "Location_Center_Y", "cy"), lambda x, y: y),
    **dict.fromkeys(("BX", "x_min", "bbox_x", "left"), lambda x, y: x - 10),
    **dict.fromkeys(("BY", "y_min", "bbox_y", "top"), lambda x, y: y - 6),
    **dict.fromkeys(("Width", "w", "bbox_w"), lambda x, y: 20),
    **dict.fromkeys(("Height", "h", "bbox_h"), lambda x, y: 12),
    **{"x_max": lambda x, y: x + 10, "y_max": lambda x, y: y + 6, "XM": lambda x, y: x + 0.04},
    **dict.fromkeys(("Area", "%Area", "Slice", "Counter"), lambda x, y: 1),
    "Label": lambda x, y: "a.png",
}


@pytest.mark.parametrize(
    "columns, boxed",
    [
        ("Area,X,Y,BX,BY,Width,Height", True),
        ("X,Y,XM,YM,Slice", False),
        ("XM,YM,BX,BY,Width,Height", True),
        ("Label,Area,X,Y,XM,YM,BX,BY,Width,Height,Slice,Counter", True),
        ("X,Y,XM,YM,Width,Height", True),
        ("X,Y,BX,BY", False),
        ("X,Y,x_min,y_min,x_max,y_max", True),
        ("Width,Height,X,Y,x_min,y_min,x_max,y_max", True),
        ("left,top,w,h,cx,cy", True),
        ("Centroid X px,Centroid Y px", False),
        ("Label,Location_Center_X,Location_Center_Y", False),
    ],
)
def test_columns_that_belong_together(tmp_path, columns, boxed):
    names = columns.split(",")
    for separator, suffix in ((",", "csv"), ("\t", "tsv")):
        lines = [[" ", *names], *([i, *(CELLS[name](x, y) for name in names)] for i, (x, y) in enumerate(ALL, 1))]
        path = write(tmp_path / f"a.{suffix}", "\n".join(separator.join(map(str, line)) for line in lines))
        marks = of_image("csv", path)
        close(marks, ALL)
        assert all(mark.size == pytest.approx(math.sqrt(240)) if boxed else math.isnan(mark.size) for mark in marks)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three photographs, and what is read of files for them: points by name, and what was printed."""
    folder = photos(tmp_path_factory.mktemp("three") / "in", *NAMES)
    images = [image for found in find_images(folder).values() for image in found]

    def read(path, form, **options):
        found, problems = read_annotations(form, folder, images, path, **options)
        assert not problems
        return {image.stem: rows[:, :2].tolist() for image, rows in found.items()}

    return read


def coco(boxes, name="{}.jpg", label="head"):
    images = [{"id": i, "file_name": name.format(n)} for i, n in enumerate(TRUTH)]
    entries = [{"image_id": i, "category_id": 1, "bbox": boxes(x, y)} for i, n in enumerate(TRUTH) for x, y in TRUTH[n]]
    return {"images": images, "annotations": entries, "categories": [{"id": 1, "name": label}]}


def rows_for_all(line, header):
    return header + "".join(f"{name}.jpg,{line(x, y)}\n" for name, found in TRUTH.items() for x, y in found)


def four(x, y):
    return (x - 10, y - 6, x + 10, y + 6)


@pytest.mark.parametrize("form", ["coco", "yolo"])  # x, y of the corner and of the centre
def test_corners_in_place_of_sizes(tmp_path, pictures, form):
    path = write(tmp_path / "a.json", coco(four)) if form == "coco" else tmp_path
    for name, found in TRUTH.items():
        rows = (np.array([four(x, y) for x, y in found]) / (200, 150, 200, 150)).tolist()
        write(tmp_path / f"{name}.txt", "".join("0 %f %f %f %f\n" % tuple(row) for row in rows))
    with pytest.raises(ValueError, match=r"of 9 boxes leave their image, .* but the right and bottom corner; write"):
        pictures(path, form)


def test_corners_that_would_fit_as_sizes(tmp_path, pictures):
    """In the upper left half no such box leaves its image; the same size everywhere is none."""
    places = {name: [(8 + 14 * i, 6 + 11 * (i * k % 7)) for i in range(7)] for k, name in enumerate(TRUTH, 2)}

    def boxes(of):
        entries = [{"image_id": name, "bbox": of(*point)} for name, found in places.items() for point in found]
        return {"images": [{"id": name, "file_name": f"{name}.jpg"} for name in places], "annotations": entries}

    path = write(tmp_path / "a.json", boxes(lambda x, y: (x - 4, y - 3, x + 4, y + 3)))
    with pytest.raises(ValueError, match="0 of 21 boxes leave their image, .* but the right and bottom corner; write"):
        pictures(path, "coco")
    pictures(write(path, boxes(lambda x, y: (1, 1, 190, 140))), "coco")


@pytest.mark.parametrize("side", [1, 60, 160])
def test_sizes_are_no_corners(tmp_path, pictures, side):
    """Also boxes that leave their image, as tools write those of people at its border."""
    path = write(tmp_path / "a.json", coco(lambda x, y: [x - side / 2, y - side / 2, side, side]))
    assert pictures(path, "coco") == ROWS


@pytest.mark.parametrize(
    "across, down",
    [(0.325, 0.325), (0.5, 100 / 150), (1 / 3, 1 / 3), (1 / 1.5, 1 / 1.5), (1 / 72, 1 / 72), (0.2, 0.5), (0.1, 1)],
)
def test_points_in_another_unit(tmp_path, pictures, capsys, across, down):
    path = write(tmp_path / "a.csv", rows_for_all(lambda x, y: f"{x * across},{y * down}", "image,x,y\n"))
    pictures(path, "csv")
    (line,) = capsys.readouterr().err.splitlines()
    assert "warning: " in line and "no point lies beyond" in line and "enlarged?" in line


def test_real_points_are_in_no_one_part(capsys):
    """Every three of the trees, and a few people who always stand in one half, or in the middle."""
    images = sorted((ROOT / "examples" / "trees").glob("*/*.jpg"))
    found = {
        image: (read_ucf(image.with_name(f"{image.stem}_ann.mat")), image_shape(image).upright) for image in images
    }
    for three in itertools.combinations(found, 3):
        suspect({image: found[image] for image in three}, ROOT)
    for low, high in (((0, 0), (100, 150)), ((70, 50), (130, 100)), ((100, 75), (200, 150))):
        rng = np.random.default_rng(0)
        suspect({ROOT / str(i): (rng.uniform(low, high, (5, 2)), (150, 200)) for i in range(4)}, ROOT)
    suspect({ROOT: (np.array(ALL) / 2, (150, 200))}, ROOT)  # one image alone tells nothing
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("written, given", [("NFC", "NFD"), ("NFD", "NFC")])
def test_labels_of_two_unicode_forms(tmp_path, pictures, written, given):
    category = (unicodedata.normalize(given, "Đàn bò"),)
    label = unicodedata.normalize(written, "Đàn bò")
    head = write(tmp_path / "a.json", coco(lambda x, y: [x - 6, y - 6, 12, 12], label=label))
    table = write(tmp_path / "a.csv", rows_for_all(lambda x, y: f"{label},{x},{y}", f"image,{label},x,y\n"))
    for path, form, attribute in ((head, "coco", None), (table, "csv", category[0])):
        assert pictures(path, form, categories=category, attribute=attribute) == ROWS


@pytest.mark.parametrize("written, given", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_of_two_unicode_forms(tmp_path, written, given):
    """In tables, in the name of a file of the image, in folders and in lists."""
    names = {name: unicodedata.normalize(written, f"été/{name}é.jpg") for name in TRUTH}
    other = {name: unicodedata.normalize(given, text) for name, text in names.items()}
    folder, notes = photos(tmp_path / "in", *names.values()), tmp_path / "notes"
    rows = [f"{other[name]},{x},{y}" for name, found in TRUTH.items() for x, y in found]
    table = write(tmp_path / "all.csv", "\n".join(["image,x,y", *rows]))
    for name, found in TRUTH.items():
        write(notes / f"{other[name]}.csv", "".join(f"{x},{y}\n" for x, y in found))
    lists = [write(tmp_path / f"{n}.txt", other[n].partition("/")[2]) for n in "ab"]
    for path in (table, notes):
        out, *_ = prepare(folder, "csv", "--annotations", path, "--train-list", lists[0], "--val-list", lists[1])
        assert list(points(out).values()) == [ROWS[name] for name in "ab"]


def test_long_names_leave_room_for_what_follows_or_are_refused(tmp_path):
    long = "日" * 80  # 240 bytes
    folder = photos(tmp_path / "in", f"train/{long}.jpg", "val/c.jpg", size=(48, 32))
    table = write(tmp_path / "all.csv", f"image,x,y\n{long}.jpg,10,20\nc.jpg,20,10\n")
    out, *_ = prepare(folder, "csv", "--annotations", table)
    with atomic_write(write(gaussians_path(out / "train" / f"{long}.jpg"), "")) as partial:
        partial.write_bytes(b"")
    (folder / f"train/{long}.jpg").rename(folder / f"train/{long}abc.jpg")
    err = prepare(folder, "csv", "--annotations", write(table, f"image,x,y\n{long}abc.jpg,1,2\nc.jpg,2,1\n"), code=1)[2]
    assert err.count("\n") == 1 and "its name is too long: " in err and "256 bytes" in err and "rename the image" in err


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda x, y: (2 * x, 2 * y), "c.jpg: 3 of 4 points lie outside their image"),
        (lambda x, y: (x / 200, y / 150), "c.jpg: all 4 points lie within 0..1"),
    ],
)
def test_one_image_in_another_unit(tmp_path, pictures, change, reason):
    rows = [f"{name}.jpg,{x},{y}" for name in "ab" for x, y in TRUTH[name] * 20]
    rows += ["c.jpg,%g,%g" % change(x, y) for x, y in [*TRUTH["c"], (180, 20)]]
    path = write(tmp_path / "a.csv", "\n".join(["image,x,y", *rows]))
    with pytest.raises(ValueError, match=reason):
        pictures(path, "csv")


def test_a_table_beside_which_others_lie(tmp_path):
    folder = photos(tmp_path / "in", *NAMES)
    write(folder / "all.csv", rows_for_all(lambda x, y: f"{x},{y}", "image,x,y\n"))
    write(folder / "counts.csv", "image,count\na.jpg,3\n")
    write(folder / "package.json", {})
    for form in ("auto", "csv"):
        out, _, err = prepare(folder, form)
        assert points(out) == ROWS
        assert f"{folder / 'counts.csv'}: line 1: the header 'image, count' lacks x and y" in err
    write(folder / "counts.csv", "image,x,y\nc.jpg,3\n")  # of this kind, and damaged
    assert "line 2: 2 columns instead of 3" in prepare(folder, "auto", code=1)[2]
