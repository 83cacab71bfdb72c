"""Square tiles of cells, and sums over runs of entries: how a kernel is visited without a loop over annotations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sum_runs(values: Tensor, starts: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sums of values[starts[i]:starts[i + 1]] * weights: [T, L], [S + 1], [T] -> [S, L]. One bag of neighbours each."""
    entries = torch.arange(len(values), device=values.device)
    return F.embedding_bag(entries, values, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


def max_runs(values: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima over values[starts[i]:starts[i + 1]] and the first row of each, [S, L] both; 0, 0 without rows."""
    entries = torch.arange(len(values), device=values.device)
    maximum, _, _, row = torch.embedding_bag(values, entries, starts[:-1], False, 2)  # mode 2: max, with its place
    return maximum, row


def tile_of(starts: Tensor) -> Tensor:
    """Number of the run that each entry belongs to: [S + 1] -> [T]."""
    return torch.arange(len(starts) - 1, device=starts.device).repeat_interleave(starts.diff())


def centres(count: int, step: int, like: Tensor) -> Tensor:
    """Centres of `count` cells of side `step` along one axis, pixels."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * step


def tile_counts(grid: Sequence[int], side: int) -> tuple[int, int]:
    """Rows and columns of tiles that cover the grid."""
    return -(-grid[0] // side), -(-grid[1] // side)


def to_tiles(cells: Tensor, side: int) -> Tensor:
    """[h, w] or [B, h, w] -> [tiles, side^2] or [B * tiles, side^2], zeros where a tile overhangs the grid."""
    height, width = cells.shape[-2:]
    rows, columns = tile_counts((height, width), side)
    cells = F.pad(cells, (0, columns * side - width, 0, rows * side - height))
    return cells.reshape(-1, rows, side, columns, side).transpose(2, 3).reshape(-1, side * side)


def from_tiles(tiles: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """[B, tiles, side^2] -> [B, M], the inverse of `to_tiles`."""
    rows, columns = tile_counts(grid, side)
    cells = tiles.view(-1, rows, columns, side, side).transpose(2, 3).reshape(-1, rows * side, columns * side)
    return cells[:, : grid[0], : grid[1]].reshape(len(tiles), grid[0] * grid[1])
