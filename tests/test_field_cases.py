"""What people really fed in, and what must come of it. The sources are issues of the tools' own trackers."""

import cv2
import numpy as np
import pytest
import torch
from commands import call, errors
from own_folders import photos, points, prepare, sizes, write
from training_runs import Tiny

import models
from utils.evaluation.sources import find_sources, open_images
from utils.evaluation.video import is_cut_off
from utils.images import load_image

STEMS = ("train/a", "train/b", "val/c")


@pytest.mark.parametrize(
    "form, name, text, reason",
    [
        (
            "coco",
            "all.json",
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}',
            "the COCO exports of CVAT",
        ),
        ("yolo", "{}.txt", "", "the YOLO exports of CVAT and Label Studio leave points out: export"),
        ("auto", "{}.txt", "", "the YOLO exports of CVAT and Label Studio leave points out: export"),
        ("csv", "{}.csv", "x,y\n", "annotate objects, or check --format and how the annotations were exported"),
        ("xy", "{}.txt", "\n", "annotate objects"),
        ("json", "{}.json", "[]", "annotate objects"),
        ("labelme", "{}.json", '{"shapes": []}', "annotate objects"),
    ],
)
def test_annotations_without_one_object(tmp_path, form, name, text, reason):
    """cvat#1602 #2910 #5831 #7161 #821 #6609 #7737, label-studio#4475 #6366, X-AnyLabeling#202 #922."""
    folder = photos(tmp_path / "in")
    for stem in STEMS:
        write(folder / name.format(stem), text)
    _, _, err = prepare(folder, form, code=1)
    place, count = (folder / name, 1) if form == "coco" else (folder, 3)
    assert err.splitlines()[-1].startswith(
        f"error: {place}: lists {count} images and no annotation, not one object; {reason}"
    )
    if form == "yolo":
        write(folder / "val" / "c.txt", "0 .5 .5 .1 .1\n")
        assert {stem: len(rows) for stem, rows in points(prepare(folder, "yolo")[0]).items()} == {
            "a": 0,
            "b": 0,
            "c": 1,
        }


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
    err = prepare(folder, "coco", "--annotations", via, "--label-attribute", "x", code=1)[2]
    assert "--label-attribute x: format coco has its labels in one place; drop it" in err
    table = write(tmp_path / "labels.csv", "image,x,y\na.jpg,1,2\nb.jpg,1,2\nc.jpg,1,2\n")
    err = prepare(folder, "csv", "--annotations", table, "--category", "head", code=1)[2]
    assert (
        "--category head: these annotations give no labels; drop it, or name with --label-attribute the column" in err
    )


@pytest.mark.parametrize(
    "far, code, line",
    [
        (
            [(10, 390), (20, 300), (30, 200)],
            1,
            "9 of 12 points lie outside their image; with x and y exchanged 0 would: write",
        ),
        (
            [(10, 390), (20, 30), (30, 20)],
            0,
            "3 of 12 points lie outside their image; with x and y exchanged 0 would: write x",
        ),
        (
            [(1000, 390), (2000, 30), (30, 20)],
            0,
            "6 of 12 points lie outside their image; were the images scaled or cut",
        ),
    ],
)
def test_points_outside_their_images(tmp_path, far, code, line):
    folder = photos(tmp_path / "in", size=(400, 100))
    for stem in STEMS:
        write(folder / f"{stem}.csv", "x,y\n" + "".join(f"{x},{y}\n" for x, y in [*far, (40, 50)]))
    assert f"{'error' if code else 'warning'}: {folder}: {line}" in prepare(folder, "csv", code=code)[2]


def test_folders_of_phone_photographs_to_count(tmp_path):
    photos(tmp_path / "in", "a.jpg")
    for name in ("b.heic", "c.HEIC", "d.txt"):
        write(tmp_path / "in" / name, "x")
    assert find_sources([tmp_path / "in"])[1] == [
        f"{tmp_path / 'in'}: skipped 3 of 4 files, neither pictures nor videos; 2 images are of a kind that is not read: "
        ".heic: convert them to JPEG"
    ]


def test_labelme_files_named_otherwise_than_their_image(tmp_path):
    folder = photos(tmp_path / "in")
    head = {"label": "head", "points": [[10, 20]], "shape_type": "point"}
    for i, name in enumerate(("train/a.jpg", "train/b.jpg", "val/c.jpg")):
        write(folder / "notes" / f"task{i}.json", {"shapes": [head], "imagePath": f"..\\photos\\{name}"})
    out, _, err = prepare(folder, "labelme", "--annotations", folder / "notes")
    assert points(out) == {name: [[10, 20]] for name in "abc"} and "belong to no image" not in err


@pytest.mark.parametrize(
    "of_images, of_annotations", [(int, str), (str, int), (int, float), (float, int), (str, float)]
)
def test_coco_ids_that_are_text_here_and_numbers_there(tmp_path, of_images, of_annotations):
    """VIA's COCO export writes text, pandas writes 1.0."""
    folder = photos(tmp_path / "in")
    images = [{"id": of_images(i), "file_name": f"{name}.jpg"} for i, name in enumerate("abc", start=1)]
    boxes = [{"image_id": of_annotations(i), "category_id": 1.0, "bbox": [i, 20, 20, 20]} for i in (1, 2, 3)]
    contents = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "head"}]}
    write(folder / "coco.json", contents)
    out, said, _ = prepare(folder, "coco", "--category", "head")
    assert points(out) == {"a": [[11, 30]], "b": [[12, 30]], "c": [[13, 30]]}


