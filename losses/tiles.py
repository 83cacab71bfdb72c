"""Square tiles of cells, and sums over runs of entries: how a kernel is visited without a loop over annotations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sum_runs(values: Tensor, starts: Tensor) -> Tensor:
    """Sums of values[:, starts[i]:starts[i + 1]]: [L, G], [S + 1] -> [L, S]. A bag of neighbouring rows each."""
    values = values.T.flatten().view(-1, len(values))  # rows one after another: for L = 1 .contiguous() keeps strides
    entries = torch.arange(len(values), device=values.device)
    return F.embedding_bag(entries, values, starts, mode="sum", include_last_offset=True).T.contiguous()


def min_runs(values: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Minima of values[:, starts[i]:starts[i + 1]] and the first place of each, [L, S] both; 0, 0 where it is empty."""
    values = values.T.neg()
    entries = torch.arange(len(values), device=values.device)
    maximum, _, _, place = torch.embedding_bag(values, entries, starts[:-1], False, 2)  # mode 2: max, with its place
    return maximum.T.neg(), place.T.contiguous()


def run_of(starts: Tensor) -> Tensor:
    """Number of the run that each entry belongs to: [S + 1] -> [G]."""
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


def visited_tiles(
    points: Tensor, ellipses: Sequence[Tensor], grid: Sequence[int], stride: int, side: int, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ellipses that meet the rectangle of a tile's cell centres, in groups, sorted by tile.

    points: their centres [B, P, 2], pixels, NaN where there is none, as in the last group - 1 rows of each sample, which
    fill groups up. ellipses: half the width and height, pixels, r and sqrt(1 - r^2), r being the correlation of x and y,
    [B, P] each. Returns the tile [G], counted through the batch, the rows of points [group, G], and where the groups of
    each tile start, [B * tiles + 1].
    """
    rows, columns = tile_counts(grid, side)
    step, half = side * stride, (side - 1) / 2 * stride
    px, py = points[:, None].unbind(-1)  # [B, 1, P]
    width, height, r, rest = (value[:, None] for value in ellipses)
    # With v in units of height the ellipse is x = width * (r v +- rest sqrt(1 - v^2)), rightmost at v = r. In the band
    # of a row of tiles it is so at the v nearest to that; to the left, to -r. It misses the band where |v| > 1.
    middle, margin = (centres(rows, step, points)[:, None] - py) / height, half / height  # [B, rows, P]
    low, high = middle - margin, middle + margin
    width = width / step  # in columns of tiles, as all below
    origin, slope, rest = px / step - 0.5, r * width, rest * width
    ends = []
    for sign in (-1, 1):
        v = (sign * r).clamp(low, high)
        end = torch.addcmul(origin + sign * half / step, slope, v)
        square = v.square_()
        ends.append(end.addcmul_(rest, (1 - square).clamp_(min=0).sqrt_(), value=sign))
    first = ends[0].ceil_().nan_to_num_(columns).clamp_(0, columns)
    last = ends[1].floor_().masked_fill_(~(square <= 1), -1).clamp_(-1, columns - 1)
    # Numbers of one byte, the size of the result, are compared ten times as fast.
    dtype = torch.int8 if 2 * columns < 128 else torch.int32
    twice = torch.arange(0, 2 * columns, 2, dtype=dtype, device=points.device)[:, None]
    near = (twice - (first + last).to(dtype)[:, :, None]).abs_() <= (last - first).to(dtype)[:, :, None]
    near = near.flatten(0, 2)  # [B * tiles, P]
    count = near.view(torch.uint8).sum(1, dtype=torch.int32)
    near[:, near.shape[1] - group + 1 :] = torch.arange(group - 1, device=points.device) < (-count % group)[:, None]
    starts = F.pad(((count + group - 1) // group).cumsum(0), (1, 0))
    tile, row = near.nonzero().view(-1, group, 2).unbind(2)
    return tile[:, 0].contiguous(), row.T.contiguous(), starts
