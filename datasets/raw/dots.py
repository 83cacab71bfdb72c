"""Lists of bare points: as JSON, of DotDotGoose, and in MATLAB files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from datasets.raw.marks import Annotated, Mark
from datasets.raw.mat_file import MatObject, read_any
from datasets.raw.raw_text import json_number, json_points, read_json

# What the field calls an array of points, the usual names first.
MAT_KEYS = ("annPoints", "image_info", "location", "loc", "points", "gt_points", "gt", "annotation", "annotations")
MAT_KEYS += ("ann_points", "annpoints", "coordinates", "coords", "dots", "heads", "head", "centers", "center", "xy")


def read_points_json(path: Path, named: bool = True) -> dict[str, Annotated]:
    """Lists of points as JSON: ``[[x, y], ...]`` or ``{"points": [[x, y], ...]}`` (under the name "" without ``named``).

    With ``named``, one object that maps the name of each image to its list.
    """
    contents = read_json(path)
    if not named:
        contents = {"": contents}
    elif not isinstance(contents, dict):
        raise ValueError(f'{path}: no object; write {{"a.jpg": [[x, y], ...], ...}}')
    found = {}
    for name, value in contents.items():
        where = f"{path}: {name!r}" if named else f"{path}"
        if isinstance(value, dict):
            if "points" not in value:
                raise ValueError(f"{where}: no key points; write a list [[x, y], ...] or an object with it as points")
            value = value["points"]
        found[name] = Annotated([Mark(x, y) for x, y in json_points(value, where).tolist()])
    return found


def read_pnt(path: Path) -> dict[str, Annotated]:
    """A project of DotDotGoose, ``{"points": {image: {class: [{"x": ..., "y": ...}, ...]}}}``."""
    contents = read_json(path)
    images = contents.get("points") if isinstance(contents, dict) else None
    if not isinstance(images, dict):
        raise ValueError(f"{path}: no object points of images; save the project from DotDotGoose again")
    found = {}
    for name, classes in images.items():
        if not isinstance(classes, dict):
            raise ValueError(f"{path}: {name!r:.80}: no object of classes; save the project from DotDotGoose again")
        marks = []
        for label, points in classes.items():
            where = f"{path}: {name!r:.80}: {label!r:.40}"
            if not isinstance(points, list):
                raise ValueError(f"{where}: no list of points; save the project from DotDotGoose again")
            for i, point in enumerate(points, start=1):
                values = [point.get(key) if isinstance(point, dict) else None for key in "xy"]
                x, y = (json_number(value, f"{where}: point {i}") for value in values)
                marks.append(Mark(x, y, math.nan, label))
        found[name] = Annotated(marks)
    return found


def read_points_mat(path: Path) -> Annotated:
    """The points [N, 2] of a MATLAB file: the variable of ``MAT_KEYS``, or the only one, bare or inside of structs."""
    name, value = read_any(path, MAT_KEYS)
    where = f"{path}: {name}"
    while not isinstance(value, np.ndarray):
        if isinstance(value, MatObject):
            raise ValueError(f"{where} holds {value}; store the points as a numeric array [N, 2]")
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        elif isinstance(value, dict):
            value = _field(value, where)
        else:
            raise ValueError(
                f"{where} is an array of {len(value)} cells or structs; store the points as an array [N, 2]"
            )
    if value.size == 0 and value.ndim <= 2:
        return Annotated([])
    if value.ndim != 2 or value.shape[1] != 2:
        raise ValueError(f"{where} has shape {list(value.shape)}; store one row (x, y) for each point, [N, 2]")
    bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
    if bad.size:
        raise ValueError(f"{where}: row {bad[0] + 1} is {value[bad[0]].tolist()}; correct or remove this point")
    return Annotated([Mark(x, y) for x, y in value.tolist()])


def _field(struct: dict[str, Any], where: str) -> Any:
    name = next((key for key in MAT_KEYS if key in struct), None)
    if name is None:
        there = ", ".join(struct) or "none"
        raise ValueError(f"{where}: no field location (fields found: {there}); store the points [N, 2] under that name")
    return struct[name]
