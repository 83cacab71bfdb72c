"""CVAT for images 1.1, the only export of CVAT that keeps single points: one XML file for all images."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from datasets.raw.marks import Annotated, Mark, bounds, box, counts, round_mark
from datasets.raw.raw_text import parse_number

_ADVICE = "mark objects as points, rectangle, polygon or ellipse"
_REFUSED = ("polyline", "mask", "cuboid")


def read_cvat(path: Path, categories: Collection[str] = ()) -> dict[str, Annotated]:
    """The images of an ``annotations.xml``.

    Every point of a ``points`` element is an object of its own; a ``box``, ``polygon`` or ``ellipse`` is one, and so is a
    ``skeleton``, at the middle of its visible points. Tags say nothing of objects. Polylines, masks and cuboids are
    refused unless ``categories`` leave out their label. Entities and external references are refused.
    """
    root = _root(path)
    if root.tag != "annotations":
        kind = "Pascal VOC" if root.tag == "annotation" else f"<{root.tag}>"
        raise ValueError(
            f"{path}: is {kind:.60}, not CVAT's; export 'CVAT for images 1.1' and take its annotations.xml"
        )
    if root.find("track") is not None:
        raise ValueError(
            f"{path}: is CVAT for video, with tracks; export 'CVAT for images 1.1', whose frames are images"
        )
    found: dict[str, Annotated] = {}
    for i, image in enumerate(root.iter("image"), start=1):
        name, where = image.get("name"), f"{path}: image {i}"
        if not name:
            raise ValueError(f"{where}: lacks its name; export the annotations from CVAT again")
        if name in found:
            raise ValueError(f"{where}: {name!r:.80} is there twice; give each image its own name, or export one task")
        width, height = (image.get(key) for key in ("width", "height"))
        size = (parse_number(width, where), parse_number(height, where)) if width and height else None
        where = f"{path}: {name:.80}"
        marks = [
            mark for j, shape in enumerate(image, start=1) for mark in _marks(shape, categories, f"{where}: shape {j}")
        ]
        found[name] = Annotated(marks, size)
    return found


def _root(path: Path) -> Element:
    try:
        return fromstring(path.read_bytes())
    except DefusedXmlException:
        reason = "defines entities or refers to other files, which is refused; export it from CVAT again"
    except ParseError as error:
        reason = f"not valid XML ({error}); export it from CVAT again"
    except (ValueError, LookupError, RecursionError) as error:  # of an encoding that is unknown or does not fit
        reason = f"not readable XML ({str(error) or 'nested too deeply'}); export it from CVAT again"
    raise ValueError(f"{path}: {' '.join(reason.split())}")


def _marks(shape: Element, categories: Collection[str], where: str) -> Iterator[Mark]:
    label, kind = shape.get("label", ""), shape.tag
    if shape.get("outside") == "1":
        return

    def numbers(*keys: str) -> list[float]:
        return [parse_number(shape.get(key, ""), f"{where}: {key}") for key in keys]

    if kind == "points":
        yield from (Mark(x, y, math.nan, label) for x, y in _points(shape, where))
    elif kind == "box":
        # A rotation turns it around its centre.
        yield box("corners", numbers("xtl", "ytl", "xbr", "ybr"), label, where)
    elif kind == "polygon":
        yield bounds(_points(shape, where), label, where)
    elif kind == "ellipse":
        yield round_mark(*numbers("cx", "cy", "rx", "ry"), label, where)
    elif kind == "skeleton":
        visible = [
            point for part in shape.iter("points") if part.get("outside") != "1" for point in _points(part, where)
        ]
        if visible:
            yield bounds(visible, label, where)
    elif kind in _REFUSED and counts(label, categories):
        raise ValueError(f"{where}: is a {kind}; {_ADVICE}")


def _points(shape: Element, where: str) -> list[tuple[float, float]]:
    """``x,y;x,y`` as pairs."""
    points = []
    for pair in shape.get("points", "").split(";"):
        values = [parse_number(value.strip(), f"{where}: points") for value in pair.split(",")]
        if len(values) != 2:
            raise ValueError(f"{where}: points holds {pair!r:.40}; write x,y;x,y;...")
        points.append((values[0], values[1]))
    return points
