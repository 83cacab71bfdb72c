"""The VGG Image Annotator: projects and exports of its versions 1, 2 and 3, as JSON and as CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datasets.raw.marks import Annotated, Mark, Request, add_image, label_name, no_object, shape
from datasets.raw.raw_text import json_number, json_numbers, json_points, member, read_json, read_rows, read_text

_OBJECTS = ("point", "rect", "circle", "ellipse", "polygon")
# What the shapes are here, and the keys of their numbers before version 3.
_SHAPES = {
    "point": ("point", ("cx", "cy")),
    "rect": ("corner", ("x", "y", "width", "height")),
    "circle": ("ellipse", ("cx", "cy", "r", "r")),
    "ellipse": ("ellipse", ("cx", "cy", "rx", "ry")),
    "polygon": ("polygon", ()),
    "rectangle by its edges": ("polygon", ()),
}
# Version 3 writes a shape as its number and a list of coordinates.
_NUMBERED = {1: "point", 2: "rect", 3: "circle", 4: "ellipse", 5: "line", 6: "polyline", 7: "polygon"}
_NUMBERED |= {8: "rectangle by its edges", 9: "circle by three points"}
_FILE_IMAGE = 2  # of version 3's file types


class _Region(NamedTuple):
    """A shape and its attributes; a shape of None says that there is an image of this name."""

    image: str
    shape: Any
    attributes: Any
    where: str


def read_via(path: Path, request: Request = Request()) -> dict[str, Annotated]:
    """A project or an export of the VGG Image Annotator, versions 1 to 3, as JSON or CSV.

    The label of a region is its only attribute, the one of several that is called label, class, type or the like, or
    ``request.attribute``.
    """
    if path.suffix.lower() == ".csv":
        regions = list(_read_table(path))
    else:
        contents = read_json(path)
        version3 = isinstance(contents, dict) and {"file", "metadata"} <= contents.keys()
        regions = list((_read_version3 if version3 else _read_version2)(path, contents))
    images: dict[str, Annotated] = {}
    for image, _, _, where in (region for region in regions if region.shape is None):
        add_image(images, image, where)
    regions = [region for region in regions if region.shape is not None]
    attributes = [region.attributes if isinstance(region.attributes, dict) else {} for region in regions]
    names = list(dict.fromkeys(name for values in attributes for name in values))
    chosen = request.attribute if regions else None
    key = label_name(names, chosen, f"{path}") if names or chosen else None
    if len(names) > 1 and key is None:
        there = ", ".join(names)
        print(f"{path}: regions have the attributes {there}; --label-attribute chooses the one that is the label")
    for region, values in zip(regions, attributes, strict=True):
        label = _label(values.get(key)) if key is not None else ""
        images[region.image].marks.append(_mark(region.shape, label, region.where))
    return images


def _read_version2(path: Path, contents: Any) -> Iterator[_Region]:
    key = "_via_img_metadata"
    contents = contents if isinstance(contents, dict) and key in contents else {key: contents}
    items = member(contents, key, dict, f"{path}")
    for key, entry in items.items():
        where = f"{path}: {key!r:.80}"
        name = member(entry, "filename", str, where)
        # Version 1 numbers the regions as the keys of an object.
        numbered = isinstance(entry.get("regions"), dict)
        regions = entry["regions"].values() if numbered else member(entry, "regions", list, where)
        yield _Region(name, None, None, where)
        for i, region in enumerate(regions, start=1):
            region = region if isinstance(region, dict) else {}
            shape_of = region.get("shape_attributes") or {}
            yield _Region(name, shape_of, region.get("region_attributes"), f"{where}: region {i}")


def _read_version3(path: Path, contents: dict[str, Any]) -> Iterator[_Region]:
    files, views, metadata = (member(contents, key, dict, f"{path}") for key in ("file", "view", "metadata"))
    image_of: dict[str, str] = {}
    for key, view in views.items():
        where = f"{path}: view {key!r:.40}"
        shown = member(view, "fid_list", list, where)
        if len(shown) != 1:
            raise ValueError(f"{where}: does not show exactly one file; give each image its own view")
        file = member(files, str(shown[0]), dict, where)
        if file.get("type", _FILE_IMAGE) != _FILE_IMAGE:
            raise ValueError(f"{where}: is no image in this project; annotate images, or frames as images")
        image_of[key] = member(file, "fname" if file.get("fname") else "src", str, where)
        yield _Region(image_of[key], None, None, where)
    for key, entry in metadata.items():
        where = f"{path}: metadata {key!r:.40}"
        coordinates, view = member(entry, "xy", list, where), str(entry.get("vid"))
        if view not in image_of:
            raise ValueError(f"{where}: its vid {view!r:.40} is no view; save the project from VIA again")
        if coordinates:  # without: something about the whole image
            yield _Region(image_of[view], coordinates, _attributes3(contents.get("attribute"), entry.get("av")), where)


def _read_table(path: Path) -> Iterator[_Region]:
    """A CSV file of any version: version 1 begins its header with #, version 3 writes it as a remark."""
    text = read_text(path)
    remarks = [line[2:].partition("=") for line in text.splitlines() if line.startswith("# ")]
    remarks = {name.strip(): value.strip() for name, _, value in remarks}
    version3, definitions = "CSV_HEADER" in remarks, None
    if version3:
        definitions = _cell(remarks.get("ATTRIBUTE", remarks.get("ATTRIBUTES", "null")), f"{path}: ATTRIBUTE")
        # Blank lines in place of the remarks keep the numbers of the lines.
        text = "\n".join("" if line.startswith("#") else line for line in text.splitlines())
    rows = read_rows(path, text.removeprefix("#"))
    header = [name.strip() for name in remarks["CSV_HEADER"].split(",")] if version3 else next(rows, ([], ""))[0]
    needed = ("file_list", "spatial_coordinates") if version3 else ("filename", "region_shape_attributes")
    attributes = "metadata" if version3 else "region_attributes"
    columns = dict.fromkeys(header, "")
    for name in needed:
        member(columns, name, str, f"{path}: the columns")
    seen = set()
    for fields, where in rows:
        row = columns | dict(zip(header, fields))
        name = row[needed[0]]
        if version3:
            files = _cell(name, f"{where}: file_list")
            if not isinstance(files, list) or len(files) != 1 or not isinstance(files[0], str):
                raise ValueError(f"{where}: file_list is {files!r:.60}; give each image its own view")
            name = files[0]
        if name not in seen:
            yield _Region(name, None, None, where)
        seen.add(name)
        if shape_of := _cell(row[needed[1]] or "[]", f"{where}: {needed[1]}"):
            values = _cell(row.get(attributes) or "{}", f"{where}: {attributes}")
            yield _Region(name, shape_of, _attributes3(definitions, values) if version3 else values, where)


