"""Text files with an object a line: YOLO's boxes, polygons and poses, and bare lists of x y."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from datasets.raw.marks import Annotated, Mark, Request, shape
from datasets.raw.raw_text import parse_number, read_lines
from datasets.raw.suspicion import MANY, near_own

_SAMPLE, _OF_A_FILE = 60, 5  # rows of label files that tell what those of another are


class _Row(NamedTuple):
    label: str
    values: list[float]
    where: str


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

    ``class x y width height``, (x, y) the centre; with keypoints ``px py`` or ``px py visible`` behind it (pose), and the
    confidence of a prediction and the number of a track behind those, which do not matter; or ``class x y x y x y ...``,
    the corners of a polygon (segmentation, oriented boxes). ``_are_poses`` tells which. ``ValueError`` where nothing does.
    """
    rows = _read_rows(path)
    pose = _are_poses(path, [row for row in rows if len(row.values) > 4])
    marks = []
    for label, values, where in rows:
        coordinates = values[:4] if pose else values
        if not _in_image(coordinates):
            raise ValueError(f"{where}: {str(values):.80} is not in parts of the image, 0 to 1; divide by its size")
        (size, _) = request.sizes("")
        scaled = [value * size[i % 2] for i, value in enumerate(coordinates)]
        marks.append(shape("centre" if len(scaled) == 4 else "polygon", scaled, label, where))
    return {"": Annotated(marks)}


def _read_rows(path: Path) -> list[_Row]:
    rows = []
    for line, where in read_lines(path):
        label, *values = line.split()
        if len(values) < 4:
            raise ValueError(f"{where}: {len(values) + 1} values; write the five values class x y width height")
        rows.append(_Row(label, [parse_number(value, where) for value in values], where))
    return rows


def _are_poses(path: Path, rows: Sequence[_Row]) -> bool:
    """Whether these rows, of more than five values each, are boxes with keypoints rather than polygons.

    ``kpt_shape`` of the data set's YAML file tells, if the rows fit it. Else every row of a pose, here and in the files
    beside, has its keypoints inside of its box, and a row of a polygon has its second corner near the others, where a pose
    has width and height. ``ValueError`` where that does not tell.
    """
    if not rows:
        return False
    stated = _keypoint_shape(path.parent)
    if stated and all(len(row.values) - 4 - stated[0] * stated[1] in (0, 1, 2) for row in rows):
        return True
    others = _sample(path.parent, path.parent.stat().st_mtime_ns)
    poses = _tell_poses([row.values for row in rows] + [values for other, values in others if other != path])
    unclear = next((row for row in rows if len(row.values) % 2), rows[0] if poses is None else None)
    if not poses and unclear:
        what = f"{len(unclear.values) + 1} values, which may be a box with keypoints or the corners of a polygon"
        remedy = "write kpt_shape: [number, 2 or 3] into the data set's YAML file, or class x y width height alone"
        raise ValueError(f"{unclear.where}: {what}; {remedy}")
    return bool(poses)


@functools.lru_cache
def _sample(folder: Path, changed: int) -> list[tuple[Path, list[float]]]:
    """Long rows of label files in a folder, and of which file."""
    rows: list[tuple[Path, list[float]]] = []
    for path in sorted(folder.glob("*.txt")):
        with contextlib.suppress(OSError, ValueError):
            rows += [(path, row.values) for row in _read_rows(path)[:_OF_A_FILE] if len(row.values) > 4]
        if len(rows) >= _SAMPLE:
            break
    return rows


def _tell_poses(rows: Sequence[Sequence[float]]) -> bool | None:
    """Whether rows are poses, or (False) polygons; None where both are possible, or neither."""
    shapes = [(each, more) for each in (3, 2) for more in (0, 1, 2)]
    fits = [{shape for shape in shapes if _is_pose(values, *shape)} for values in rows]
    pose = len({len(values) for values in rows}) == 1 and bool(set.intersection(*fits))
    # No polygons have one second corner in common.
    many, same_size = len(rows) >= MANY, len(rows) > 1 and len({tuple(values[2:4]) for values in rows}) == 1
    own = near_own(rows) if many else [not same_size] * len(rows)
    polygons = [near and _is_polygon(values, strictly=pose) for values, near in zip(rows, own, strict=True)]
    share, poses_alone = sum(polygons) / len(rows), any(fit and not it for fit, it in zip(fits, polygons, strict=True))
    if not pose:
        return False if share >= (0.9 if poses_alone else 0.5) else None
    # Many corners in the order of an outline, and parallelograms, are no accident.
    parallel = all(len(v) == 8 and math.dist(np.add(v[:2], v[4:6]), np.add(v[2:4], v[6:])) < 1e-3 for v in rows)
    if parallel or all(polygons) and (many or sum(len(values) // 2 - 4 for values in rows) >= 8):
        return False
    return True if share < (0.8 if many else 0.5) else None


def _in_image(values: Sequence[float]) -> bool:
    """Whether these are parts of the image; rounding puts boxes at the border a little outside."""
    return all(-0.01 <= value <= 1.01 for value in values)


def _is_pose(values: Sequence[float], each: int, more: int) -> bool:
    """Whether these can be a box and keypoints of ``each`` values, if any, and ``more``: confidence and number of a track."""
    (x, y, w, h), rest, last = values[:4], values[4 : len(values) - more], values[len(values) - more :]
    numbered = [value > 0 and value.is_integer() for value in last]
    if len(rest) % each or (last and not (0 <= last[0] <= 1 or numbered[0])) or not all(numbered[1:]):
        return False
    keypoints = list(zip(*[iter(rest)] * each, strict=True))
    if rest and each == 3 and len(values) % 2 and all(flag in (0, 1, 2) for _, _, flag in keypoints):
        return True
    if not _in_image((x - w / 2, x + w / 2, y - h / 2, y + h / 2)):
        return False
    return all(
        (flag == [0] or px == py == 0 or (abs(px - x) <= w / 2 + 0.01 and abs(py - y) <= h / 2 + 0.01))
        and all(0 <= value <= 1 or value == 2 for value in flag)
        for px, py, *flag in keypoints
    )


def _is_polygon(values: Sequence[float], strictly: bool) -> bool:
    """Whether these can be corners, with a confidence behind an odd number of them.

    The second is near the others, and ``strictly``, no edge crosses another.
    """
    if len(values) < 6 or not all(-0.5 <= value <= 1.5 for value in values):
        return False
    corners = np.array(values[: len(values) // 2 * 2]).reshape(-1, 2)
    others = np.delete(corners, 1, axis=0)
    low, high = others.min(axis=0), others.max(axis=0)
    reach = 2 * (high - low).max()
    if (corners[1] < low - reach).any() or (corners[1] > high + reach).any():
        return False
    if not strictly:
        return True
    edges = np.roll(corners, -1, axis=0) - corners
    # On which side of each edge its neighbours' two ends lie.
    from_edge = corners[None] - corners[:, None]
    side = edges[:, None, 0] * from_edge[..., 1] - edges[:, None, 1] * from_edge[..., 0]
    apart = side * np.roll(side, -1, axis=1) < 0
    absent = (corners == 0).all(axis=1).sum()  # (0, 0) is a keypoint that is not there
    return not (apart & apart.T).any() and absent < 2


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
