"""In which pixel grid annotations were made: of the photograph upright, or as its file stores it.

Every tool shows a photograph turned by its EXIF orientation. Its file may store it lying on its side.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from datasets.raw.marks import Annotated
from utils.cli import warn
from utils.images import Shape

UPRIGHT, STORED = "upright", "stored"


def grid_size(shape: Shape, grid: str) -> tuple[int, int]:
    """Width and height of an image in that grid."""
    height, width = shape.upright if grid == UPRIGHT else (shape.height, shape.width)
    return width, height


def points_inside(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Which points (x, y) lie in [0, width] x [0, height], borders included: bool [N]."""
    return ((points >= 0) & (points <= (width, height))).all(axis=1)


def in_pixels(value: Annotated, shape: Shape, source: Path, image: Path) -> Annotated:
    """The marks in pixels of ``image``, where the file ``source`` gives them in parts of it, which are those of the upright one.

    Raises ``ValueError`` where the size in the file is not that of ``image``, which was scaled, or is another.
    """
    upright, stored = grid_size(shape, UPRIGHT), grid_size(shape, STORED)
    if value.image_size == (1, 1):
        return Annotated([mark.scaled(*upright) for mark in value.marks], upright)
    if value.image_size not in (None, upright, stored):
        made_for, there = (f"{width:g} x {height:g}" for width, height in (value.image_size, stored))
        what = f"made for an image of {made_for} pixels, but {image} is stored as {there}"
        raise ValueError(f"{source}: {what}; annotate the image as it is, without scaling or cutting it")
    return value


def choose_grids(annotated: Mapping[Path, Annotated], shapes: Mapping[Path, Shape], usual: str) -> dict[Path, str]:
    """The grid of each image: the one whose size its file states, else the one in which more points of all images lie.

    Where as many lie in both it is the ``usual`` one. A warning says which images are turned by their EXIF orientation, and
    how their grid was found.
    """
    turned = {image: value for image, value in annotated.items() if shapes[image].orientation != 1}
    inside = dict.fromkeys((usual, UPRIGHT, STORED), 0)
    for image, value in turned.items():
        points = np.array([mark[:2] for mark in value.marks]).reshape(-1, 2)
        for grid in inside:
            inside[grid] += points_inside(points, *grid_size(shapes[image], grid)).sum()
    usual = max(inside, key=inside.__getitem__)
    grids = dict.fromkeys(annotated, UPRIGHT)
    for image, value in turned.items():
        stated = [grid for grid in (UPRIGHT, STORED) if value.image_size == grid_size(shapes[image], grid)]
        grids[image] = stated[0] if len(stated) == 1 else usual
    if turned:
        lying = [image for image in turned if grids[image] == STORED]
        how = f"those of {len(lying)} ({_names(lying, 3)}) fit the stored grid and are turned with them"
        how = how if lying else "their annotations are taken as made upright"
        warn(f"{len(turned)} images have an EXIF orientation and are turned upright: {_names(turned, 10)}; {how}")
    return grids


def _names(images: Collection[Path], most: int) -> str:
    return ", ".join([image.name for image in images][:most] + ["..."] * (len(images) > most))
