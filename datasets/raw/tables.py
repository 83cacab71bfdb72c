"""Tables of points or boxes, as CSV: what a column means follows from its name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.raw.marks import LABEL_NAMES, Annotated, Mark, Request, label_name, shape
from datasets.raw.raw_text import OtherFormatError, one_form, parse_number, read_rows
from utils.files import PICTURES


def _named(*ways: str) -> list[list[str]]:
    """Names of columns that belong together, without blanks, underscores and the like; * stands for x and for y."""
    axes = [[(name, axis) for name in way.split() for axis in ("xy" if "*" in name else "x")] for way in ways]
    return [[name.replace("*", axis) for name, axis in way] for way in axes]


_IMAGE = "image filename name imagename imagepath imagefile imagefilename img imgname imageid".split()
_IMAGE += "file filepath path".split()
# ImageJ calls the middle of an object X, Y, its centre of mass XM, YM, and its box BX, BY, Width, Height.
_CENTRE = _named("c*", "*center", "*centre", "center*", "centre*", "*c", "point*", "bbox*center", "*mid", "bboxc*")
_CENTRE += _named("centroid*", "centroid*px", "locationcenter*")
_POINT = _named("*", "p*", "*coord", "coord*", "*coordinate", "*px", "*pixel", "*pixels")
_MASS = _named("*m")
_CORNER = _named("left top", "bboxleft bboxtop", "xleft ytop", "topleft*", "b*", "bbox*", "box*")
_CORNERS = _named("*min *max", "*1 *2", "left top right bottom", "*0 *1", "min* max*", "*tl *br")
_CORNERS += _named("bbox*min bbox*max", "bbox*1 bbox*2")
# What may be the image's size comes last.
_SIZE = _named("bboxwidth bboxheight", "boxwidth boxheight", "bboxw bboxh", "w h", "width height")
# A picture's name; ImageJ writes what is drawn in it behind a colon.
_PICTURE = re.compile(rf"(.*(?:{'|'.join(map(re.escape, PICTURES))}))(?::.*)?", re.IGNORECASE)

Row = tuple[list[str], str]  # the fields, and where they stand


class Columns(NamedTuple):
    """Where in a row the values are: of an object's ``place``, of its ``box`` of that ``kind`` (see ``shape``), or of both."""

    place: Sequence[int] = ()
    box: Sequence[int] = ()
    kind: str = ""
    image: int | None = None
    label: int | None = None

    def image_name(self, fields: Sequence[str]) -> str:
        """The name in the column of the image; "" where there is none."""
        if self.image is None:
            return ""
        match = _PICTURE.fullmatch(fields[self.image])
        return one_form(match[1] if match else fields[self.image])


def read_csv(path: Path, request: Request = Request()) -> dict[str, Annotated]:
    """A table of objects, a row each: columns ``image, x, y``, or ``x, y`` where the request is not ``named``.

    With a header the columns are found by name: x, y; a box as x, y (its upper left corner) or cx, cy (its centre) with
    width, height, or as xmin, ymin, xmax, ymax; ``label`` or ``class``, or the column ``request.attribute``; others are
    ignored. Beside a whole box x, y is the object's place, and must lie in it. Without a column called image it is the one
    that holds names of pictures. What is taken for what is noted where it is more than a point. Without a header the columns
    must be image, x, y. Commas, semicolons or tabs separate; below a header numbers may have decimal commas.
    A row that names an image and leaves x and y empty says that nobody is in it.
    """
    rows = list(read_rows(path))
    images: dict[str, Annotated] = {} if request.named else {"": Annotated([])}
    if not rows:
        return images
    header, rows = _split_header(rows, request.named)
    columns = find_columns(header, rows, request.named, request.attribute)
    if all([fields[i] for i in columns.place] == [fields[i] for i in columns.box[:2]] for fields, _ in rows):
        columns = columns._replace(place=())  # the box's own corner
    if columns.box or columns.label is not None:
        request.notice(_meaning(columns, header[0]))
    for fields, where in rows:
        name = columns.image_name(fields)
        if request.named and not name:
            raise ValueError(f"{where}: names no image; write the image's name into each row")
        marks = images.setdefault(name, Annotated([])).marks
        if not request.named or any(fields[i] for i in (*columns.place, *columns.box)):
            marks.append(_mark(columns, fields, where))
    return images


