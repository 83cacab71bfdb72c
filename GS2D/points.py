"""What stands beside a prepared image: its annotations, how far apart they are, and the Gaussians fitted to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from GS2D.gaussians import Gaussians2D
from utils.files import gaussians_path, points_path, read_points

FARTHEST = 128.0  # pixels; where the distances of neighbours are clipped when training samples are cut
SAME_POINT = 1.0  # pixels; centres further from their points belong to other points
Annotations = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # see load_annotations


class OtherPointsError(ValueError):
    """Gaussians were fitted to other points than those that stand beside the image now."""


def mean_neighbour_distance(points: np.ndarray) -> np.ndarray:
    """Mean distance from each of the points [N, 2] to its 3 nearest others, float64 [N], in pixels.

    With fewer than 4 points the others that there are count. A lone point has none and gets 128, the upper bound to
    which these distances are clipped when training samples are cut.
    """
    if len(points) < 2:
        return np.full(len(points), FARTHEST)
    # As released: squares of float32 coordinates are subtracted, and the smallest of a row is taken for the point itself. That
    # costs accuracy far from the origin (d^2 is off by up to 1 at 2000 px), but files then equal the authors'.
    points = np.asarray(points, np.float32)
    squares = (points * points).sum(axis=1)
    rows = []
    for block in np.array_split(np.arange(len(points)), -(-len(points) // 1024)):  # bounds the memory of a dense crowd
        squared = squares[block, None] - 2 * (points[block] @ points.T) + squares
        nearest = np.sort(np.partition(squared, min(3, len(points) - 1), axis=1)[:, :4], axis=1)[:, 1:]
        rows.append(np.sqrt(np.maximum(nearest, 0)).mean(axis=1))
    return np.concatenate(rows)


def load_annotations(image: Path, use_gaussians: bool = True) -> Annotations:
    """Points [N, 2], neighbour distances [N], scales [N, 2] and rotations [N, 1] of a prepared image, float32.

    Scales that are NaN, and all without ``use_gaussians``, are a sixth of the neighbour distance, and such rotations 0.
    Raises ``FileNotFoundError`` or ``ValueError``, naming the file; ``OtherPointsError`` where the Gaussians are another number
    or lie elsewhere.
    """
    annotations = read_points(points_path(image))
    points = annotations[:, :2]
    # Without the third column: an npy that was prepared for evaluation.
    distance = annotations[:, 2] if annotations.shape[1] == 3 else mean_neighbour_distance(points).astype(np.float32)
    fallback = np.repeat(distance[:, None] / 6, 2, axis=1)
    if not use_gaussians:
        return points, distance, fallback, np.zeros((len(points), 1), np.float32)
    gaussians = Gaussians2D.load(gaussians_path(image))
    check_points(image, gaussians, points)
    scales, rotations = gaussians.scales.numpy(), gaussians.rotations.numpy()
    bad = np.flatnonzero(((scales < 0) | np.isinf(scales) | np.isinf(rotations)).any(axis=1))
    if bad.size:
        row = [*scales[bad[0]].tolist(), *rotations[bad[0]].tolist()]
        raise ValueError(
            f"{gaussians_path(image)}: row {bad[0]} has scales and rotation {row}, expected finite numbers and no negative "
            f"scale; delete the file and run {fit_command(image.parent)}"
        )
    return points, distance, np.where(np.isnan(scales), fallback, scales), np.nan_to_num(rotations, nan=0.0)


def check_points(image: Path, gaussians: Gaussians2D, points: np.ndarray, *, fixed: bool = True) -> None:
    """Raise ``OtherPointsError`` unless the Gaussians are as many as the points [N, 2] and, if ``fixed``, lie on them.

    They were fitted to other points otherwise: to an image of another size, for one, or to points in another order.
    """
    remedy = f"delete the former and run {fit_command(image.parent)}"
    if len(gaussians) != len(points):
        counts = f"{len(gaussians)} Gaussians, but {points_path(image)} has {len(points)} points"
        raise OtherPointsError(f"{gaussians_path(image)}: {counts}; {remedy}")
    gap = np.abs(gaussians.means.numpy() - points).max(initial=0)
    if fixed and not gap <= SAME_POINT:
        where = f"centres lie up to {gap:.1f} pixels from the points of {points_path(image)}"
        raise OtherPointsError(f"{gaussians_path(image)}: {where}; {remedy}")


def fit_command(split: Path) -> str:
    """The command that fits what is missing in a split."""
    return f"python 2dgs_counting_1gs_gsplat.py --root-path {split.parent}"
