"""The VGG Image Annotator: projects and exports of its versions 1, 2 and 3, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets.raw.marks import Annotated, Mark, bounds, box, counts, label_name, round_mark
from datasets.raw.raw_text import json_number, json_points, read_json, read_text

_ADVICE = "mark objects as point, rect, circle, ellipse or polygon"
_FILE_IMAGE = 2  # of VIA 3's file types
# VIA 3 writes a shape as its number and a list of coordinates; those of fixed length, by name.
_SHAPES3 = {1: "point", 2: "rect", 3: "circle", 4: "ellipse", 5: "line", 6: "polyline", 7: "polygon"}
_SHAPES3 |= {8: "rectangle by its edges", 9: "circle by three points"}
_LENGTHS3 = {"point": 2, "rect": 4, "circle": 3, "ellipse": 4}


class _Region(NamedTuple):
    image: str
    shape: Any
    attributes: dict[str, Any]
    where: str


def read_via(path: Path, categories: Collection[str] = (), attribute: str | None = None) -> dict[str, Annotated]:
    """A project or an export of the VGG Image Annotator, versions 1 to 3, as JSON or CSV.

    The label of a region is its only attribute, the one of several that is called label, class, type or the like, or
    ``attribute``. Shapes other than point, rectangle, circle, ellipse and polygon are refused unless ``categories`` leave
    out their label.
    """
    if path.suffix.lower() == ".csv":
        names, regions = _read_table(path)
    else:
        contents = read_json(path)
        if isinstance(contents, dict) and {"file", "metadata"} <= contents.keys():
            names, regions = _read_version3(path, contents)
        else:
            names, regions = _read_version2(path, contents)
    there = list(dict.fromkeys(name for region in regions for name in region.attributes))
    key = label_name(there, attribute, str(path)) if there or (attribute and regions) else None
    if len(there) > 1 and key is None:
        attributes = ", ".join(there)
        print(f"{path}: regions have the attributes {attributes}; --label-attribute chooses the one that is the label")
    found: dict[str, Annotated] = {name: Annotated([]) for name in names}
    for region in regions:
        label = _label(region.attributes.get(key)) if key is not None else ""
        if counts(label, categories) or _kind(region.shape) in ("point", "rect", "circle", "ellipse", "polygon"):
            found[region.image].marks.append(_mark(region.shape, label, region.where))
    return found


def _read_version2(path: Path, contents: Any) -> tuple[list[str], list[_Region]]:
    items = contents.get("_via_img_metadata", contents) if isinstance(contents, dict) else None
    if not isinstance(items, dict):
        raise ValueError(f"{path}: not a project or export of VIA; export the annotations from VIA again")
    names: dict[str, str] = {}
    regions = []
    for key, entry in items.items():
        where = f"{path}: {key!r:.80}"
        name = entry.get("filename") if isinstance(entry, dict) else None
        there = entry.get("regions") if isinstance(entry, dict) else None
        # Version 1 numbers the regions as the keys of an object.
        there = list(there.values()) if isinstance(there, dict) else there
        if not isinstance(name, str) or not name or not isinstance(there, list):
            raise ValueError(f"{where}: lacks filename or regions; export the annotations from VIA again")
        if name in names:
            raise ValueError(f"{where}: the image {name!r:.80} is there twice; merge or remove one of the two")
        names[name] = key
        for i, region in enumerate(there, start=1):
            shape = region.get("shape_attributes") if isinstance(region, dict) else None
            attributes = region.get("region_attributes") if isinstance(region, dict) else None
            attributes = attributes if isinstance(attributes, dict) else {}
            regions.append(_Region(name, shape, attributes, f"{where}: region {i}"))
    return list(names), regions


def _read_table(path: Path) -> tuple[list[str], list[_Region]]:
    """A CSV file of any version: version 1 begins its header with #, version 3 writes it as a remark."""
    text = read_text(path)
    remarks = [line for line in text.splitlines() if line.startswith("# ")]
    if any("CSV_HEADER" in line for line in remarks):
        return _read_table3(path, text, remarks)
    names: dict[str, None] = {}
    regions = []
    rows = csv.DictReader(io.StringIO(text.removeprefix("#"), newline=None), strict=True)
    try:
        for row in rows:
            where = f"{path}: line {rows.line_num}"
            name, shape_text = row.get("filename"), row.get("region_shape_attributes")
            if not name or shape_text is None:
                raise ValueError(f"{where}: lacks filename or region_shape_attributes; export the table from VIA again")
            names[name] = None
            shape = _cell(shape_text, f"{where}: region_shape_attributes")
            attributes = _cell(row.get("region_attributes") or "{}", f"{where}: region_attributes")
            if shape != {}:
                regions.append(_Region(name, shape, attributes if isinstance(attributes, dict) else {}, where))
    except csv.Error as error:
        raise ValueError(f"{path}: line {rows.line_num}: not valid CSV ({error}); correct this line") from None
    return list(names), regions


