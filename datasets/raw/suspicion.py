"""Annotations that were read without an error and yet can hardly be meant so."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.raw.grids import outside
from datasets.raw.marks import Annotated

_POINTS_LEAVE_BY = "export 'CVAT for images 1.1' and take --format cvat, or Label Studio's JSON and --format labelstudio, which keep them"
_HINTS = {
    "coco": f"the COCO exports of CVAT and Label Studio leave points out: {_POINTS_LEAVE_BY}",
    "yolo": f"the YOLO exports of CVAT and Label Studio leave points out: {_POINTS_LEAVE_BY}",
}
_FEW = 4  # points from which on a data set, or an image, can be judged
MANY = 8  # points or objects from which on it can be said where they lie


def refuse_empty(
    format: str, annotated: Mapping[Path, Annotated | None], sources: Collection[Path], place: Path
) -> None:
    """``ValueError`` where all annotations were read and there is not one object in them: a model learns nothing of that."""
    if not annotated or any(value is None or value.marks for value in annotated.values()):
        return
    where = next(iter(sources)) if len(sources) == 1 else place
    hint = _HINTS.get(format, "annotate objects, or check --format and how the annotations were exported")
    raise ValueError(f"{where}: lists {len(annotated)} images and no annotation, not one object; {hint}")


def refuse_corners(
    annotated: Mapping[Path, Annotated | None], sizes: Mapping[Path, tuple[int, int]], place: Path
) -> None:
    """``ValueError`` where boxes with width and height leave images in which all fit if those are the other corner.

    Or where each of many follows the place of its box (``near_own``). ``sizes`` holds (width, height) of each image, in the
    grid that its annotations mean.
    """

    def inside(low: float, high: float, side: int) -> bool:
        return -0.01 * side <= low < high <= 1.01 * side

    wrong, corners = 0, []
    for image, value in annotated.items():
        marks = [m for m in value.marks if m.box and m.box.kind != "corners"] if value else []
        ways = [[*zip(m[:2], m.box.numbers[:2], m.box.numbers[2:], sizes[image], strict=True)] for m in marks]
        if all(inside(first, last, side) for way in ways for _, first, last, side in way):
            corners += [m.box.numbers for m in marks]
            wrong += sum(not all(inside(x - last / 2, x + last / 2, side) for x, _, last, side in way) for way in ways)
    if wrong >= max(2, 0.1 * len(corners)) or (len(corners) >= MANY and near_own(corners).all()):
        raise ValueError(
            f"{place}: {wrong} of {len(corners)} boxes leave their image, and by where they lie the last two numbers of all are no "
            "width and height but the right and bottom corner; write right - left and bottom - top, or xmin, ymin, xmax, ymax"
        )


def near_own(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Of which boxes the third and fourth number, as a point, lie nearer to the first two than to half of the others': bool [N].

    Second corners do so; widths and heights lie as near to the place of another box as to that of their own.
    """
    corners = np.array([numbers[:4] for numbers in boxes], np.float64).reshape(-1, 2, 2)
    others = corners[:: len(corners) // 200 + 1, 0]
    away = np.linalg.norm(corners[:, None, 1] - others, axis=2)
    away -= np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1)[:, None]
    return np.sign(away).sum(axis=1) > 0


def suspect(found: Mapping[Path, tuple[np.ndarray, tuple[int, int]]], place: Path) -> None:
    """Say why many points lie outside of their images, or all in a corner, as far as it can be guessed.

    ``found`` holds the points [N, 3] and (height, width) of each image. Raises ``ValueError`` where hardly a point of all, or
    of one image, can be right.
    """
    warning = _doubt(found, place)
    for image, value in found.items():
        _doubt({image: value}, image)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    elif sum(len(points) for points, _ in found.values()) >= MANY:
        _warn_of_one_part([points[:, :2] / (width, height) for points, (height, width) in found.values()], place)


def _doubt(found: Mapping[Path, tuple[np.ndarray, tuple[int, int]]], place: Path) -> str | None:
    """What to say of points outside, if they are many; ``ValueError`` where no annotator makes that."""
    total = sum(len(points) for points, _ in found.values())
    if total < _FEW:
        return None
    if all(((points[:, :2] >= 0) & (points[:, :2] <= 1)).all() for points, _ in found.values()):
        if len(np.unique(np.concatenate([points[:, :2] for points, _ in found.values()]), axis=0)) > 1:
            raise ValueError(
                f"{place}: all {total} points lie within 0..1, on each other; they are parts of the image, it seems: "
                "multiply x by its width and y by its height"
            )
    lost = sum(outside(points[:, :2], width, height) for points, (height, width) in found.values())
    if lost < max(2, 0.05 * total):
        return None
    exchanged = sum(outside(points[:, 1::-1], width, height) for points, (height, width) in found.values())
    line = f"{place}: {lost} of {total} points lie outside their image"
    if exchanged <= 0.1 * lost:
        line += f"; with x and y exchanged {exchanged} would: write x, the column, first"
    else:
        line += "; were the images scaled or cut after they were annotated, or are x and y parts or percent of them?"
    if lost > total / 2:
        raise ValueError(line)
    return line


def _warn_of_one_part(parts: Sequence[np.ndarray], place: Path) -> None:
    """Say so where all points [N, 2], in parts of their images, begin near the upper left corner and stay far from the others.

    Another unit or images that were enlarged do that. In images where all people stand in one place, that place lies
    anywhere: that it is in the same part, of this area, of every image has the probability area ** images.
    """
    points = np.concatenate(parts)
    first, last = np.clip(points.min(axis=0), 0, None), points.max(axis=0)
    if (first <= 0.4 * last).all() and last.max() <= 0.9 and last.prod() <= 0.5 and last.prod() ** len(parts) <= 0.03:
        print(
            f"warning: {place}: no point lies beyond {last[0]:.0%} of the width and {last[1]:.0%} of the height of any image; "
            "are x and y in another unit, or were the images enlarged?",
            file=sys.stderr,
        )
