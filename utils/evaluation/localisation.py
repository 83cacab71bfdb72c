"""Heads from a density, matched one-to-one with the annotations: precision, recall, F1.

Positions are (x, y) in pixels; the top-left corner of the image is (0, 0).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

from utils.evaluation.windows import Window
from utils.pixels import COARSEST, STRIDE

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
    touch are one head, at the first of them. Two people nearer than about two cells share one maximum: heads are fewer than
    the density's sum in dense crowds.

    The windows' cells are searched as one grid, so that a head on a seam is found once. A window's cells begin at
    its corner and cover its sides up to a multiple of 16 pixels: the networks leave out the rest, whichever number of cells
    they return. Cells of 8 pixels that reach over the border (blended windows) keep their size; heads are clipped to the
    image.
    """
    tops, lefts = sorted({part.top for part in parts}), sorted({part.left for part in parts})
    by_corner = {(part.top, part.left): part for part in parts}
    grid = np.block([[np.asarray(by_corner[top, left].density.cpu(), np.float64) for left in lefts] for top in tops])
    column, row = [by_corner[top, lefts[0]] for top in tops], [by_corner[tops[0], left] for left in lefts]
    rows = np.concatenate([part.top + _centres(part.height, part.density.shape[0]) for part in column])
    columns = np.concatenate([part.left + _centres(part.width, part.density.shape[1]) for part in row])
    heads = _locate(grid, rows, columns)
    heads[:, 0] = heads[:, 0].clip(0, row[-1].left + row[-1].width)
    heads[:, 1] = heads[:, 1].clip(0, column[-1].top + column[-1].height)
    return heads


def matches(predicted: np.ndarray, truth: np.ndarray, radius: float) -> int:
    """The most predicted [M, >= 2] and true points [N, >= 2] that pair up, one to one, up to and including ``radius`` pixels."""
    p, t, _ = _near(predicted, truth, radius)
    if not len(p):
        return 0
    graph = csr_array((np.ones(len(p)), (t, p)), shape=(len(truth), len(predicted)))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def match_greedily(predicted: np.ndarray, truth: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """One-to-one matching, nearest pairs first -> int64 [K, 2] (predicted, truth), their distances [K], ascending.

    Equal distances: the smaller true, then the smaller predicted index first. The pairs of a smaller radius are
    those of this one whose distance does not exceed it.
    """
    p, t, distance = _near(predicted, truth, radius)
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
        matched = sum(matches(*image, radius) for image in zip(predicted, truth, strict=True))
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
    peaks = (density == ndimage.maximum_filter(density, 3, mode="constant", cval=-np.inf)) & (density > 0)
    i, j = np.nonzero(peaks)
    groups, _ = ndimage.label(peaks, np.ones((3, 3)))
    first = np.sort(np.unique(groups[i, j], return_index=True)[1])
    i, j = i[first], j[first]
    cells = sliding_window_view(np.pad(density, 1, constant_values=np.nan), (3, 3))[i, j]  # [M, 3, 3]
    mass = np.nansum(cells, axis=(1, 2))
    heavy = mass >= MASS_THRESHOLD
    i, j, cells, mass = i[heavy], j[heavy], cells[heavy], mass[heavy]
    excess = np.nan_to_num(cells - np.nanmin(cells, axis=(1, 2), keepdims=True))
    excess[:, 1, 1] += excess.sum(axis=(1, 2)) == 0  # nine equal cells: the centre
    total = excess.sum(axis=(1, 2))
    x = (excess.sum(axis=1) * sliding_window_view(np.pad(columns, 1), 3)[j]).sum(axis=1) / total
    y = (excess.sum(axis=2) * sliding_window_view(np.pad(rows, 1), 3)[i]).sum(axis=1) / total
    return np.stack([x, y, mass], axis=1)


def _centres(pixels: int, cells: int) -> np.ndarray:
    """Centres of a window's cells along a side, from its first pixel."""
    size = STRIDE if STRIDE * cells > pixels else (pixels - pixels % COARSEST) / cells
    return (np.arange(cells) + 0.5) * size


def _near(predicted: np.ndarray, truth: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs within the radius: predicted index, true index and distance, each [E]."""
    if not len(predicted) or not len(truth):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    heads, points = (cKDTree(np.asarray(positions)[:, :2]) for positions in (predicted, truth))
    # The tree compares squares: a little more than the radius, then the exact comparison.
    near = heads.sparse_distance_matrix(points, radius * (1 + 1e-9), output_type="ndarray")
    near = near[near["v"] <= radius]
    return near["i"], near["j"], near["v"]
