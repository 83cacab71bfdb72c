"""What people really fed in, and what must come of it. The sources are issues of the tools' own trackers."""

import pytest
from own_folders import photos, points, prepare, sizes, write

from utils.evaluation.sources import find_sources

STEMS = ("train/a", "train/b", "val/c")


@pytest.mark.parametrize(
    "form, name, text, reason",
    [
        ("coco", "a.json", '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}', "the COCO exports"),
        ("auto", "{}.txt", "", "the YOLO exports of CVAT and Label Studio leave points out: export"),
        ("csv", "{}.csv", "x,y\n", "annotate objects, or check --format and how the annotations were exported"),
    ],
)
def test_annotations_without_one_object(tmp_path, form, name, text, reason):
    """cvat#1602 #2910 #5831 #7161 #821 #6609 #7737, label-studio#4475 #6366, X-AnyLabeling#202 #922."""
    folder = photos(tmp_path / "in")
    for stem in STEMS:
        write(folder / name.format(stem), text)
    _, _, err = prepare(folder, form, code=1)
    place, count = (folder / name, 1) if form == "coco" else (folder, 3)
    line = f"error: {place}: lists {count} images and no annotation, not one object; {reason}"
    assert err.splitlines()[-1].startswith(line)
    if form == "auto":  # one object tells that the others are empty
        write(folder / "val" / "c.txt", "0 .5 .5 .1 .1\n")
        assert [len(rows) for rows in points(prepare(folder, "yolo")[0]).values()] == [0, 0, 1]


def test_what_columns_mean_is_printed_once(tmp_path):
    """make-sense#253, VoTT#244: x, y is the upper left corner."""
    folder = photos(tmp_path / "in")
    for stem in STEMS:
        write(folder / f"{stem}.csv", "label_name,x,y,width,height\nhead,10,20,20,30\ncar,50,60,20,45\n")
    out, printed, _ = prepare(folder, "csv")
    assert points(out)["a"] == [[20, 35], [60, 82.5]] and sizes(out, "a") == pytest.approx([600**0.5, 30])
    box = "x, y, width, height: a box by its upper left corner, width and height, counted at its centre"
    assert printed.count(f"columns: {box}; label_name: the label\n") == 1


def test_labels_are_printed_and_chosen(tmp_path):
    """Mask_RCNN#372 #818 #1337, make-sense#253."""
    folder, entries = photos(tmp_path / "in"), {}
    for name in "abc":
        regions = [
            {"shape_attributes": {"name": "point", "cx": x, "cy": 40}, "region_attributes": {"type": label}}
            for x, label in ((30, "head"), (60, "car"))
        ]
        entries[name] = {"filename": f"{name}.jpg", "size": 1, "regions": regions}
    via = write(tmp_path / "via.json", entries)
    rows = "".join(f"{name}.jpg,{x},40,{label}\n" for name in "abc" for x, label in ((30, "head"), (60, "car")))
    for form, path in (("via", via), ("csv", write(tmp_path / "labels.csv", f"image,x,y,label\n{rows}"))):
        out, printed, _ = prepare(folder, form, "--annotations", path)
        assert "labels found: 'head' 3, 'car' 3; all are counted, --category chooses" in printed
        assert points(out)["a"] == [[30, 40], [60, 40]]
        out, printed, _ = prepare(folder, form, "--annotations", path, "--category", "head")
        assert "counted: 'head'" in printed and points(out)["a"] == [[30, 40]]
        err = prepare(folder, form, "--annotations", path, "--category", "bus", code=1)[2]
        assert "--category bus: no object has this label; found: 'head' 3, 'car' 3" in err
    err = prepare(folder, "via", "--annotations", via, "--label-attribute", "kind", code=1)[2]
    assert "--label-attribute kind: is not there; found: type" in err
    table = write(tmp_path / "labels.csv", "image,x,y\na.jpg,1,2\nb.jpg,1,2\nc.jpg,1,2\n")
    err = prepare(folder, "csv", "--annotations", table, "--category", "head", code=1)[2]
    assert "--category head: these annotations give no labels; drop it, or name with --label-attribute" in err


