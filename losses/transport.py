"""The transport kernel (Eqs. 5 and 7) and the transported-mass loss (Eq. 6) of Shang and Hong, AAAI 2026.

Column m of the kernel K is the distribution over the N annotations and the background of the mass predicted on cell m.
`dense_transport_kernel` states the equations; `transport_kernels` computes the same numbers near the Gaussians only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from losses.tiles import centres, from_tiles, max_runs, sum_runs, tile_counts, tile_of, to_tiles

Array = np.ndarray | Tensor

TILE = 4  # cells along the side of the tiles that are visited or skipped as a whole
SMALLEST_SHARE = 1e-7  # of a cell's mass; below it a Gaussian need not be visited
SKIPPED_SHARE = 5e-7  # of a cell's mass that all skipped Gaussians together may have had
SMALLEST_EXPONENT = -40.0  # exp of less is nothing beside 1, and a hundred times slower once it is subnormal


@dataclass(frozen=True, eq=False)
class TransportKernel:
    """K [N + 1, M] of one sample, M = h * w cells in row-major order, the last row being the background.

    The rows of the annotations are kept as T blocks of side x side cells, sorted by cell: the tiles of the grid are
    counted in row-major order (the last ones may overhang it), and entries starts[i] to starts[i + 1] belong to tile i:
    its cells give mass[t] [side * side] of their mass to annotation[t].
    annotation: int64 [T]; starts: int64 [tiles + 1]; mass: [T, side * side]; background: [M]; grid: (h, w).
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
        return math.isqrt(self.mass.shape[1])

    def to(self, device: torch.device | str) -> TransportKernel:
        """The same kernel on another device."""
        names = ("annotation", "starts", "mass", "background")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def transport(self, density: Tensor) -> Tensor:
        """K density: density [M] or [h, w] -> mass each annotation and, last, the background receives, [N + 1]."""
        cells = to_tiles(density.reshape(self.grid), self.side)
        received = _Transport.apply(cells, self.annotation, self.starts, self.mass, self.num_annotations)
        background = (self.background * density.reshape(-1)).sum()
        return torch.cat([received, background[None]])

    def dense(self) -> Tensor:
        """K as a matrix [N + 1, M]."""
        tiles = self.mass.new_zeros(self.num_annotations, len(self.starts) - 1, self.mass.shape[1])
        tiles[self.annotation, tile_of(self.starts)] = self.mass
        return torch.cat([from_tiles(tiles, self.grid, self.side), self.background[None]])

    def csr(self) -> tuple[Tensor, Tensor, Tensor]:
        """(indptr int64 [N + 2], indices int64, data) of K in compressed sparse rows, shares up to 1e-7 left out."""
        numbers = torch.arange(1, self.shape[1] + 1, device=self.starts.device).reshape(self.grid)
        numbers = to_tiles(numbers, self.side) - 1  # -1 where a tile overhangs the grid
        entry, lane = (self.mass > SMALLEST_SHARE).nonzero(as_tuple=True)
        cell = numbers[tile_of(self.starts)[entry], lane]
        entry, lane, cell = entry[cell >= 0], lane[cell >= 0], cell[cell >= 0]
        order = (self.annotation[entry] * self.shape[1] + cell).argsort()
        background = (self.background > SMALLEST_SHARE).nonzero().squeeze(1)
        ends = self.annotation[entry].bincount(minlength=self.num_annotations).cumsum(0)
        indptr = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([len(cell) + len(background)])])
        data = torch.cat([self.mass[entry, lane][order], self.background[background]])
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
        annotation, mass = tile_of(indptr[:-1])[order], data[:first][order][:, None]
        return cls(annotation, starts, mass, background, tuple(grid), rows - 1)


