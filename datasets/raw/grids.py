"""In which pixel grid annotations were made: of the photograph upright, or as its file stores it.

Every tool shows a photograph turned by its EXIF orientation. Its file may store it lying on its side.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datasets.raw.marks import Annotated
from utils.images import Shape, turn_points

UPRIGHT, STORED = "upright", "stored"


def stated_grid(value: Annotated, shape: Shape, source: Path, image: Path) -> str | None:
    """The grid that the size in the file ``source`` tells, None where it tells none or both.

    Raises ``ValueError`` where it is neither of ``image``: then it was scaled, or belongs to another.
    """
    if value.image_size is None:
        return None
    height, width = shape.upright
    stored, upright = value.image_size == (shape.width, shape.height), value.image_size == (width, height)
    if not stored and not upright:
        told = " x ".join(f"{length:g}" for length in value.image_size)
        reason = (
            f"{source}: made for an image of {told} pixels, but {image} is stored as {shape.width} x {shape.height}"
        )
        raise ValueError(f"{reason}; annotate the image as it is, without scaling or cutting it")
    return None if stored and upright else UPRIGHT if upright else STORED


def fitting_grid(value: Annotated, shape: Shape) -> str | None:
    """The grid in which more of the points lie inside, None where there is no difference."""
    points = np.array([mark[:2] for mark in value.marks]).reshape(-1, 2)
    height, width = shape.upright
    upright, stored = (outside(points, *size) for size in ((width, height), (shape.width, shape.height)))
    return None if upright == stored else UPRIGHT if upright < stored else STORED


def outside(points: np.ndarray, width: int, height: int) -> int:
    """How many of the points [N, 2] lie outside [0, width] x [0, height]."""
    return int(((points < 0) | (points > (width, height))).any(axis=1).sum())


def choose_grids(
    annotated: Mapping[Path, Annotated], shapes: Mapping[Path, Shape], stated: Mapping[Path, str | None], usual: str
) -> tuple[dict[Path, str], list[str]]:
    """The grid of each image that is not stored upright, and lines that say how it was found.

    What the files state decides, then where the points lie. Where neither tells it is the grid that all others of the
    same files have, or the ``usual`` one.
    """
    turned = [image for image in annotated if shapes[image].orientation != 1]
    if not turned:
        return {}, []
    told = {image: stated[image] or fitting_grid(annotated[image], shapes[image]) for image in turned}
    found = {grid for grid in told.values() if grid is not None}
    common = found.pop() if len(found) == 1 else usual
    grids = {image: told[image] or common for image in turned}
    names = ", ".join(image.name for image in turned[:10]) + (", ..." if len(turned) > 10 else "")
    of = f"{len(turned)} images have an EXIF orientation and are turned upright: {names}"
    in_stored = [image for image in turned if grids[image] == STORED]
    if not in_stored:
        return grids, [f"{of}; their annotations are taken as made upright"]
    first = ", ".join(image.name for image in in_stored[:3]) + (", ..." if len(in_stored) > 3 else "")
    rest = f"those of {len(in_stored)} ({first}) fit the stored grid and are turned with them"
    return grids, [f"{of}; {rest}"]


def to_upright(points: np.ndarray, shape: Shape, grid: str) -> np.ndarray:
    """Points [N, 3] = x, y, size of that grid in the upright one."""
    if grid == UPRIGHT:
        return points
    return np.column_stack([turn_points(points[:, :2], shape), points[:, 2]])
