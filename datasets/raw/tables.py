"""Tables of points or boxes, as CSV: what a column means follows from its name."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.raw.marks import LABEL_NAMES, Annotated, Mark, box, label_name
from datasets.raw.raw_text import parse_number, read_text
from utils.files import PICTURES

# Width and height of an image as the formats may mean them: upright, and as it is stored.
Sizes = tuple[tuple[int, int], tuple[int, int]]

IMAGE_COLUMNS = ("image", "filename", "file_name", "name")
_IMAGE_TOO = (
    "imagename",
    "imagepath",
    "imagefile",
    "imagefilename",
    "img",
    "imgname",
    "imageid",
    "file",
    "filepath",
    "path",
)
# Names without blanks and underscores. Each row is one way to say where an object is.
_CENTRE = (
    *(("cx", "cy"), ("xcenter", "ycenter"), ("xcentre", "ycentre"), ("centerx", "centery"), ("centrex", "centrey")),
    *(("xc", "yc"), ("pointx", "pointy"), ("bboxxcenter", "bboxycenter"), ("xmid", "ymid"), ("bboxcx", "bboxcy")),
)
_POINT = (("x", "y"), ("px", "py"), ("xcoord", "ycoord"), ("coordx", "coordy"), ("bboxx", "bboxy"), ("boxx", "boxy"))
_CORNER = (("left", "top"), ("bboxleft", "bboxtop"), ("xleft", "ytop"), ("topleftx", "toplefty"))
_CORNERS = (
    *(("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom")),
    *(("x0", "y0", "x1", "y1"), ("minx", "miny", "maxx", "maxy"), ("xtl", "ytl", "xbr", "ybr")),
    *(("bboxxmin", "bboxymin", "bboxxmax", "bboxymax"), ("bboxx1", "bboxy1", "bboxx2", "bboxy2")),
)
_SIZE = (("width", "height"), ("w", "h"), ("bboxwidth", "bboxheight"), ("boxwidth", "boxheight"), ("bboxw", "bboxh"))
_IMAGE_SIZE = (("imagewidth", "imageheight"), ("imgwidth", "imgheight"), ("imagew", "imageh"), ("imgw", "imgh"))


class Columns(NamedTuple):
    """Where in a row the values are: of ``kind`` point, centre, corner (of a box with ``size``) or corners."""

    kind: str
    place: Sequence[int]
    size: Sequence[int] = ()
    image: int | None = None
    label: int | None = None
    image_size: Sequence[int] = ()


def read_csv(
    path: Path,
    named: bool = True,
    attribute: str | None = None,
    sizes: Callable[[str], Sizes | None] = lambda name: None,
    say: Callable[[Path, str], None] = lambda path, text: print(f"{path}: {text}"),
) -> dict[str, Annotated]:
    """A table of objects, a row each: columns ``image, x, y``, or ``x, y`` (under the name "") without ``named``.

    With a header the columns are found by name: x, y; a box as x, y (its upper left corner) or cx, cy (its centre) with
    width, height, or as xmin, ymin, xmax, ymax; ``label`` or ``class``, or the column ``attribute``; others are ignored.
    What is taken for what is told to ``say`` where it is more than a point. Width and height that are the image's in every row,
    by ``sizes`` (of the image of that name), are no box. Without a header the columns must be image, x, y, or those of
    make-sense. Commas, semicolons or tabs separate. A row that names an image and leaves x and y empty says that nobody
    is in it.
    """
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((c for c in ";\t" if c in first), ",")
    rows = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, strict=True)
    header: list[str] = []
    columns: Columns | None = None
    width = 0
    data: list[tuple[list[str], str]] = []
    try:
        for row in rows:
            fields, where = [field.strip() for field in row], f"{path}: line {rows.line_num}"
            if not any(fields):
                continue
            if columns is None:
                width = len(fields)
                if _is_header(fields):
                    header = fields
                    columns = _by_name(header, named, attribute, where)
                    continue
                columns = _by_place(fields, named, where)
            if len(fields) != width:
                raise ValueError(
                    f"{where}: {len(fields)} columns instead of {width}; write numbers with decimal points"
                )
            data.append((fields, where))
    except csv.Error as error:
        raise ValueError(f"{path}: line {rows.line_num}: not valid CSV ({error}); correct this line") from None
    if columns is None:
        return {} if named else {"": Annotated([])}
    columns = _without_image_size(columns, data, named, sizes)
    if header and (columns.kind != "point" or columns.label is not None):
        say(path, _meaning(columns, header))
    return _collect(columns, data, named)


def looks_like_points(path: Path, named: bool) -> bool:
    """Whether ``read_csv`` finds its columns in the first row of a file."""
    first = next((line for line in read_text(path).splitlines() if line.strip()), "")
    delimiter = next((c for c in ";\t" if c in first), ",")
    try:
        fields = [field.strip() for field in next(csv.reader([first], delimiter=delimiter, strict=True))]
        if _is_header(fields):
            _by_name(fields, named, None, "")
        else:
            _by_place(fields, named, "")
    except (csv.Error, ValueError, StopIteration):
        return False
    return True


def _is_header(fields: Sequence[str]) -> bool:
    """Words alone, and several of them: a row without points has but the image's name."""
    words = [field for field in fields if field]
    if {field.lower() for field in words} & {"x", "y"} and not any(_is_number(field) for field in words):
        return True
    return (
        len(words) > 1
        and all(re.match(r"[^\W\d]|[#_]", w) and not _is_number(w) for w in words)
        and not any(w.lower().endswith(PICTURES) for w in words)
    )


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _by_name(header: Sequence[str], named: bool, attribute: str | None, where: str) -> Columns:
    lower = [field.lstrip("#").strip().lower() for field in header]
    plain = [re.sub(r"[\s_\-.]", "", name) for name in lower]
    shown = ", ".join(header)[:80]

    def find(ways: Sequence[Sequence[str]]) -> list[int]:
        """The columns of the first way whose names are all there."""
        for way in ways:
            if all(name in plain for name in way):
                for name in way:
                    if plain.count(name) > 1:
                        raise ValueError(f"{where}: the header is {shown!r}; it must name {name} once")
                return [plain.index(name) for name in way]
        return []

    image = None
    if named:
        images = [i for i, name in enumerate(lower) if name in IMAGE_COLUMNS]
        images = images or [plain.index(name) for name in _IMAGE_TOO if name in plain][:1]
        if len(images) > 1:
            raise ValueError(f"{where}: the header is {shown!r}; it must name each of image, x, y once")
        image = images[0] if images else None
    others = [name for i, name in enumerate(lower) if i != image]
    label = None
    if attribute is not None or any(name in LABEL_NAMES for name in others):
        labels = [name for name in others if name in LABEL_NAMES]
        chosen = label_name(others if attribute else labels, attribute and attribute.lower(), where)
        label = lower.index(chosen) if chosen is not None else None
    corners, centre, point, corner = (find(ways) for ways in (_CORNERS, _CENTRE, _POINT, _CORNER))
    size, image_size = find(_SIZE), find(_IMAGE_SIZE)
    more = {"image": image, "label": label, "image_size": image_size}
    lacking = ["image"] if named and image is None else []
    if not (corners or centre or point or (corner and size)):
        there = set(plain)
        if corner:
            lacking.append("width and height (or right and bottom)")
        else:
            lacking += [name for name in ("x", "y") if name not in there]
    if lacking:
        wanted = "image, x, y" if named else "x, y"
        raise ValueError(
            f"{where}: the header {shown!r} lacks {' and '.join(lacking)}; it must name each of {wanted} once, or the "
            "columns of a box"
        )
    if corners:
        return Columns("corners", corners, **more)  # width and height beside corners are the image's
    if centre:
        return Columns("centre" if size else "point", centre, size, **more)
    if point:
        return Columns("corner" if size else "point", point, size, **more)
    return Columns("corner", corner, size, **more)


