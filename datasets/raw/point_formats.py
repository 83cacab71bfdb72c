"""Annotation formats of common tools: what each says about an image, as marks.

A mark is one counted object. A box, circle, ellipse or polygon becomes the centre of its bounding box, and sqrt(width *
height) of that box its size: the side of the square of the same area, which, unlike the longer side, does not grow for an
object that is long and thin.

Every reader raises ``OSError`` for a file that cannot be read, and ``ValueError`` with file and line, or entry, for what is
not clear.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets.raw.raw_text import json_number, json_points, parse_number, read_json, read_text

IMAGE_COLUMNS = ("image", "filename", "file_name", "name")
_LABELME_POINTS = {"point": [1], "rectangle": [2, 4], "circle": [2], "polygon": range(1, sys.maxsize)}


class Mark(NamedTuple):
    """One counted object, in pixels; the size is NaN where the format gives none."""

    x: float
    y: float
    size: float = math.nan
    label: str = ""


class Annotated(NamedTuple):
    """The marks of one image, and its width and height where the file tells them."""

    marks: list[Mark]
    image_size: tuple[float, float] | None = None


def read_csv(path: Path, named: bool = True) -> dict[str, Annotated]:
    """A table of points: columns ``image, x, y``, or ``x, y`` (under the name "") without ``named``.

    With a header the columns are found by name and others are ignored; without one these must be all. Commas,
    semicolons or tabs separate. A row that names an image and leaves x and y empty says that nobody is in it.
    """
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    rows = csv.reader(
        io.StringIO(text, newline=None), delimiter=next((c for c in ";\t" if c in first), ","), strict=True
    )
    found: dict[str, Annotated] = {} if named else {"": Annotated([])}
    columns: list[int] = []
    width = 0
    try:
        for row in rows:
            fields, where = [field.strip() for field in row], f"{path}: line {rows.line_num}"
            if not any(fields):
                continue
            if not columns:
                columns, is_header = _csv_columns(fields, named, where)
                width = len(fields)
                if is_header:
                    continue
            if len(fields) != width:
                raise ValueError(
                    f"{where}: {len(fields)} columns instead of {width}; write numbers with decimal points"
                )
            x, y, *name = (fields[column] for column in columns)
            if named and not name[0]:
                raise ValueError(f"{where}: names no image; write the image's name into each row")
            marks = found.setdefault(name[0] if named else "", Annotated([])).marks
            if x or y or not named:
                marks.append(Mark(parse_number(x, where), parse_number(y, where)))
    except csv.Error as error:
        raise ValueError(f"{path}: line {rows.line_num}: not valid CSV ({error}); correct this line") from None
    return found


def _csv_columns(fields: list[str], named: bool, where: str) -> tuple[list[int], bool]:
    """The columns of x, y and, with ``named``, of the image; whether ``fields`` is a header."""
    names = [field.lower() for field in fields]
    wanted = "image, x, y" if named else "x, y"
    if "x" not in names and "y" not in names:
        if len(fields) != (3 if named else 2):
            raise ValueError(f"{where}: {len(fields)} columns and no header; begin the file with a line like {wanted}")
        return [1, 2, 0] if named else [0, 1], False
    images = [name for name in names if name in IMAGE_COLUMNS] if named else []
    if names.count("x") != 1 or names.count("y") != 1 or len(images) != named:
        raise ValueError(f"{where}: the header is {', '.join(fields)[:80]!r}; it must name each of {wanted} once")
    return [names.index(name) for name in ["x", "y", *images]], True


def read_points_json(path: Path, named: bool = True) -> dict[str, Annotated]:
    """Lists of points as JSON: ``[[x, y], ...]`` or ``{"points": [[x, y], ...]}`` (under the name "" without ``named``).

    With ``named``, one object that maps the name of each image to its list.
    """
    contents = read_json(path)
    if not named:
        contents = {"": contents}
    elif not isinstance(contents, dict):
        raise ValueError(f'{path}: no object; write {{"a.jpg": [[x, y], ...], ...}}')
    found = {}
    for name, value in contents.items():
        where = f"{path}: {name!r}" if named else f"{path}"
        if isinstance(value, dict):
            if "points" not in value:
                raise ValueError(f"{where}: no key points; write a list [[x, y], ...] or an object with it as points")
            value = value["points"]
        found[name] = Annotated([Mark(x, y) for x, y in json_points(value, where).tolist()])
    return found


def read_coco(path: Path) -> dict[str, Annotated]:
    """COCO's object or keypoint annotations.

    An annotation counts once: at the centre of its ``bbox``, or, where that is missing or has no area, of the visible
    ``keypoints``. Regions marked ``iscrowd`` hold an unknown number of objects; they are left out, and a line says so.
    """
    contents = read_json(path)
    images, annotations = (_entries(contents, key, path) for key in ("images", "annotations"))
    categories = (
        _entries(contents, "categories", path) if isinstance(contents, dict) and "categories" in contents else []
    )
    labels = {str(entry.get("id")): str(entry.get("name")) for entry in categories}
    found: dict[str, Annotated] = {}
    by_id: dict[Any, list[Mark]] = {}
    for i, image in enumerate(images, start=1):
        where, key, name = f"{path}: images: entry {i}", image.get("id"), image.get("file_name")
        if not isinstance(key, (int, str)) or not isinstance(name, str) or not name:
            raise ValueError(f"{where}: lacks its id or file_name; add both")
        if key in by_id or name in found:
            raise ValueError(f"{where}: its id {key!r} or file_name {name!r} is there twice; give each image its own")
        found[name] = Annotated([], _image_size(image, "width", "height", where))
        by_id[key] = found[name].marks
    crowds = several = 0
    for i, annotation in enumerate(annotations, start=1):
        where, key = f"{path}: annotations: entry {i}", annotation.get("image_id")
        if not isinstance(key, (int, str)) or key not in by_id:
            raise ValueError(
                f"{where}: image_id {key!r:.40} is not among the images; add the image or remove the entry"
            )
        if annotation.get("iscrowd"):
            crowds += 1
            continue
        visible = _keypoints(annotation.get("keypoints") or [], where)
        several += len(visible) > 1
        category = str(annotation.get("category_id", ""))
        label, box = labels.get(category, category), annotation.get("bbox")
        mark = None
        if box:
            if not isinstance(box, list) or len(box) != 4:
                raise ValueError(f"{where}: bbox is {box!r:.40}; write [x, y, width, height]")
            mark = _box(*(json_number(value, f"{where}: bbox") for value in box), label, where)
        if visible and (mark is None or math.isnan(mark.size)):
            mark = _bounds(visible, label, where)
        if mark is None:
            raise ValueError(f"{where}: has neither bbox nor visible keypoints; add one, or remove the entry")
        by_id[key].append(mark)
    if crowds:
        print(
            f"warning: {path}: {crowds} regions marked iscrowd are not counted; their images miss objects",
            file=sys.stderr,
        )
    if several:
        print(f"{path}: {several} annotations have several visible keypoints; each counts as one object")
    return found


def _keypoints(values: Any, where: str) -> list[tuple[float, float]]:
    if not isinstance(values, list) or len(values) % 3:
        raise ValueError(f"{where}: keypoints is {values!r:.40}; write three numbers x, y, visibility for each")
    numbers = [json_number(value, f"{where}: keypoints") for value in values]
    return [(x, y) for x, y, visible in zip(*[iter(numbers)] * 3, strict=True) if visible > 0]


def read_yolo(path: Path, width: int, height: int) -> Annotated:
    """YOLO's boxes for an image of that size: ``class x y width height`` a line, parts of the image, (x, y) the centre."""
    marks = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields, where = line.split(), f"{path}: line {number}"
        if not fields:
            continue
        if len(fields) != 5:
            raise ValueError(f"{where}: {len(fields)} values; write the five values class x y width height")
        values = [parse_number(field, where) for field in fields[1:]]
        # Rounding puts boxes at the border a little outside.
        if not all(-0.01 <= value <= 1.01 for value in values):
            raise ValueError(
                f"{where}: {line.strip()!r:.80} is not in parts of the image, from 0 to 1; divide by its size"
            )
        x, y, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
        marks.append(_box(x - w / 2, y - h / 2, w, h, fields[0], where)._replace(x=x, y=y))
    return Annotated(marks)


