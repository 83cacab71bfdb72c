"""A folder of one's own through preprocess_dataset_points.py: formats, folders, splits and what is said of them."""

import json
import shutil

import numpy as np
import pytest
from commands import call, errors
from PIL import Image
from raw_data import TREES, contents, draw_points, prepared, record, save_noise, write

from datasets.raw.annotations import read_ucf
from GS2D.points import mean_neighbour_distance
from utils.files import list_images, points_path, read_points

SIZE = ["--min-size", "48", "--max-size", "48", "--workers", "1"]  # the images are 48 x 64: nothing changes


def run(form, source, output, *options, code=0):
    paths = ["--input-dataset-path", source, "--output-dataset-path", output]
    return call("preprocess_dataset_points.py", "--format", form, *paths, *SIZE, *options, code=code)


def fails(form, source, output, *options):
    out, err = run(form, source, output, *options, code=1)
    lines = errors(err)
    assert len(lines) == 1 and lines[0].startswith("error: ") and ";" in lines[0], err
    return lines[0]


def counts(root):
    """Points by the name of the prepared image."""
    return {name: entry["points"] for name, entry in record(root).items()}


def make_images(root, names):
    for i, name in enumerate(names):
        save_noise(root / name, seed=i)
    return root


def make_split(root, write_one, names=("train/1.jpg", "train/2.jpg", "Val/3.jpg", "TEST/4.JPG")):
    """Images i with i points, in split folders; ``write_one(image, points)`` annotates."""
    make_images(root, names)
    for i, name in enumerate(names, start=1):
        write_one(root / name, draw_points(i))
    return root


def check_split(out, size=None):
    """Compare with the truth of ``make_split``; ``size`` is the third column where the format gives one -> images found."""
    for i, name in enumerate(("train/1.jpg", "train/2.jpg", "val/3.jpg", "test/4.jpg"), start=1):
        stored, truth = read_points(points_path(out / name)), draw_points(i)
        np.testing.assert_allclose(stored[:, :2], truth, rtol=1e-5)
        assert stored.shape == (i, 3 if name.startswith("train") else 2)
        if stored.shape[1] == 3:
            expected = mean_neighbour_distance(truth) if size is None else size
            np.testing.assert_allclose(stored[:, 2], expected, rtol=1e-4)
    return len(record(out))


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


@pytest.mark.parametrize("place", ["beside", "folders", "flat"])
def test_a_file_for_each_image(tmp_path, place):
    source, notes = tmp_path / "in", tmp_path / "notes"

    def annotate(image, points):
        folder = {"beside": image.parent, "folders": notes / image.relative_to(source).parent, "flat": notes}[place]
        write(folder / f"{image.stem}.CSV", "".join(f"{x},{y}\n" for x, y in points))

    make_split(source, annotate)
    before = contents(source)
    run("csv", source, tmp_path / "out", *(() if place == "beside" else ("--annotations", notes)))
    assert check_split(tmp_path / "out") == 4 and contents(source) == before
    assert json.loads((tmp_path / "out" / "dataset_report.json").read_text())["dataset"] == "own"


@pytest.mark.parametrize("place", ["beside", "labels", "labels in each split"])
def test_yolo(tmp_path, place):
    names = {
        "beside": ("train/1.jpg", "train/2.jpg", "Val/3.jpg", "TEST/4.JPG"),
        "labels": tuple(f"images/{split}" for split in ("train/1.jpg", "train/2.jpg", "valid/3.jpg", "test/4.JPG")),
        "labels in each split": ("train/images/1.jpg", "train/images/2.jpg", "val/images/3.jpg", "test/images/4.JPG"),
    }[place]

    def annotate(image, points):
        lines = "".join(f"0 {x / 64} {y / 48} {6 / 64} {6 / 48}\n" for x, y in points)
        label = str(image.relative_to(tmp_path / "in").with_suffix(".txt")).replace("images", "labels")
        write(tmp_path / "in" / label, lines)

    make_split(tmp_path / "in", annotate, names)
    write(tmp_path / "in" / "classes.txt", "head\n")
    _, err = run("yolo", tmp_path / "in", tmp_path / "out")
    assert check_split(tmp_path / "out", size=6) == 4
    assert "1 files belong to no image" in err and "classes.txt" in err


