"""The transport kernel (Eqs. 5 and 7) and the transported-mass loss (Eq. 6) of Shang and Hong, AAAI 2026.

Column m of the kernel K is the distribution over the N annotations and the background of the mass predicted on cell m.
`dense_transport_kernel` states the equations; `transport_kernels` computes the same numbers near the Gaussians only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from GS2D import native
from losses.kernel import SMALLEST_SHARE, Transport, TransportKernel
from losses.kernel_inputs import Array, cell_grid, check_lengths, checked_gaussians, clamp_bounds
from losses.tiles import centres, from_tiles, min_runs, sum_runs, tile_counts, to_tiles, visited_tiles

TILE = 4  # cells along the side of the tiles that are visited or skipped as a whole
WIDTH = 8  # annotations side by side in a group
SKIPPED_SHARE = 5e-7  # of a cell's mass that all skipped Gaussians together may have had
FAR = 1e30  # stands for infinity where 0 times it shall be 0
SMALLEST_EXPONENT = -40.0  # exp of less is nothing beside 1, and a hundred times slower once it is subnormal


class TransportedMassLoss(nn.Module):
    """Eq. 6: mean over the samples of sum_n |target_n - (K density)_n|, the background's target being 0."""

    def forward(self, density: Tensor, kernels: Sequence[TransportKernel], targets: Sequence[Array]) -> Tensor:
        """density [B, 1, h, w], B kernels, B targets [N] (fractions allowed) -> scalar.

        Half precision is computed in float32. A sample without annotations has loss |sum of its density|. Only the
        density receives a gradient. Raises ValueError where shapes do not fit together.
        """
        if density.ndim != 4 or density.shape[1] != 1:
            raise ValueError(f"density: shape {tuple(density.shape)}, expected [B, 1, h, w]")
        check_lengths("density, kernels, targets", density, kernels, targets)
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
        received = Transport.apply(to_tiles(cells, kernels[0].side), annotation, starts, mass, len(target))
        background = (torch.stack([kernel.background for kernel in kernels]) * cells.flatten(1)).sum(1)
        return ((target - received).abs().sum() + background.abs().sum()) / len(density)