def _by_place(fields: Sequence[str], named: bool, where: str) -> Columns:
    """The columns of a table without a header."""
    names = [i for i, field in enumerate(fields) if field.lower().endswith(PICTURES)]
    if named and (len(fields), names) == (6, [3]):  # make-sense's points, then its boxes
        return Columns("point", (1, 2), image=3, label=0, image_size=(4, 5))
    if named and (len(fields), names) == (8, [5]):
        return Columns("corner", (1, 2), (3, 4), image=5, label=0, image_size=(6, 7))
    if len(fields) != (3 if named else 2):
        wanted = "image, x, y" if named else "x, y"
        raise ValueError(f"{where}: {len(fields)} columns and no header; begin the file with a line like {wanted}")
    return Columns("point", (1, 2), image=0) if named else Columns("point", (0, 1))


def _without_image_size(
    columns: Columns, data: Sequence[tuple[list[str], str]], named: bool, sizes: Callable[[str], Sizes | None]
) -> Columns:
    """``columns``, with those called width and height as the image's size, if they hold that in every row."""
    if not columns.size or columns.image_size:
        return columns
    told = set()
    for fields, _ in data:
        name = fields[columns.image] if named else ""
        if (known := sizes(name)) is not None:
            try:
                told.add(tuple(float(fields[i]) for i in columns.size) in [tuple(map(float, size)) for size in known])
            except ValueError:
                return columns
    if told != {True}:
        return columns
    return columns._replace(kind="point", size=(), image_size=columns.size)