def test_coco_with_a_file_in_each_split(tmp_path):
    """Names repeat between the splits; each file speaks of the images beside it."""
    for split, count in (("train", 1), ("valid", 2), ("test", 3)):
        save_noise(tmp_path / "in" / split / "a.jpg", seed=count)
        boxes = [{"image_id": 0, "category_id": 1, "bbox": [x - 2, y - 4.5, 4, 9]} for x, y in draw_points(count)]
        images = [{"id": 0, "file_name": "a.jpg", "width": 64, "height": 48}]
        write(tmp_path / "in" / split / "_annotations.coco.json", {"images": images, "annotations": boxes})
    run("coco", tmp_path / "in", tmp_path / "out")
    assert counts(tmp_path / "out") == {"train/a.jpg": 1, "val/a.jpg": 2, "test/a.jpg": 3}
    np.testing.assert_allclose(read_points(tmp_path / "out" / "train" / "a.npy"), [[*draw_points(1)[0], 6]], rtol=1e-5)
    np.testing.assert_allclose(read_points(tmp_path / "out" / "test" / "a.npy"), draw_points(3), rtol=1e-5)


def test_points_and_boxes_together_get_the_column_that_each_can(tmp_path):
    shapes = [
        {"label": "p", "shape_type": "point", "points": [[10, 10]]},
        {"label": "p", "shape_type": "rectangle", "points": [[20, 6], [24, 15]]},
    ]
    make_images(tmp_path / "in", ["train/a.jpg", "val/b.jpg"])
    for name in ("train/a.json", "val/b.json"):
        write(tmp_path / "in" / name, {"shapes": shapes})
    run("labelme", tmp_path / "in", tmp_path / "out")
    stored = np.load(tmp_path / "out" / "train" / "a.npy")
    assert stored.tolist() == [[10, 10, pytest.approx(144.25**0.5)], [22, 10.5, 6]]


def test_only_images_whose_points_changed_are_done_again(tmp_path):
    make_images(tmp_path / "in", ["train/a.jpg", "train/b.jpg", "val/c.jpg"])
    table = write(tmp_path / "all.csv", "a.jpg,1,2\nb.jpg,3,4\nc.jpg,5,6\n")
    run("csv", tmp_path / "in", tmp_path / "out", "--annotations", table)
    assert "nothing to do" in run("csv", tmp_path / "in", tmp_path / "out", "--annotations", table)[0]
    write(table, "a.jpg,1,2\nb.jpg,3,4\nc.jpg,5,6\na.jpg,7,8\n")
    assert "prepared 1 images" in run("csv", tmp_path / "in", tmp_path / "out", "--annotations", table)[0]
    assert counts(tmp_path / "out") == {"train/a.jpg": 2, "train/b.jpg": 1, "val/c.jpg": 1}


def test_images_without_annotation(tmp_path):
    make_images(tmp_path / "in", ["train/a.jpg", "train/b.jpg", "val/c.jpg", "val/d.jpg"])
    for name in ("train/a", "val/c"):
        write(tmp_path / "in" / f"{name}.csv", "1,2\n")
        write(tmp_path / "in" / f"{name}.txt", "0 .5 .5 .1 .1\n")
    _, err = run("csv", tmp_path / "in", tmp_path / "skip")
    assert "warning: 2 of 4 images (first " in err and "b.jpg) have no annotation and are left out" in err
    assert counts(tmp_path / "skip") == {"train/a.jpg": 1, "val/c.jpg": 1}
    run("csv", tmp_path / "in", tmp_path / "empty", "--unannotated", "empty")
    everything = {"train/a.jpg": 1, "train/b.jpg": 0, "val/c.jpg": 1, "val/d.jpg": 0}
    assert counts(tmp_path / "empty") == everything
    _, err = run("yolo", tmp_path / "in", tmp_path / "yolo")
    assert "warning: 2 of 4 images" in err and "count as images without points" in err
    assert counts(tmp_path / "yolo") == everything
    run("yolo", tmp_path / "in", tmp_path / "yolo2", "--unannotated", "skip")
    assert counts(tmp_path / "yolo2") == counts(tmp_path / "skip")
    write(tmp_path / "all.csv", "a.jpg,1,2\nb.jpg,,\nc.jpg,3,4\nzzz.jpg,5,6\n")
    _, err = run("csv", tmp_path / "in", tmp_path / "all", "--annotations", tmp_path / "all.csv")
    assert counts(tmp_path / "all") == {"train/a.jpg": 1, "train/b.jpg": 0, "val/c.jpg": 1}
    assert "1 annotated images are not in the input" in err and "'zzz.jpg'" in err


