"""Photographs that are stored lying on their side: the same points on the same pixels, whatever format says where."""

import json

import numpy as np
import pytest
from own_folders import SIDES, photo, photos, points, prepare, report, write

from utils.images import INVERSE, Shape, image_shape, load_image, turn, turn_points

SPOTS = [(31, 12), (100, 40), (141, 22), (52, 138)]  # (x, y) of pixels, upright


def by_csv(image, at, size, folder):
    write(image.with_suffix(".csv"), "x,y\n" + "".join(f"{x},{y}\n" for x, y in at))


def by_yolo(image, at, size, folder):
    lines = (f"0 {x / size[0]!r} {y / size[1]!r} 0.02 0.02\n" for x, y in at)
    write(image.with_suffix(".txt"), "".join(lines))


def by_labelme(image, at, size, folder):
    shapes = [{"label": "p", "shape_type": "point", "points": [list(spot)]} for spot in at]
    write(image.with_suffix(".json"), {"shapes": shapes, "imageWidth": size[0], "imageHeight": size[1]})


def by_coco(image, at, size, folder):
    path = folder / "all.json"
    found = json.loads(path.read_text()) if path.exists() else {"images": [], "annotations": []}
    key = len(found["images"])
    found["images"].append({"id": key, "file_name": image.name, "width": size[0], "height": size[1]})
    found["annotations"] += [{"image_id": key, "bbox": [x - 2, y - 2, 4, 4]} for x, y in at]
    write(path, found)


def by_cvat(image, at, size, folder):
    path = folder / "annotations.xml"
    before = path.read_text().removesuffix("</annotations>") if path.exists() else "<annotations>"
    spots = ";".join(f"{x},{y}" for x, y in at)
    entry = (
        f'<image name="{image.name}" width="{size[0]}" height="{size[1]}"><points label="p" points="{spots}"/></image>'
    )
    write(path, f"{before}{entry}</annotations>")


def by_labelstudio(image, at, size, folder):
    path = folder / "project.json"
    found = json.loads(path.read_text()) if path.exists() else []
    stated = {"original_width": size[0], "original_height": size[1], "image_rotation": 0, "type": "keypointlabels"}
    results = [
        {**stated, "id": str(i), "value": {"x": 100 * x / size[0], "y": 100 * y / size[1], "keypointlabels": ["p"]}}
        for i, (x, y) in enumerate(at)
    ]
    found.append({"id": len(found), "data": {"image": image.name}, "annotations": [{"result": results}]})
    write(path, found)


WRITERS = {"csv": by_csv, "yolo": by_yolo, "labelme": by_labelme, "coco": by_coco, "cvat": by_cvat}
WRITERS |= {"labelstudio": by_labelstudio}


def spotted():
    """An image, upright, that is black but for a white square around each of the spots."""
    pixels = np.zeros((SIDES[0], SIDES[1], 3), np.uint8)
    for x, y in SPOTS:
        pixels[y - 3 : y + 4, x - 3 : x + 4] = 255
    return pixels


@pytest.mark.parametrize(
    ("form", "orientation"), [*(("csv", turned) for turned in range(1, 9)), *((form, 6) for form in WRITERS)]
)
def test_points_measured_upright_are_on_the_same_pixels(tmp_path, form, orientation):
    upright = spotted()
    height, width = upright.shape[:2]
    for name in ("train/a.jpg", "train/b.jpg", "val/c.jpg"):
        image = photo(tmp_path / "in" / name, orientation, pixels=turn(upright, INVERSE[orientation]))
        WRITERS[form](image, SPOTS, (width, height), tmp_path / "in")
    out, _, err = prepare(tmp_path / "in", form)
    assert ("EXIF orientation" in err) == (orientation != 1)
    stored = load_image(out / "train" / "a.jpg")
    assert stored.shape == upright.shape and image_shape(out / "train" / "a.jpg").orientation == 1
    for stem, found in points(out).items():
        np.testing.assert_allclose(found, SPOTS, atol=1e-4, err_msg=stem)
    assert all(stored[y, x].min() > 200 for x, y in SPOTS) and stored[100, 100].max() < 60
    expected = {} if orientation == 1 else dict.fromkeys(("train/a.jpg", "train/b.jpg", "val/c.jpg"), orientation)
    assert report(out)["findings"]["turned"] == expected


@pytest.mark.parametrize(
    ("form", "orientation"), [("csv", 5), ("csv", 7), ("csv", 8), *((form, 6) for form in WRITERS if form != "yolo")]
)
def test_points_measured_in_the_stored_grid_are_turned_along(tmp_path, form, orientation):
    """Sizes in the file tell; where there are none, that a point lies outside of the upright image."""
    shape = Shape(SIDES[1], SIDES[0], orientation)
    stored = [(190.5, 20.0), (10.0, 140.25)]
    for name in ("train/a.jpg", "train/b.jpg", "val/c.jpg"):
        image = photo(tmp_path / "in" / name, orientation)
        WRITERS[form](image, stored, SIDES, tmp_path / "in")
    out, _, err = prepare(tmp_path / "in", form)
    for found in points(out).values():
        np.testing.assert_allclose(found, turn_points(np.array(stored), shape), atol=1e-3)
    assert "those of 3 (first a.jpg) fit the stored grid and are turned with them" in err


def test_one_image_tells_for_all_of_its_folder(tmp_path):
    """Points of a.jpg fit only the stored grid; those of the others fit both."""
    photos(tmp_path / "in", orientation=6)
    by_csv(tmp_path / "in/train/a.jpg", [(190, 20)], SIDES, None)
    for name in ("train/b.jpg", "val/c.jpg"):
        by_csv(tmp_path / "in" / name, [(100, 20)], SIDES, None)
    out, *_ = prepare(tmp_path / "in", "csv")
    assert points(out) == {"a": [[130, 190]], "b": [[130, 100]], "c": [[130, 100]]}


def test_damaged_exif_data_are_no_reason_to_lose_a_photograph(tmp_path):
    path = photo(tmp_path / "a.jpg", 6)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0MM\0*\xff\xff\xff\x08"))
    assert path.read_bytes() != data and image_shape(path) == Shape(SIDES[1], SIDES[0], 1)
    assert load_image(path, upright=True).shape[:2] == SIDES[::-1]
