"""Heads from a density, matched one-to-one with the annotations: precision, recall, F1.

Positions are (x, y) in pixels; the top-left corner of the image is (0, 0).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from utils.evaluation.windows import Window
from utils.pixels import COARSEST

# Least mass of a head's 3 x 3 cells. F1 is largest when a candidate counts from half the attainable F1 on (Lipton, Elkan
# and Naryanaswamy, ECML 2014): 0.3 where 0.6 can be reached. A single person smeared by a Gaussian of two cells, the widest
# that still has a clear maximum, leaves 0.30 there.
MASS_THRESHOLD = 0.3
RADII = (4.0, 8.0)  # pixels
QNRF_RADII = np.arange(1, 101)  # pixels; Idrees et al., ECCV 2018


def locate_windows(parts: Sequence[Window]) -> np.ndarray:
    """Heads of the windows of one image (``utils.evaluation.predict``) -> float64 [M, 3]: x, y, mass, row by row.

    A head is a cell above 0 that none of its eight neighbours exceeds, where the mass of the 3 x 3 cells is at least
    ``MASS_THRESHOLD``. Its position is the first moment of what these nine have above the smallest of them: a Gaussian of 1 to 2
    cells is found to 0.5 to 0.7 pixels, against 1.5 to 2.6 with the smallest kept and 3 without moments. Equal cells that
    touch are one head, at the cell nearest to their mean, the first of equally near ones. Two people nearer than
    about two cells share one maximum: heads are fewer than the density's sum in dense crowds. Raises ``ValueError`` for
    densities of another shape or with values that are not finite, and for windows that form no grid.

    The windows' cells are searched as one grid, so that a head on a seam is found once. A window's cells begin at
    its corner and cover its sides up to a multiple of 16 pixels: the networks leave out the rest, whichever number of cells
    they return.
    """
    tops, lefts = sorted({part.top for part in parts}), sorted({part.left for part in parts})
    by_corner = {(part.top, part.left): part for part in parts}
    if not parts or len(by_corner) != len(tops) * len(lefts):
        raise ValueError(
            f"parts: {len(parts)} windows form no grid of {len(tops)} x {len(lefts)}; pass all of one image"
        )
    grid = np.block([[_density(by_corner[top, left].density) for left in lefts] for top in tops])
    column, row = [by_corner[top, lefts[0]] for top in tops], [by_corner[tops[0], left] for left in lefts]
    rows = np.concatenate([part.top + _centres(part.height, part.density.shape[0]) for part in column])
    columns = np.concatenate([part.left + _centres(part.width, part.density.shape[1]) for part in row])
    return _locate(grid, rows, columns)


def match(predicted: np.ndarray, truth: np.ndarray, radius: float) -> np.ndarray:
    """One-to-one matching of predicted [M, >= 2] with true points [N, >= 2] -> int64 [K, 2]: indices (predicted, truth).

    Points may match up to and including ``radius`` pixels. Of all matchings the largest is taken, and of those one of smallest
    total distance. Rows are sorted by the predicted index.
    """
    p, t, distance = _near(_points(predicted), _points(truth), radius)
    if not len(p):
        return np.zeros((0, 2), np.int64)
    # Each true point also has a column of its own to stay unmatched, so that a full matching exists. That costs more than
    # all matches together; the 1 is in each row once, since the solver takes a weight of 0 for a missing edge.
    true = np.arange(len(truth))
    unmatched = 2.0 + min(len(predicted), len(truth)) * distance.max()
    weights = np.concatenate([1 + distance, np.full(len(truth), unmatched)])
    edges = np.concatenate([t, true]), np.concatenate([p, len(predicted) + true])
    graph = coo_array((weights, edges), shape=(len(truth), len(predicted) + len(truth)))
    chosen_truth, chosen = min_weight_full_bipartite_matching(graph.tocsr())
    pairs = np.stack([chosen, chosen_truth], axis=1)[chosen < len(predicted)].astype(np.int64)
    return pairs[np.argsort(pairs[:, 0])]


def match_greedily(predicted: np.ndarray, truth: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """One-to-one matching, nearest pairs first -> int64 [K, 2] (predicted, truth), their distances [K], ascending.

    Equal distances: the smaller true, then the smaller predicted index first. The pairs of a smaller radius are
    those of this one whose distance does not exceed it.
    """
    p, t, distance = _near(_points(predicted), _points(truth), radius)
    order = np.lexsort((p, t, distance))
    free_heads, free_points, taken = [True] * len(predicted), [True] * len(truth), []
    for edge, head, point in zip(order.tolist(), p[order].tolist(), t[order].tolist()):
        if free_heads[head] and free_points[point]:
            free_heads[head] = free_points[point] = False
            taken.append(edge)
    return np.stack([p[taken], t[taken]], axis=1), distance[taken]


def localisation_scores(
    predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray], radii: Sequence[float] = RADII
) -> dict:
    """Scores of the heads [M, 2] or [M, 3] (with mass) found in each image against its annotations [N, >= 2].

    Matches, heads and annotations are summed over the images before they are divided: precision = TP / predicted, recall =
    TP / truth, F1 = 2 TP / (predicted + truth). What would divide by zero is None: precision where nothing was predicted,
    recall where there is no truth, F1 where both are empty.

    Returns by radius (pixels, as text) a dict of ``precision``, ``recall`` and ``f1``, and ``qnrf`` (``qnrf_scores``).
    """
    heads, true = sum(map(len, predicted)), sum(map(len, truth))
    scores = {}
    for radius in radii:
        matched = sum(len(match(*image, radius)) for image in zip(predicted, truth, strict=True))
        scores[f"{radius:g}"] = {
            "precision": matched / heads if heads else None,
            "recall": matched / true if true else None,
            "f1": 2 * matched / (heads + true) if heads + true else None,
        }
    return {**scores, "qnrf": qnrf_scores(predicted, truth)}


def qnrf_scores(predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> dict:
    """``precision``, ``recall`` and ``auc``, each averaged over the distances 1, 2, ..., 100 pixels; None where undefined.

    After Idrees et al., ECCV 2018: heads and annotations are associated greedily, nearest first, and pairs within the
    distance are matches, summed over the images. The area under the precision-recall curve is computed for each distance,
    the heads taken in the order of their mass (equal masses together; without mass, all at once): the sum over the
    steps of precision times gain in recall. The paper does not spell its area out: compare only values computed alike.
    """
    heads, true = sum(map(len, predicted)), sum(map(len, truth))
    distance, mass = [np.zeros(0)], [np.zeros(0)]
    for heads_found, points in zip(predicted, truth, strict=True):
        pairs, distances = match_greedily(heads_found, points, QNRF_RADII[-1])
        of_head = np.full(len(heads_found), np.inf)
        of_head[pairs[:, 0]] = distances
        distance.append(of_head)
        mass.append(np.asarray(heads_found)[:, 2] if np.shape(heads_found)[-1] > 2 else np.ones(len(heads_found)))
    distance, mass = np.concatenate(distance), np.concatenate(mass)
    order = np.argsort(-mass, kind="stable")
    distance = distance[order]
    ends = np.flatnonzero(np.diff(-mass[order], append=np.inf))  # the last head of each mass
    matched = np.array([(distance <= radius).sum() for radius in QNRF_RADII])
    areas = []
    for radius in QNRF_RADII if heads and true else ():
        hits = np.cumsum(distance <= radius)[ends]
        areas.append((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / true)
    return {
        "precision": float(matched.mean() / heads) if heads else None,
        "recall": float(matched.mean() / true) if true else None,
        "auc": float(np.mean(areas)) if areas else (0.0 if true else None),
    }


def _locate(density: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Heads of a density [h, w], whose cells have their centres at ``columns`` [w] and ``rows`` [h], pixels."""
    if not density.size:
        return np.zeros((0, 3))
    highest = ndimage.maximum_filter(density, 3, mode="constant", cval=-np.inf)
    i, j = _plateau_cells((density == highest) & (density > 0))
    cells = sliding_window_view(np.pad(density, 1), (3, 3))[i, j]  # [M, 3, 3]
    mass = cells.sum(axis=(1, 2))
    heavy = mass >= MASS_THRESHOLD
    i, j, cells, mass = i[heavy], j[heavy], cells[heavy], mass[heavy]
    inside = sliding_window_view(np.pad(np.ones(density.shape, bool), 1), (3, 3))[i, j]
    floor = np.where(inside, cells, np.inf).min(axis=(1, 2), keepdims=True)
    excess = np.where(inside, cells - floor, 0)
    excess[:, 1, 1] += excess.sum(axis=(1, 2)) == 0  # nine equal cells: the centre
    total = excess.sum(axis=(1, 2))
    x = (excess.sum(axis=1) * sliding_window_view(np.pad(columns, 1), 3)[j]).sum(axis=1) / total
    y = (excess.sum(axis=2) * sliding_window_view(np.pad(rows, 1), 3)[i]).sum(axis=1) / total
    return np.stack([x, y, mass], axis=1)


