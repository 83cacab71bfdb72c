"""What every reader of an annotation format gives: marks, one for each counted object of an image.

A box, circle, ellipse or polygon becomes the centre of its bounding box, and sqrt(width * height) of that box its size: the
side of the square of the same area, which, unlike the longer side, does not grow for an object that is long and thin.

Every reader raises ``OSError`` for a file that cannot be read, and ``ValueError`` with file and line, or entry, for what is
not clear. Shapes that are no objects matter only where their label is counted: ``counts``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets.raw.raw_text import json_number

# Attributes and columns that hold what an object is, the usual ones first.
LABEL_NAMES = ("label", "label_name", "labels", "class", "class_name", "classname", "category", "category_name", "type")


class Mark(NamedTuple):
    """One counted object, in pixels; the size is NaN where the format gives none."""

    x: float
    y: float
    size: float = math.nan
    label: str = ""


class Annotated(NamedTuple):
    """The marks of one image, and its width and height where the file tells them."""

    marks: list[Mark]
    image_size: tuple[float, float] | None = None


def counts(label: str, categories: Collection[str]) -> bool:
    """Whether objects of this label are counted; without ``categories`` all are."""
    return not categories or label in categories


def box(left: float, top: float, width: float, height: float, label: str, where: str) -> Mark:
    """The mark of a box; ``ValueError`` for a negative or infinite one."""
    if width < 0 or height < 0:
        raise ValueError(f"{where}: a shape of {width:g} x {height:g}; correct its width and height")
    mark = Mark(left + width / 2, top + height / 2, math.sqrt(width * height) or math.nan, label)
    if not math.isfinite(mark.x + mark.y) or math.isinf(mark.size):
        raise ValueError(f"{where}: a shape of {width:g} x {height:g} at ({left:g}, {top:g}); correct these numbers")
    return mark


def bounds(points: Sequence[Sequence[float]], label: str, where: str) -> Mark:
    """The mark of the points' bounding box."""
    (left, right), (top, bottom) = ((min(values), max(values)) for values in zip(*points, strict=True))
    return box(left, top, right - left, bottom - top, label, where)


def round_mark(x: float, y: float, radius_x: float, radius_y: float, label: str, where: str) -> Mark:
    """The mark of an ellipse, which lies exactly in its centre."""
    return box(x - radius_x, y - radius_y, 2 * radius_x, 2 * radius_y, label, where)._replace(x=x, y=y)


def entries(contents: Any, key: str, path: Path) -> list[dict[str, Any]]:
    """The list of objects under ``key``."""
    found = contents.get(key) if isinstance(contents, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{path}: no list {key!r} of objects; check --format, or export the file again")
    return found


def stated_size(contents: dict[str, Any], width: str, height: str, where: str) -> tuple[float, float] | None:
    """The image's width and height that an object states under these keys."""
    if not contents.get(width) or not contents.get(height):  # missing, null and 0 all say nothing
        return None
    return json_number(contents[width], f"{where}: {width}"), json_number(contents[height], f"{where}: {height}")


def label_name(names: Sequence[str], chosen: str | None, where: str) -> str | None:
    """Which of the attributes or columns ``names`` holds the labels: the ``chosen`` one, the only one, the usual one.

    None where nothing tells; ``ValueError`` where the chosen one is not there.
    """
    if chosen is not None:
        if chosen not in names:
            there = ", ".join(names) or "none"
            raise ValueError(f"{where}: --label-attribute {chosen}: is not there; found: {there}")
        return chosen
    usual = [name for name in names if name.lower() in LABEL_NAMES]
    usual.sort(key=lambda name: LABEL_NAMES.index(name.lower()))
    return next(iter(usual), names[0] if len(names) == 1 else None)