@pytest.mark.parametrize("far, code, outside", [((300, 200), 1, 9), ((30, 20), 0, 3)])
def test_points_outside_their_images(tmp_path, far, code, outside):
    folder = photos(tmp_path / "in", size=(400, 100))
    for stem in STEMS:
        write(folder / f"{stem}.csv", "x,y\n10,390\n20,%d\n30,%d\n40,50\n" % far)
    line = f"{folder}: {outside} of 12 points lie outside their image; with x and y exchanged 0 would"
    assert f"{'error' if code else 'warning'}: {line}" in prepare(folder, "csv", code=code)[2]


def test_folders_of_phone_photographs_to_count(tmp_path):
    photos(tmp_path / "in", "a.jpg")
    for name in ("b.heic", "c.HEIC", "d.txt"):
        write(tmp_path / "in" / name, "x")
    assert find_sources([tmp_path / "in"])[1] == [
        f"{tmp_path / 'in'}: skipped 3 of 4 files, neither pictures nor videos; 2 images are of a kind that is not read: "
        ".heic: convert them to JPEG"
    ]


@pytest.mark.parametrize("of_images, of_annotations", [(int, str), (str, int)])
def test_coco_ids_that_are_text_here_and_numbers_there(tmp_path, of_images, of_annotations):
    """VIA's COCO export writes text."""
    folder = photos(tmp_path / "in")
    images = [{"id": of_images(i), "file_name": f"{name}.jpg"} for i, name in enumerate("abc", start=1)]
    boxes = [{"image_id": of_annotations(i), "category_id": "1", "bbox": [i, 20, 20, 20]} for i in (1, 2, 3)]
    contents = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "head"}]}
    write(folder / "coco.json", contents)
    out, said, _ = prepare(folder, "coco", "--category", "head")
    assert points(out) == {"a": [[11, 30]], "b": [[12, 30]], "c": [[13, 30]]}


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".bmp", ".webp"])
def test_photographs_of_drones_and_microscopes(tmp_path, suffix):
    folder = photos(tmp_path / "in", f"train/a{suffix}", "train/b.jpg", "val/c.jpg")
    table = write(tmp_path / "labels.csv", f"image,x,y\na{suffix},10,20\nb.jpg,10,20\nc.jpg,10,20\n")
    out, _, err = prepare(folder, "csv", "--annotations", table)
    assert points(out) == {name: [[10, 20]] for name in "abc"} and "not in the input" not in err


def test_images_of_kinds_that_are_not_read_are_named(tmp_path):
    folder = photos(tmp_path / "in", "train/a.jpg", "val/c.jpg")
    for name in ("train/b.HEIC", "val/d.heic"):
        write(folder / name, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    table = write(tmp_path / "labels.csv", "image,x,y\na.jpg,1,2\nb.HEIC,1,2\nc.jpg,1,2\nd.heic,1,2\n")
    _, _, err = prepare(folder, "csv", "--annotations", table)
    unread = "2 images are of a kind that is not read: .heic"
    assert f"warning: {folder}: {unread}; convert them to JPEG, or they are left out\n" in err
    assert f"warning: 2 annotated images are not in the input (first {table}: 'b.HEIC')\n" in err
    (folder / "train/a.jpg").unlink(), (folder / "val/c.jpg").unlink()
    _, _, err = prepare(folder, "csv", "--annotations", table, code=1)
    assert err == f"error: {folder}: {unread}; convert them to JPEG\n"


def test_nothing_done_is_not_called_up_to_date(tmp_path):
    folder = photos(tmp_path / "in")
    for stem in STEMS:
        write(folder / f"{stem}.csv", "1,2,3,4\n")
    _, said, _ = prepare(folder, "csv", code=1)
    assert "up to date" not in said and "no image was prepared: none has an annotation that can be read" in said