def test_no_annotation_at_all(tmp_path):
    make_images(tmp_path / "in", ["train/a.jpg"])
    for form in ("csv", "yolo", "coco"):
        assert f"no annotation of format {form}" in fails(form, tmp_path / "in", tmp_path / "out")
    assert "check --annotations" in fails(
        "csv", tmp_path / "in", tmp_path / "out", "--annotations", tmp_path / "none.csv"
    )
    table = write(tmp_path / "all.txt", "")
    assert "yolo has a file for each image" in fails("yolo", tmp_path / "in", tmp_path / "out", "--annotations", table)


def test_wrong_files_are_named_and_the_rest_is_done(tmp_path):
    make_images(tmp_path / "in", ["train/a.jpg", "train/b.jpg", "val/c.jpg"])
    write(tmp_path / "in" / "train" / "a.csv", "x,y\n1,2\n3,4,5\n")
    write(tmp_path / "in" / "train" / "b.csv", "x,y\n1,2\n")
    write(tmp_path / "in" / "val" / "c.csv", "x,y\n1,2\n100,4\n")
    out, err = run("csv", tmp_path / "in", tmp_path / "out", code=1)
    assert [line for line in errors(err) if "a.csv: line 3: 3 columns" in line] and len(errors(err)) == 2
    assert counts(tmp_path / "out") == {"train/b.jpg": 1, "val/c.jpg": 1} and "c.jpg: 1 of 2 points lie outside" in out


def test_names_that_could_mean_two_images(tmp_path):
    make_images(tmp_path / "in", ["train/x/a.jpg", "train/y/b.jpg", "val/a.jpg"])
    table = write(tmp_path / "all.csv", "a.jpg,1,2\n")
    assert "'a.jpg': may mean" in fails("csv", tmp_path / "in", tmp_path / "out", "--annotations", table)
    write(table, "train/x/a.jpg,1,2\nother\\val\\a.png,3,4\nval/a.png,5,6\ny/b,5,6\n")
    assert "and so does" in fails("csv", tmp_path / "in", tmp_path / "out", "--annotations", table)
    write(table, "train/x/a.jpg,1,2\nother\\val\\a.png,3,4\ny/b,5,6\ny/b,5,7\n")
    run("csv", tmp_path / "in", tmp_path / "out", "--annotations", table)
    assert counts(tmp_path / "out") == {"train/a.jpg": 1, "train/b.jpg": 2, "val/a.jpg": 1}
    write(table, "test/b.jpg,1,2\nval/a.jpg,3,4\n")
    _, err = run("csv", tmp_path / "in", tmp_path / "out2", "--annotations", table)
    assert "'test/b.jpg'" in err and counts(tmp_path / "out2") == {"val/a.jpg": 1}


def test_images_that_would_get_one_name(tmp_path):
    make_images(tmp_path / "in", ["train/x/a.jpg", "train/y/a.png", "val/b.jpg"])
    table = write(tmp_path / "all.csv", "x/a.jpg,1,2\ny/a.png,3,4\nb.jpg,1,2\n")
    line = fails("csv", tmp_path / "in", tmp_path / "out", "--annotations", table)
    assert "x/a.jpg" in line and "y/a.png" in line
    write(tmp_path / "flat" / "a.csv", "1,2\n")
    line = fails("csv", tmp_path / "in", tmp_path / "out", "--annotations", tmp_path / "flat")
    assert "a.csv: is for" in line
    write(tmp_path / "flat" / "a.CSV", "1,2\n")
    assert "is for the same image" in fails(
        "csv", tmp_path / "in", tmp_path / "out", "--annotations", tmp_path / "flat"
    )