def test_coco_ids_that_are_ambiguous(tmp_path):
    folder = photos(tmp_path / "in")
    images = [{"id": key, "file_name": f"{name}.jpg"} for key, name in ((1, "a"), ("1", "b"), (2, "c"))]
    boxes = [{"image_id": "3", "bbox": [1, 2, 2, 2]}]
    path = write(folder / "coco.json", {"images": images, "annotations": boxes})
    assert "images: entry 2: its id '1' is none, or there twice" in prepare(folder, "coco", code=1)[2]
    write(path, {"images": images[1:], "annotations": boxes})
    assert "entry 1: image_id '3' is not among the images" in prepare(folder, "coco", code=1)[2]


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
    assert f"warning: 2 annotated images are not in the input (first {table}: 'b.HEIC'): {unread}\n" in err
    (folder / "train/a.jpg").unlink(), (folder / "val/c.jpg").unlink()
    assert (
        prepare(folder, "csv", "--annotations", table, code=1)[2]
        == f"error: {folder}: {unread}; convert them to JPEG\n"
    )
    renamed = folder / "e.jpg"
    (folder / "train/b.HEIC").rename(renamed)
    with pytest.raises(ValueError, match=f"{renamed}: cannot read this image .*, or convert it to JPEG or PNG"):
        load_image(renamed)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_images_deeper_than_8_bits_are_never_nearly_black(tmp_path, channels, suffix, kind):
    if kind is np.float32 and suffix == ".png":
        return
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), np.full((20, 30, channels), 4000).astype(kind))
    with pytest.raises(ValueError, match=r"cannot read this image \((more than 8 bits per channel|cannot identify)"):
        load_image(path)


def test_lists_that_windows_wrote(tmp_path):
    folder = photos(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg")
    for stem in "abc":
        write(folder / f"{stem}.csv", "1,2\n")
    lists = [
        write(tmp_path / f"{name}.txt", text)
        for name, text in (("train", "x\\a.jpg\r\n.\\b\r\n"), ("val", "c.jpg\r\n"))
    ]
    out, *_ = prepare(folder, "csv", "--train-list", lists[0], "--val-list", lists[1])
    assert sorted(path.name for path in out.glob("*/*.jpg")) == ["a.jpg", "b.jpg", "c.jpg"]
    assert (out / "train" / "b.jpg").exists()


def test_nothing_done_is_not_called_up_to_date(tmp_path):
    folder = photos(tmp_path / "in")
    for stem in STEMS:
        write(folder / f"{stem}.csv", "1,2,3,4\n")
    _, said, err = prepare(folder, "csv", code=1)
    assert "up to date" not in said and "no image was prepared: none of 3 has an annotation that can be read" in said
    assert errors(err)[-1] == "error: 3 of 3 failed; mend them and run the same command again"


def video(path, frames=10, codec="MJPG"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, (64, 48))
    for i in range(frames):
        writer.write(np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    writer.release()
    return path


def announce(path, frames):
    """Write another number of frames into the header of an AVI file, as programs do that only guess it."""
    data = bytearray(path.read_bytes())
    at = data.index(b"avih") + 8 + 16
    data[at : at + 4] = frames.to_bytes(4, "little")
    at = data.index(b"strh") + 8 + 32
    data[at : at + 4] = frames.to_bytes(4, "little")
    path.write_bytes(data)


def test_a_header_that_announces_too_many_frames_is_no_damage(tmp_path, monkeypatch, capsys):
    """video2x#742, annolid#2, PosePipeline#59, opencv#16821."""
    path = video(tmp_path / "clip.avi")
    announce(path, 66)
    times = []
    found = list(open_images(find_sources([path])[0], 3, times.append))
    assert [name for name, _ in found] == [f"clip.avi frame 00000{i}" for i in (0, 3, 6, 9)]
    assert all(isinstance(image, np.ndarray) for _, image in found)
    assert capsys.readouterr().err == f"{path}: the header announces about 66 frames, 10 could be read\n"
    assert times[0] == "clip.avi 00:00 of about 00:06" and len(times) == 4
    torch.save(Tiny().state_dict(), tmp_path / "best_model.pth")
    monkeypatch.setattr(models, "build_model", Tiny)
    out, err = call("test.py", "--device", "cpu", "--save-path", tmp_path / "best_model.pth", "--images", path)
    assert "10 images counted, 0 scored, 0 failed" in out and not errors(err)


@pytest.mark.parametrize("suffix, codec", [(".avi", "MJPG"), (".mp4", "mp4v"), (".mkv", "MJPG")])
def test_a_video_that_was_cut_off_is_shorter_than_it_says(tmp_path, suffix, codec):
    path = video(tmp_path / f"clip{suffix}", codec=codec)
    assert not is_cut_off(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    assert is_cut_off(path)
    (*_, (name, reason)) = open_images(find_sources([path])[0], 1, lambda text: None)
    assert name == f"clip{suffix}" and "cut off" in reason


def test_an_avi_in_several_pieces_ends_with_the_last(tmp_path):
    pieces = b"RIFF" + (8).to_bytes(4, "little") + bytes(8) + b"RIFF" + (20).to_bytes(4, "little") + bytes(20)
    assert not is_cut_off(write(tmp_path / "clip.avi", pieces)) and is_cut_off(write(tmp_path / "cut.avi", pieces[:-1]))


def test_what_is_no_container_says_nothing_of_its_length(tmp_path):
    for content in (
        b"",
        b"RIFF",
        b"\x1a\x45\xdf\xa3",
        b"\x1a\x45\xdf\xa3\x01",
        b"\0\0\0\0ftyp",
        b"\0\0\0\1ftyp" + bytes(8),
        b"no",
    ):
        path = write(tmp_path / "clip.mp4", content)
        assert not is_cut_off(path)