def read_labelme(path: Path) -> dict[str, Annotated]:
    """LabelMe's shapes (under the name ""): points, rectangles, polygons and circles."""
    contents = read_json(path)
    marks = []
    for i, shape in enumerate(_entries(contents, "shapes", path), start=1):
        where, kind = f"{path}: shape {i}", shape.get("shape_type") or "polygon"
        if not isinstance(kind, str) or kind not in _LABELME_POINTS:
            raise ValueError(f"{where}: is a {kind!r:.40}; mark objects as point, rectangle, polygon or circle")
        points = [(x, y) for x, y in json_points(shape.get("points"), where).tolist()]
        if len(points) not in _LABELME_POINTS[kind]:
            raise ValueError(f"{where}: a {kind} of {len(points)} points; draw it again")
        if kind == "circle":
            (x, y), edge = points
            radius = math.dist((x, y), edge)
            points = [(x - radius, y - radius), (x + radius, y + radius)]
        marks.append(_bounds(points, str(shape.get("label", "")), where))
    return {"": Annotated(marks, _image_size(contents, "imageWidth", "imageHeight", f"{path}"))}


def read_via(path: Path) -> dict[str, Annotated]:
    """A project or an export, as JSON or CSV, of the VGG Image Annotator, versions 1 and 2."""
    found: dict[str, Annotated] = {}
    if path.suffix.lower() == ".csv":
        rows = csv.DictReader(io.StringIO(read_text(path), newline=None), strict=True)
        try:
            for row in rows:
                where = f"{path}: line {rows.line_num}"
                name, text = row.get("filename"), row.get("region_shape_attributes")
                if not name or text is None:
                    raise ValueError(
                        f"{where}: lacks filename or region_shape_attributes; export the table from VIA again"
                    )
                marks = found.setdefault(name, Annotated([])).marks
                try:
                    shape = json.loads(text)
                except (ValueError, RecursionError):
                    raise ValueError(
                        f"{where}: region_shape_attributes is {text!r:.40}, not JSON; export it again"
                    ) from None
                if shape != {}:
                    marks.append(_via_mark(shape, where))
        except csv.Error as error:
            raise ValueError(f"{path}: line {rows.line_num}: not valid CSV ({error}); correct this line") from None
        return found
    contents = read_json(path)
    entries = contents.get("_via_img_metadata", contents) if isinstance(contents, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: not a project or export of VIA, version 2; export the annotations from VIA again")
    for key, entry in entries.items():
        where = f"{path}: {key!r:.80}"
        name = entry.get("filename") if isinstance(entry, dict) else None
        regions = entry.get("regions") if isinstance(entry, dict) else None
        # Version 1 numbers the regions as the keys of an object.
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        if not isinstance(name, str) or not name or not isinstance(regions, list):
            raise ValueError(f"{where}: lacks filename or regions; export the annotations from VIA, version 2, again")
        if name in found:
            raise ValueError(f"{where}: the image {name!r:.80} is there twice; merge or remove one of the two")
        shapes = [region.get("shape_attributes") if isinstance(region, dict) else None for region in regions]
        found[name] = Annotated([_via_mark(shape, f"{where}: region {i}") for i, shape in enumerate(shapes, start=1)])
    return found


def _via_mark(shape: Any, where: str) -> Mark:
    kind = shape.get("name") if isinstance(shape, dict) else None

    def values(*keys: str) -> list[float]:
        return [json_number(shape.get(key), f"{where}: {key}") for key in keys]

    if kind == "point":
        return Mark(*values("cx", "cy"))
    if kind == "rect":
        return _box(*values("x", "y", "width", "height"), "", where)
    if kind in ("circle", "ellipse"):
        x, y, *radii = values("cx", "cy", *(["r", "r"] if kind == "circle" else ["rx", "ry"]))
        return _box(x - radii[0], y - radii[1], 2 * radii[0], 2 * radii[1], "", where)._replace(x=x, y=y)
    if kind == "polygon":
        x, y = (shape.get(f"all_points_{axis}") for axis in "xy")
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y) or not x:
            raise ValueError(f"{where}: a polygon whose all_points_x and all_points_y do not fit; draw it again")
        return _bounds(json_points([list(pair) for pair in zip(x, y, strict=True)], where).tolist(), "", where)
    raise ValueError(f"{where}: is a {kind!r:.40}; mark objects as point, rect, circle, ellipse or polygon")


