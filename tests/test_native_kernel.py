"""The native engine's part of the transport kernel against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse

from GS2D import native
from GS2D.kernel import rows_of, transport_kernel
from GS2D.native import build

if not build.compilers():
    pytest.skip("no C++ compiler here", allow_module_level=True)


def table_of(count, grid, seed=0):
    """x, y, W, half log det of Gaussians in and around a grid of cells of 8 pixels, some of them twice."""
    random = np.random.default_rng(seed)
    points, scales = random.uniform(-30, 8 * np.array(grid[::-1]) + 30, (count, 2)), random.uniform(8, 20, (count, 2))
    cos, sin = (f(random.uniform(0, math.pi, count)) for f in (np.cos, np.sin))
    first, second = math.sqrt(0.5) / scales.T
    rows = np.stack([*points.T, cos * first, sin * first, -sin * second, cos * second, np.log(scales).sum(1)], axis=1)
    return np.concatenate([rows, rows[::3]]).astype(np.float32)


def squared_distances(table, grid):
    """|W d|^2 of each row of a table from the centre of each cell, float64: [n, h * w]."""
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    dx, dy = (8 * cells + 4 - table[:, [axis]].astype(np.float64) for axis, cells in enumerate((x, y)))
    a, b, c, d = table[:, 2:6].T[:, :, None]
    return (a * dx + b * dy) ** 2 + (c * dx + d * dy) ** 2


@pytest.mark.parametrize("grid", [(1, 1), (9, 1), (3, 70), (16, 24)])
@pytest.mark.parametrize("count", [0, 1, 30])
@pytest.mark.parametrize("reach", [0.0, 2.0, np.inf])
def test_the_nearest_gaussian_of_each_cell(count, grid, reach):
    table = table_of(count, grid)
    distances = squared_distances(table, grid)
    nearest, index = native.kernel_nearest(table, grid, 8, reach)
    assert nearest.dtype == np.float32 and index.dtype == np.int32
    expected = distances.min(axis=0, initial=np.inf)
    seen = (expected <= reach) & (count > 0)
    np.testing.assert_allclose(nearest[seen], expected[seen], rtol=1e-4, atol=1e-5)
    assert (
        nearest[expected > reach] > reach
    ).all()  # whole vectors of cells are looked at, so that some beyond it are found too
    found = index >= 0
    assert np.array_equal(found, np.isfinite(nearest)) and found[seen].all()
    assert (index[found] < max(count, 1)).all()  # of equal ones the first
    chosen = distances[index[found], np.flatnonzero(found)]
    np.testing.assert_allclose(nearest[found], chosen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("background", [False, True])
def test_shares_are_a_softmax(background):
    grid, smallest = (12, 20), 1e-4
    table = table_of(40, grid, seed=1)
    distances, half_log_det = squared_distances(table, grid), table[:, 6:].astype(np.float64)
    nearest, index = native.kernel_nearest(table, grid, 8, np.inf)
    log_odds = np.full(240, -1.5 if background else -np.inf)
    arrays = nearest, table[index, 6], log_odds.astype(np.float32)
    limit = np.full(grid[0], np.inf, np.float32)
    indptr, indices, data = native.kernel_rows(table, grid, 8, limit, *arrays, smallest=smallest, background=background)
    assert indptr.dtype == indices.dtype == np.int32 and data.dtype == np.float32
    relative = nearest - distances + table[index, 6] - half_log_det  # to the nearest one's
    weights = np.exp(np.concatenate([relative, log_odds[None]])[: len(table) + background])
    expected = weights / weights.sum(axis=0)
    found = scipy.sparse.csr_array((data, indices, indptr), expected.shape).toarray()
    assert (data > smallest).all() and (found[expected < 0.99 * smallest] == 0).all()
    np.testing.assert_allclose(found, np.where(found > 0, expected, 0), rtol=1e-4)
    assert (found[expected > 1.01 * smallest] > 0).all()
    # Where no cell is visited, the background has all of them.
    limit[:] = -np.inf
    indptr, _, data = native.kernel_rows(table, grid, 8, limit, *arrays, smallest=smallest, background=background)
    assert not np.diff(indptr)[: len(table)].any() and data.tolist() == background * 240 * [1.0]


def test_the_kernel_reads_only_what_is_there():
    grid, table = (4, 4), table_of(3, (4, 4))
    nearest, index = native.kernel_nearest(table, grid, 8, np.inf)
    whole = np.zeros(4, np.float32), nearest, table[index, 6], np.zeros(16, np.float32)
    with pytest.raises(ValueError, match=r"^table: shape \[4, 6\], expected \[4, 7\]$"):
        native.kernel_nearest(table[:, :6], grid, 8, np.inf)
    with pytest.raises(ValueError, match="^table: row 2 is .*nan"):
        native.kernel_nearest(np.where(np.arange(4)[:, None] == 2, np.nan, table), grid, 8, np.inf)
    for position, name in enumerate(("limit", "nearest", "log_det", "log_odds")):
        short = [array[1:] if i == position else array for i, array in enumerate(whole)]
        with pytest.raises(ValueError, match=f"^{name}: shape"):
            native.kernel_rows(table, grid, 8, *short, smallest=1e-7, background=True)


def test_more_shares_than_int32_counts_are_refused():
    table = np.zeros((70_000, 7), np.float32)
    table[:, [2, 5]] = 1e-3  # each reaches all of 200 x 200 cells
    cells = np.zeros(40_000, np.float32)
    with pytest.raises(
        ValueError, match="kernel: 2,800,.* shares of 70,000 Gaussians are too many; use smaller images"
    ):
        native.kernel_rows(
            table, (200, 200), 8, np.full(200, 10.0, np.float32), cells, cells, cells, smallest=1e-7, background=True
        )


def test_columns_of_thousands_of_identical_gaussians_are_whole():
    """They reach whole vectors of cells, of which some have no Gaussian near enough to be their nearest."""
    gaussians = np.full((10_000, 2), 33.3), np.full((10_000, 2), 9.0), np.zeros((10_000, 1))
    kernel = rows_of(transport_kernel(*gaussians, 128, backend="native"))
    np.testing.assert_allclose(kernel.sum(axis=0, dtype=np.float64), 1, atol=2e-3)  # 1e-7 of each is left out
