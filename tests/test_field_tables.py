"""Tables of points and boxes by their header, and which format a folder holds."""

import json

import numpy as np
import pytest
import scipy.io
from own_folders import photos, points, prepare, sizes, write
from test_field_formats import marks, refused, result, task

from datasets.raw.formats import FORMATS, table
from datasets.raw.point_formats import read_labelme
from datasets.raw.tables import read_csv

ROWS = {
    "label,x,y,image\nhead,10,20,a.jpg\n": (10, 20, None, "head"),
    "image,cx,cy,w,h,class\na.jpg,10,20,4,9,head\n": (10, 20, 6, "head"),
    "image,x_center,y_center,width,height,label\na.jpg,10,20,4,9,head\n": (10, 20, 6, "head"),
    "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,200,150,head,8,15.5,12,24.5\n": (10, 20, 6, "head"),
    "image,x1,y1,x2,y2,label\na.jpg,8,15.5,12,24.5,head\n": (10, 20, 6, "head"),
    "image;left;top;right;bottom;category\na.jpg;8;15.5;12;24.5;head\n": (10, 20, 6, "head"),
    "image,left,top,width,height,label\na.jpg,8,15.5,4,9,head\n": (10, 20, 6, "head"),
    "image,x,y,w,h,label\na.jpg,8,15.5,4,9,head\n": (10, 20, 6, "head"),
    "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\n"
    "head,8,15.5,4,9,a.jpg,200,150\n": (10, 20, 6, "head"),
    "head,8,15.5,4,9,a.jpg,200,150\n": (10, 20, 6, "head"),  # make-sense without its header, boxes and points
    "head,10,20,a.jpg,200,150\n": (10, 20, None, "head"),
    "label,x,y,image,width,height\nhead,10,20,a.jpg,200,150\n": (10, 20, None, "head"),  # width, height of the image
    "label,x,y,image,width,height\nhead,8,15.5,a.jpg,4,9\n": (10, 20, 6, "head"),
    "Image Name,X,Y,Label\na.jpg,10,20,head\n": (10, 20, None, "head"),
}


@pytest.mark.parametrize("text", ROWS, ids=range(len(ROWS)))
def test_tables_by_their_header(tmp_path, text):
    path = write(tmp_path / "t.csv", text)
    found = read_csv(path, sizes=lambda name: ((200, 150), (200, 150)), say=lambda path, meaning: None)
    assert marks(found["a.jpg"]) == [ROWS[text]]


@pytest.mark.parametrize(
    "header, lacking",
    [
        ("image,x", "lacks y"),
        ("x,y,label", "lacks image"),
        ("image,left,top", "lacks width and height (or right and bottom)"),
        ("who,where", "lacks image and x and y"),
        ("image,xmin,ymin", "lacks x and y"),
    ],
)
def test_what_a_header_lacks_is_named(tmp_path, header, lacking):
    assert f"the header {header.replace(',', ', ')!r} {lacking};" in refused(
        read_csv, write(tmp_path / "t.csv", f"{header}\n")
    )


def test_what_a_column_means_is_said_once(tmp_path):
    photos(tmp_path / "in")
    for name in ("train/a", "train/b", "val/c"):
        write(tmp_path / "in" / f"{name}.csv", "x,y,width,height,label\n10,20,20,30,head\n50,60,20,45,car\n")
    out, said, _ = prepare(tmp_path / "in", "csv")
    assert points(out)["a"] == [[20, 35], [60, 82.5]] and sizes(out, "a") == pytest.approx([600**0.5, 30])
    assert said.count("x, y is the upper left corner of a box, width, height its width and height") == 1


def test_labelme_shapes_of_labels_that_are_not_counted_do_not_matter(tmp_path):
    shapes = [
        {"label": "head", "shape_type": "point", "points": [[1, 2]]},
        {"label": "road", "shape_type": "linestrip", "points": [[1, 2], [3, 4]]},
    ]
    path = write(tmp_path / "a.json", {"shapes": shapes})
    assert marks(read_labelme(path, ["head"])[""]) == [(1, 2, None, "head")]
    assert "shape 2: is a 'linestrip'" in refused(read_labelme, path)
    assert "shape 2: is a 'linestrip'" in refused(read_labelme, path, ["road"])


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
            assert f"format: {form} ({folder}" in said and len(points(out)) == 3
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
        f"error: {folder}: the annotations may be csv ({folder}/train/a.csv: a table with the columns of points or boxes); "
        f"xy ({folder}/train/a.txt: two numbers a line); choose with --format\n"
    )
    (folder / "train" / "a.txt").unlink(), (folder / "train" / "a.csv").unlink()
    err = prepare(folder, "auto", code=1)[2]
    assert (
        "holds no annotations that are recognised (it has no file .csv, " in err and "choose with --format {csv," in err
    )


def test_the_table_of_the_documentation_is_that_of_the_readers():
    from commands import ROOT

    assert table() in (ROOT / "docs" / "formats.md").read_text()


def test_json_round_trip(tmp_path):
    """What the prepared points are written as is read as the same points."""
    folder = photos(tmp_path / "in")
    truth = {f"{name}.jpg": np.random.default_rng(i).uniform(0, 150, (5, 2)).tolist() for i, name in enumerate("abc")}
    write(folder / "all.json", json.dumps(truth))
    out, *_ = prepare(folder, "json", "--annotations", folder / "all.json")
    again = photos(tmp_path / "again")
    write(again / "all.json", {f"{stem}.jpg": found for stem, found in points(out).items()})
    assert points(prepare(again, "json", "--annotations", again / "all.json")[0]) == points(out)
