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

from datasets.raw.raw_text import json_number, one_form

# Attributes and columns that hold what an object is, the usual ones first; ImageJ's counter is the type of a point.
LABEL_NAMES = ("label", "label_name", "labels", "class", "class_name", "classname", "category", "category_name", "type")
LABEL_NAMES += ("counter",)


class Box(NamedTuple):
    """A box as its file says it, in pixels, by ``kind``.

    "corner": left, top, width, height; "centre": x, y, width, height; "corners": left, top, right, bottom.
    """

    kind: str
    numbers: tuple[float, ...]


class Mark(NamedTuple):
    """One counted object, in pixels; the size is NaN where the format gives none."""

    x: float
    y: float
    size: float = math.nan
    label: str = ""
    box: Box | None = None


class Annotated(NamedTuple):
    """The marks of one image, and its width and height where the file tells them."""

    marks: list[Mark]
    image_size: tuple[float, float] | None = None


def counts(label: str, categories: Collection[str]) -> bool:
    """Whether objects of this label are counted; without ``categories`` all are."""
    return not categories or one_form(label) in map(one_form, categories)


def box(kind: str, numbers: Sequence[float], label: str, where: str) -> Mark:
    """The mark of a ``Box``; ``ValueError`` for a negative or infinite one."""
    x, y, width, height = numbers
    if kind == "corners":
        width, height = width - x, height - y
    if width < 0 or height < 0:
        raise ValueError(f"{where}: a shape of {width:g} x {height:g}; correct its width and height")
    centre = (x, y) if kind == "centre" else (x + width / 2, y + height / 2)
    mark = Mark(*centre, math.sqrt(width * height) or math.nan, label, Box(kind, tuple(numbers)))
    if not math.isfinite(mark.x + mark.y) or math.isinf(mark.size):
        raise ValueError(f"{where}: a shape of {width:g} x {height:g} at ({x:g}, {y:g}); correct these numbers")
    return mark


def bounds(points: Sequence[Sequence[float]], label: str, where: str) -> Mark:
    """The mark of the points' bounding box."""
    across, down = zip(*points, strict=True)
    return box("corners", (min(across), min(down), max(across), max(down)), label, where)


def round_mark(x: float, y: float, radius_x: float, radius_y: float, label: str, where: str) -> Mark:
    """The mark of an ellipse."""
    return box("centre", (x, y, 2 * radius_x, 2 * radius_y), label, where)


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
        same = [name for name in names if one_form(name) == one_form(chosen)]
        if not same:
            there = ", ".join(names) or "none"
            raise ValueError(f"{where}: --label-attribute {chosen}: is not there; found: {there}")
        return same[0]
    usual = [name for name in names if name.lower() in LABEL_NAMES]
    usual.sort(key=lambda name: LABEL_NAMES.index(name.lower()))
    return next(iter(usual), names[0] if len(names) == 1 else None)
