"""A folder of one's own through preprocess_dataset_points.py: formats, folders, splits and what is said of them."""

import functools
import shutil

import numpy as np
import pytest
from commands import call, errors
from own_folders import photos, prepare, report, sizes, write
from own_folders import points as points_of
from PIL import Image
from raw_data import TREES, contents, draw_points, prepared, record

from datasets.raw.annotations import read_ucf
from GS2D.points import mean_neighbour_distance

LISTED = "a.jpg,1,2\nb.jpg,3,4\nc.jpg,5,6\n"


def counts(root):
    """Points by the name of the prepared image."""
    return {name: entry["points"] for name, entry in record(root).items()}


def refused(*arguments):
    (line,) = errors(prepare(*arguments, code=1)[2])
    assert line.startswith("error: ") and ";" in line
    return line


def test_trees_as_csv_are_the_bytes_of_the_mat_path(tmp_path):
    raw, mine, lines = tmp_path / "raw", tmp_path / "mine", ["image,x,y"]
    shutil.copytree(TREES, raw)
    for path in sorted(raw.glob("*/*.jpg")):
        (mine / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, mine / path.parent.name)
        points = read_ucf(path.with_name(f"{path.stem}_ann.mat")).tolist()
        lines += [f"{path.relative_to(raw)},{x!r},{y!r}" for x, y in points]
    table = write(tmp_path / "all.csv", "\n".join(lines))
    paths = ["--workers", 1, "--output-dataset-path", tmp_path / "one", "--input-dataset-path"]
    call("preprocess_dataset_ucf.py", *paths, raw)
    paths[3] = tmp_path / "two"
    call("preprocess_dataset_points.py", "--format", "csv", *paths, mine, "--annotations", table)
    one, two = ({n: data for n, data in prepared(tmp_path / f).items() if n[-5:] != "jsonl"} for f in ("one", "two"))
    assert len(one) == 2 * 14 + 1 and "split.json" in one and one == two


SPLIT = {"train/1.jpg": 1, "train/2.jpg": 2, "val/3.jpg": 3, "test/4.jpg": 4}  # what the images below become


def check_split(out, size=None):
    """Image i has i points; ``size`` is the third column where the format gives one."""
    assert counts(out) == SPLIT
    for i in range(1, 5):
        np.testing.assert_allclose(points_of(out)[str(i)], draw_points(i), rtol=1e-5)
    np.testing.assert_allclose(sizes(out, "2"), size or mean_neighbour_distance(draw_points(2)), rtol=1e-4)


@pytest.mark.parametrize("place", ["beside", "folders", "flat"])
def test_a_file_for_each_image(tmp_path, place):
    folder, notes = photos(tmp_path / "in", "train/1.jpg", "train/2.jpg", "Val/3.jpg", "TEST/4.JPG"), tmp_path / "notes"
    for image in sorted(folder.glob("*/*")):
        at = {"beside": image.parent, "folders": notes / image.parent.name, "flat": notes}[place]
        write(at / f"{image.stem}.CSV", "".join(f"{x},{y}\n" for x, y in draw_points(int(image.stem))))
    before = contents(folder)
    out, *_ = prepare(folder, "csv", *(() if place == "beside" else ("--annotations", notes)))
    check_split(out)
    assert contents(folder) == before and report(out)["dataset"] == "own"


@pytest.mark.parametrize("place", ["{}/{}.jpg", "images/{}/{}.jpg", "{}/images/{}.jpg"])
def test_yolo_beside_the_images_and_in_labels(tmp_path, place):
    names = [place.format(split, i) for i, split in enumerate(("train", "train", "valid", "test"), start=1)]
    folder = photos(tmp_path / "in", *names)
    for i, name in enumerate(names, start=1):
        lines = "".join(f"0 {x / 200} {y / 150} {6 / 200} {6 / 150}\n" for x, y in draw_points(i))
        write(folder / name.replace("images", "labels").replace("jpg", "txt"), lines)
    write(folder / "classes.txt", "head\n")
    out, _, err = prepare(folder, "yolo")
    check_split(out, size=[6, 6])
    assert "1 files belong to no image" in err and "classes.txt" in err


def test_coco_with_a_file_in_each_split(tmp_path):
    """Names repeat between the splits; each file speaks of the images beside it."""
    folder = photos(tmp_path / "in", "train/a.jpg", "valid/a.jpg", "test/a.jpg")
    for count, split in enumerate(("train", "valid", "test"), start=1):
        boxes = [{"image_id": 0, "bbox": [10 * count, 20, 4, 9]}] * count
        write(
            folder / split / "_annotations.coco.json",
            {"images": [{"id": 0, "file_name": "a.jpg"}], "annotations": boxes},
        )
    out, *_ = prepare(folder, "coco")
    assert counts(out) == {"train/a.jpg": 1, "val/a.jpg": 2, "test/a.jpg": 3}
    assert np.load(out / "train/a.npy").tolist() == [[12, 24.5, 6]] and np.load(out / "test/a.npy")[2].tolist() == [
        32,
        24.5,
    ]


