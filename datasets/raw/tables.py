"""Tables of points or boxes, as CSV: what a column means follows from its name."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.raw.marks import LABEL_NAMES, Annotated, Mark, box, label_name
from datasets.raw.raw_text import DamagedError, one_form, parse_number, read_text
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
# Names without blanks, underscores and the like, of columns that belong together. ImageJ calls the middle of an object X, Y,
# its centre of mass XM, YM, and its box BX, BY, Width, Height.
_CENTRE = (
    *(("cx", "cy"), ("xcenter", "ycenter"), ("xcentre", "ycentre"), ("centerx", "centery"), ("centrex", "centrey")),
    *(("xc", "yc"), ("pointx", "pointy"), ("bboxxcenter", "bboxycenter"), ("xmid", "ymid"), ("bboxcx", "bboxcy")),
    *(("centroidx", "centroidy"), ("centroidxpx", "centroidypx"), ("locationcenterx", "locationcentery")),
)
_MASS = (("xm", "ym"),)
_POINT = (
    *(("x", "y"), ("px", "py"), ("xcoord", "ycoord"), ("coordx", "coordy"), ("xcoordinate", "ycoordinate")),
    *(("xpx", "ypx"), ("xpixel", "ypixel"), ("xpixels", "ypixels")),
)
_CORNER = (
    *(("left", "top"), ("bboxleft", "bboxtop"), ("xleft", "ytop"), ("topleftx", "toplefty"), ("bx", "by")),
    *(("bboxx", "bboxy"), ("boxx", "boxy")),
)
_CORNERS = (
    *(("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom")),
    *(("x0", "y0", "x1", "y1"), ("minx", "miny", "maxx", "maxy"), ("xtl", "ytl", "xbr", "ybr")),
    *(("bboxxmin", "bboxymin", "bboxxmax", "bboxymax"), ("bboxx1", "bboxy1", "bboxx2", "bboxy2")),
)
# What may be the image's size comes last.
_SIZE = (("bboxwidth", "bboxheight"), ("boxwidth", "boxheight"), ("bboxw", "bboxh"), ("w", "h"), ("width", "height"))
_IMAGE_SIZE = (("imagewidth", "imageheight"), ("imgwidth", "imgheight"), ("imagew", "imageh"), ("imgw", "imgh"))
_SLICE = (("slice",), ("frame",))
# A picture's name; ImageJ writes what is drawn in it behind a colon.
_PICTURE = re.compile(rf"(.*(?:{'|'.join(map(re.escape, PICTURES))}))(?::.*)?", re.IGNORECASE)
_SNIFFED = 20  # rows that are looked at to recognise a table

Row = tuple[list[str], str]  # the fields, and where they stand


class Columns(NamedTuple):
    """Where in a row the values are: of an object's ``place``, of its ``box`` of that ``kind`` (see ``Box``), or of both."""

    place: Sequence[int] = ()
    box: Sequence[int] = ()
    kind: str = ""
    image: int | None = None
    label: int | None = None
    image_size: Sequence[int] = ()
    slices: Sequence[int] = ()


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
    Beside a whole box x, y is the object's place, and must lie in it. Without a column called image it is the one that holds
    names of pictures. What is taken for what is told to ``say`` where it is more than a point. Width and height that are
    the image's in every row, by ``sizes`` (of the image of that name), are no box. Without a header the columns must be
    image, x, y, or those of make-sense, RetinaNet or SKU-110K. Commas, semicolons or tabs separate; below a header numbers
    may have decimal commas. A row that names an image and leaves x and y empty says that nobody is in it.
    """
    header, rows = _split_header(_read_rows(path))
    if not header and not rows:
        return {} if named else {"": Annotated([])}
    columns = find_columns(path, header, rows, named, attribute)
    columns = _without_image_size(columns, rows, named, sizes)
    columns = _without_own_corner(columns, rows)
    if header and (columns.box or columns.label is not None):
        say(path, _meaning(columns, header[0]))
    pages = {(_image_name(columns, fields, named), *(fields[i] for i in columns.slices)) for fields, _ in rows}
    if len(pages) > len({name for name, *_ in pages}):
        print(f"warning: {path}: points of several slices or frames are put into one image", file=sys.stderr)
    return _collect(columns, rows, named)


def check_table(path: Path, named: bool) -> None:
    """``ValueError`` with the reason where ``read_csv`` finds no columns of points or boxes in a file."""
    header, rows = _split_header(itertools.islice(_read_rows(path), _SNIFFED))
    if not header and not rows:
        raise ValueError(f"{path}: is empty; write a line x, y for each object")
    find_columns(path, header, rows, named, None)


def _read_rows(path: Path) -> Iterator[Row]:
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((c for c in "\t;" if c in first), ",")
    rows = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, strict=True)
    width = 0
    try:
        for row in rows:
            fields, where = [field.strip() for field in row], f"{path}: line {rows.line_num}"
            if not any(fields):
                continue
            width = width or len(fields)
            if len(fields) != width:
                raise DamagedError(
                    f"{where}: {len(fields)} columns instead of {width}; write numbers with decimal points"
                )
            yield fields, where
    except csv.Error as error:
        raise DamagedError(f"{path}: line {rows.line_num}: not valid CSV ({error}); correct this line") from None


def _split_header(rows: Iterator[Row]) -> tuple[Row | None, list[Row]]:
    first, *others = [*rows] or [None]
    if first is not None and not _is_header(first[0]):
        return None, [first, *others]
    # With a header each cell is a value, so that 1,5 can be no pair.
    return first, [([re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", field) for field in fields], at) for fields, at in others]


def _is_header(fields: Sequence[str]) -> bool:
    """Words alone, and several of them: a row without points has but the image's name."""
    words = [field for field in fields if field]
    if {field.lower() for field in words} & {"x", "y"} and not any(_is_number(field) for field in words):
        return True
    return (
        len(words) > 1
        and all(re.match(r"[^\W\d]|[#_%]", w) and not _is_number(w) for w in words)
        and not any(w.lower().endswith(PICTURES) for w in words)
    )


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def find_columns(path: Path, header: Row | None, rows: Sequence[Row], named: bool, attribute: str | None) -> Columns:
    """What the columns of a table are, by their names and, where those leave it open, by what they hold."""
    if header is None:
        return _by_place(*rows[0], named)
    fields, where = header
    lower = [one_form(field.lstrip("#").strip().lower()) for field in fields]
    plain = [re.sub(r"[\s_\-.()\[\]]", "", name) for name in lower]
    shown = ", ".join(fields)[:80]

    def find(ways: Sequence[Sequence[str]]) -> list[int]:
        """The columns of the first way whose names are all there."""
        for way in ways:
            if all(name in plain for name in way):
                for name in way:
                    if plain.count(name) > 1:
                        raise ValueError(f"{where}: the header is {shown!r}; it must name {name} once")
                return [plain.index(name) for name in way]
        return []

    held = [[row[i] for row, _ in rows if row[i]] for i in range(len(fields))]
    of_pictures = [i for i, cells in enumerate(held) if cells and all(map(_PICTURE.fullmatch, cells))]
    image = None
    if named:
        images = [i for i, name in enumerate(lower) if name in IMAGE_COLUMNS]
        images = [i for i in images if i in of_pictures] if len(images) > 1 and of_pictures else images
        images = [i for i in images if held[i]] if len(images) > 1 else images
        images = images or [plain.index(name) for name in _IMAGE_TOO if name in plain][:1]
        images = images or (of_pictures if len(of_pictures) == 1 else [])
        if len(images) > 1:
            raise ValueError(f"{where}: the header is {shown!r}; it must name each of image, x, y once")
        image = images[0] if images else None
    others = [name for i, name in enumerate(lower) if i != image]
    label = None
    labels = [name for i, name in enumerate(lower) if name in LABEL_NAMES and i != image and i not in of_pictures]
    if attribute is not None or labels:
        chosen = label_name(others if attribute else labels, attribute and attribute.lower(), where)
        label = lower.index(chosen) if chosen is not None else None
    columns = _places(find)._replace(image=image, label=label, image_size=find(_IMAGE_SIZE), slices=find(_SLICE))
    lacking = ["image"] if named and image is None else []
    if not (columns.place or columns.box):
        if find(_CORNER):
            lacking.append("width and height (or right and bottom)")
        else:
            lacking += [name for name in ("x", "y") if name not in plain]
    if lacking:
        wanted = "image, x, y" if named else "x, y"
        raise ValueError(
            f"{where}: the header {shown!r} lacks {' and '.join(lacking)}; it must name each of {wanted} once, or the "
            "columns of a box"
        )
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