def _attributes3(definitions: Any, values: Any) -> dict[str, Any]:
    """The values of a region by the names of the attributes; that of a choice is the number of an option."""
    named = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        definition = definitions.get(key) if isinstance(definitions, dict) else None
        if isinstance(definition, dict):
            options = definition.get("options")
            if isinstance(options, dict) and isinstance(value, str):
                value = options.get(value, value)
            definition = str(definition.get("aname", key))
        named[definition if isinstance(definition, str) else key] = value
    return named


def _cell(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{where} is {text!r:.40}, not JSON; export it again") from None


def _label(value: Any) -> str:
    """A label as text; of a checkbox the names that are ticked."""
    if isinstance(value, dict):
        return ", ".join(str(name) for name, ticked in value.items() if ticked)
    return "" if value is None else str(value)


def _mark(drawn: Any, label: str, where: str) -> Mark:
    numbered = isinstance(drawn, list)
    kind = drawn[0] if numbered else drawn.get("name") if isinstance(drawn, dict) else None
    if numbered and isinstance(kind, (int, float)):
        kind = _NUMBERED.get(kind, kind)
    if not isinstance(kind, str) or kind not in _SHAPES:
        return no_object(kind, _OBJECTS, label, where)
    name, keys = _SHAPES[kind]
    if numbered:
        numbers = [json_number(value, where) for value in drawn[1:]]
        numbers += numbers[2:] if kind == "circle" else []
    elif keys:
        numbers = json_numbers(drawn, keys, where)
    else:
        x, y = (member(drawn, f"all_points_{axis}", list, where) for axis in "xy")
        if len(x) != len(y):
            raise ValueError(f"{where}: a polygon whose all_points_x and all_points_y do not fit; draw it again")
        numbers = json_points([list(pair) for pair in zip(x, y, strict=True)], where).ravel().tolist()
    return shape(name, numbers, label, where)
