"""Which annotation formats there are: what their files are called, who reads them, and how they are recognised."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets.raw import exports
from datasets.raw.lines import read_xy, read_yolo
from datasets.raw.marks import Annotated, Request
from datasets.raw.mat_file import read_points_mat
from datasets.raw.raw_text import DamagedError, one_form, read_json, read_lines, read_text
from datasets.raw.tables import check_table, read_csv
from datasets.raw.via import read_via
from utils.files import find_files


class Format(NamedTuple):
    """One format; ``files`` are "each" (one an image), "all" (one for many) or "both"."""

    suffixes: tuple[str, ...]
    files: str
    read: Callable[[Path, Request], dict[str, Annotated]]
    image_named: Callable[[Path], str | None] | None = None  # the image that a file of another name says it is about
    stored: bool = False  # where neither a size nor the points tell: the stored grid rather than the upright one


FORMATS = {
    "csv": Format((".csv", ".tsv"), "both", read_csv),
    "json": Format((".json",), "both", exports.read_points_json),
    "coco": Format((".json",), "all", exports.read_coco),
    "yolo": Format((".txt",), "each", read_yolo),
    "labelme": Format((".json",), "each", exports.read_labelme, image_named=exports.labelme_image),
    "via": Format((".json", ".csv"), "all", read_via),
    "cvat": Format((".xml",), "all", exports.read_cvat),
    "labelstudio": Format((".json",), "all", exports.read_labelstudio),
    "xy": Format((".txt",), "each", read_xy),
    "pnt": Format((".pnt",), "all", exports.read_pnt),
    "mat": Format((".mat",), "each", read_points_mat, stored=True),
}
_LOOKED_AT = 20  # files of one suffix
_REASONS = 3  # that are given where nothing is recognised

# Formats that are known and not read, and what to do; by suffix, or by what the functions below find in the file.
_COCO = "export COCO, and take --format coco"
_TABLE = "save its results as a csv table with the columns x and y, in pixels, and take --format csv"
_CORNERS = "it as a csv table with the columns xmin, ymin, xmax, ymax"
_UNREAD = {
    ".zip": ("an archive, such as ImageJ's RoiSet.zip", f"unpack it, or, of ImageJ, measure the ROIs and {_TABLE}"),
    ".roi": ("a ROI of ImageJ", f"measure the ROIs in ImageJ and {_TABLE}"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), ("a spreadsheet", "save it as csv, and take --format csv")),
    ".qpdata": ("of a project of QuPath", f"measure the centroids in QuPath and {_TABLE}"),
    ".geojson": ("GeoJSON, as QuPath writes it", f"measure the centroids in QuPath and {_TABLE}"),
    **dict.fromkeys((".ndjson", ".jsonl"), ("a list of JSON lines, as of Labelbox", _COCO)),
    "voc": ("Pascal VOC's", _COCO),
    "cell counter": ("of ImageJ's Cell Counter", f"measure the markers there and {_TABLE}"),
    "supervisely": ("of Supervisely", _COCO),
    "darwin": ("Darwin's, of V7", _COCO),
    "carpk": ("a list of boxes by their corners, as CARPK's", f"write {_CORNERS}, and take --format csv"),
}


def recognise(root: Path, images: Sequence[Path], annotations: Path | None = None) -> tuple[str, Path]:
    """The format of the annotations of these images, and a file that shows it.

    ``annotations`` is the file or folder that holds them, else ``root``. Raises ``ValueError`` where several formats or
    none are found, in the latter case with the files that were looked at and why they were not taken.
    """
    stems = {one_form(name) for image in images for name in (image.stem, image.name)}
    paths = [annotations] if annotations and annotations.is_file() else find_files(annotations or root)
    suffixes = {suffix for form in FORMATS.values() for suffix in form.suffixes} | set(_UNREAD)
    formats: dict[str, Path] = {}
    refused: list[str] = []
    paths.sort(key=lambda path: (path.suffix.lower(), path))
    for suffix, group in itertools.groupby(paths, lambda path: path.suffix.lower()):
        own = [path for path in group if suffix != ".txt" or one_form(path.stem) in stems]
        for i, path in enumerate(own[:_LOOKED_AT] if suffix in suffixes else ()):
            try:
                formats.setdefault(format_of(path, one_form(path.stem) in stems), path)
            except (OSError, ValueError) as error:
                refused += [str(error)] if not i else []
    empty = formats.pop("empty", None)
    if not formats and empty:
        formats["yolo"] = empty
    if len(formats) == 1:
        return next(iter(formats.items()))
    place = annotations or root
    if not formats:
        looked = "; ".join(refused[:_REASONS]) or f"it has no file {', '.join(sorted(suffixes))} of an image or of all"
        remedy = f"choose with --format {{{','.join(FORMATS)}}}, and give --annotations if they are elsewhere"
        raise ValueError(f"{place}: holds no annotations that are recognised ({looked}); {remedy}")
    shown = "; ".join(f"{name} ({path})" for name, path in formats.items())
    raise ValueError(f"{place}: the annotations may be {shown}; choose with --format")


def why_other(path: Path, format: str) -> str | None:
    """Why a file is none of that format for many images; ``OSError`` or ``DamagedError`` where it cannot be read."""
    try:
        other = format_of(path, False)
    except DamagedError:
        raise
    except ValueError as error:
        return str(error)
    return None if other == format else f"{path}: is of format {other}"


def format_of(path: Path, of_image: bool) -> str:
    """The format of a file, "empty" for a text without a line; ``OSError`` or ``ValueError`` with the reason if it has none.

    ``of_image``: it is called like an image.
    """
    suffix = path.suffix.lower()
    if suffix in _UNREAD:
        name = suffix
    elif suffix in (".pnt", ".mat"):
        name = suffix[1:]
    elif suffix == ".xml":
        name = _format_of_xml(path)
    elif suffix == ".txt":
        name = _format_of_lines(path)
    elif suffix == ".json":
        name = _format_of_json(path, read_json(path), of_image)
    else:
        text = read_text(path)
        name = "via" if "region_shape_attributes" in text.partition("\n")[0] or "# CSV_HEADER" in text else "csv"
        if name == "csv":
            check_table(path, not of_image)
    if name in _UNREAD:
        what, remedy = _UNREAD[name]
        raise ValueError(f"{path}: is {what}, which is not read: {remedy}")
    return name


def _format_of_xml(path: Path) -> str:
    match = re.search(rb"<([A-Za-z][\w.:-]*)", re.sub(rb"<!--.*?-->", b"", path.read_bytes()[:10_000], flags=re.S))
    root = match[1].decode() if match else "no element"
    known = {"annotations": "cvat", "annotation": "voc", "CellCounter_Marker_File": "cell counter"}
    if root not in known:
        raise ValueError(f"{path}: begins with {root:.40}, where CVAT's file begins with annotations")
    return known[root]


def _format_of_lines(path: Path) -> str:
    fields = next((fields for line, _ in read_lines(path) if (fields := re.findall(r"[^\s,;]+", line))), None)
    if fields is None:
        return "empty"
    if len(fields) == 2:
        return "xy"
    try:
        values = [float(value) for value in fields]
    except ValueError:
        values = []
    if len(values) >= 5 and all(-0.01 <= value <= 1.01 for value in values[1:5]):
        return "yolo"
    if len(values) in (4, 5) and values[2] > values[0] and values[3] > values[1]:
        return "carpk"
    begin = " ".join(fields)
    known = "neither x y nor YOLO's class x y width height in parts of the image"
    raise ValueError(f"{path}: begins with {begin!r:.60}, {known}")


def _format_of_json(path: Path, contents: Any, of_image: bool) -> str:
    if isinstance(contents, list):
        first = contents[0] if contents and isinstance(contents[0], dict) else {}
        if first.get("type") == "Feature":
            return ".geojson"
        if "data" in first or any("original_width" in str(value) for value in first.values()):
            return "labelstudio"
        if _are_points(contents) and of_image:
            return "json"
        hint = 'a list of points belongs to an image of the same name, or into an object {"a.jpg": [...]}'
        raise ValueError(f"{path}: a list of no format that is read; {hint}")
    if not isinstance(contents, dict):
        raise ValueError(f"{path}: is neither a list nor an object")
    keys, values = contents.keys(), list(contents.values())
    signs = {
        "coco": {"images", "annotations"} <= keys,
        "labelme": "shapes" in keys,
        "via": "_via_img_metadata" in keys
        or {"file", "metadata", "view"} <= keys
        or (values and all(isinstance(value, dict) and {"filename", "regions"} <= value.keys() for value in values)),
        ".geojson": contents.get("type") in ("FeatureCollection", "Feature"),
        "supervisely": "objects" in keys and {"size", "tags", "description"} & keys,
        "darwin": "annotations" in keys and {"item", "dataset", "image"} & keys,
        "json": isinstance(contents.get("points"), list) if of_image else values and all(map(_are_points, values)),
    }
    name = next((name for name, sign in signs.items() if sign), None)
    if name is None:
        shown = ", ".join(list(keys)[:5])
        raise ValueError(f"{path}: an object with the keys {shown!r:.60}, of no format that is read")
    return name


def _are_points(value: Any) -> bool:
    value = value.get("points") if isinstance(value, dict) else value
    return isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
