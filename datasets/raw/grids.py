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


def fitting_grid(value: Annotated, shape: Shape, source: Path, image: Path) -> str | None:
    """The grid that the size in the file ``source`` tells, else the one in which more of the points lie; None for both.

    Raises ``ValueError`` where that size is neither of ``image``: then it was scaled, or belongs to another.
    """
    grids = [grid for grid in (UPRIGHT, STORED) if value.image_size in (None, grid_size(shape, grid))]
    if not grids:
        made_for, stored = (f"{width:g} x {height:g}" for width, height in (value.image_size, grid_size(shape, STORED)))
        what = f"made for an image of {made_for} pixels, but {image} is stored as {stored}"
        raise ValueError(f"{source}: {what}; annotate the image as it is, without scaling or cutting it")
    points = np.array([mark[:2] for mark in value.marks]).reshape(-1, 2)
    fit = {grid: points_inside(points, *grid_size(shape, grid)).sum() for grid in grids}
    best = [grid for grid in grids if fit[grid] == max(fit.values())]
    return best[0] if len(best) == 1 else None


def choose_grids(fitting: Mapping[Path, str | None], turned: Collection[Path], usual: str) -> dict[Path, str]:
    """The grid of each image, where ``fitting_grid`` leaves it open the one that all others have, or the ``usual`` one.

    A warning says which images were ``turned`` by their EXIF orientation, and how their grid was found.
    """
    common = {fitting[image] for image in turned} - {None}
    usual = common.pop() if len(common) == 1 else usual
    grids = {image: (grid or usual) if image in turned else UPRIGHT for image, grid in fitting.items()}
    if turned:
        lying = [image for image in turned if grids[image] == STORED]
        how = f"those of {len(lying)} ({_names(lying, 3)}) fit the stored grid and are turned with them"
        how = how if lying else "their annotations are taken as made upright"
        warn(f"{len(turned)} images have an EXIF orientation and are turned upright: {_names(turned, 10)}; {how}")
    return grids


def _names(images: Collection[Path], most: int) -> str:
    return ", ".join([image.name for image in images][:most] + ["..."] * (len(images) > most))
