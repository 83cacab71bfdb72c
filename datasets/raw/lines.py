"""Text files with an object a line: YOLO's boxes, polygons and poses, and bare lists of x y."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from datasets.raw.marks import Annotated, Mark, Request, shape
from datasets.raw.raw_text import parse_number, read_lines

_Row = tuple[str, list[float], str]  # the label, the values, and where they stand


def read_xy(path: Path, request: Request = Request()) -> dict[str, Annotated]:
    """``x y`` a line, in pixels, as P2PNet, PET and many lists have it; commas, semicolons or tabs separate as well."""
    marks = []
    for line, where in read_lines(path):
        fields = re.findall(r"[^\s,;]+", line)
        if len(fields) not in (0, 2):
            raise ValueError(f"{where}: {len(fields)} values; write the two values x y, in pixels")
        marks += [Mark(*(parse_number(field, where) for field in fields))] if fields else []
    return {"": Annotated(marks)}


def read_yolo(path: Path, request: Request = Request()) -> dict[str, Annotated]:
    """YOLO's labels, an object a line, in parts of the image.

    ``class x y width height``, (x, y) the centre, and behind them the confidence of a prediction or the number of a track,
    which do not matter; with keypoints as well (pose), where the data set's YAML file has a ``kpt_shape`` that fits; or
    ``class x y x y x y ...``, the corners of a polygon (segmentation, oriented boxes). ``ValueError`` for what may be both.
    """
    rows = _read_rows(path)
    long = [values for _, values, _ in rows if len(values) > 5]
    keypoints = _keypoint_values(path.parent)
    poses = keypoints and all(len(values) - 4 - keypoints in (0, 1, 2) for values in long)
    clear = not long or poses or _are_polygons(long, path.parent)
    marks = []
    for label, values, where in rows:
        if not (clear if len(values) > 5 else len(values) == 4 or _is_box_and_more(*values)):
            what = f"{len(values) + 1} values, which may be a box with keypoints or the corners of a polygon"
            remedy = "write kpt_shape: [number, 2 or 3] into the data set's YAML file, or class x y width height alone"
            raise ValueError(f"{where}: {what}; {remedy}")
        kind = "polygon" if len(values) > 5 and not poses else "centre"
        coordinates = values if kind == "polygon" else values[:4]
        if not _in_image(coordinates):
            raise ValueError(f"{where}: {str(values):.80} is not in parts of the image, 0 to 1; divide by its size")
        marks.append(shape(kind, coordinates, label, where))
    return {"": Annotated(marks, (1, 1))}


def _read_rows(path: Path) -> list[_Row]:
    rows = []
    for line, where in read_lines(path):
        label, *values = line.split()
        if len(values) < 4:
            raise ValueError(f"{where}: {len(values) + 1} values; write the five values class x y width height")
        rows.append((label, [parse_number(value, where) for value in values], where))
    return rows


def _in_image(values: Sequence[float]) -> bool:
    """Whether these are parts of the image; rounding puts boxes at the border a little outside."""
    return all(-0.01 <= value <= 1.01 for value in values)


def _is_box_and_more(x: float, y: float, width: float, height: float, more: float) -> bool:
    """Whether these can be a box in its image, and a confidence or the number of a track."""
    edges = x - width / 2, x + width / 2, y - height / 2, y + height / 2
    return _in_image(edges) and (0 <= more <= 1 or (more > 0 and more.is_integer()))


def _are_polygons(rows: Sequence[Sequence[float]], folder: Path) -> bool:
    """Whether these are polygons for certain: all poses of a data set have one number of values, and none is a parallelogram."""
    numbers = {len(values) for values in rows} | _numbers_of_values(folder, folder.stat().st_mtime_ns)
    parallel = [len(v) == 8 and math.dist(np.add(v[:2], v[4:6]), np.add(v[2:4], v[6:])) < 1e-3 for v in rows]
    return all(parallel) or (len(numbers) > 1 and not any(number % 2 for number in numbers))


@functools.lru_cache
def _numbers_of_values(folder: Path, changed: int) -> set[int]:
    """How many values long rows of the files in a folder have, up to the file with which these are two numbers."""
    numbers: set[int] = set()
    for path in sorted(folder.glob("*.txt")):
        with contextlib.suppress(OSError, ValueError):
            numbers |= {len(values) for _, values, _ in _read_rows(path) if len(values) > 5}
        if len(numbers) > 1:
            break
    return numbers


@functools.lru_cache
def _keypoint_values(folder: Path) -> int | None:
    """How many values all keypoints have by ``kpt_shape: [number, 2 or 3]`` of the YAML file in this folder or the three above."""
    for place in (folder, *list(folder.parents)[:3]):
        for path in sorted([*place.glob("*.yaml"), *place.glob("*.yml")]):
            try:
                contents = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError, yaml.YAMLError):
                continue
            shape = contents.get("kpt_shape") if isinstance(contents, dict) else None
            if isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) and n > 0 for n in shape):
                return shape[0] * shape[1]
    return None