def _by_place(fields: Sequence[str], where: str, named: bool) -> Columns:
    """The columns of a table without a header."""
    names = [i for i, field in enumerate(fields) if field.lower().endswith(PICTURES)]
    if named and (len(fields), names) == (6, [3]):  # make-sense's points, then its boxes
        return Columns((1, 2), image=3, label=0, image_size=(4, 5))
    if named and (len(fields), names) == (8, [5]):
        return Columns(box=(1, 2, 3, 4), kind="corner", image=5, label=0, image_size=(6, 7))
    if named and len(fields) in (6, 8) and names == [0]:  # RetinaNet's boxes, SKU-110K's
        return Columns(box=(1, 2, 3, 4), kind="corners", image=0, label=5, image_size=(6, 7)[: len(fields) - 6])
    if len(fields) != (3 if named else 2):
        wanted = "image, x, y" if named else "x, y"
        raise ValueError(f"{where}: {len(fields)} columns and no header; begin the file with a line like {wanted}")
    return Columns((1, 2), image=0) if named else Columns((0, 1))


def _without_image_size(
    columns: Columns, rows: Sequence[Row], named: bool, sizes: Callable[[str], Sizes | None]
) -> Columns:
    """``columns``, with those called width and height as the image's size, if they hold that in every row."""
    if not columns.box or columns.kind == "corners" or columns.image_size:
        return columns
    told, size = set(), columns.box[2:]
    for fields, _ in rows:
        if (known := sizes(_image_name(columns, fields, named))) is not None:
            try:
                told.add(tuple(float(fields[i]) for i in size) in [tuple(map(float, both)) for both in known])
            except ValueError:
                return columns
    if told != {True}:
        return columns
    return columns._replace(place=columns.place or columns.box[:2], box=(), image_size=size)


