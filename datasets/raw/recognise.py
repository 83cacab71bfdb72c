"""Which annotation format a folder's files are of."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.raw.formats import FORMATS
from datasets.raw.raw_text import DamagedError, one_form, read_json, read_text
from datasets.raw.tables import check_table
from utils.files import find_files

_LOOKED_AT = 20  # files of one suffix
_SAID = 3  # files whose reason is said

# Formats that are known and not read, and what to do; by suffix, or by what the functions below find in the file.
_COCO = "export COCO, and take --format coco"
_TABLE = "save its results as a csv table with the columns x and y, in pixels, and take --format csv"
_UNREAD = {
    ".zip": ("an archive, such as ImageJ's RoiSet.zip", f"unpack it, or, of ImageJ, measure the ROIs and {_TABLE}"),
    ".roi": ("a ROI of ImageJ", f"measure the ROIs in ImageJ and {_TABLE}"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), ("a spreadsheet", "save it as csv, and take --format csv")),
    ".qpdata": ("of a project of QuPath", f"measure the centroids in QuPath and {_TABLE}"),
    ".geojson": ("GeoJSON, as QuPath writes it", f"measure the centroids in QuPath and {_TABLE}"),
    **dict.fromkeys((".ndjson", ".jsonl"), ("a list of JSON lines, as of Labelbox", _COCO)),
}


def recognise(root: Path, images: Sequence[Path], annotations: Path | None = None) -> tuple[str, str]:
    """The format of the annotations of these images, and what tells it.

    ``annotations`` is the file or folder that holds them, else ``root``. Raises ``ValueError`` where several formats or
    none are found, in the latter case with the files that were looked at and why they were not taken.
    """
    named = {one_form(name) for image in images for name in (image.stem, image.name)}
    paths = [annotations] if annotations and annotations.is_file() else find_files(annotations or root)
    suffixes = {suffix for form in FORMATS.values() for suffix in form.suffixes} | set(_UNREAD)
    found: dict[str, str] = {}
    refused: list[str] = []
    for suffix, group in itertools.groupby(
        sorted(paths, key=lambda p: (p.suffix.lower(), p)), lambda p: p.suffix.lower()
    ):
        if suffix in suffixes:
            own = [path for path in group if suffix != ".txt" or one_form(path.stem) in named]
            for i, path in enumerate(own[:_LOOKED_AT]):
                try:
                    name, why = _sniff(path, one_form(path.stem) in named)
                    found.setdefault(name, f"{path}: {why}")
                except (OSError, ValueError) as error:
                    refused += [str(error)] if not i else []
    empty = found.pop("empty", None)
    if not found and empty:
        found["yolo"] = empty
    if len(found) == 1:
        return next(iter(found.items()))
    place = annotations or root
    if not found:
        looked = "; ".join(refused[:_SAID]) or f"it has no file {', '.join(sorted(suffixes))} for an image or for all"
        raise ValueError(
            f"{place}: holds no annotations that are recognised ({looked}); choose with --format {{{','.join(FORMATS)}}}, "
            "and give --annotations if they are elsewhere"
        )
    reasons = "; ".join(f"{name} ({why})" for name, why in found.items())
    raise ValueError(f"{place}: the annotations may be {reasons}; choose with --format")


def why_other(path: Path, format: str) -> str | None:
    """Why a file is none of that format for many images; ``OSError`` or ``DamagedError`` where it cannot be read."""
    try:
        name, why = _sniff(path, False)
        return None if name == format else f"{path}: {why}"
    except ValueError as error:
        if isinstance(error, DamagedError):
            raise
        return str(error)


def _sniff(path: Path, of_image: bool) -> tuple[str, str]:
    """The format that a file is of, and what tells it; ``OSError`` or ``ValueError`` with the reason where it is of none."""
    suffix = path.suffix.lower()
    if suffix in _UNREAD:
        raise _unread(path, *_UNREAD[suffix])
    if suffix == ".pnt":
        return "pnt", "a project of DotDotGoose"
    if suffix == ".mat":
        return "mat", "a MATLAB file"
    if suffix == ".xml":
        return _sniff_xml(path)
    if suffix == ".txt":
        return _sniff_lines(path)
    if suffix == ".json":
        return _sniff_json(path, read_json(path), of_image)
    text = read_text(path)
    if "region_shape_attributes" in text.partition("\n")[0] or "# CSV_HEADER" in text:
        return "via", "a table of VIA's regions"
    check_table(path, not of_image)
    return "csv", "a table with the columns of points or boxes"


def _unread(path: Path, what: str, remedy: str) -> ValueError:
    return ValueError(f"{path}: is {what}, which is not read: {remedy}")


def _sniff_xml(path: Path) -> tuple[str, str]:
    match = re.search(rb"<([A-Za-z][\w.:-]*)", re.sub(rb"<!--.*?-->", b"", path.read_bytes()[:10_000], flags=re.S))
    root = match[1].decode() if match else "no element"
    if root == "annotations":
        return "cvat", "begins with <annotations>"
    if root == "annotation":
        raise _unread(path, "Pascal VOC's", _COCO)
    if root == "CellCounter_Marker_File":
        raise _unread(path, "of ImageJ's Cell Counter", f"measure the markers there and {_TABLE}")
    raise ValueError(f"{path}: begins with {root:.40}, where CVAT's file begins with annotations")


def _sniff_lines(path: Path) -> tuple[str, str]:
    lines = (re.split(r"[\s,;]+", line.strip()) for line in read_text(path).splitlines())
    fields = next((fields for fields in lines if fields != [""]), None)
    if fields is None:
        return "empty", "empty text files"
    if len(fields) == 2:
        return "xy", "two numbers a line"
    try:
        values = [float(value) for value in fields]
    except ValueError:
        values = []
    if len(values) >= 5 and all(-0.01 <= value <= 1.01 for value in values[1:5]):
        return "yolo", f"{len(fields)} numbers a line, parts of the image"
    if len(values) in (4, 5) and values[2] > values[0] and values[3] > values[1]:
        columns = "a csv table with the columns xmin, ymin, xmax, ymax"
        raise _unread(
            path, "a list of boxes by their corners, as CARPK's", f"write it as {columns}, and take --format csv"
        )
    begin = " ".join(fields)
    raise ValueError(
        f"{path}: begins with {begin!r:.60}, neither x y nor YOLO's class x y width height in parts of the image"
    )


def _sniff_json(path: Path, contents: Any, of_image: bool) -> tuple[str, str]:
    if isinstance(contents, list):
        tasks = [entry for entry in contents if isinstance(entry, dict)]
        if any(entry.get("type") == "Feature" for entry in tasks):
            raise _unread(path, *_UNREAD[".geojson"])
        if tasks and ("data" in tasks[0] or any("original_width" in str(value) for value in tasks[0].values())):
            return "labelstudio", "a list of Label Studio's tasks"
        if _are_points(contents):
            if of_image:
                return "json", "a list of points"
            raise ValueError(
                f'{path}: a list of points, but called like no image; call it so, or write {{"a.jpg": [...]}}'
            )
        raise ValueError(f"{path}: a list of no format that is read")
    if not isinstance(contents, dict):
        raise ValueError(f"{path}: is neither a list nor an object")
    keys = contents.keys()
    if {"images", "annotations"} <= keys:
        return "coco", "has images and annotations"
    if "shapes" in keys:
        return "labelme", "has shapes"
    if "_via_img_metadata" in keys or {"file", "metadata", "view"} <= keys:
        return "via", "a project of VIA"
    if contents.get("type") in ("FeatureCollection", "Feature"):
        raise _unread(path, *_UNREAD[".geojson"])
    if "objects" in keys and {"size", "tags", "description"} & keys:
        raise _unread(path, "of Supervisely", _COCO)
    if "annotations" in keys and {"item", "dataset", "image"} & keys:
        raise _unread(path, "Darwin's, of V7", _COCO)
    values = list(contents.values())
    if values and all(isinstance(value, dict) and "filename" in value and "regions" in value for value in values):
        return "via", "an export of VIA"
    if of_image and isinstance(contents.get("points"), list):
        return "json", "has a list of points"
    if not of_image and values and all(_are_points(value) for value in values):
        return "json", "maps names of images to lists of points"
    raise ValueError(f"{path}: an object with the keys {', '.join(list(keys)[:5])!r:.60}, of no format that is read")


def _are_points(value: Any) -> bool:
    value = value.get("points") if isinstance(value, dict) else value
    return isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
