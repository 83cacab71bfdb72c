"""What a transport kernel is: K [N + 1, M] of one sample in blocks of cells, and its product with a density."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from GS2D import native
from losses.kernel_inputs import Array
from losses.tiles import from_tiles, run_of, sum_runs, to_tiles

SMALLEST_SHARE = 1e-7  # of a cell's mass; below it a Gaussian need not be visited, nor a share be stored


@dataclass(frozen=True, eq=False)
class TransportKernel:
    """K [N + 1, M] of one sample, M = h * w cells in row-major order, the last row being the background.

    The rows of the annotations are kept as blocks of side x side cells, sorted by cell: the tiles of the grid are
    counted in row-major order (the last ones may overhang it). Groups starts[i] to starts[i + 1] of W blocks belong to
    tile i: its cells give mass[:, w, g] [side * side] of their mass to annotation[w, g]; the last group of a tile is
    filled up with blocks of no mass. Groups come last in memory, so that all arithmetic runs along contiguous numbers.
    annotation: int64 [W, G]; starts: int64 [tiles + 1]; mass: [side * side, W, G]; background: [M]; grid: (h, w).
    """

    annotation: Tensor
    starts: Tensor
    mass: Tensor
    background: Tensor
    grid: tuple[int, int]
    num_annotations: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_annotations + 1, self.grid[0] * self.grid[1]

    @property
    def side(self) -> int:
        return math.isqrt(len(self.mass))

    def to(self, device: torch.device | str) -> TransportKernel:
        """The same kernel on another device."""
        names = ("annotation", "starts", "mass", "background")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def transport(self, density: Tensor) -> Tensor:
        """K density: density [M] or [h, w] -> mass each annotation and, last, the background receives, [N + 1]."""
        cells = to_tiles(density.reshape(self.grid), self.side)
        received = Transport.apply(cells, self.annotation, self.starts, self.mass, self.num_annotations)
        background = (self.background * density.reshape(-1)).sum()
        return torch.cat([received, background[None]])

    def dense(self) -> Tensor:
        """K as a matrix [N + 1, M]."""
        tiles = self.mass.new_zeros(self.num_annotations, len(self.starts) - 1, len(self.mass))
        tile = run_of(self.starts).expand_as(self.annotation)
        tiles.index_put_((self.annotation, tile), self.mass.permute(1, 2, 0), accumulate=True)
        return torch.cat([from_tiles(tiles, self.grid, self.side), self.background[None]])

    def csr(self) -> tuple[Tensor, Tensor, Tensor]:
        """(indptr int64 [N + 2], indices int64, data) of K in compressed sparse rows, shares up to 1e-7 left out."""
        numbers = torch.arange(1, self.shape[1] + 1, device=self.starts.device).reshape(self.grid)
        numbers = to_tiles(numbers, self.side) - 1  # -1 where a tile overhangs the grid
        visible = (numbers >= 0)[run_of(self.starts)].T[:, None]
        lane, place, group = ((self.mass > SMALLEST_SHARE) & visible).nonzero(as_tuple=True)
        annotation, cell = self.annotation[place, group], numbers[run_of(self.starts)[group], lane]
        order = (annotation * self.shape[1] + cell).argsort()
        background = (self.background > SMALLEST_SHARE).nonzero().squeeze(1)
        ends = annotation.bincount(minlength=self.num_annotations).cumsum(0)
        indptr = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([len(cell) + len(background)])])
        data = torch.cat([self.mass[lane, place, group][order], self.background[background]])
        return indptr, torch.cat([cell[order], background]), data

    @classmethod
    def from_csr(cls, indptr: Array, indices: Array, data: Array, grid: tuple[int, int]) -> TransportKernel:
        """The inverse of `csr`, for a grid of (h, w) cells; raises ValueError where the arrays do not fit together."""
        indptr, indices, data = torch.as_tensor(indptr).long(), torch.as_tensor(indices).long(), torch.as_tensor(data)
        cells, rows = grid[0] * grid[1], len(indptr) - 1
        if rows < 1 or indptr[0] != 0 or indptr[-1] != len(indices) or (indptr.diff() < 0).any():
            raise ValueError(f"indptr: must rise from 0 to {len(indices)}, the number of indices; rebuild the kernel")
        if len(data) != len(indices) or (len(indices) and not 0 <= indices.min() <= indices.max() < cells):
            raise ValueError(f"indices: must be {len(data)} cells below {cells}, one a value; rebuild the kernel")
        first = int(indptr[-2])  # of the background's entries
        cell, order = indices[:first].int().sort(stable=True)  # sorts 32 bits twice as fast
        starts = torch.searchsorted(cell, torch.arange(cells + 1, dtype=cell.dtype, device=cell.device))
        background = data.new_zeros(cells).index_put((indices[first:],), data[first:])
        annotation, mass = run_of(indptr[:-1])[order], data[:first][order]
        return cls(annotation[None], starts, mass[None, None], background, tuple(grid), rows - 1)


class Transport(torch.autograd.Function):
    """What the annotations receive of cells [tiles, side^2]: [N]. The backward pass sums runs of groups, in order.

    In float32 on a CPU the native engine computes it, where there is one.
    """

    @staticmethod
    def forward(ctx, cells: Tensor, annotation: Tensor, starts: Tensor, mass: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(annotation, starts, mass)
        if _takes_native(cells, mass):
            arrays = (tensor.numpy() for tensor in (cells.detach(), annotation, starts, mass))
            return torch.from_numpy(native.send(*arrays, count))
        spread = cells.T.index_select(1, run_of(starts))[:, None]  # [side^2, 1, G]
        sent = (spread.mul_(mass) if mass.shape[1] == 1 else spread * mass).sum(0)
        return sent.new_zeros(count).index_add(0, annotation.flatten(), sent.flatten())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        annotation, starts, mass = ctx.saved_tensors
        if _takes_native(gradient, mass):
            arrays = (tensor.numpy() for tensor in (gradient, annotation, starts, mass))
            return torch.from_numpy(native.send_back(*arrays)), None, None, None, None
        weights = gradient.to(mass.dtype).index_select(0, annotation.flatten()).view_as(annotation)
        shares = mass * weights
        shares = shares[:, 0] if mass.shape[1] == 1 else shares.sum(1)
        return sum_runs(shares, starts).T.to(gradient.dtype), None, None, None, None


def _takes_native(*values: Tensor) -> bool:
    return all(value.device.type == "cpu" and value.dtype == torch.float32 for value in values) and native.works()