def _without_own_corner(columns: Columns, rows: Sequence[Row]) -> Columns:
    """``columns``, without a place beside a box that is the box's upper left corner in every row."""
    pairs = (
        [[_floats(fields, c) for c in (columns.place, columns.box[:2])] for fields, _ in rows] if columns.box else []
    )
    return columns._replace(place=()) if pairs and all(place == corner for place, corner in pairs) else columns


def _floats(fields: Sequence[str], columns: Sequence[int]) -> list[float | str]:
    return [float(fields[i]) if _is_number(fields[i]) else fields[i] for i in columns]


def _meaning(columns: Columns, header: Sequence[str]) -> str:
    place, first, last, image_size = (
        ", ".join(header[i] for i in c) for c in (columns.place, columns.box[:2], columns.box[2:], columns.image_size)
    )
    what = {
        "": f"{place} is an object's place",
        "centre": f"{first} is the centre of a box, {last} its width and height",
        "corner": f"{first} is the upper left corner of a box, {last} its width and height",
        "corners": f"{first}, {last} are the corners of a box",
    }[columns.kind if columns.box else ""]
    if columns.box and columns.kind != "centre":
        what += f"; {place}, in it, is counted" if place else "; its centre is counted"
    if columns.label is not None:
        what += f"; {header[columns.label]} is the label"
    return what + (f"; {image_size} is the image's size" if image_size else "")


def _image_name(columns: Columns, fields: Sequence[str], named: bool) -> str:
    if not named:
        return ""
    match = _PICTURE.fullmatch(fields[columns.image])
    return one_form(match[1] if match else fields[columns.image])


def _collect(columns: Columns, rows: Sequence[Row], named: bool) -> dict[str, Annotated]:
    found: dict[str, Annotated] = {} if named else {"": Annotated([])}
    for fields, where in rows:
        name = _image_name(columns, fields, named)
        if named and not name:
            raise ValueError(f"{where}: names no image; write the image's name into each row")
        if name not in found or found[name].image_size is None:
            size = _stated(columns, fields, where)
            found[name] = Annotated(found[name].marks if name in found else [], size)
        if named and not any(fields[i] for i in (*columns.place, *columns.box)):
            continue
        place, numbers = ([parse_number(fields[i], where) for i in c] for c in (columns.place, columns.box))
        label = fields[columns.label] if columns.label is not None else ""
        found[name].marks.append(_mark(place, columns.kind, numbers, label, where))
    return found


def _stated(columns: Columns, fields: Sequence[str], where: str) -> tuple[float, float] | None:
    values = [fields[i] for i in columns.image_size]
    if not all(values) or not values:
        return None
    width, height = (parse_number(value, where) for value in values)
    return (width, height) if width and height else None


def _mark(place: Sequence[float], kind: str, numbers: Sequence[float], label: str, where: str) -> Mark:
    """The mark of a place, of a box, or of a place in a box, which gives the size."""
    if not numbers:
        return Mark(*place, math.nan, label)
    mark = box(kind, numbers, label, where)
    if not place:
        return mark
    x, y, width, height = numbers
    right, bottom = (width, height) if kind == "corners" else (x + width, y + height)
    if not (x - 1 <= place[0] <= right + 1 and y - 1 <= place[1] <= bottom + 1):  # both may be rounded
        raise ValueError(
            f"{where}: the point ({place[0]:g}, {place[1]:g}) lies outside of its box; remove the columns that do not hold"
        )
    return mark._replace(x=place[0], y=place[1])