def test_points_and_boxes_together_get_the_column_that_each_can(tmp_path):
    shapes = [{"shape_type": "point", "points": [[10, 10]]}, {"shape_type": "rectangle", "points": [[20, 6], [24, 15]]}]
    folder = photos(tmp_path / "in", "train/a.jpg", "val/b.jpg")
    for name in ("train/a.json", "val/b.json"):
        write(folder / name, {"shapes": shapes})
    out, *_ = prepare(folder, "labelme")
    assert points_of(out)["a"] == [[10, 10], [22, 10.5]] and sizes(out, "a") == [pytest.approx(144.25**0.5), 6]


def test_only_images_whose_points_changed_are_done_again(tmp_path):
    run = functools.partial(
        prepare, photos(tmp_path / "in"), "csv", "--annotations", write(tmp_path / "all.csv", LISTED)
    )
    run()
    assert "nothing to do" in run()[1]
    write(tmp_path / "all.csv", f"{LISTED}a.jpg,7,8\n")
    out, text, _ = run()
    assert "prepared 1 images" in text and counts(out) == {"train/a.jpg": 2, "train/b.jpg": 1, "val/c.jpg": 1}


def test_images_without_annotation(tmp_path):
    folder = photos(tmp_path / "in", "train/a.jpg", "train/b.jpg", "val/c.jpg", "val/d.jpg")
    for name in ("train/a", "val/c"):
        write(folder / f"{name}.csv", "1,2\n")
        write(folder / f"{name}.txt", "0 .5 .5 .1 .1\n")
    some = {"train/a.jpg": 1, "val/c.jpg": 1}
    every = {"train/a.jpg": 1, "train/b.jpg": 0, "val/c.jpg": 1, "val/d.jpg": 0}
    left_out, empty = (
        "b.jpg) have no annotation and are left out",
        "b.jpg) have no annotation and count as images without",
    )
    for options, expected, line in (
        (("csv",), some, left_out),
        (("csv", "--unannotated", "empty"), every, empty),
        (("yolo",), every, empty),
        (("yolo", "--unannotated", "skip"), some, left_out),
    ):
        shutil.rmtree(tmp_path / "in_out", ignore_errors=True)
        out, _, err = prepare(folder, *options)
        assert "warning: 2 of 4 images (first " in err and line in err and counts(out) == expected
    table = write(tmp_path / "all.csv", "a.jpg,1,2\nb.jpg,,\nc.jpg,3,4\nzzz.jpg,5,6\n")
    out, _, err = prepare(folder, "csv", "--annotations", table)
    assert counts(out)["train/b.jpg"] == 0 and "1 annotated images are not in the input" in err and "'zzz.jpg'" in err


def test_no_annotation_at_all(tmp_path):
    folder = photos(tmp_path / "in", "train/a.jpg")
    for form in ("csv", "yolo", "coco"):
        assert f"no annotation of format {form}" in refused(folder, form)
    assert "check --annotations" in refused(folder, "csv", "--annotations", tmp_path / "none.csv")
    table = write(tmp_path / "all.txt", "")
    assert "yolo has a file for each image" in refused(folder, "yolo", "--annotations", table)


def test_wrong_files_are_named_and_the_rest_is_done(tmp_path):
    folder = photos(tmp_path / "in", "train/a.jpg", "train/b.jpg", "val/c.jpg", "val/d.jpg")
    write(folder / "val" / "d.jpg", b"no image")
    for name, text in (("train/a", "1,2\n3,4,5"), ("train/b", "1,2"), ("val/c", "1,2\n300,4"), ("val/d", "1,2")):
        write(folder / f"{name}.csv", f"x,y\n{text}\n")
    out, text, err = prepare(folder, "csv", code=1)
    lines = errors(err)
    assert len(lines) == 3 and "d.jpg: cannot read this image" in err and "a.csv: line 3: 3 columns" in err
    assert counts(out) == {"train/b.jpg": 1, "val/c.jpg": 1} and "c.jpg: 1 of 2 points lie outside" in text
    Image.new("L", (64, 48)).save(folder / "val" / "d.jpg")
    assert record(prepare(folder, "csv", code=1)[0])["val/d.jpg"]["grey"] is True