def _read_version3(path: Path, contents: dict[str, Any]) -> tuple[list[str], list[_Region]]:
    files, views, metadata = (contents.get(key) for key in ("file", "view", "metadata"))
    if not all(isinstance(part, dict) for part in (files, views, metadata)):
        raise ValueError(f"{path}: a project of VIA 3 without file, view or metadata; save it from VIA again")
    attributes = contents.get("attribute")
    image_of: dict[str, str] = {}
    seen: set[str] = set()
    for vid, view in views.items():
        fids = view.get("fid_list") if isinstance(view, dict) else None
        file = files.get(str(fids[0])) if isinstance(fids, list) and len(fids) == 1 else None
        name = (file.get("fname") or file.get("src")) if isinstance(file, dict) else None
        if not isinstance(name, str):
            raise ValueError(f"{path}: view {vid!r:.40}: does not show exactly one file; give each image its own view")
        if file.get("type", _FILE_IMAGE) != _FILE_IMAGE:
            raise ValueError(f"{path}: {name!r:.80}: is no image in this project; annotate images, or frames as images")
        if name in seen:
            raise ValueError(f"{path}: the image {name!r:.80} is there twice; merge or remove one of the two")
        seen.add(name)
        image_of[str(vid)] = name
    regions = []
    for key, entry in metadata.items():
        where = f"{path}: metadata {key!r:.40}"
        shape = entry.get("xy") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or str(entry.get("vid")) not in image_of:
            raise ValueError(f"{where}: lacks its xy, or its vid is no view; save the project from VIA again")
        if shape:  # without: something about the whole image
            said = _attributes3(attributes, entry.get("av"))
            regions.append(_Region(image_of[str(entry["vid"])], shape, said, where))
    return list(image_of.values()), regions


def _read_table3(path: Path, text: str, remarks: Sequence[str]) -> tuple[list[str], list[_Region]]:
    attributes = None
    for line in remarks:
        name, _, value = line[2:].partition("=")
        if name.strip() in ("ATTRIBUTE", "ATTRIBUTES"):
            attributes = _cell(value.strip(), f"{path}: ATTRIBUTE")
    header = next(line for line in remarks if "CSV_HEADER" in line).partition("=")[2]
    columns = [name.strip() for name in header.split(",") if name.strip()]
    names: dict[str, None] = {}
    regions = []
    # Blank lines in place of the remarks keep the numbers of the lines.
    body = "\n".join("" if line.startswith("#") else line for line in text.splitlines())
    rows = csv.DictReader(io.StringIO(body, newline=None), columns, strict=True)
    try:
        for row in rows:
            where = f"{path}: line {rows.line_num}"
            if row.get("file_list") is None or row.get("spatial_coordinates") is None:
                raise ValueError(f"{where}: lacks file_list or spatial_coordinates; export the table from VIA again")
            files = _cell(row["file_list"], f"{where}: file_list")
            if not isinstance(files, list) or len(files) != 1 or not isinstance(files[0], str):
                raise ValueError(f"{where}: file_list is {files!r:.60}; give each image its own view")
            names[files[0]] = None
            shape = _cell(row["spatial_coordinates"] or "[]", f"{where}: spatial_coordinates")
            if shape:
                said = _attributes3(attributes, _cell(row.get("metadata") or "{}", f"{where}: metadata"))
                regions.append(_Region(files[0], shape, said, where))
    except csv.Error as error:
        raise ValueError(f"{path}: line {rows.line_num}: not valid CSV ({error}); correct this line") from None
    return list(names), regions


def _attributes3(definitions: Any, values: Any) -> dict[str, Any]:
    """The values of a region by the names of the attributes; that of a choice is the number of an option."""
    found = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        definition = definitions.get(key) if isinstance(definitions, dict) else None
        if isinstance(definition, dict):
            options = definition.get("options")
            if isinstance(options, dict) and isinstance(value, str):
                value = options.get(value, value)
            found[str(definition.get("aname", key))] = value
        else:
            found[definition if isinstance(definition, str) else key] = value
    return found


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


def _kind(shape: Any) -> Any:
    if isinstance(shape, list):
        number = shape[0] if shape else None
        return _SHAPES3.get(number, number) if isinstance(number, (int, float)) else number
    return shape.get("name") if isinstance(shape, dict) else None


def _mark(shape: Any, label: str, where: str) -> Mark:
    kind = _kind(shape)
    if isinstance(shape, list):
        return _mark3(kind, [json_number(value, where) for value in shape[1:]], label, where)

    def values(*keys: str) -> list[float]:
        return [json_number(shape.get(key), f"{where}: {key}") for key in keys]

    if kind == "point":
        return Mark(*values("cx", "cy"), math.nan, label)
    if kind == "rect":
        return box("corner", values("x", "y", "width", "height"), label, where)
    if kind in ("circle", "ellipse"):
        return round_mark(*values("cx", "cy", *(["r", "r"] if kind == "circle" else ["rx", "ry"])), label, where)
    if kind == "polygon":
        x, y = (shape.get(f"all_points_{axis}") for axis in "xy")
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y) or not x:
            raise ValueError(f"{where}: a polygon whose all_points_x and all_points_y do not fit; draw it again")
        return bounds(json_points([list(pair) for pair in zip(x, y, strict=True)], where).tolist(), label, where)
    raise ValueError(f"{where}: is a {kind!r:.40}; {_ADVICE}")


def _mark3(kind: Any, numbers: list[float], label: str, where: str) -> Mark:
    if kind in _LENGTHS3 and len(numbers) != _LENGTHS3[kind]:
        raise ValueError(f"{where}: a {kind} of {len(numbers)} numbers; draw it again")
    if kind == "point":
        return Mark(*numbers, math.nan, label)
    if kind == "rect":
        return box("corner", numbers, label, where)
    if kind in ("circle", "ellipse"):
        x, y, *radii = numbers
        return round_mark(x, y, radii[0], radii[-1], label, where)
    if kind in ("polygon", _SHAPES3[8]):
        if len(numbers) < 2 or len(numbers) % 2:
            raise ValueError(f"{where}: a {kind} of {len(numbers)} numbers; draw it again")
        return bounds(list(zip(numbers[::2], numbers[1::2], strict=True)), label, where)
    raise ValueError(f"{where}: is a {kind!r:.40}; {_ADVICE}")