class _Transport(torch.autograd.Function):
    """What the annotations receive of cells [tiles, side^2]: [N]. The backward pass sums runs of entries, in order."""

    @staticmethod
    def forward(ctx, cells: Tensor, annotation: Tensor, starts: Tensor, mass: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(annotation, starts, mass)
        sent = cells.repeat_interleave(starts.diff(), dim=0, output_size=len(mass)) * mass
        return sent.new_zeros(count).index_add(0, annotation, sent.sum(1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        annotation, starts, mass = ctx.saved_tensors
        weights = gradient.to(mass.dtype).index_select(0, annotation)
        return sum_runs(mass, starts, weights).to(gradient.dtype), None, None, None, None


class TransportedMassLoss(nn.Module):
    """Eq. 6: mean over the samples of sum_n |target_n - (K density)_n|, the background's target being 0."""

    def forward(self, density: Tensor, kernels: Sequence[TransportKernel], targets: Sequence[Array]) -> Tensor:
        """density [B, 1, h, w], B kernels, B targets [N] (fractions allowed) -> scalar.

        Half precision is computed in float32. A sample without annotations has loss |sum of its density|. Only the
        density receives a gradient. Raises ValueError where shapes do not fit together.
        """
        if density.ndim != 4 or density.shape[1] != 1:
            raise ValueError(f"density: shape {tuple(density.shape)}, expected [B, 1, h, w]")
        _check_lengths("density, kernels, targets", density, kernels, targets)
        if density.dtype in (torch.float16, torch.bfloat16):
            density = density.float()
        cells, grid = density[:, 0], tuple(density.shape[2:])
        kernels = [kernel.to(density.device) for kernel in kernels]
        targets = [torch.as_tensor(target).detach().to(density) for target in targets]
        for b, (kernel, target) in enumerate(zip(kernels, targets)):
            if kernel.grid != grid:
                raise ValueError(f"density[{b}]: {grid} cells, but its kernel was made for {kernel.grid}")
            if target.shape != (kernel.num_annotations,):
                expected = f"[{kernel.num_annotations}], as its kernel has"
                raise ValueError(f"targets[{b}]: shape {tuple(target.shape)}, expected {expected}")
        annotation, starts, mass = _block_diagonal(kernels)
        target = torch.cat(targets)
        received = _Transport.apply(to_tiles(cells, kernels[0].side), annotation, starts, mass, len(target))
        background = (torch.stack([kernel.background for kernel in kernels]) * cells.flatten(1)).sum(1)
        return ((target - received).abs().sum() + background.abs().sum()) / len(density)


def _block_diagonal(kernels: Sequence[TransportKernel]) -> tuple[Tensor, Tensor, Tensor]:
    """annotation, starts and mass of the kernel of all samples at once, their rows and tiles one after another."""
    if len(kernels) == 1:
        return kernels[0].annotation, kernels[0].starts, kernels[0].mass
    if len({kernel.side for kernel in kernels}) > 1:
        raise ValueError("kernels: some come from compressed rows, some do not; make all of a batch in the same way")
    rows = accumulate((kernel.num_annotations for kernel in kernels), initial=0)
    entries = accumulate((len(kernel.mass) for kernel in kernels), initial=0)
    annotation = torch.cat([kernel.annotation + first for kernel, first in zip(kernels, rows)])
    starts = torch.cat([kernels[0].starts[:1]] + [kernel.starts[1:] + first for kernel, first in zip(kernels, entries)])
    return annotation, starts, torch.cat([kernel.mass for kernel in kernels])


def transport_kernel(
    means: Array,
    scales: Array,
    rotations: Array,
    crop_size: int | tuple[int, int],
    *,
    stride: int = 8,
    background_ratio: float = 0.015,
    cut_off: float = 3.0,
    post_min: float = 1.0,
    post_max: float = 20.0,
    scale_ratio: float = 1.0,
) -> TransportKernel:
    """The kernel K (Eqs. 5 and 7) of one sample; without annotations it is a background row of ones.

    means [N, 2]: (x, y), pixels of the crop, also outside it; scales [N, 2]: standard deviations, pixels; rotations
    [N, 1]: radians. crop_size: pixels, one number or (height, width); cells are (height // stride) x (width // stride).
    Scales become clamp(scale_ratio * scales, stride / post_min, post_max). background_ratio = 0: no background.
    Computed in float32, or in float64 where an input is.

    Raises ValueError for shapes that do not fit together, for NaN, infinite or negative values (naming the row) and for
    impossible parameters.
    """
    return transport_kernels(
        [means],
        [scales],
        [rotations],
        crop_size,
        stride=stride,
        background_ratio=background_ratio,
        cut_off=cut_off,
        post_min=post_min,
        post_max=post_max,
        scale_ratio=scale_ratio,
    )[0]


def transport_kernels(
    means: Sequence[Array],
    scales: Sequence[Array],
    rotations: Sequence[Array],
    crop_size: int | tuple[int, int],
    *,
    stride: int = 8,
    background_ratio: float = 0.015,
    cut_off: float = 3.0,
    post_min: float = 1.0,
    post_max: float = 20.0,
    scale_ratio: float = 1.0,
) -> list[TransportKernel]:
    """`transport_kernel` of a batch of samples in one pass: lists of [N, 2], [N, 2] and [N, 1] -> list of kernels."""
    grid = _grid(crop_size, stride)
    low, high = _clamp_bounds(stride, background_ratio, cut_off, post_min, post_max, scale_ratio)
    _check_lengths("means, scales, rotations", means, scales, rotations)
    samples = [_gaussians(*sample) for sample in zip(means, scales, rotations)]
    counts = [len(sample) for sample in samples]
    # Shorter samples end in NaN, which no comparison visits.
    padded = pad_sequence(samples, batch_first=True, padding_value=math.nan)
    points, sigma, angles = padded.flatten(0, 1).split([2, 2, 1], dim=1)
    sigma = (scale_ratio * sigma).clamp(low, high)
    cos, sin = angles.cos(), angles.sin()
    half_log_det = sigma.prod(1, keepdim=True).log()
    log_ratio = math.log(background_ratio) if background_ratio else -math.inf
    radii = points.new_tensor([_radius(count, low, high, cut_off, log_ratio) for count in counts])[:, None, None]
    boxes = radii * _half_widths(sigma, cos, sin).view(len(counts), max(counts), 2)
    sample, tile, annotation = _visited_tiles(padded[..., :2], boxes, grid, stride)  # [T]
    gaussian = sample * max(counts) + annotation
    tiles = math.prod(tile_counts(grid, TILE))
    starts = torch.searchsorted(sample * tiles + tile, torch.arange(len(counts) * tiles + 1, device=tile.device))

    table = torch.cat([points, _whitening(sigma, cos, sin), half_log_det], dim=1)
    px, py, *whitening, gaussian_log_det = table.index_select(0, gaussian).split(1, dim=1)  # [T, 1]
    # Cells are a tile's origin plus the same 4 x 4 offsets everywhere: [T, 1] + [16] costs a fifth of gathering them.
    columns, offsets = tile_counts(grid, TILE)[1], centres(TILE, stride, points)
    dx = offsets.repeat(TILE) + (tile % columns * (TILE * stride)).to(px)[:, None].sub_(px)  # [T, TILE^2], as all below
    dy = offsets.repeat_interleave(TILE) + (tile // columns * (TILE * stride)).to(px)[:, None].sub_(py)
    z = _exponents(dx, dy, whitening)
    del dx, dy

    z_max, nearest = max_runs(z, starts)  # [B * tiles, TILE^2]
    lengths, entries = starts.diff(), len(z)
    nearest_log_det = gaussian_log_det[nearest, 0] if entries else torch.zeros_like(z_max)

    # Softmax over the Gaussians alone, relative to n*, times the share that the background leaves them.
    relative = (z_max - nearest_log_det).repeat_interleave(lengths, dim=0, output_size=entries)
    weight = z.sub_(gaussian_log_det).sub_(relative).clamp_(min=SMALLEST_EXPONENT).exp_()
    weights = sum_runs(weight, starts)  # at least 1 wherever a Gaussian was visited
    log_odds = log_ratio - cut_off**2 / 2 - 2 * z_max - nearest_log_det - weights.log()
    log_odds = log_odds.clamp_(max=-SMALLEST_EXPONENT).masked_fill_(lengths[:, None] == 0, -SMALLEST_EXPONENT)
    background = from_tiles(log_odds.sigmoid().view(len(counts), tiles, TILE**2), grid, TILE)
    mass = weight.mul_((log_odds.neg_().sigmoid_() / weights).repeat_interleave(lengths, dim=0, output_size=entries))

    kernels, bounds = [], starts[::tiles].tolist()
    for b, (first, end) in enumerate(zip(bounds, bounds[1:])):
        own = starts[b * tiles : (b + 1) * tiles + 1] - first
        kernels.append(TransportKernel(annotation[first:end], own, mass[first:end], background[b], grid, counts[b]))
    return kernels


def dense_transport_kernel(
    means: Array,
    scales: Array,
    rotations: Array,
    crop_size: int | tuple[int, int],
    *,
    stride: int = 8,
    background_ratio: float = 0.015,
    cut_off: float = 3.0,
    post_min: float = 1.0,
    post_max: float = 20.0,
    scale_ratio: float = 1.0,
) -> Tensor:
    """K [N + 1, M] of `transport_kernel`, computed for every cell: the equations, for readers and tests."""
    height, width = _grid(crop_size, stride)
    low, high = _clamp_bounds(stride, background_ratio, cut_off, post_min, post_max, scale_ratio)
    points, sigma, angles = _gaussians(means, scales, rotations).split([2, 2, 1], dim=1)
    if not len(points):
        return points.new_ones(1, height * width)
    y, x = centres(height, stride, points), centres(width, stride, points)
    offsets = torch.cartesian_prod(y, x).flip(1) - points[:, None]  # [N, M, 2]
    sigma = (scale_ratio * sigma).clamp(low, high)
    log_det = 2 * sigma.log().sum(1, keepdim=True)  # of Sigma, [N, 1]
    log_ratio = math.log(background_ratio) if background_ratio else -math.inf
    z = _exponents(*offsets.unbind(2), _whitening(sigma, angles.cos(), angles.sin()).split(1, dim=1))
    z_max, nearest = z.max(dim=0)
    likelihood = z - log_det / 2
    background = -(cut_off**2) / 2 - z_max - log_det[nearest, 0] + log_ratio
    return torch.cat([likelihood, background[None]]).softmax(dim=0)


def _radius(count: int, low: float, high: float, cut_off: float, log_ratio: float) -> float:
    """Distance in standard deviations beyond which `count` Gaussians together hold less than SKIPPED_SHARE of a cell.

    A Gaussian n is skipped where z[n] < -T. Its share is at most exp(l[n]) / (exp(l[n*]) + exp(l_bg)), so at most
    exp(l[n] - (l[n*] + l_bg) / 2) / 2: the arithmetic mean is above the geometric. z[n*] cancels there: l[n*] + l_bg =
    log ratio - cut_off^2 / 2 - 3/2 log det Sigma_n*, and every det lies in [low^4, high^4]: T follows from a share.
    Where n* itself is skipped, z[n] + z[n*] < -2 T bounds exp(l[n] - l_bg) by 4 share^2: all is background, as here.
    """
    share = min(SMALLEST_SHARE, SKIPPED_SHARE / max(count, 1))
    reach = cut_off**2 / 4 - math.log(2 * share) + 3 * math.log(high) - 2 * math.log(low) - log_ratio / 2  # T
    return math.sqrt(2 * max(reach, 0.0))


def _exponents(dx: Tensor, dy: Tensor, whitening: Sequence[Tensor]) -> Tensor:
    """z = -1/2 d^T Sigma^-1 d = -|W d|^2 of offsets d = (dx, dy), which are overwritten.

    Shared by both forms because n* = argmax z must fall on the same Gaussian where two are equally near.
    """
    a, b, c, d = whitening
    first = (a * dx).add_(b * dy).square_()
    second = dx.mul_(c).add_(dy.mul_(d)).square_()
    return first.add_(second).neg_()


def _whitening(sigma: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """W = S^-1 R^T / sqrt(2) with Sigma = R S^2 R^T, row by row: [N, 4]."""
    first, second = (math.sqrt(0.5) / sigma).split(1, dim=1)
    return torch.cat([cos * first, sin * first, -sin * second, cos * second], dim=1)


def _half_widths(sigma: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Square root of the diagonal of Sigma, [N, 2]: half the bounding box (x, y) of the ellipse z = -1/2, pixels."""
    first, second = sigma.split(1, dim=1)
    return torch.cat([torch.hypot(cos * first, sin * second), torch.hypot(sin * first, cos * second)], dim=1)


def _visited_tiles(points: Tensor, boxes: Tensor, grid: tuple[int, int], stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles with a cell centre in points +- boxes [B, N, 2] -> sample, tile, n, sorted, each [T]."""
    reach = boxes + (TILE - 1) / 2 * stride
    near = []
    for axis, count in enumerate(reversed(tile_counts(grid, TILE))):
        distance = (centres(count, TILE * stride, points)[:, None] - points[:, None, :, axis]).abs_()
        near.append(distance <= reach[:, None, :, axis])  # [B, tiles along the axis, N]
    return (near[1][:, :, None] & near[0][:, None]).flatten(1, 2).nonzero(as_tuple=True)


def _grid(crop_size: int | tuple[int, int], stride: int) -> tuple[int, int]:
    """(h, w) cells of a crop."""
    height, width = crop_size if isinstance(crop_size, Sequence) else (crop_size, crop_size)
    if stride < 1 or min(height, width) < stride:
        raise ValueError(f"crop_size: {crop_size} pixels hold no cell of stride {stride}; make it at least one stride")
    return int(height) // stride, int(width) // stride


def _clamp_bounds(stride: int, background_ratio: float, cut_off: float, *positive: float) -> tuple[float, float]:
    """Smallest and largest standard deviation, pixels, after checking the parameters."""
    names = ("background_ratio", "cut_off", "post_min", "post_max", "scale_ratio")
    for name, value in zip(names, (background_ratio, cut_off, *positive)):
        if not 0 <= value < math.inf or (value == 0 and name in names[2:]):
            raise ValueError(f"{name}: {value}, must be finite and {'positive' if name in names[2:] else 'at least 0'}")
    post_min, post_max, _ = positive
    return min(stride / post_min, post_max), post_max


def _check_lengths(names: str, *values: Sequence) -> None:
    lengths = [len(value) for value in values]
    if min(lengths) != max(lengths) or not lengths[0]:
        raise ValueError(f"{names}: {lengths} samples; there must be at least one, and as many of each")


def _gaussians(means: Array, scales: Array, rotations: Array) -> Tensor:
    """Checked columns x, y, s1, s2, theta: [N, 5]; float64 where one of them is, else float32."""
    columns = []
    for name, value, width in (("means", means, 2), ("scales", scales, 2), ("rotations", rotations, 1)):
        value = torch.as_tensor(value).detach()
        if len(means) == 0 and value.numel() == 0:
            value = value.reshape(0, width)
        if value.shape != (len(means), width):
            expected = f"[{len(means)}, {width}], one row for each mean"
            raise ValueError(f"{name}: shape {tuple(value.shape)}, expected {expected}")
        columns.append(value)
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in columns) else torch.float32
    values = torch.cat([value.to(columns[0].device, dtype) for value in columns], dim=1)
    if not (values.isfinite().all() and (columns[1] >= 0).all()):
        good = values.isfinite() & (values >= values.new_tensor([-math.inf, -math.inf, 0, 0, -math.inf]))
        row, column = (~good).nonzero()[0].tolist()
        name, wanted = (("means", ""), ("scales", " and not negative"), ("rotations", ""))[column // 2]
        value = f"{name}: {values[row, column]:g} in row {row}"
        raise ValueError(f"{value}, must be finite{wanted}; fit the image again or drop the point")
    return values
