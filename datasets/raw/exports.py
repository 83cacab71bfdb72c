"""The exports of annotation tools: COCO, LabelMe, VIA, CVAT, Label Studio, DotDotGoose, and bare points as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from datasets.raw.marks import Annotated, Mark, Request, add_image, label_name, no_object, shape, stated_size
from datasets.raw.raw_text import (
    OtherFormatError,
    entries,
    json_number,
    json_numbers,
    json_points,
    member,
    parse_number,
    read_json,
    read_rows,
)
from utils.cli import warn
from utils.files import PICTURES

_LABELME = ("point", "rectangle", "circle", "polygon")
# What the shapes are here, and the keys of their numbers.
_VIA = {
    "point": ("point", ("cx", "cy")),
    "rect": ("corner", ("x", "y", "width", "height")),
    "circle": ("ellipse", ("cx", "cy", "r", "r")),
    "ellipse": ("ellipse", ("cx", "cy", "rx", "ry")),
    "polygon": ("polygon", ()),
}
_CVAT = {"box": ("corners", ("xtl", "ytl", "xbr", "ybr")), "ellipse": ("ellipse", ("cx", "cy", "rx", "ry"))}
_CVAT_SHAPES = ("points", "box", "polygon", "ellipse", "skeleton")
_STUDIO = {
    "keypoint": ("point", ("x", "y")),
    "rectangle": ("corner", ("x", "y", "width", "height")),
    "ellipse": ("ellipse", ("x", "y", "radiusX", "radiusY")),
    "polygon": ("polygon", ()),
}
_STUDIO_REFUSED = ("brush", "bitmask", "vector", "magicwand")


def read_points_json(path: Path, request: Request = Request()) -> dict[str, Annotated]:
    """Lists of points: ``[[x, y], ...]`` or ``{"points": [[x, y], ...]}``; of many images an object of these by name."""
    contents = read_json(path)
    if request.named and not isinstance(contents, dict):
        raise OtherFormatError(f'{path}: no object; write {{"a.jpg": [[x, y], ...], ...}}')
    images: dict[str, Annotated] = {}
    for name, value in contents.items() if request.named else [("", contents)]:
        where = f"{path}: {name!r:.80}" if request.named else f"{path}"
        value = member(value, "points", list, where) if isinstance(value, dict) else value
        if not isinstance(value, list) or (value and not isinstance(value[0], list)):
            raise OtherFormatError(f"{where}: holds no list of points [[x, y], ...]; check --format")
        images[name] = Annotated([Mark(x, y) for x, y in json_points(value, where).tolist()])
    return images


def read_pnt(path: Path, request: Request = Request()) -> dict[str, Annotated]:
    """A project of DotDotGoose, ``{"points": {image: {class: [{"x": ..., "y": ...}, ...]}}}``."""
    images: dict[str, Annotated] = {}
    points = member(read_json(path), "points", dict, f"{path}")
    for name in points:
        where, classes = f"{path}: {name!r:.80}", member(points, name, dict, f"{path}")
        marks = add_image(images, name, where)
        for label in classes:
            for i, point in enumerate(entries(classes, label, where), start=1):
                numbers = json_numbers(point, ("x", "y"), f"{where}: {label!r:.40}: point {i}")
                marks.append(shape("point", numbers, label, where))
    return images


def read_coco(path: Path, request: Request = Request()) -> dict[str, Annotated]:
    """COCO's object or keypoint annotations.

    An annotation counts once: at the centre of its ``bbox``, or, where that is missing or has no area, of the visible
    ``keypoints``. Regions marked ``iscrowd`` hold an unknown number of objects, those marked ``ignore`` are not to be counted;
    they are left out, and a line says so. An id that is a number here and the same number as text there is one id.
    """
    contents = read_json(path)
    listed = entries(contents, "images", f"{path}")
    categories = entries(contents, "categories", f"{path}") if "categories" in contents else []
    labels = {str(entry.get("id")): str(entry.get("name")) for entry in categories}
    images: dict[str, Annotated] = {}
    by_id: dict[str, list[Mark]] = {}
    for i, image in enumerate(listed, start=1):
        where, key = f"{path}: images: entry {i}", str(image.get("id"))
        if key == "None" or key in by_id:
            raise ValueError(f"{where}: its id {image.get('id')!r:.40} is none, or there twice; give each its own")
        size = stated_size(image, "width", "height", where)
        by_id[key] = add_image(images, image.get("file_name"), where, size)
    crowds = 0
    for i, annotation in enumerate(entries(contents, "annotations", f"{path}"), start=1):
        where, key = f"{path}: annotations: entry {i}", str(annotation.get("image_id"))
        if key not in by_id:
            raise ValueError(f"{where}: image_id {key!r:.40} is not among the images; add it or remove the entry")
        if any(annotation.get(key) not in (None, "", 0, "0") for key in ("iscrowd", "ignore")):
            crowds += 1
            continue
        category = str(annotation.get("category_id", ""))
        label, box, mark = labels.get(category, category), annotation.get("bbox"), None
        if box:
            numbers = box if isinstance(box, list) and len(box) == 4 else [box]
            mark = shape("corner", [json_number(value, f"{where}: bbox") for value in numbers], label, where)
        visible = _coco_keypoints(annotation.get("keypoints") or [], where)
        if visible and (mark is None or math.isnan(mark.size)):
            mark = shape("polygon", visible, label, where)
        by_id[key].append(mark or no_object("region without bbox", ("bbox", "visible keypoints"), label, where))
    if crowds:
        warn(f"{path}: {crowds} regions marked iscrowd or ignore are not counted; their images miss objects")
    return images


def _coco_keypoints(values: Any, where: str) -> list[float]:
    """x, y, x, y, ... of those that are visible."""
    if not isinstance(values, list) or len(values) % 3:
        raise ValueError(f"{where}: keypoints is {values!r:.40}; write three numbers x, y, visibility for each")
    numbers = [json_number(value, f"{where}: keypoints") for value in values]
    return [value for i, value in enumerate(numbers) if i % 3 < 2 and numbers[i // 3 * 3 + 2] > 0]


def read_labelme(path: Path, request: Request = Request()) -> dict[str, Annotated]:
    """LabelMe's shapes, of one image: points, rectangles, polygons and circles."""
    contents = read_json(path)
    marks = []
    for i, drawn in enumerate(entries(contents, "shapes", f"{path}"), start=1):
        where, kind, label = f"{path}: shape {i}", drawn.get("shape_type") or "polygon", str(drawn.get("label", ""))
        if kind not in _LABELME:
            marks.append(no_object(kind, _LABELME, label, where))
            continue
        numbers = json_points(drawn.get("points"), where).ravel().tolist()
        if kind == "circle" and len(numbers) == 4:  # its centre, and a point of its edge
            numbers[2:] = [math.dist(numbers[:2], numbers[2:])] * 2
        name = {"point": "point", "circle": "ellipse"}.get(kind, "polygon")
        marks.append(shape(name, numbers, label, where))
    return {"": Annotated(marks, stated_size(contents, "imageWidth", "imageHeight", f"{path}"))}


