"""Which format a folder holds, and what is said of one that is not read."""

import json
import zipfile

import numpy as np
import pytest
import scipy.io
from commands import ROOT
from own_folders import photos, points, prepare, write
from test_field_columns import NAMES, TRUTH
from test_point_formats import result, task

from datasets.raw.formats import FORMATS


def test_the_documentation_has_every_format():
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in FORMATS)


def test_every_format_is_recognised(tmp_path):
    one = {"shapes": [{"label": "p", "shape_type": "point", "points": [[1, 2]]}]}
    three = {f"{name}.jpg": [[1, 2], [30, 40]] for name in "abc"}
    coco = {
        "images": [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate("abc")],
        "annotations": [{"image_id": i, "bbox": [1, 2, 3, 4]} for i in range(3)],
    }
    project = [task(result("keypointlabels", x=1, y=2), name=f"{name}.jpg") for name in "abc"]
    via = {"_via_img_metadata": {n: {"filename": n, "regions": []} for n in ("b.jpg", "c.jpg")}}
    via["_via_img_metadata"]["a.jpg"] = {
        "filename": "a.jpg",
        "regions": [{"shape_attributes": {"name": "point", "cx": 1, "cy": 2}}],
    }
    xml = "".join(f"<image name='{name}.jpg'><points points='1,2'/></image>" for name in "abc")
    pnt = {"points": {f"{name}.jpg": {"head": [{"x": 1, "y": 2}]} for name in "abc"}}
    shared = {
        "csv": ("all.csv", "image,x,y\na.jpg,1,2\nb.jpg,3,4\nc.jpg,5,6\n"),
        "json": ("all.json", three),
        "coco": ("instances.json", coco),
        "via": ("via.json", via),
        "cvat": ("annotations.xml", f"<annotations>{xml}</annotations>"),
        "labelstudio": ("project.json", project),
        "pnt": ("count.pnt", pnt),
    }
    single = {"csv": (".csv", "1,2\n"), "json": (".json", [[1, 2]]), "yolo": (".txt", "0 0.5 0.5 0.1 0.1\n")}
    single |= {"labelme": (".json", one), "xy": (".txt", "10 20\n")}
    tried = set()
    for kind, table_of in (("shared", shared), ("single", single)):
        for form, (name, contents) in table_of.items():
            folder = photos(tmp_path / f"{kind}_{form}")
            write(folder / "classes.txt", "head\n")
            for stem in ("train/a", "train/b", "val/c") if kind == "single" else ("",):
                write(folder / f"{stem}{name}", contents)
            out, said, _ = prepare(folder, "auto")
            assert f"format: {form} (as {folder}" in said and len(points(out)) == 3
            tried.add(form)
    scipy.io.savemat(
        photos(tmp_path / "mat", "train/a.jpg", "val/c.jpg") / "train/GT_a.mat", {"points": np.ones((1, 2))}
    )
    scipy.io.savemat(tmp_path / "mat/val/c_ann.mat", {"annPoints": np.ones((1, 2))})
    assert "format: mat" in prepare(tmp_path / "mat", "auto")[1]
    assert tried | {"mat"} == set(FORMATS)


def test_several_formats_ask_for_one(tmp_path):
    folder = photos(tmp_path / "in")
    write(folder / "train" / "a.txt", "10 20\n")
    write(folder / "train" / "a.csv", "x,y\n1,2\n")
    err = prepare(folder, "auto", code=1)[2]
    assert err == (
        f"error: {folder}: the annotations may be csv ({folder}/train/a.csv); xy ({folder}/train/a.txt); choose with "
        "--format\n"
    )
    (folder / "train" / "a.txt").unlink(), (folder / "train" / "a.csv").unlink()
    err = prepare(folder, "auto", code=1)[2]
    assert (
        "holds no annotations that are recognised (it has no file .csv, " in err and "choose with --format {csv," in err
    )


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("0001-0002.roi", b"Iout")
    return path.read_bytes()


