"""Annotations that were read without an error and yet can hardly be meant so."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from datasets.raw.grids import outside
from datasets.raw.marks import Annotated

_POINTS_LEAVE_BY = "export 'CVAT for images 1.1' and take --format cvat, or Label Studio's JSON and --format labelstudio, which keep them"
_HINTS = {
    "coco": f"the COCO exports of CVAT and Label Studio leave points out: {_POINTS_LEAVE_BY}",
    "yolo": f"the YOLO exports of CVAT and Label Studio leave points out: {_POINTS_LEAVE_BY}",
}
_FEW = 4  # points from which on a data set can be judged


def refuse_empty(
    format: str, annotated: Mapping[Path, Annotated | None], sources: Collection[Path], place: Path
) -> None:
    """``ValueError`` where all annotations were read and there is not one object in them: a model learns nothing of that."""
    if not annotated or any(value is None or value.marks for value in annotated.values()):
        return
    where = next(iter(sources)) if len(sources) == 1 else place
    hint = _HINTS.get(format, "annotate objects, or check --format and how the annotations were exported")
    raise ValueError(f"{where}: lists {len(annotated)} images and no annotation, not one object; {hint}")


def suspect(found: Mapping[Path, tuple[np.ndarray, tuple[int, int]]], place: Path) -> None:
    """Say why many points lie outside of their images, or all in a corner, as far as it can be guessed.

    ``found`` holds the points [N, 3] and (height, width) of each image. Raises ``ValueError`` where hardly a point can be
    right.
    """
    total = sum(len(points) for points, _ in found.values())
    if total < _FEW:
        return
    if all(((points[:, :2] >= 0) & (points[:, :2] <= 1)).all() for points, _ in found.values()):
        if len(np.unique(np.concatenate([points[:, :2] for points, _ in found.values()]), axis=0)) > 1:
            raise ValueError(
                f"{place}: all {total} points lie within 0..1, on each other; they are parts of the image, it seems: "
                "multiply x by its width and y by its height"
            )
    lost = sum(outside(points[:, :2], width, height) for points, (height, width) in found.values())
    if lost < max(2, 0.05 * total):
        return
    exchanged = sum(outside(points[:, 1::-1], width, height) for points, (height, width) in found.values())
    line = f"{place}: {lost} of {total} points lie outside their image"
    if exchanged <= 0.1 * lost:
        line += f"; with x and y exchanged {exchanged} would: write x, the column, first"
    else:
        line += "; were the images scaled or cut after they were annotated, or are x and y parts or percent of them?"
    if lost > total / 2 and exchanged <= 0.1 * lost:
        raise ValueError(line)
    print(f"warning: {line}", file=sys.stderr)