def _split_header(rows: Sequence[Row], named: bool) -> tuple[Row, Sequence[Row]]:
    """The names of the columns, and the rows: without a header the columns must be image, x, y."""
    (first, where), *others = rows
    if _is_header(first):
        # Each cell is a value, so that 1,5 can be no pair.
        return rows[0], [
            ([re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", field) for field in fields], at) for fields, at in others
        ]
    names = ["image", "x", "y"] if named else ["x", "y"]
    if len(first) != len(names):
        what = f"{len(first)} columns and no header; begin the file with a line like {', '.join(names)}"
        raise OtherFormatError(f"{where}: {what}")
    return (names, where), rows


def _is_header(fields: Sequence[str]) -> bool:
    """Words alone, and several of them: a row without points has but the image's name."""
    words = [field for field in fields if field]
    return len(words) > 1 and not any(re.match(r"[-+.]?\d", word) or word.lower().endswith(PICTURES) for word in words)


def find_columns(header: Row, rows: Sequence[Row], named: bool, attribute: str | None) -> Columns:
    """What the columns of a table are, by their names and, where those leave it open, by what they hold."""
    fields, where = header
    lower = [one_form(field.lstrip("#").strip().lower()) for field in fields]
    plain = [re.sub(r"[\s_\-.()\[\]]", "", name) for name in lower]
    shown = ", ".join(fields)[:80]

    def find(ways: Sequence[Sequence[str]]) -> list[int]:
        """The columns of the first way whose names are all there."""
        way = next((way for way in ways if set(way) <= set(plain)), ())
        twice = [name for name in way if plain.count(name) > 1]
        if twice:
            raise ValueError(f"{where}: the header is {shown!r}; it must name {twice[0]} once")
        return [plain.index(name) for name in way]

    cells = [[row[i] for row, _ in rows if row[i]] for i in range(len(fields))]
    pictures = [i for i, column in enumerate(cells) if column and all(map(_PICTURE.fullmatch, column))]
    images = [plain.index(name) for name in _IMAGE if name in plain]
    images = [i for i in images if i in pictures] or [i for i in images if cells[i]] or images
    images = images or (pictures if len(pictures) == 1 else [])
    image = images[0] if named and images else None
    others = [name for i, name in enumerate(lower) if i != image]
    labels = [name for i, name in enumerate(lower) if name in LABEL_NAMES and i != image and i not in pictures]
    chosen = label_name(others, attribute.lower(), where) if attribute else label_name(labels, None, where)
    label = None if chosen is None else lower.index(chosen)
    columns = _places(find)._replace(image=image, label=label)
    if (named and image is None) or not (columns.place or columns.box):
        lacking = "image" if named and image is None else "x and y"
        wanted = f"it must name each of {'image, ' if named else ''}x, y once, or the columns of a box"
        raise OtherFormatError(f"{where}: the header {shown!r} lacks {lacking}; {wanted}")
    return columns


def _places(find: Callable[[Sequence[Sequence[str]]], list[int]]) -> Columns:
    """Which columns belong together: a place, two corners, or a corner or centre with sizes."""
    corners, corner, size = find(_CORNERS), find(_CORNER), find(_SIZE)
    place = find((*_CENTRE, *_POINT, *_MASS))
    if corners:  # width and height beside corners are the image's
        return Columns(place, corners, "corners")
    if corner and size:
        return Columns(place, [*corner, *size], "corner")
    if place and size:
        return Columns((), [*place, *size], "centre" if find((*_CENTRE, *_MASS)) else "corner")
    return Columns(place)


def _meaning(columns: Columns, header: Sequence[str]) -> str:
    ways = {"centre": "centre, width and height", "corner": "upper left corner, width and height", "corners": "corners"}
    box = f"a box by its {ways.get(columns.kind)}" + ("" if columns.place else ", counted at its centre")
    parts = [(columns.place, "the place that is counted"), (columns.box, box)]
    parts += [] if columns.label is None else [((columns.label,), "the label")]
    return "columns: " + "; ".join(f"{', '.join(header[i] for i in part)}: {what}" for part, what in parts if part)


def _mark(columns: Columns, fields: Sequence[str], where: str) -> Mark:
    """The mark of a place, of a box, or of a place in a box, which gives the size."""
    place, numbers = ([parse_number(fields[i], where) for i in part] for part in (columns.place, columns.box))
    label = fields[columns.label] if columns.label is not None else ""
    if not numbers:
        return Mark(*place, math.nan, label)
    mark = shape(columns.kind, numbers, label, where)
    if not place:
        return mark
    x, y, width, height = numbers
    right, bottom = (width, height) if columns.kind == "corners" else (x + width, y + height)
    if not (x - 1 <= place[0] <= right + 1 and y - 1 <= place[1] <= bottom + 1):  # both may be rounded
        what = f"the point ({place[0]:g}, {place[1]:g}) lies outside of its box"
        raise ValueError(f"{where}: {what}; remove the columns that do not hold")
    return mark._replace(x=place[0], y=place[1])