def _meaning(columns: Columns, header: Sequence[str]) -> str:
    place, size, image_size = (
        ", ".join(header[i] for i in c) for c in (columns.place, columns.size, columns.image_size)
    )
    text = {
        "point": f"{place} is an object's place",
        "centre": f"{place} is the centre of a box, {size} its width and height",
        "corner": f"{place} is the upper left corner of a box, {size} its width and height; its centre is counted",
        "corners": f"{place} are the corners of a box; its centre is counted",
    }[columns.kind]
    if columns.label is not None:
        text += f"; {header[columns.label]} is the label"
    return text + (f"; {image_size} is the image's size" if image_size else "")


def _collect(columns: Columns, data: Sequence[tuple[list[str], str]], named: bool) -> dict[str, Annotated]:
    found: dict[str, Annotated] = {} if named else {"": Annotated([])}
    for fields, where in data:
        name = fields[columns.image] if named else ""
        if named and not name:
            raise ValueError(f"{where}: names no image; write the image's name into each row")
        if name not in found or found[name].image_size is None:
            size = _stated(columns, fields, where)
            found[name] = Annotated(found[name].marks if name in found else [], size)
        place = [fields[i] for i in columns.place]
        if not any(place) and named:
            continue
        numbers = [parse_number(value, where) for value in place]
        size = [parse_number(fields[i], where) for i in columns.size]
        label = fields[columns.label] if columns.label is not None else ""
        found[name].marks.append(_mark(columns.kind, numbers, size, label, where))
    return found


def _stated(columns: Columns, fields: Sequence[str], where: str) -> tuple[float, float] | None:
    values = [fields[i] for i in columns.image_size]
    if not all(values) or not values:
        return None
    width, height = (parse_number(value, where) for value in values)
    return (width, height) if width and height else None


def _mark(kind: str, place: Sequence[float], size: Sequence[float], label: str, where: str) -> Mark:
    if kind == "point":
        return Mark(*place, math.nan, label)
    if kind == "corners":
        left, top, right, bottom = place
        return box(left, top, right - left, bottom - top, label, where)
    if kind == "corner":
        return box(*place, *size, label, where)
    x, y = place
    return box(x - size[0] / 2, y - size[1] / 2, *size, label, where)._replace(x=x, y=y)