def _entries(contents: Any, key: str, path: Path) -> list[dict[str, Any]]:
    """The list of objects under ``key``."""
    entries = contents.get(key) if isinstance(contents, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: no list {key!r} of objects; check --format, or export the file again")
    return entries


def _image_size(contents: dict[str, Any], width: str, height: str, where: str) -> tuple[float, float] | None:
    if not contents.get(width) or not contents.get(height):  # missing, null and 0 all say nothing
        return None
    return json_number(contents[width], f"{where}: {width}"), json_number(contents[height], f"{where}: {height}")


def _box(left: float, top: float, width: float, height: float, label: str, where: str) -> Mark:
    if width < 0 or height < 0:
        raise ValueError(f"{where}: a shape of {width:g} x {height:g}; correct its width and height")
    mark = Mark(left + width / 2, top + height / 2, math.sqrt(width * height) or math.nan, label)
    if not math.isfinite(mark.x + mark.y) or math.isinf(mark.size):
        raise ValueError(f"{where}: a shape of {width:g} x {height:g} at ({left:g}, {top:g}); correct these numbers")
    return mark


def _bounds(points: Sequence[Sequence[float]], label: str, where: str) -> Mark:
    """The mark of the points' bounding box."""
    (left, right), (top, bottom) = ((min(values), max(values)) for values in zip(*points, strict=True))
    return _box(left, top, right - left, bottom - top, label, where)
