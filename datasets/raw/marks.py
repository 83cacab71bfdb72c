"""What every reader of an annotation format gives: for each image its marks, one for each counted object.

A box, circle, ellipse or polygon becomes the centre of its bounding box, and sqrt(width * height) of that box its size: the
side of the square of the same area, which, unlike the longer side, does not grow for an object that is long and thin.

Every reader is called with a path and a ``Request`` and gives the ``Annotated`` images by the names that the file has for
them, "" for the only image of a file that belongs to one. It raises ``OSError`` for a file that cannot be read, and
``ValueError`` with file and line, or entry, for what is not clear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from datasets.raw.raw_text import json_number, one_form

# Attributes and columns that hold what an object is, the usual ones first; ImageJ's counter is the type of a point.
LABEL_NAMES = ("label", "label_name", "labels", "class", "class_name", "classname", "category", "category_name", "type")
LABEL_NAMES += ("counter",)

# Kinds of ``shape`` whose last two numbers are width and height, which some files give as the other corner.
_SIZED = ("corner", "centre")


class Request(NamedTuple):
    """What a reader may want to know besides its file."""

    named: bool = True  # one file for many images, which it names
    attribute: str | None = None  # what holds the labels, where that is to choose
    notice: Callable[[str], object] = print  # what the user is told, once where it is the same of many files


class Mark(NamedTuple):
    """One counted object, in pixels; the size is NaN where the format gives none.

    ``box`` holds the four numbers of a box that its file gives with width and height. With an ``error`` it is something
    that is refused if its label is counted.
    """

    x: float
    y: float
    size: float = math.nan
    label: str = ""
    box: tuple[float, ...] = ()
    error: str | None = None

    def scaled(self, across: float, down: float) -> Mark:
        """The same in an image that is so many times as wide and high."""
        box = tuple(value * factor for value, factor in zip(self.box, (across, down, across, down)))
        return self._replace(x=self.x * across, y=self.y * down, size=self.size * math.sqrt(across * down), box=box)


class Annotated(NamedTuple):
    """The marks of one image, and its width and height where the file tells them; 1 and 1 where they are parts of it."""

    marks: list[Mark]
    image_size: tuple[float, float] | None = None


def add_image(
    images: dict[str, Annotated], name: Any, where: str, size: tuple[float, float] | None = None
) -> list[Mark]:
    """Enter an image under the name that its file gives; the list for its marks. ``ValueError`` for none, or one twice."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: lacks the name of its image; add it, or export the annotations again")
    if name in images:
        raise ValueError(f"{where}: the image {name!r:.80} is there twice; keep one of the two")
    images[name] = Annotated([], size)
    return images[name].marks


def shape(kind: str, numbers: Sequence[float], label: str, where: str) -> Mark:
    """The mark of a shape of these numbers; ``ValueError`` for another number of them, and a negative or infinite shape.

    ``kind`` is "point" (x, y), "ellipse" (x, y, and the two radii), "polygon" (x, y of each corner), or, of a box, "corner"
    (left, top, width, height), "centre" (x, y, width, height) or "corners" (left, top, right, bottom).
    """
    expected = {"point": 2, "polygon": max(2, len(numbers) // 2 * 2)}.get(kind, 4)
    if len(numbers) != expected:
        raise ValueError(f"{where}: a {kind} of {len(numbers)} numbers; draw it again")
    if kind in ("point", "polygon"):
        across, down = numbers[::2], numbers[1::2]
        x, y, width, height = min(across), min(down), max(across) - min(across), max(down) - min(down)
    else:
        x, y, width, height = numbers
    if kind == "corners":
        width, height = width - x, height - y
    elif kind == "ellipse":
        width, height = 2 * width, 2 * height
    if width < 0 or height < 0:
        raise ValueError(f"{where}: a shape of {width:g} x {height:g}; correct its width and height")
    centre = (x, y) if kind in ("centre", "ellipse") else (x + width / 2, y + height / 2)
    mark = Mark(*centre, math.sqrt(width * height) or math.nan, label, (x, y, width, height) if kind in _SIZED else ())
    if not math.isfinite(mark.x + mark.y) or math.isinf(mark.size):
        raise ValueError(f"{where}: a shape of {width:g} x {height:g} at ({x:g}, {y:g}); correct these numbers")
    return mark


def no_object(kind: Any, known: Sequence[str], label: str, where: str) -> Mark:
    """In place of a shape that is no object: what is refused if its label is counted."""
    reason = f"{where}: is a {kind!r:.40}; mark objects as {', '.join(known)}, or leave out its label with --category"
    return Mark(math.nan, math.nan, math.nan, label, error=reason)


def counted(images: dict[str, Annotated], categories: Sequence[str]) -> dict[str, Annotated]:
    """The images with their objects alone, labels in one form; ``ValueError`` for what is none and has a counted label."""
    for value in images.values():
        marks = [mark._replace(label=one_form(mark.label)) for mark in value.marks]
        for mark in marks:
            if mark.error and (not categories or mark.label in categories):
                raise ValueError(mark.error)
        value.marks[:] = [mark for mark in marks if not mark.error]
    return images


def stated_size(
    contents: Any, width: str, height: str, where: str, parse: Callable[[Any, str], float] = json_number
) -> tuple[float, float] | None:
    """The image's width and height that an object states under these keys."""
    if not contents.get(width) or not contents.get(height):  # missing, null and 0 all say nothing
        return None
    return parse(contents.get(width), f"{where}: {width}"), parse(contents.get(height), f"{where}: {height}")


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
