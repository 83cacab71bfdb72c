"""The VGG Image Annotator: projects and exports of its versions 1 and 2, as JSON and as CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datasets.raw.marks import Annotated, Mark, Request, add_image, label_name, no_object, shape
from datasets.raw.raw_text import json_numbers, json_points, member, read_json, read_rows, read_text

# What the shapes are here, and the keys of their numbers.
_SHAPES = {
    "point": ("point", ("cx", "cy")),
    "rect": ("corner", ("x", "y", "width", "height")),
    "circle": ("ellipse", ("cx", "cy", "r", "r")),
    "ellipse": ("ellipse", ("cx", "cy", "rx", "ry")),
    "polygon": ("polygon", ()),
}


class _Region(NamedTuple):
    """A shape and its attributes; an empty shape says that there is an image of this name."""

    image: str
    shape: Any
    attributes: Any
    where: str


def read_via(path: Path, request: Request = Request()) -> dict[str, Annotated]:
    """A project or an export of the VGG Image Annotator, versions 1 and 2, as JSON or CSV.

    The label of a region is its only attribute, the one of several that is called label, class, type or the like, or
    ``request.attribute``.
    """
    regions = list((_read_table if path.suffix.lower() == ".csv" else _read_project)(path))
    images: dict[str, Annotated] = {}
    attributes = [region.attributes if isinstance(region.attributes, dict) else {} for region in regions]
    names = list(dict.fromkeys(name for values in attributes for name in values))
    chosen = request.attribute if any(region.shape for region in regions) else None
    key = label_name(names, chosen, f"{path}") if names or chosen else None
    if len(names) > 1 and key is None:
        there = ", ".join(names)
        print(f"{path}: regions have the attributes {there}; --label-attribute chooses the one that is the label")
    for region, values in zip(regions, attributes, strict=True):
        if region.shape:
            images[region.image].marks.append(_mark(region.shape, _label(values.get(key)), region.where))
        else:
            add_image(images, region.image, region.where)
    return images


def _read_project(path: Path) -> Iterator[_Region]:
    key, contents = "_via_img_metadata", read_json(path)
    contents = contents if isinstance(contents, dict) and key in contents else {key: contents}
    for key, entry in member(contents, key, dict, f"{path}").items():
        where = f"{path}: {key!r:.80}"
        name = member(entry, "filename", str, where)
        # Version 1 numbers the regions as the keys of an object.
        numbered = isinstance(entry.get("regions"), dict)
        regions = entry["regions"].values() if numbered else member(entry, "regions", list, where)
        yield _Region(name, None, None, where)
        for i, region in enumerate(regions, start=1):
            region = region if isinstance(region, dict) else {}
            drawn = region.get("shape_attributes") or {"name": None}
            yield _Region(name, drawn, region.get("region_attributes"), f"{where}: region {i}")


def _read_table(path: Path) -> Iterator[_Region]:
    rows = read_rows(path, read_text(path).removeprefix("#"))  # with which version 1 begins its header
    columns = dict.fromkeys(next(rows, ([], ""))[0], "")
    for name in ("filename", "region_shape_attributes"):
        member(columns, name, str, f"{path}: the columns")
    seen = set()
    for fields, where in rows:
        row = columns | dict(zip(columns, fields))
        if row["filename"] not in seen:
            yield _Region(row["filename"], None, None, where)
        seen.add(row["filename"])
        if drawn := _cell(row["region_shape_attributes"], f"{where}: region_shape_attributes"):
            attributes = _cell(row.get("region_attributes", ""), f"{where}: region_attributes")
            yield _Region(row["filename"], drawn, attributes, where)


def _cell(text: str, where: str) -> Any:
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise ValueError(f"{where} is {text!r:.40}, not JSON; export it again") from None


def _label(value: Any) -> str:
    """A label as text; of a checkbox the names that are ticked."""
    if isinstance(value, dict):
        return ", ".join(str(name) for name, ticked in value.items() if ticked)
    return "" if value is None else str(value)


def _mark(drawn: Any, label: str, where: str) -> Mark:
    kind = drawn.get("name") if isinstance(drawn, dict) else None
    if not isinstance(kind, str) or kind not in _SHAPES:
        return no_object(kind, list(_SHAPES), label, where)
    name, keys = _SHAPES[kind]
    if keys:
        return shape(name, json_numbers(drawn, keys, where), label, where)
    x, y = (member(drawn, f"all_points_{axis}", list, where) for axis in "xy")
    if len(x) != len(y):
        raise ValueError(f"{where}: a polygon whose all_points_x and all_points_y do not fit; draw it again")
    points = json_points([list(pair) for pair in zip(x, y, strict=True)], where)
    return shape(name, points.ravel().tolist(), label, where)