def read_via(path: Path, request: Request = Request()) -> dict[str, Annotated]:
    """A project or an export of the VGG Image Annotator, versions 1 and 2, as JSON or CSV.

    The label of a region is its only attribute, the one of several that is called label, class, type or the like, or
    ``request.attribute``.
    """
    contents = _via_table(path) if path.suffix.lower() == ".csv" else read_json(path)
    if isinstance(contents, dict) and "_via_img_metadata" in contents:
        contents = contents["_via_img_metadata"]
    images: dict[str, Annotated] = {}
    drawn: list[tuple[list[Mark], Any, dict[str, Any], str]] = []
    for key, entry in member({"of images": contents}, "of images", dict, f"{path}").items():
        where = f"{path}: {key!r:.80}"
        marks = add_image(images, member(entry, "filename", str, where), where)
        if isinstance(entry.get("regions"), dict):  # version 1 numbers them as the keys of an object
            entry = {"regions": list(entry["regions"].values())}
        for i, region in enumerate(entries(entry, "regions", where), start=1):
            attributes = region.get("region_attributes")
            attributes = attributes if isinstance(attributes, dict) else {}
            drawn.append((marks, region.get("shape_attributes"), attributes, f"{where}: region {i}"))
    names = list(dict.fromkeys(name for _, _, attributes, _ in drawn for name in attributes))
    key = label_name(names, request.attribute if drawn else None, f"{path}")
    if len(names) > 1 and key is None:
        there = ", ".join(names)
        print(f"{path}: regions have the attributes {there}; --label-attribute chooses the one that is the label")
    for marks, shape_of, attributes, where in drawn:
        marks.append(_via_mark(shape_of, _via_label(attributes.get(key)), where))
    return images


