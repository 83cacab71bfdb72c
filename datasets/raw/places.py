"""Where annotations lie: in which pixel grid they were made, and what can hardly be meant so.

Every tool shows a photograph turned by its EXIF orientation. Its file may store it lying on its side.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.raw.marks import Annotated
from utils.cli import warn
from utils.images import Shape

UPRIGHT, STORED = "upright", "stored"
_LEAVES_POINTS_OUT = (
    "the {} exports of CVAT and Label Studio leave points out: export 'CVAT for images 1.1' and take --format cvat, or "
    "Label Studio's JSON and --format labelstudio, which keep them"
)
_FEW = 4  # points from which on a data set, or an image, can be judged
_MANY = 8  # points or boxes from which on it can be said where they lie


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
        lying = [image.name for image in turned if grids[image] == STORED]
        how = "their annotations are taken as made upright"
        if lying:
            how = f"those of {len(lying)} (first {lying[0]}) fit the stored grid and are turned with them"
        first = next(iter(turned)).name
        warn(f"{len(turned)} images (first {first}) have an EXIF orientation and are turned upright; {how}")
    return grids


def refuse_empty(format: str, annotated: Mapping[Path, Annotated], sources: Collection[Path], place: Path) -> None:
    """``ValueError`` where there is not one object in all annotations: a model learns nothing of that."""
    if any(value.marks for value in annotated.values()):
        return
    where = next(iter(sources)) if len(sources) == 1 else place
    hint = "annotate objects, or check --format and how the annotations were exported"
    hint = _LEAVES_POINTS_OUT.format(format.upper()) if format in ("coco", "yolo") else hint
    raise ValueError(f"{where}: lists {len(annotated)} images and no annotation, not one object; {hint}")


def refuse_corners(annotated: Mapping[Path, Annotated], sizes: Mapping[Path, tuple[int, int]], place: Path) -> None:
    """``ValueError`` where boxes with width and height leave images in which all fit if those are the other corner.

    Or where the last two numbers of many, as points, all lie nearer to the first two of their own than to half of the others',
    as second corners do and sizes do not. ``sizes`` holds (width, height) of each image, in the grid that its annotations mean.
    """

    def inside(low: float, high: float, side: int) -> bool:
        return -0.01 * side <= low < high <= 1.01 * side

    wrong, boxes = 0, []
    for image, value in annotated.items():
        marks = [mark for mark in value.marks if mark.box]
        ways = [[*zip(m[:2], m.box[:2], m.box[2:], sizes[image], strict=True)] for m in marks]
        if all(inside(first, last, side) for way in ways for _, first, last, side in way):
            boxes += [mark.box for mark in marks]
            wrong += sum(not all(inside(x - last / 2, x + last / 2, side) for x, _, last, side in way) for way in ways)
    if wrong >= max(2, 0.1 * len(boxes)) or (len(boxes) >= _MANY and _are_corners(np.array(boxes, np.float64))):
        what = "by where they lie the last two numbers of all are no width and height but the right and bottom corner"
        remedy = "write right - left and bottom - top, or xmin, ymin, xmax, ymax"
        raise ValueError(f"{place}: {wrong} of {len(boxes)} boxes leave their image, and {what}; {remedy}")


def _are_corners(boxes: np.ndarray) -> bool:
    """Whether numbers 3 and 4 of all ``boxes`` [N, 4] lie nearer to the place of their own than to that of half of the others."""
    places, ends = boxes[:, :2], boxes[:, 2:]
    others = places[:: len(places) // 200 + 1]
    away = np.linalg.norm(ends[:, None] - others, axis=2) - np.linalg.norm(ends - places, axis=1)[:, None]
    return bool((np.sign(away).sum(axis=1) > 0).all())


def suspect(points: Mapping[Path, tuple[np.ndarray, tuple[int, int]]], place: Path) -> None:
    """Warn where many points lie outside of their images, or all in a corner, and say why, as far as it can be guessed.

    ``points`` holds the points [N, 3] and (height, width) of each image. Raises ``ValueError`` where hardly a point of all,
    or of one image, can be right.
    """
    whole = [(rows[:, :2], width, height) for rows, (height, width) in points.values()]
    doubt = _doubt(whole, place)
    for image, one in zip(points, whole, strict=True):
        _doubt([one], image)
    if doubt:
        warn(doubt)
        return
    # All points begin near the upper left corner and stay far from the others: another unit or images that were enlarged do
    # that. In images where all people stand in one place, that place lies anywhere: that it is in the same part, of this
    # area, of every image has the probability area ** images.
    parts = np.concatenate([rows / (width, height) for rows, width, height in whole] or [np.zeros((0, 2))])
    if len(parts) < _MANY:
        return
    first, last = np.clip(parts.min(axis=0), 0, None), parts.max(axis=0)
    if (first <= 0.4 * last).all() and last.max() <= 0.9 and last.prod() <= 0.5 and last.prod() ** len(whole) <= 0.03:
        what = f"no point lies beyond {last[0]:.0%} of the width and {last[1]:.0%} of the height of any image"
        warn(f"{place}: {what}; are x and y in another unit, or were the images enlarged?")


def _doubt(images: Sequence[tuple[np.ndarray, int, int]], place: Path) -> str | None:
    """What to say of points outside, if they are many; ``ValueError`` where no annotator makes that."""
    total = sum(len(points) for points, _, _ in images)
    if total < _FEW:
        return None
    every = np.concatenate([points for points, _, _ in images])
    if ((every >= 0) & (every <= 1)).all() and len(np.unique(every, axis=0)) > 1:
        remedy = "they are parts of the image, it seems: multiply x by its width and y by its height"
        raise ValueError(f"{place}: all {total} points lie within 0..1, on each other; {remedy}")
    lost = total - sum(points_inside(*image).sum() for image in images)
    if lost < max(2, 0.05 * total):
        return None
    exchanged = total - sum(points_inside(points[:, ::-1], *size).sum() for points, *size in images)
    why = "were the images scaled or cut after they were annotated, or are x and y parts or percent of them?"
    if exchanged <= 0.1 * lost:
        why = f"with x and y exchanged {exchanged} would: write x, the column, first"
    line = f"{place}: {lost} of {total} points lie outside their image; {why}"
    if lost > total / 2:
        raise ValueError(line)
    return line
