"""Which annotation format a folder's files are of."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets.raw.formats import FORMATS
from datasets.raw.raw_text import read_json, read_text
from datasets.raw.tables import looks_like_points
from utils.files import find_files

_LOOKED_AT = 20  # files of one suffix


def recognise(root: Path, images: Sequence[Path], annotations: Path | None = None) -> tuple[str, str]:
    """The format of the annotations of these images, and what tells it.

    ``annotations`` is the file or folder that holds them, else ``root``. Raises ``ValueError`` where several formats or
    none are found.
    """
    stems = {unicodedata.normalize("NFC", image.stem) for image in images}
    paths = [annotations] if annotations and annotations.is_file() else find_files(annotations or root)
    suffixes = {suffix for form in FORMATS.values() for suffix in form.suffixes}
    found: dict[str, str] = {}
    for suffix, group in itertools.groupby(
        sorted(paths, key=lambda p: (p.suffix.lower(), p)), lambda p: p.suffix.lower()
    ):
        if suffix in suffixes:
            own = [path for path in group if suffix != ".txt" or unicodedata.normalize("NFC", path.stem) in stems]
            for path in own[:_LOOKED_AT]:
                for name, why in _sniff(path, path.stem in stems):
                    found.setdefault(name, f"{path}: {why}")
    empty = found.pop("empty", None)
    if not found and empty:
        found["yolo"] = empty
    if len(found) == 1:
        return next(iter(found.items()))
    place = annotations or root
    if not found:
        raise ValueError(
            f"{place}: holds no annotations that are recognised; choose with --format {{{','.join(FORMATS)}}}, and give "
            "--annotations if they are elsewhere"
        )
    reasons = "; ".join(f"{name} ({why})" for name, why in found.items())
    raise ValueError(f"{place}: the annotations may be {reasons}; choose with --format")


def _sniff(path: Path, of_image: bool) -> Iterator[tuple[str, str]]:
    """Formats that a file may be of, and why. A file that cannot be read is of none; its reader would say so."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".pnt":
            yield "pnt", "a project of DotDotGoose"
        elif suffix == ".mat":
            yield "mat", "a MATLAB file"
        elif suffix == ".xml":
            if re.search(rb"<annotations[\s>]", path.read_bytes()[:10_000]):
                yield "cvat", "begins with <annotations>"
        elif suffix == ".csv":
            text = read_text(path)
            if "region_shape_attributes" in text.partition("\n")[0] or "# CSV_HEADER" in text:
                yield "via", "a table of VIA's regions"
            elif looks_like_points(path, not of_image):
                yield "csv", "a table with the columns of points or boxes"
        elif suffix == ".txt":
            yield from _sniff_lines(read_text(path).splitlines())
        elif (name := _json_format(read_json(path), of_image)) is not None:
            yield name
    except (OSError, ValueError):
        return


def _sniff_lines(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    fields = next((fields for line in lines if (fields := re.split(r"[\s,;]+", line.strip())) != [""]), None)
    if fields is None:
        yield "empty", "empty text files"
    elif len(fields) == 2:
        yield "xy", "two numbers a line"
    elif len(fields) >= 5 and all(-0.01 <= float(value) <= 1.01 for value in fields[1:5]):
        yield "yolo", f"{len(fields)} numbers a line, parts of the image"


def _json_format(contents: Any, of_image: bool) -> tuple[str, str] | None:
    if isinstance(contents, list):
        tasks = [entry for entry in contents if isinstance(entry, dict)]
        if tasks and ("data" in tasks[0] or any("original_width" in str(value) for value in tasks[0].values())):
            return "labelstudio", "a list of Label Studio's tasks"
        if of_image and all(isinstance(entry, list) and len(entry) == 2 for entry in contents):
            return "json", "a list of points"
        return None
    if not isinstance(contents, dict):
        return None
    keys = contents.keys()
    if {"images", "annotations"} <= keys:
        return "coco", "has images and annotations"
    if "shapes" in keys:
        return "labelme", "has shapes"
    if "_via_img_metadata" in keys or {"file", "metadata", "view"} <= keys:
        return "via", "a project of VIA"
    values = list(contents.values())
    if values and all(isinstance(value, dict) and "filename" in value and "regions" in value for value in values):
        return "via", "an export of VIA"
    if of_image and isinstance(contents.get("points"), list):
        return "json", "has a list of points"
    if not of_image and values and all(_are_points(value) for value in values):
        return "json", "maps names of images to lists of points"
    return None


def _are_points(value: Any) -> bool:
    value = value.get("points") if isinstance(value, dict) else value
    return isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
