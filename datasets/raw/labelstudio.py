"""Label Studio's JSON exports: coordinates in percent of an image whose size each result tells."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from datasets.raw.marks import Annotated, Mark, bounds, box, counts, round_mark
from datasets.raw.raw_text import json_number, json_points, read_json
from utils.files import PICTURES

_ADVICE = "mark objects as keypoint, rectangle, ellipse or polygon"
_SHAPES = ("keypoint", "rectangle", "ellipse", "polygon")
_REFUSED = ("brush", "bitmask", "vector", "magicwand")


def read_labelstudio(path: Path, categories: Collection[str] = ()) -> dict[str, Annotated]:
    """The tasks of a JSON or JSON-MIN export, by the name of their image.

    Keypoints, rectangles, ellipses and polygons are objects; brushes are refused by name unless ``categories`` leave out
    their label. A task that nobody finished is left out; one with several annotations is refused, since each would count.
    """
    contents = read_json(path)
    if not isinstance(contents, list) or not all(isinstance(task, dict) for task in contents):
        raise ValueError(f"{path}: no list of tasks; export the project from Label Studio as JSON")
    found: dict[str, Annotated] = {}
    for i, task in enumerate(contents, start=1):
        where = f"{path}: task {task.get('id', i)!r:.20}"
        name = _image_name(task, where)
        results = _results(task, where) if "data" in task else _results_min(task)
        if results is None:
            continue
        if name in found:
            raise ValueError(f"{where}: the image {name!r:.80} is there twice; keep one task for each image")
        found[name] = _annotated(results, categories, where)
    return found


def _image_name(task: dict[str, Any], where: str) -> str:
    """The image that a task is about: an upload, a path or an address, under whatever key."""
    data = task["data"] if isinstance(task.get("data"), dict) else task
    texts = [value for value in data.values() if isinstance(value, str)]
    names = [name for name in map(image_of_address, texts) if name.lower().endswith(PICTURES)]
    names = names or [image_of_address(data[key]) for key in ("image", "img") if isinstance(data.get(key), str)]
    if not names:
        raise ValueError(f"{where}: names no image; its data must hold the path or address of one")
    return names[0]


def image_of_address(address: str) -> str:
    """The path in an address: of ``/data/local-files/?d=a/b.jpg`` what stands behind d, else without ``?...``."""
    try:
        parts = urlsplit(address)
        named = parse_qs(parts.query).get("d")
    except ValueError:
        return address
    return named[0] if named else unquote(parts.path) or address


def without_upload_prefix(name: str) -> str | None:
    """``a.jpg`` of ``0a1b2c3d-a.jpg``, as Label Studio calls an uploaded a.jpg; None for other names."""
    match = re.fullmatch(r"(.*/)?[0-9a-f]{8}-(.+)", name.replace("\\", "/"))
    return match[2] if match else None


def _results(task: dict[str, Any], where: str) -> list[dict[str, Any]] | None:
    there = task.get("annotations", task.get("completions"))
    if not isinstance(there, list) or not all(isinstance(entry, dict) for entry in there):
        raise ValueError(f"{where}: has no list of annotations; export the project from Label Studio as JSON")
    done = [entry for entry in there if not entry.get("was_cancelled")]
    truths = [entry for entry in done if entry.get("ground_truth")]
    done = truths if len(truths) == 1 else done
    if not done:
        return None
    if len(done) > 1:
        raise ValueError(f"{where}: has {len(done)} annotations; keep one, or mark one as ground truth")
    results = done[0].get("result")
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise ValueError(f"{where}: an annotation without its list of results; export the project again")
    return results


def _results_min(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of JSON-MIN, where a control's name maps to its values; it lists finished tasks alone."""
    lists = [value for value in task.values() if isinstance(value, list)]
    values = [value for found in lists for value in found if isinstance(value, dict) and "original_width" in value]
    results = []
    for i, value in enumerate(values):
        kind = next((key for key in value if key.endswith("labels")), "")
        if not kind:
            kind = "keypoint" if "height" not in value else "rectangle"
        results.append({**value, "id": i, "type": kind, "value": value})
    return results


def _annotated(results: list[dict[str, Any]], categories: Collection[str], where: str) -> Annotated:
    labels = {str(result.get("id")): label for result in results if (label := _label(result))}
    marks, sizes, seen = [], set(), set()
    for i, result in enumerate(results, start=1):
        kind, here = str(result.get("type", "")).removesuffix("labels"), f"{where}: result {i}"
        key = str(result.get("id", i))
        label = _label(result) or labels.get(key, "")
        if kind in _REFUSED and counts(label, categories):
            raise ValueError(f"{here}: is a {kind}; {_ADVICE}")
        if kind not in _SHAPES or key in seen:  # the same region may have several results, such as its label
            continue
        seen.add(key)
        if result.get("image_rotation"):
            turned = f"was made with the image turned by {result['image_rotation']} degrees"
            raise ValueError(f"{here}: {turned}; turn it back in Label Studio and export again")
        size = [json_number(result.get(f"original_{side}"), f"{here}: original_{side}") for side in ("width", "height")]
        if min(size) <= 0:
            raise ValueError(f"{here}: an image of {size[0]:g} x {size[1]:g} pixels; export the project again")
        sizes.add(tuple(size))
        marks.append(_mark(kind, result.get("value"), size[0] / 100, size[1] / 100, label, here))
    if len(sizes) > 1:
        raise ValueError(
            f"{where}: its results state {len(sizes)} different sizes of the image; export the project again"
        )
    return Annotated(marks, next(iter(sizes), None))


def _label(result: dict[str, Any]) -> str:
    value = result.get("value")
    if not isinstance(value, dict):
        return ""
    kind = str(result.get("type", ""))
    names: Iterator[Any] = (value[key] for key in (kind, f"{kind}labels", "labels") if isinstance(value.get(key), list))
    return ", ".join(map(str, next(names, [])))


def _mark(kind: str, value: Any, across: float, down: float, label: str, where: str) -> Mark:
    """The mark of a shape, whose numbers are hundredths of the image's sides."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: has no value; export the project again")

    def numbers(*keys: str) -> list[float]:
        return [json_number(value.get(key), f"{where}: {key}") for key in keys]

    if kind == "polygon":
        points = json_points(value.get("points"), where).tolist()
        if not points:
            raise ValueError(f"{where}: a polygon of 0 points; draw it again")
        return bounds([(x * across, y * down) for x, y in points], label, where)
    x, y = numbers("x", "y")
    if kind == "keypoint":
        return Mark(x * across, y * down, math.nan, label)
    if kind == "ellipse":
        radius_x, radius_y = numbers("radiusX", "radiusY")
        return round_mark(x * across, y * down, radius_x * across, radius_y * down, label, where)
    width, height = numbers("width", "height")
    left, top, width, height = x * across, y * down, width * across, height * down
    mark = box("corner", (left, top, width, height), label, where)
    # A rectangle is turned around its upper left corner.
    angle = math.radians(json_number(value.get("rotation") or 0, f"{where}: rotation"))
    dx, dy = width / 2, height / 2
    return (
        mark._replace(
            x=left + dx * math.cos(angle) - dy * math.sin(angle), y=top + dx * math.sin(angle) + dy * math.cos(angle)
        )
        if angle
        else mark
    )
