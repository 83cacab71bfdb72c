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
from utils.pixels import COARSEST

# Least mass of a head's 3 x 3 cells. F1 is largest when a candidate counts from half the attainable F1 on (Lipton, Elkan
# and Naryanaswamy, ECML 2014): 0.3 where 0.6 can be reached. A single person smeared by a Gaussian of two cells, the widest
# that still has a clear maximum, leaves 0.30 there.
MASS_THRESHOLD = 0.3
RADII = (4.0, 8.0)  # pixels


def locate_windows(parts: Sequence[Window]) -> np.ndarray:
    """Heads of the windows of one image (``utils.evaluation.predict``) -> float64 [M, 3]: x, y, mass, row by row.

    A head is a cell above 0 that none of its eight neighbours exceeds, where the mass of the 3 x 3 cells is at least
    ``MASS_THRESHOLD``. Its position is the first moment of what these nine have above the smallest of them: a Gaussian of 1 to 2
    cells is found to 0.5 to 0.7 pixels, against 1.5 to 2.6 with the smallest kept and 3 without moments. Equal cells that
    touch are one head, at the first of them. Two people nearer than about two cells share one maximum: heads are fewer than
    the density's sum in dense crowds.

    The windows' cells are searched as one grid, so that a head on a seam is found once. A window's cells begin at
    its corner and cover its sides up to a multiple of 16 pixels: the networks leave out the rest, whichever number of cells
    they return.
    """
    tops, lefts = sorted({part.top for part in parts}), sorted({part.left for part in parts})
    by_corner = {(part.top, part.left): part for part in parts}
    density = np.block([[np.asarray(by_corner[top, left].density.cpu(), np.float64) for left in lefts] for top in tops])
    column, row = [by_corner[top, lefts[0]] for top in tops], [by_corner[tops[0], left] for left in lefts]
    rows = np.concatenate([part.top + _centres(part.height, part.density.shape[0]) for part in column])
    columns = np.concatenate([part.left + _centres(part.width, part.density.shape[1]) for part in row])
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


def matches(predicted: np.ndarray, truth: np.ndarray, radius: float) -> int:
    """The most predicted [M, >= 2] and true points [N, >= 2] that pair up, one to one, up to and including ``radius`` pixels."""
    if not len(predicted) or not len(truth):
        return 0
    trees = (cKDTree(np.asarray(positions)[:, :2]) for positions in (predicted, truth))
    # The tree compares squares: a little more than the radius, then the exact comparison.
    near = next(trees).sparse_distance_matrix(next(trees), radius * (1 + 1e-9), output_type="ndarray")
    near = near[near["v"] <= radius]
    graph = csr_array((np.ones(len(near)), (near["i"], near["j"])), shape=(len(predicted), len(truth)))
    return int((maximum_bipartite_matching(graph) >= 0).sum())


def localisation_scores(
    predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray], radii: Sequence[float] = RADII
) -> dict:
    """Scores of the heads [M, 2] or [M, 3] (with mass) found in each image against its annotations [N, >= 2].

    Matches, heads and annotations are summed over the images before they are divided: precision = TP / predicted, recall =
    TP / truth, F1 = 2 TP / (predicted + truth). What would divide by zero is None: precision where nothing was predicted,
    recall where there is no truth, F1 where both are empty.

    Returns by radius (pixels, as text) a dict of ``precision``, ``recall`` and ``f1``.
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
    return scores


def _centres(pixels: int, cells: int) -> np.ndarray:
    """Centres of a window's cells along a side, from its first pixel."""
    return (np.arange(cells) + 0.5) * ((pixels - pixels % COARSEST) / cells)
