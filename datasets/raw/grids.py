"""In which pixel grid annotations were made: of the photograph upright, or as its file stores it.

Every tool shows a photograph turned by its EXIF orientation. Its file may store it lying on its side.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datasets.raw.marks import Annotated
from utils.cli import warn
from utils.images import Shape, turn_points

UPRIGHT, STORED = "upright", "stored"


def stated_grid(value: Annotated, shape: Shape, source: Path, image: Path) -> str | None:
    """The grid that the size in the file ``source`` tells, None where it tells none or both.

    Raises ``ValueError`` where it is neither of ``image``: then it was scaled, or belongs to another.
    """
    if value.image_size is None:
        return None
    stored, upright = (value.image_size == grid_size(shape, grid) for grid in (STORED, UPRIGHT))
    if not stored and not upright:
        width, height = value.image_size
        reason = f"made for an image of {width:g} x {height:g} pixels, but {image} is stored as"
        remedy = "annotate the image as it is, without scaling or cutting it"
        raise ValueError(f"{source}: {reason} {shape.width} x {shape.height}; {remedy}")
    return None if stored and upright else UPRIGHT if upright else STORED


def grid_size(shape: Shape, grid: str) -> tuple[int, int]:
    """Width and height of an image in that grid."""
    height, width = shape.upright if grid == UPRIGHT else (shape.height, shape.width)
    return width, height


def outside(points: np.ndarray, width: int, height: int) -> int:
    """How many of the points [N, 2] lie outside [0, width] x [0, height]."""
    return int(((points < 0) | (points > (width, height))).any(axis=1).sum())


def choose_grids(
    annotated: Mapping[Path, Annotated], shapes: Mapping[Path, Shape], stated: Mapping[Path, str | None], usual: str
) -> dict[Path, str]:
    """The grid of each image; a warning says which images are not stored upright, and how theirs was found.

    What the files state decides, then where the points lie: in the grid in which more of them are inside. Where neither
    tells it is the grid that all others of the same files have, or the ``usual`` one.
    """
    turned = [image for image in annotated if shapes[image].orientation != 1]
    known = {}
    for image in turned:
        points = np.array([mark[:2] for mark in annotated[image].marks]).reshape(-1, 2)
        upright, stored = (outside(points, *grid_size(shapes[image], grid)) for grid in (UPRIGHT, STORED))
        known[image] = stated[image] or (None if upright == stored else UPRIGHT if upright < stored else STORED)
    common = {grid for grid in known.values() if grid is not None}
    usual = common.pop() if len(common) == 1 else usual
    grids = dict.fromkeys(annotated, UPRIGHT) | {image: grid or usual for image, grid in known.items()}
    if turned:
        names = ", ".join(image.name for image in turned[:10]) + (", ..." if len(turned) > 10 else "")
        lying = [image.name for image in turned if grids[image] == STORED]
        first = ", ".join(lying[:3]) + (", ..." if len(lying) > 3 else "")
        how = f"those of {len(lying)} ({first}) fit the stored grid and are turned with them"
        how = how if lying else "their annotations are taken as made upright"
        warn(f"{len(turned)} images have an EXIF orientation and are turned upright: {names}; {how}")
    return grids


def to_upright(points: np.ndarray, shape: Shape, grid: str) -> np.ndarray:
    """Points [N, 3] = x, y, size of that grid in the upright one."""
    if grid == UPRIGHT:
        return points
    return np.column_stack([turn_points(points[:, :2], shape), points[:, 2]])