def test_names_that_could_mean_two_images(tmp_path):
    folder = photos(tmp_path / "in", "train/x/a.jpg", "train/y/b.jpg", "val/a.jpg")
    table = write(tmp_path / "all.csv", "a.jpg,1,2\n")
    options = (folder, "csv", "--annotations", table)
    assert "'a.jpg': may mean" in refused(*options)
    write(table, "train/x/a.jpg,1,2\nother\\val\\a.png,3,4\nval/a.png,5,6\ny/b,5,6\n")
    assert "and so does" in refused(*options)
    write(table, "train/x/a.jpg,1,2\nother\\val\\a.png,3,4\ny/b,5,6\ny/b,5,7\n")
    assert counts(prepare(*options)[0]) == {"train/a.jpg": 1, "train/b.jpg": 2, "val/a.jpg": 1}
    write(table, "test/b.jpg,1,2\nval/a.jpg,3,4\n")
    assert "'test/b.jpg'" in prepare(*options)[2]


def test_images_that_would_get_one_name(tmp_path):
    folder = photos(tmp_path / "in", "train/x/a.jpg", "train/y/a.png", "val/b.jpg")
    table = write(tmp_path / "all.csv", "x/a.jpg,1,2\ny/a.png,3,4\nb.jpg,1,2\n")
    line = refused(folder, "csv", "--annotations", table)
    assert "x/a.jpg" in line and "y/a.png" in line
    write(tmp_path / "flat" / "a.csv", "1,2\n")
    assert "a.csv: 'a': may mean " in refused(folder, "csv", "--annotations", tmp_path / "flat")
    (folder / "train/y/a.png").unlink()
    write(tmp_path / "flat" / "a.CSV", "1,2\n")
    assert "is for the same image" in refused(folder, "csv", "--annotations", tmp_path / "flat")


def test_names_beyond_ascii_and_links(tmp_path):
    """The image's name is composed, that in the table is not; a split folder is a link, and another link makes a loop."""
    photos(tmp_path / "data", "толпа é 1.JPG", "b.jpeg")
    folder = photos(tmp_path / "in", "val/c.png")
    (folder / "train").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (folder / "val" / "d.jpg").symlink_to(tmp_path / "data" / "b.jpeg")
    text = "\ufeffтолпа e\u0301 1.jpg,1,2\r\nb,3,4\r\nc,5,6\r\nd,5,6\r\n"
    out, *_ = prepare(folder, "csv", "--annotations", write(tmp_path / "all.csv", text))
    assert counts(out) == dict.fromkeys(("train/b.jpg", "train/толпа é 1.jpg", "val/c.jpg", "val/d.jpg"), 1)


def test_without_folders_the_images_are_drawn(tmp_path):
    names = [f"{i:02}.jpg" for i in range(20)]
    folder = photos(tmp_path / "in", *[f"camera {i % 2}/{name}" for i, name in enumerate(names)])
    table = write(tmp_path / "all.csv", "".join(f"{name},1,2\n" for name in names))
    for options in ((), ("--test-list", write(tmp_path / "test.txt", "00.jpg\n01\n"))):
        out, text, _ = prepare(folder, "csv", "--annotations", table, *options)
        assert "split: 16 train, 2 val and 2 test images" in text
        assert [len([*out.glob(f"{split}/*.jpg")]) for split in ("train", "val", "test")] == [16, 2, 2]
    assert {path.stem for path in out.glob("test/*")} == {"00", "01"}


def test_folders_and_lists(tmp_path):
    folder = photos(tmp_path / "in", "train/a.jpg", "train/b.jpg", "test/c.jpg", "more/d.jpg", "e.jpg")
    table = write(tmp_path / "all.csv", "".join(f"{name}.jpg,1,2\n" for name in "abcdef"))
    val = write(tmp_path / "val.txt", "b\n")
    options = (folder, "csv", "--annotations", table, "--val-list", val)
    out, _, err = prepare(*options)
    assert "2 images (first " in err and "lie in none of the folders train, test and are left out" in err
    assert set(counts(out)) == {"train/a.jpg", "val/b.jpg", "test/c.jpg"}
    assert "the folders train, test decide already" in refused(*options, "--test-list", val)
    photos(folder, "val/f.jpg")
    assert "train, val, test decide already" in refused(*options)
    out, text, _ = prepare(photos(tmp_path / "only", "test/c.jpg"), "csv", "--annotations", table)
    assert set(counts(out)) == {"test/c.jpg"} and "no folder train" in text


def test_folders_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, line in (("none", "no such folder"), ("empty", "holds no image")):
        assert line in refused(tmp_path / name, "csv")
