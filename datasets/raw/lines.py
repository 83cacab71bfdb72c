"""Text files with an object a line: YOLO's boxes, polygons and poses, and bare lists of x y."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from datasets.raw.marks import Annotated, Mark, bounds, box
from datasets.raw.raw_text import parse_number, read_text


def read_xy(path: Path) -> Annotated:
    """``x y`` a line, in pixels, as P2PNet, PET and many lists have it; commas, semicolons or tabs separate as well."""
    marks = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields, where = re.split(r"[\s,;]+", line.strip(" \t\r,;")), f"{path}: line {number}"
        if fields == [""]:
            continue
        if len(fields) != 2:
            raise ValueError(f"{where}: {len(fields)} values; write the two values x y, in pixels")
        marks.append(Mark(*(parse_number(field, where) for field in fields)))
    return Annotated(marks)


def read_yolo(path: Path, width: int, height: int) -> Annotated:
    """YOLO's labels for an image of that size, an object a line, in parts of the image.

    ``class x y width height``, (x, y) the centre; with keypoints ``px py visible`` behind it (pose), which do not matter; or
    ``class x y x y x y ...``, the corners of a polygon (segmentation, oriented boxes). The number of values tells, and
    ``kpt_shape`` in the data set's YAML file; where both fit, keypoints lie in their box and say 0, 1 or 2.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields, where = line.split(), f"{path}: line {number}"
        if not fields:
            continue
        count = len(fields)
        if count < 5 or count == 6:
            raise ValueError(f"{where}: {count} values; write the five values class x y width height")
        rows.append((fields, [parse_number(field, where) for field in fields[1:]], line.strip(), where))
    stated = _keypoint_shape(path.parent) if any(len(fields) > 5 for fields, *_ in rows) else None
    long = [values for fields, values, *_ in rows if len(fields) > 5]
    pose = all(_is_pose(values, stated) for values in long)
    marks = []
    for fields, values, line, where in rows:
        if len(fields) > 5 and not pose and len(values) % 2:
            raise ValueError(
                f"{where}: {len(fields)} values; write the five values class x y width height, or x y pairs"
            )
        coordinates = values[:4] if len(fields) == 5 or pose else values
        # Rounding puts boxes at the border a little outside.
        if not all(-0.01 <= value <= 1.01 for value in coordinates):
            raise ValueError(f"{where}: {line!r:.80} is not in parts of the image, from 0 to 1; divide by its size")
        if len(coordinates) == 4:
            x, y, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
            marks.append(box(x - w / 2, y - h / 2, w, h, fields[0], where)._replace(x=x, y=y))
        else:
            pairs = [(x * width, y * height) for x, y in zip(values[::2], values[1::2], strict=True)]
            marks.append(bounds(pairs, fields[0], where))
    return Annotated(marks)


def _is_pose(values: Sequence[float], stated: Sequence[int] | None) -> bool:
    """Whether these are a box and keypoints rather than a polygon."""
    rest = values[4:]
    if stated:
        return len(rest) == stated[0] * stated[1]
    if len(rest) % 3:
        return False
    if len(values) % 2:
        return True
    x, y, w, h = values[:4]
    keypoints = zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    return all(
        visible in (0, 1, 2) and (not visible or (abs(px - x) <= w / 2 + 0.01 and abs(py - y) <= h / 2 + 0.01))
        for px, py, visible in keypoints
    )


@functools.lru_cache
def _keypoint_shape(folder: Path) -> tuple[int, int] | None:
    """``kpt_shape: [number, 2 or 3]`` of the YAML file in this folder or the three above."""
    for place in (folder, *list(folder.parents)[:3]):
        for path in sorted([*place.glob("*.yaml"), *place.glob("*.yml")]):
            try:
                contents = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError, yaml.YAMLError):
                continue
            shape = contents.get("kpt_shape") if isinstance(contents, dict) else None
            if isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) and n > 0 for n in shape):
                return shape[0], shape[1]
    return None