def _via_table(path: Path) -> dict[str, Any]:
    """A CSV export, a row each region, in the form of a project."""
    rows = read_rows(path)
    header = [name.removeprefix("#") for name in next(rows, ([], ""))[0]]  # with which version 1 begins it
    images: dict[str, Any] = {}
    for fields, where in rows:
        row = dict(zip(header, fields))
        name = member(row, "filename", str, where)
        cells = member(row, "region_shape_attributes", str, where), row.get("region_attributes", "")
        try:
            shape_of, attributes = (json.loads(cell or "{}") for cell in cells)
        except (ValueError, RecursionError):
            raise ValueError(f"{where}: its attributes {cells!r:.60} are not JSON; export it again") from None
        regions = images.setdefault(name, {"filename": name, "regions": []})["regions"]
        regions += [{"shape_attributes": shape_of, "region_attributes": attributes}] if shape_of else []
    return images


def _via_label(value: Any) -> str:
    """A label as text; of a checkbox the names that are ticked."""
    if isinstance(value, dict):
        return ", ".join(str(name) for name, ticked in value.items() if ticked)
    return "" if value is None else str(value)


def _via_mark(drawn: Any, label: str, where: str) -> Mark:
    kind = drawn.get("name") if isinstance(drawn, dict) else None
    if not isinstance(kind, str) or kind not in _VIA:
        return no_object(kind, list(_VIA), label, where)
    name, keys = _VIA[kind]
    if keys:
        return shape(name, json_numbers(drawn, keys, where), label, where)
    x, y = (member(drawn, f"all_points_{axis}", list, where) for axis in "xy")
    if len(x) != len(y):
        raise ValueError(f"{where}: a polygon whose all_points_x and all_points_y do not fit; draw it again")
    points = json_points([list(pair) for pair in zip(x, y, strict=True)], where)
    return shape(name, points.ravel().tolist(), label, where)


def read_cvat(path: Path, request: Request = Request()) -> dict[str, Annotated]:
    """The images of CVAT for images 1.1, the only export of CVAT that keeps single points.

    Every point of a ``points`` element is an object of its own; a ``box``, ``polygon`` or ``ellipse`` is one, and so is a
    ``skeleton``, at the middle of its visible points. Tags say nothing of objects. Entities and external references are
    refused.
    """
    root = _xml_root(path)
    if root.tag != "annotations" or root.find("track") is not None:
        kind = "CVAT for video, with tracks" if root.tag == "annotations" else f"<{root.tag}>"
        raise OtherFormatError(f"{path}: is {kind:.60}; export 'CVAT for images 1.1', its annotations.xml, or COCO")
    images: dict[str, Annotated] = {}
    for i, image in enumerate(root.iter("image"), start=1):
        where = f"{path}: image {i}"
        marks = add_image(images, image.get("name"), where, stated_size(image, "width", "height", where, parse_number))
        for j, drawn in enumerate(image, start=1):
            if drawn.get("outside") != "1":
                marks += _cvat_marks(drawn, f"{path}: {image.get('name'):.80}: shape {j}")
    return images


def _xml_root(path: Path) -> Element:
    try:
        return fromstring(path.read_bytes())
    except DefusedXmlException:
        reason = "it defines entities or refers to other files, which is refused"
    except (ParseError, ValueError, LookupError, RecursionError) as error:  # also of an encoding that does not fit
        reason = " ".join(str(error).split()) or "nested too deeply"
    raise ValueError(f"{path}: not valid XML ({reason}); export it from CVAT again")


def _cvat_marks(drawn: Element, where: str) -> Iterator[Mark]:
    label, kind = drawn.get("label", ""), drawn.tag
    if kind in _CVAT:
        name, keys = _CVAT[kind]  # a rotation turns it around its centre
        yield shape(name, [parse_number(drawn.get(key, ""), f"{where}: {key}") for key in keys], label, where)
    elif kind == "points":
        numbers = _cvat_points(drawn, where)
        yield from (Mark(x, y, math.nan, label) for x, y in zip(numbers[::2], numbers[1::2], strict=True))
    elif kind in ("polygon", "skeleton"):
        visible = [part for part in drawn.iter(kind if kind == "polygon" else "points") if part.get("outside") != "1"]
        if visible:
            yield shape("polygon", [value for part in visible for value in _cvat_points(part, where)], label, where)
    elif kind != "tag":
        yield no_object(kind, _CVAT_SHAPES, label, where)