def test_names_beyond_ascii_and_links(tmp_path):
    """The image's name is composed, that in the table is not; a split folder is a link, and another link makes a loop."""
    make_images(tmp_path / "data", ["толпа é 1.JPG", "b.jpeg"])
    make_images(tmp_path / "in", ["val/c.png"])
    (tmp_path / "in" / "train").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "in" / "val" / "d.jpg").symlink_to(tmp_path / "data" / "b.jpeg")
    table = write(
        tmp_path / "all.csv", b"\xef\xbb\xbf" + "толпа e\u0301 1.jpg,1,2\r\nb,3,4\r\nc,5,6\r\nd,5,6\r\n".encode()
    )
    run("csv", tmp_path / "in", tmp_path / "out", "--annotations", table)
    assert set(counts(tmp_path / "out").values()) == {1} and len(record(tmp_path / "out")) == 4
    assert (tmp_path / "out" / "train" / "толпа é 1.npy").exists()


def test_without_folders_the_images_are_drawn(tmp_path):
    names = [f"{i:02}.jpg" for i in range(20)]
    make_images(tmp_path / "in", [f"camera {i % 2}/{name}" for i, name in enumerate(names)])
    table = write(tmp_path / "all.csv", "".join(f"{name},1,2\n" for name in names))
    for options in ((), ("--test-list", write(tmp_path / "test.txt", "00.jpg\n01\n"))):
        out, _ = run("csv", tmp_path / "in", tmp_path / "out", "--annotations", table, *options)
        assert "split: 16 train, 2 val and 2 test images" in out
        assert [len(list_images(tmp_path / "out" / split)) for split in ("train", "val", "test")] == [16, 2, 2]
    assert [path.stem for path in list_images(tmp_path / "out" / "test")] == ["00", "01"]


def test_folders_and_lists(tmp_path):
    make_images(tmp_path / "in", ["train/a.jpg", "train/b.jpg", "test/c.jpg", "more/d.jpg", "e.jpg"])
    table = write(tmp_path / "all.csv", "".join(f"{name}.jpg,1,2\n" for name in "abcde"))
    val = write(tmp_path / "val.txt", "b\n")
    options = ["--annotations", table, "--val-list", val]
    _, err = run("csv", tmp_path / "in", tmp_path / "out", *options)
    assert "2 images (first " in err and "lie in none of the folders train, test and are left out" in err
    assert set(counts(tmp_path / "out")) == {"train/a.jpg", "val/b.jpg", "test/c.jpg"}
    line = fails("csv", tmp_path / "in", tmp_path / "out", *options, "--test-list", val)
    assert "the folders train, test decide already" in line
    save_noise(tmp_path / "in" / "val" / "f.jpg")
    write(table, table.read_text() + "f,1,2\n")
    assert "train, val, test decide already" in fails("csv", tmp_path / "in", tmp_path / "out", *options)
    only = make_images(tmp_path / "only", ["test/c.jpg"])
    out, _ = run("csv", only, tmp_path / "out3", *options[:2])
    assert set(counts(tmp_path / "out3")) == {"test/c.jpg"} and "no folder train" in out


def test_what_cannot_be_read(tmp_path):
    make_images(tmp_path / "in", ["train/a.jpg", "train/b.jpg", "val/c.jpg"])
    write(tmp_path / "in" / "train" / "a.jpg", b"no image")
    for name in ("train/a", "train/b", "val/c"):
        write(tmp_path / "in" / f"{name}.txt", "0 .5 .5 .1 .1\n")
        write(tmp_path / "in" / f"{name}.csv", "1,2\n")
    for form in ("yolo", "csv"):
        lines = errors(run(form, tmp_path / "in", tmp_path / form, code=1)[1])
        assert len(lines) == 2 and "a.jpg: cannot read this image" in lines[0]
        assert set(counts(tmp_path / form)) == {"train/b.jpg", "val/c.jpg"}
    assert "no such folder" in fails("csv", tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "holds no image" in fails("csv", tmp_path / "empty", tmp_path / "out")
    Image.new("L", (64, 48)).save(tmp_path / "in" / "train" / "a.jpg")
    run("csv", tmp_path / "in", tmp_path / "csv")
    assert record(tmp_path / "csv")["train/a.jpg"]["grey"] is True
