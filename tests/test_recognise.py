"""Which format a folder holds, and what is said of one that is not read."""

import numpy as np
import pytest
import scipy.io
from commands import ROOT
from own_folders import SIDES, photos, points, prepare, write
from test_field_columns import NAMES, ROWS, TRUTH
from test_orientation import WRITERS

from datasets.raw.formats import FORMATS


def test_the_documentation_has_every_format():
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in FORMATS)


ONE = [(10, 20), (30, 45)]
FOR_ALL = {
    "csv": ("all.csv", "image,x,y\n" + "".join(f"{name},{x},{y}\n" for name in NAMES for x, y in ONE)),
    "json": ("all.json", dict.fromkeys(NAMES, ONE)),
    "pnt": ("count.pnt", {"points": {name: {"head": [{"x": x, "y": y} for x, y in ONE]} for name in NAMES}}),
}


def by_xy(image, at, size, folder):
    write(image.with_suffix(".txt"), "".join(f"{x} {y}\n" for x, y in at))


def by_mat(image, at, size, folder):
    scipy.io.savemat(image.with_name(f"{image.stem}_ann.mat"), {"annPoints": np.array(at, float)})


@pytest.mark.parametrize("form", [*WRITERS, "xy", "mat", "csv for all", "json for all", "pnt for all"])
def test_every_format_is_recognised(tmp_path, form):
    folder, for_all, form = photos(tmp_path / "in"), form.endswith(" for all"), form.removesuffix(" for all")
    write(folder / "classes.txt", "head\n")
    if for_all:
        write(folder / FOR_ALL[form][0], FOR_ALL[form][1])
    else:
        for image in sorted(folder.glob("*/*.jpg")):
            (WRITERS | {"xy": by_xy, "mat": by_mat})[form](image, ONE, SIDES, folder)
    out, printed, _ = prepare(folder, "auto")
    assert f"format: {form} (as {folder}" in printed
    assert all(np.allclose(found, ONE) for found in points(out).values()) and len(points(out)) == 3


SUPERVISELY = {"description": "", "tags": [], "size": {"height": 150, "width": 200}, "objects": []}
QUPATH = [{"type": "Feature", "geometry": {"type": "Point", "coordinates": [40, 30]}, "properties": {}}]
UNREAD = {
    "a.xml": ("<!-- by <me> --><annotation><object/></annotation>", "is <annotation>; export 'CVAT for images 1.1'"),
    "a.txt": ("10 20 30 40 1\n", "line 1: [20.0, 30.0, 40.0, 1.0] is not in parts of the image"),
    "cells.geojson": ({"type": "FeatureCollection"}, "as QuPath writes it, which is not read: measure"),
    "cells.json": (QUPATH, "no list 'annotations'"),
    "a.jpg.json": (SUPERVISELY, "no text 'filename'"),
    "RoiSet.zip": (b"PK", "such as ImageJ's RoiSet.zip, which is not read: "),
    "0001.roi": (b"Iout", "is a ROI of ImageJ, which is not read: measure the ROIs"),
    "counts.xlsx": (b"PK\3\4", "is a spreadsheet, which is not read: save it as csv"),
    "labels.ndjson": ("{}\n", "is a list of JSON lines, which is not read: export COCO"),
    "a.csv": ("index,axis-0,axis-1\n0,30,40\n", "line 1: the header 'index, axis-0, axis-1' lacks x and y"),
    "b.csv": ("x,y\n1,2,3\n", "line 2: 3 columns instead of 2"),
    "objects.csv": ("x,y\n1,2\n", "the header 'x, y' lacks image"),
    "b.json": ({"a": 1}, "no text 'filename'"),
    "min.json": ([{"image": "a.jpg", "kp": [{"x": 1, "y": 2}]}], "task 1: no list 'annotations'"),
    "b.txt": ("a 10 20\n", "line 1: 3 values; write the five values"),
    "c.json": ("[[1, 2", "not valid JSON"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_recognised_is_named_with_the_reason(tmp_path, name):
    folder = photos(tmp_path / "in", *NAMES)
    contents, reason = UNREAD[name]
    write(folder / name, contents)
    err = prepare(folder, "auto", code=1)[2]
    assert err.count("\n") == 1 and f"{folder / name}: " in err and reason in err and "choose with --format" in err


@pytest.mark.parametrize("name, separator", [("{}.jpg.csv", ","), ("{}.tsv", "\t"), ("{}.jpg.txt", " ")])
def test_files_beside_their_image_are_taken(tmp_path, name, separator):
    folder = photos(tmp_path / "in", *NAMES)
    for stem, found in TRUTH.items():
        write(folder / name.format(stem), "".join(f"{x}{separator}{y}\n" for x, y in found))
    assert points(prepare(folder, "auto")[0]) == ROWS
