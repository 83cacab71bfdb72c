"""Which format a folder holds, and what is said of one that is not read."""

import numpy as np
import pytest
import scipy.io
from commands import ROOT
from own_folders import SIDES, photos, points, prepare, write
from test_field_columns import NAMES, ROWS, TRUTH
from test_orientation import WRITERS

from datasets.raw.point_folders import FORMATS


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


UNREAD = {
    "a.xml": ("<!-- by <me> --><annotation><object/></annotation>", "is <annotation>; export 'CVAT for images 1.1'"),
    "a.txt": ("10 20 30 40 1\n", "line 1: [20.0, 30.0, 40.0, 1.0] is not in parts of the image"),
    "b.txt": ("a 10 20\n", "line 1: 3 values; write the five values"),
    "cells.json": ([{"type": "Feature"}], "no object; write"),
    "c.json": ("[[1, 2", "not valid JSON"),
    "a.csv": ("index,axis-0,axis-1\n0,30,40\n", "line 1: the header 'index, axis-0, axis-1' lacks x and y"),
    "b.csv": ("x,y\n1,2,3\n", "line 2: 3 columns instead of 2"),
    "objects.csv": ("x,y\n1,2\n", "the header 'x, y' lacks image"),
    "RoiSet.zip": (b"PK", "it has no file .csv, .json, .mat, .pnt, .tsv, .txt, .xml of an image or of all"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_recognised_is_named_with_the_reason(tmp_path, name):
    folder = photos(tmp_path / "in", *NAMES)
    contents, reason = UNREAD[name]
    write(folder / name, contents)
    err = prepare(folder, "auto", code=1)[2]
    assert err.count("\n") == 1 and reason in err and "choose with --format" in err
    assert f"{folder / name}: " in err or name.endswith("zip")


@pytest.mark.parametrize("name, separator", [("{}.jpg.csv", ","), ("{}.tsv", "\t"), ("{}.jpg.txt", " ")])
def test_files_beside_their_image_are_taken(tmp_path, name, separator):
    folder = photos(tmp_path / "in", *NAMES)
    for stem, found in TRUTH.items():
        write(folder / name.format(stem), "".join(f"{x}{separator}{y}\n" for x, y in found))
    assert points(prepare(folder, "auto")[0]) == ROWS