SUPERVISELY = {
    "description": "",
    "tags": [],
    "size": {"height": 150, "width": 200},
    "objects": [{"classTitle": "head"}],
}
DARWIN = {"version": "2.0", "item": {"name": "a.jpg"}, "annotations": [{"name": "head", "bounding_box": {"x": 1}}]}
QUPATH = [{"type": "Feature", "geometry": {"type": "Point", "coordinates": [40, 30]}, "properties": {}}]
UNREAD = {
    "a.xml": ("<!-- by <me> --><annotation><object/></annotation>", "is Pascal VOC's, which is not read: export COCO"),
    "a.txt": ("10 20 30 40 1\n", "as CARPK's, which is not read: write it as a csv table with the columns xmin"),
    "cells.geojson": (
        {"type": "FeatureCollection", "features": QUPATH},
        "as QuPath writes it, which is not read: measure",
    ),
    "cells.json": (QUPATH, "as QuPath writes it, which is not read: measure"),
    "a.jpg.json": (SUPERVISELY, "is of Supervisely, which is not read: export COCO"),
    "a.json": (DARWIN, "is Darwin's, of V7, which is not read: export COCO"),
    "RoiSet.zip": (b"", "such as ImageJ's RoiSet.zip, which is not read: "),
    "0001.roi": (b"Iout", "is a ROI of ImageJ, which is not read: measure the ROIs"),
    "CellCounter_a.xml": (
        '<?xml version="1.0"?>\n<CellCounter_Marker_File><Marker_Data/></CellCounter_Marker_File>',
        "is of ImageJ's Cell Counter, which is not read: measure the markers",
    ),
    "counts.xlsx": (b"PK\3\4", "is a spreadsheet, which is not read: save it as csv"),
    "labels.ndjson": ("{}\n", "is a list of JSON lines, as of Labelbox, which is not read: export COCO"),
    "a.csv": ("index,axis-0,axis-1\n0,30,40\n", "line 1: the header 'index, axis-0, axis-1' lacks x and y"),
    "b.csv": ("x,y\n1,2,3\n", "line 2: 3 columns instead of 2"),
    "objects.csv": ("x,y\n1,2\n", "the header 'x, y' lacks image"),
    "other.xml": ("<svg/>", "begins with svg, where CVAT's file begins with annotations"),
    "b.json": ({"a": 1}, "an object with the keys 'a', of no format that is read"),
    "b.txt": ("a 10 20\n", "begins with 'a 10 20', neither x y nor YOLO's"),
    "c.json": ("[[1, 2", "not valid JSON"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_recognised_is_named_with_the_reason(tmp_path, name):
    folder = photos(tmp_path / "in", *NAMES)
    contents, reason = UNREAD[name]
    write(folder / name, contents)
    if name.endswith(".zip"):
        archive(folder / name)
    err = prepare(folder, "auto", code=1)[2]
    assert err.count("\n") == 1 and f"{folder / name}: " in err and reason in err and "choose with --format" in err


TAKEN = {
    "csv beside": ("{}.csv", "x,y\n{}", "csv"),
    "named with the image's ending": ("{}.jpg.csv", "x,y\n{}", "csv"),
    "tab separated": ("{}.tsv", "x\ty\n{}", "csv"),
    "json with the image's ending": ("{}.jpg.json", None, "json"),
    "text with the image's ending": ("{}.jpg.txt", "{}", "xy"),
}


@pytest.mark.parametrize("name, text, form", TAKEN.values(), ids=TAKEN)
def test_files_beside_their_image_are_taken(tmp_path, name, text, form):
    folder = photos(tmp_path / "in", *NAMES)
    for stem, found in TRUTH.items():
        separator = "\t" if name.endswith(("tsv", "txt")) else ","
        lines = "\n".join(separator.join(map(str, point)) for point in found)
        write(folder / name.format(stem), json.dumps(found) if text is None else text.format(lines))
    out, said, _ = prepare(folder, "auto")
    assert f"format: {form} (as " in said
    assert points(out) == {stem: [[*point] for point in found] for stem, found in TRUTH.items()}


def test_a_table_of_cellprofiler(tmp_path):
    folder = photos(tmp_path / "in", *NAMES)
    rows = [f"{i},{name}.jpg,{x},{y}" for name, found in TRUTH.items() for i, (x, y) in enumerate(found)]
    header = "ObjectNumber,FileName_DNA,Location_Center_X,Location_Center_Y"
    write(folder / "Nuclei.csv", "\n".join([header, *rows]))
    assert points(prepare(folder, "auto")[0]) == {stem: [[*point] for point in found] for stem, found in TRUTH.items()}
