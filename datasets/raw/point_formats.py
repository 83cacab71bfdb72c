"""COCO's and LabelMe's annotations; the readers of all other formats are in ``datasets/raw``."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from datasets.raw.marks import Annotated, Mark, bounds, box, counts, entries, stated_size
from datasets.raw.raw_text import json_number, json_points, read_json

_LABELME_POINTS = {"point": [1], "rectangle": [2, 4], "circle": [2], "polygon": range(1, sys.maxsize)}


def read_coco(path: Path, categories: Collection[str] = ()) -> dict[str, Annotated]:
    """COCO's object or keypoint annotations.

    An annotation counts once: at the centre of its ``bbox``, or, where that is missing or has no area, of the visible
    ``keypoints``. Regions marked ``iscrowd`` hold an unknown number of objects, those marked ``ignore`` are not to be counted;
    they are left out, and a line says so.
    Annotations with neither matter only where ``categories`` counts their label. An id that is a number here and the same
    number as text there is one id.
    """
    contents = read_json(path)
    images, annotations = (entries(contents, key, path) for key in ("images", "annotations"))
    named = entries(contents, "categories", path) if "categories" in contents else []
    labels = {_as_text(entry.get("id")): str(entry.get("name")) for entry in named}
    found: dict[str, Annotated] = {}
    by_id: dict[Any, list[Mark]] = {}
    for i, image in enumerate(images, start=1):
        where, key, name = f"{path}: images: entry {i}", _whole(image.get("id")), image.get("file_name")
        if not isinstance(key, (int, str)) or not isinstance(name, str) or not name:
            raise ValueError(f"{where}: lacks its id or file_name; add both")
        if key in by_id or name in found:
            raise ValueError(f"{where}: its id {key!r} or file_name {name!r} is there twice; give each image its own")
        found[name] = Annotated([], stated_size(image, "width", "height", where))
        by_id[key] = found[name].marks
    by_text: dict[str, list[Any]] = {}
    for key in by_id:
        by_text.setdefault(str(key), []).append(key)
    crowds = several = 0
    for i, annotation in enumerate(annotations, start=1):
        where = f"{path}: annotations: entry {i}"
        key = _image_of(annotation.get("image_id"), by_id, by_text, where)
        if any(annotation.get(key) not in (None, "", 0, "0") for key in ("iscrowd", "ignore")):
            crowds += 1
            continue
        visible = _keypoints(annotation.get("keypoints") or [], where)
        several += len(visible) > 1
        category = _as_text(annotation.get("category_id", ""))
        label, corners = labels.get(category, category), annotation.get("bbox")
        mark = None
        if corners:
            if not isinstance(corners, list) or len(corners) != 4:
                raise ValueError(f"{where}: bbox is {corners!r:.40}; write [x, y, width, height]")
            mark = box("corner", [json_number(value, f"{where}: bbox") for value in corners], label, where)
        if visible and (mark is None or math.isnan(mark.size)):
            mark = bounds(visible, label, where)
        if mark is None:
            if not counts(label, categories):
                continue
            raise ValueError(f"{where}: has neither bbox nor visible keypoints; add one, or remove the entry")
        by_id[key].append(mark)
    if crowds:
        print(
            f"warning: {path}: {crowds} regions marked iscrowd or ignore are not counted; their images miss objects",
            file=sys.stderr,
        )
    if several:
        print(f"{path}: {several} annotations have several visible keypoints; each counts as one object")
    return found


def _whole(key: Any) -> Any:
    """A table program writes the id 1 as 1.0."""
    return int(key) if isinstance(key, float) and key.is_integer() else key


def _as_text(key: Any) -> str:
    return str(_whole(key))


def _image_of(key: Any, by_id: Mapping[Any, Any], by_text: Mapping[str, list[Any]], where: str) -> Any:
    """The image's id that ``key`` means, also where one of the two is text."""
    key = _whole(key)
    if isinstance(key, (int, str)) and key in by_id:
        return key
    same = by_text.get(str(key), []) if isinstance(key, (int, str)) else []
    if len(same) != 1:
        raise ValueError(f"{where}: image_id {key!r:.40} is not among the images; add the image or remove the entry")
    return same[0]


def _keypoints(values: Any, where: str) -> list[tuple[float, float]]:
    if not isinstance(values, list) or len(values) % 3:
        raise ValueError(f"{where}: keypoints is {values!r:.40}; write three numbers x, y, visibility for each")
    numbers = [json_number(value, f"{where}: keypoints") for value in values]
    return [(x, y) for x, y, visible in zip(*[iter(numbers)] * 3, strict=True) if visible > 0]


def read_labelme(path: Path, categories: Collection[str] = ()) -> dict[str, Annotated]:
    """LabelMe's shapes (under the name ""): points, rectangles, polygons and circles.

    Other shapes are refused unless ``categories`` leave out their label.
    """
    contents = read_json(path)
    marks = []
    for i, shape in enumerate(entries(contents, "shapes", path), start=1):
        where, kind = f"{path}: shape {i}", shape.get("shape_type") or "polygon"
        label = str(shape.get("label", ""))
        if not isinstance(kind, str) or kind not in _LABELME_POINTS:
            if not counts(label, categories):
                continue
            raise ValueError(f"{where}: is a {kind!r:.40}; mark objects as point, rectangle, polygon or circle")
        points = [(x, y) for x, y in json_points(shape.get("points"), where).tolist()]
        if len(points) not in _LABELME_POINTS[kind]:
            raise ValueError(f"{where}: a {kind} of {len(points)} points; draw it again")
        if kind == "circle":
            (x, y), edge = points
            radius = math.dist((x, y), edge)
            points = [(x - radius, y - radius), (x + radius, y + radius)]
        marks.append(bounds(points, label, where))
    return {"": Annotated(marks, stated_size(contents, "imageWidth", "imageHeight", f"{path}"))}


def labelme_image(path: Path) -> str | None:
    """The image that a LabelMe file says it is about, whatever its own name."""
    try:
        contents = read_json(path)
    except (OSError, ValueError):
        return None
    name = contents.get("imagePath") if isinstance(contents, dict) and "shapes" in contents else None
    return name if isinstance(name, str) else None