def _block_diagonal(kernels: Sequence[TransportKernel]) -> tuple[Tensor, Tensor, Tensor]:
    """annotation, starts and mass of the kernel of all samples at once, their rows and tiles one after another."""
    if len(kernels) == 1:
        return kernels[0].annotation, kernels[0].starts, kernels[0].mass
    if len({kernel.side for kernel in kernels}) > 1:
        raise ValueError("kernels: some come from compressed rows, some do not; make all of a batch in the same way")
    rows = accumulate((kernel.num_annotations for kernel in kernels), initial=0)
    groups = accumulate((kernel.mass.shape[2] for kernel in kernels), initial=0)
    annotation = torch.cat([kernel.annotation + first for kernel, first in zip(kernels, rows)], dim=1)
    starts = torch.cat([kernels[0].starts[:1]] + [kernel.starts[1:] + first for kernel, first in zip(kernels, groups)])
    return annotation, starts, torch.cat([kernel.mass for kernel in kernels], dim=2)


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
    backend: str = "auto",
) -> TransportKernel:
    """The kernel K (Eqs. 5 and 7) of one sample; without annotations it is a background row of ones.

    means [N, 2]: (x, y), pixels of the crop, also outside it; scales [N, 2]: standard deviations, pixels; rotations
    [N, 1]: radians. crop_size: pixels, one number or (height, width); cells are (height // stride) x (width // stride).
    Scales become clamp(scale_ratio * scales, stride / post_min, post_max). background_ratio = 0: no background.
    Computed in float32, or in float64 where an input is. backend: "torch" runs anywhere; "native", the engine in C++, on a
    CPU in float32; "auto" takes the engine where it can.

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
        backend=backend,
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
    backend: str = "auto",
) -> list[TransportKernel]:
    """`transport_kernel` of a batch of samples in one pass: lists of [N, 2], [N, 2] and [N, 1] -> list of kernels."""
    grid = cell_grid(crop_size, stride)
    low, high = clamp_bounds(stride, background_ratio, cut_off, post_min, post_max, scale_ratio)
    check_lengths("means, scales, rotations", means, scales, rotations)
    samples = [checked_gaussians(*sample) for sample in zip(means, scales, rotations)]
    log_ratio = math.log(background_ratio) if background_ratio else -math.inf
    if _takes_native(backend, samples):
        shape = low, high, scale_ratio
        return [_native_kernel(sample, grid, stride, shape, cut_off, log_ratio) for sample in samples]
    counts = [len(sample) for sample in samples]
    # Shorter samples end in NaN, which is never visited; the last rows of each are there to fill groups up.
    padded = pad_sequence(samples, batch_first=True, padding_value=math.nan)
    padded = F.pad(padded, (0, 0, 0, WIDTH - 1), value=math.nan)  # [B, P, 5]
    sigma = (scale_ratio * padded[..., 2:4]).clamp(low, high)
    cos, sin = padded[..., 4:].cos(), padded[..., 4:].sin()
    half_log_det = sigma.prod(2).log()
    ellipses = _ellipses(sigma, cos, sin, _reach(half_log_det, counts, cut_off, log_ratio))
    run, annotation, starts = visited_tiles(padded[..., :2], ellipses, grid, stride, TILE, WIDTH)

    rows, columns = tile_counts(grid, TILE)
    gaussian = (annotation + (run // (rows * columns)).mul_(padded.shape[1])).flatten()
    table = torch.cat([padded[..., :2], _whitening(sigma, cos, sin)], dim=2).flatten(0, 1).T
    table = table.contiguous().nan_to_num_(FAR)  # fillers become infinitely far
    px, py, *whitening = table.index_select(1, gaussian).view(len(table), *annotation.shape)  # [W, G]
    gaussian_log_det = half_log_det.flatten().nan_to_num(FAR).index_select(0, gaussian).view_as(annotation)
    # A tile's cells share four columns and four rows: what depends on one of both alone costs a quarter.
    x = centres(columns * TILE, stride, px).view(columns, TILE).T.index_select(1, run % columns)  # [TILE, G]
    y = centres(rows * TILE, stride, py).view(rows, TILE).T.index_select(1, run // columns % rows)
    distance = _distances((x[:, None] - px)[None], (y[:, None] - py)[:, None], whitening).flatten(0, 1)
    del gaussian, px, py, whitening

    nearest, group = min_runs(distance.amin(1), starts)  # [TILE^2, B * tiles]
    nearest_log_det = torch.zeros_like(nearest)
    if len(run):
        candidates = distance.gather(2, group[:, None].expand(-1, WIDTH, -1))
        nearest_log_det = gaussian_log_det[candidates.min(1).indices, group]

    # Softmax over the Gaussians alone, relative to n*, times the share that the background leaves them.
    relative = (nearest + nearest_log_det).index_select(1, run)[:, None]
    weight = torch.sub(relative, distance, out=distance).sub_(gaussian_log_det).clamp_(min=SMALLEST_EXPONENT).exp_()
    F.threshold_(weight, 2 * math.exp(SMALLEST_EXPONENT), 0.0)  # nothing at all for fillers
    weights = sum_runs(weight.sum(1), starts)  # at least 1 wherever a Gaussian was visited
    log_odds = log_ratio - cut_off**2 / 2 + 2 * nearest - nearest_log_det - weights.log()
    log_odds = log_odds.clamp_(max=-SMALLEST_EXPONENT).masked_fill_(starts.diff() == 0, -SMALLEST_EXPONENT)
    background = from_tiles(log_odds.sigmoid().T.reshape(len(counts), rows * columns, TILE**2), grid, TILE)
    mass = weight.mul_((log_odds.neg_().sigmoid_() / weights).index_select(1, run)[:, None])

    kernels, tiles = [], rows * columns
    bounds = starts[::tiles].tolist()
    for b, (first, end, count) in enumerate(zip(bounds, bounds[1:], counts)):
        own = starts[b * tiles : (b + 1) * tiles + 1]
        receiver = annotation[:, first:end].clamp(max=count - 1)  # fillers give nothing, but to somebody
        kernels.append(TransportKernel(receiver, own - first, mass[..., first:end], background[b], grid, count))
    return kernels


def _takes_native(backend: str, samples: Sequence[Tensor]) -> bool:
    """Whether the engine computes these samples; ValueError for a backend that cannot."""
    if backend not in ("auto", "torch", "native"):
        raise ValueError(f"backend: {backend!r}, must be auto, torch or native")
    fits = all(sample.device.type == "cpu" and sample.dtype == torch.float32 for sample in samples)
    if backend == "native" and not fits:
        raise ValueError("backend: native computes in float32 on the CPU; take torch for these inputs")
    if backend == "auto" and fits:
        return native.works()
    return backend == "native"


def _native_kernel(
    gaussians: Tensor,
    grid: tuple[int, int],
    stride: int,
    shape: tuple[float, float, float],
    cut_off: float,
    log_ratio: float,
) -> TransportKernel:
    """The kernel of Gaussians [N, 5] by the engine; shape: smallest and largest scale, factor on the scales."""
    low, high, scale_ratio = shape
    rows, columns = tile_counts(grid, TILE)
    table = gaussians.new_zeros(0, 11)
    if len(gaussians):
        points, sigma, angles = gaussians.split([2, 2, 1], dim=1)
        sigma, cos, sin = (scale_ratio * sigma).clamp(low, high), angles.cos(), angles.sin()
        half_log_det = sigma.prod(1).log()
        reach = _reach(half_log_det[None], [len(points)], cut_off, log_ratio)[0]
        ellipses = torch.stack([half_log_det, *_ellipses(sigma, cos, sin, reach)], dim=1)
        table = torch.cat([points, _whitening(sigma, cos, sin), ellipses], dim=1)
    arrays = native.transport(table.numpy(), rows, columns, stride, log_ratio - cut_off**2 / 2)
    starts, annotation, mass, background = map(torch.from_numpy, arrays)
    background = from_tiles(background[None], grid, TILE)[0]
    return TransportKernel(annotation[None], starts, mass[:, None], background, grid, len(gaussians))


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
    height, width = cell_grid(crop_size, stride)
    low, high = clamp_bounds(stride, background_ratio, cut_off, post_min, post_max, scale_ratio)
    points, sigma, angles = checked_gaussians(means, scales, rotations).split([2, 2, 1], dim=1)
    if not len(points):
        return points.new_ones(1, height * width)
    y, x = centres(height, stride, points), centres(width, stride, points)
    offsets = torch.cartesian_prod(y, x).flip(1) - points[:, None]  # [N, M, 2]
    sigma = (scale_ratio * sigma).clamp(low, high)
    log_det = 2 * sigma.log().sum(1, keepdim=True)  # of Sigma, [N, 1]
    log_ratio = math.log(background_ratio) if background_ratio else -math.inf
    z = -_distances(*offsets.unbind(2), _whitening(sigma, angles.cos(), angles.sin()).split(1, dim=1))
    z_max, nearest = z.max(dim=0)
    likelihood = z - log_det / 2
    background = -(cut_off**2) / 2 - z_max - log_det[nearest, 0] + log_ratio
    return torch.cat([likelihood, background[None]]).softmax(dim=0)


def _reach(half_log_det: Tensor, counts: Sequence[int], cut_off: float, log_ratio: float) -> Tensor:
    """T [B, P] such that all Gaussians skipped where z[n] < -T[n] together hold less than SKIPPED_SHARE of a cell.

    half_log_det [B, P]: of Sigma, NaN where a row is no Gaussian. The share of n is at most exp(l[n]) / (exp(l[n*]) +
    exp(l_bg)), so at most exp(l[n] - (l[n*] + l_bg) / 2) / 2: the arithmetic mean is above the geometric. z[n*] cancels
    there: l[n*] + l_bg = log ratio - cut_off^2 / 2 - 3/2 log det Sigma_n*, at least that of the sample's largest det.
    Where n* itself is skipped, z[n] + z[n*] < -T[n] - T[n*] bounds exp(l[n] - l_bg) by 4 share^2: all is background.
    """
    share = half_log_det.new_tensor([min(SMALLEST_SHARE, SKIPPED_SHARE / max(count, 1)) for count in counts])
    largest = half_log_det.nan_to_num(-FAR).amax(1)
    reach = (cut_off**2 / 4 - log_ratio / 2 - (2 * share).log() + 1.5 * largest)[:, None] - half_log_det
    return reach.clamp(0, FAR)


def _distances(dx: Tensor, dy: Tensor, whitening: Sequence[Tensor]) -> Tensor:
    """-z = 1/2 d^T Sigma^-1 d = |W d|^2 of offsets d = (dx, dy), which are overwritten.

    Shared by both forms (the engine rounds alike) because n* = argmax z must fall on the same Gaussian where two are equally near.
    """
    a, b, c, d = whitening
    first = (a * dx + b * dy).square_()
    second = dx.mul_(c) + dy.mul_(d)
    return first.add_(second.square_())


def _whitening(sigma: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """W = S^-1 R^T / sqrt(2) with Sigma = R S^2 R^T, row by row: [..., 4]."""
    first, second = (math.sqrt(0.5) / sigma).split(1, dim=-1)
    return torch.cat([cos * first, sin * first, -sin * second, cos * second], dim=-1)


def _ellipses(sigma: Tensor, cos: Tensor, sin: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of z = -reach: half its width and height, pixels, the correlation r of x and y, and sqrt(1 - r^2): [B, P] each."""
    (first, second), cos, sin = sigma.unbind(-1), cos[..., 0], sin[..., 0]
    x, y = torch.hypot(cos * first, sin * second), torch.hypot(sin * first, cos * second)
    r, rest = cos * sin * (first - second) * (first + second) / (x * y), first * second / (x * y)
    radius = (2 * reach).sqrt()
    return radius * x, radius * y, r, rest