def _plateau_cells(peaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One cell (i, j) of each group of touching cells [h, w]: the nearest to the group's mean, the first of several."""
    labels, groups = ndimage.label(peaks, np.ones((3, 3)))
    i, j = np.nonzero(peaks)
    group = labels[i, j] - 1
    size = np.bincount(group, minlength=groups)
    means = [np.bincount(group, index, groups) / size for index in (i, j)]
    # Squared distances in units of 1 / size^2 are whole numbers: equally near cells compare equal.
    squared = np.rint(((i - means[0][group]) ** 2 + (j - means[1][group]) ** 2) * size[group].astype(float) ** 2)
    order = np.lexsort((j, i, squared, group))
    first = np.sort(order[np.flatnonzero(np.diff(group[order], prepend=-1))])
    return i[first], j[first]


def _centres(pixels: int, cells: int) -> np.ndarray:
    """Centres of a window's cells along a side, from its first pixel."""
    return (np.arange(cells) + 0.5) * ((pixels - pixels % COARSEST) / cells)


def _near(predicted: np.ndarray, truth: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs within the radius: predicted index, true index and distance, each [E]."""
    if not len(predicted) or not len(truth):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    # The tree compares squares: a little more than the radius, then the exact comparison.
    neighbours = cKDTree(predicted).query_ball_point(truth, radius * (1 + 1e-9), return_sorted=True)
    t = np.repeat(np.arange(len(truth)), [len(found) for found in neighbours])
    p = np.concatenate([np.asarray(found, np.int64) for found in neighbours])
    distance = np.hypot(*(predicted[p] - truth[t]).T)
    inside = distance <= radius
    return p[inside], t[inside], distance[inside]


def _density(density: np.ndarray) -> np.ndarray:
    density = np.asarray(density.detach().cpu() if hasattr(density, "detach") else density, np.float64)
    if density.ndim != 2 or not np.isfinite(density).all():
        shape = list(density.shape)
        raise ValueError(f"density: shape {shape}, must be finite numbers [h, w]; check weights and precision")
    return density


def _points(points: np.ndarray) -> np.ndarray:
    """The first two columns, float64 [N, 2]; an empty array of any shape is no point."""
    points = np.asarray(points, np.float64)
    return points[:, :2] if points.size else np.zeros((0, 2))