def _cvat_points(drawn: Element, where: str) -> list[float]:
    """x, y, x, y, ... of ``x,y;x,y``."""
    pairs = [pair.split(",") for pair in drawn.get("points", "").split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{where}: points holds {drawn.get('points', '')!r:.40}; write x,y;x,y;...")
    return [parse_number(value.strip(), f"{where}: points") for pair in pairs for value in pair]


def read_labelstudio(path: Path, request: Request = Request()) -> dict[str, Annotated]:
    """The tasks of Label Studio's JSON, by the name of their image; coordinates are in percent of its size.

    A task that nobody finished is left out; one with several annotations is refused, since each would count.
    """
    images: dict[str, Annotated] = {}
    for i, task in enumerate(entries({"tasks": read_json(path)}, "tasks", f"{path}"), start=1):
        where = f"{path}: task {task.get('id', i)!r:.20}"
        done = [entry for entry in entries(task, "annotations", where) if not entry.get("was_cancelled")]
        done = [entry for entry in done if entry.get("ground_truth")] or done
        if len(done) > 1:
            raise ValueError(f"{where}: has {len(done)} annotations; keep one, or mark one as ground truth")
        if done:
            marks, size = _studio_marks(entries(done[0], "result", where), where)
            values = [value for value in member(task, "data", dict, where).values() if isinstance(value, str)]
            names = [name for value in values if (name := image_of_address(value)).lower().endswith(PICTURES)]
            add_image(images, next(iter(names), None), where, size).extend(marks)
    return images


def image_of_address(address: str) -> str:
    """The path in an address: of ``/data/local-files/?d=a/b.jpg`` what stands behind d, else without ``?...``."""
    named = re.search(r"[?&]d=([^&]+)", address)
    return unquote(named[1] if named else re.sub(r"^\w+://[^/]*|[?#].*$", "", address))


def without_upload_prefix(name: str) -> str | None:
    """``a.jpg`` of ``0a1b2c3d-a.jpg``, as Label Studio calls an uploaded a.jpg; None for other names."""
    match = re.fullmatch(r"(.*/)?[0-9a-f]{8}-(.+)", name.replace("\\", "/"))
    return match[2] if match else None


def _studio_marks(results: list[dict[str, Any]], where: str) -> tuple[list[Mark], tuple[float, float] | None]:
    """The marks of an annotation, and the size of the image for which they were made."""
    marks: dict[str, Mark] = {}
    labels: dict[str, str] = {}  # by the same key: a region may have several results, of which another has its label
    size = None
    for i, result in enumerate(results, start=1):
        kind, here = str(result.get("type", "")).removesuffix("labels"), f"{where}: result {i}"
        key, value = str(result.get("id", i)), result.get("value")
        for name, names in value.items() if isinstance(value, dict) else ():
            if name.endswith("labels") and isinstance(names, list):
                labels[key] = ", ".join(map(str, names))
        if kind in _STUDIO_REFUSED:
            marks[key] = no_object(kind, list(_STUDIO), "", here)
        elif kind in _STUDIO and key not in marks:
            if result.get("image_rotation"):
                turned = f"was made with the image turned by {result['image_rotation']} degrees"
                raise ValueError(f"{here}: {turned}; turn it back in Label Studio and export again")
            size = tuple(json_numbers(result, ("original_width", "original_height"), here))
            marks[key] = _studio_mark(kind, member(result, "value", dict, here), size, here)
    return [mark._replace(label=labels.get(key, "")) for key, mark in marks.items()], size


def _studio_mark(kind: str, value: dict[str, Any], size: tuple[float, ...], where: str) -> Mark:
    name, keys = _STUDIO[kind]
    percent = json_numbers(value, keys, where) if keys else json_points(value.get("points"), where).ravel().tolist()
    numbers = [number * (size[i % 2] / 100) for i, number in enumerate(percent)]
    mark = shape(name, numbers, "", where)
    if kind == "rectangle" and (degrees := json_number(value.get("rotation") or 0, f"{where}: rotation")):
        # It is turned around its upper left corner.
        left, top, width, height = numbers
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        centre = left + width / 2 * cos - height / 2 * sin, top + width / 2 * sin + height / 2 * cos
        mark = mark._replace(x=centre[0], y=centre[1])
    return mark
