"""DM-Count (Wang, Liu, Samaras and Hoai, NeurIPS 2020): counts, optimal transport and total variation.

POT has no solver that agrees with the released one: that one adds 1e-16 to every denominator, and exp(-C / 10) underflows
beyond 30 pixels, so that these decide the dual variable of most cells. ``ot.sinkhorn`` without them stops at its first
iterate or, in the log domain, returns the exact dual: gradients differ by 10 % to several times. Hence the loop here.

All crops of a batch go through the same operations, and nothing is read back from the device: where a crop has met the
stopping rule, its iterate is kept while the others go on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from GS2D.kernel import centres
from losses.inputs import Annotations, cells_of
from utils.pixels import STRIDE

TINY = 1e-16  # added to denominators and to the logarithm's argument; part of the result
REGULARISATION, ITERATIONS, TOLERANCE = 10.0, 100, 1e-9
CHECK_EVERY = 10  # iterations between two looks at the stopping rule


def dm_count_loss(density: Tensor, batch: Annotations, *, crops: int | None = None) -> Tensor:
    """Mean over the batch of |sum D - N| + 0.1 crops OT + 0.01 TV (``dm_count_terms``): [B, 1, h, w] -> scalar.

    The released code averages all but OT, which it sums over the batch. Here crops is the number of crops of the step that
    this batch is a part of (default: B), so that the step does not depend on how they are divided among batches and
    processes. Every annotation counts 1, whatever its target. The gradient of OT is that of <D, g> with g held constant, whose
    value is 0 up to rounding: the loss's value says nothing about the transport. Without annotations: |sum of D|. Raises
    ValueError where shapes do not fit.
    """
    transport, count, variation = dm_count_terms(density, batch).unbind(dim=1)
    crops = len(density) if crops is None else crops
    return count.mean() + 0.1 * (crops / len(density)) * transport.sum() + 0.01 * variation.mean()


def dm_count_terms(density: Tensor, batch: Annotations) -> Tensor:
    """<D, g>, |S - N| and N sum |D' - dots / (N + 1e-6)| of each crop, [B, 3], with S = sum D, D' = D / (S + 1e-6).

    g = beta S / (S^2 + 1e-8) - <D, beta> / (S^2 + 1e-8), beta the dual variable of D' (``separable_dual``). dots: points
    counted in the cell they lie in, or in the nearest where they lie outside the crop.
    """
    cells, points = cells_of(density, batch)  # [B, h, w], [B, n, 2]
    number = batch.counts.to(cells)
    present = torch.arange(points.shape[1], device=cells.device) < number[:, None]  # [B, n]
    total = cells.sum(dim=(1, 2))
    mass = cells / (total + 1e-6)[:, None, None]
    with torch.no_grad():
        dy2 = (centres(cells.shape[1], STRIDE, cells) - points[..., 1:]).square()  # [B, n, h]
        dx2 = (centres(cells.shape[2], STRIDE, cells) - points[..., :1]).square()  # [B, n, w]
        beta = separable_dual(mass, dx2, dy2, present, number)
        scale = total.square() + 1e-8
        shift = (cells * beta).sum(dim=(1, 2)) / scale
        gradient = beta * (total / scale)[:, None, None] - shift[:, None, None]
        gradient = torch.where((number > 0)[:, None, None], gradient, 0)  # nothing to transport to
    dots = dot_map(points, present, cells.shape[1:], STRIDE)
    transport = (cells * gradient).sum(dim=(1, 2))
    variation = number * (mass - dots / (number + 1e-6)[:, None, None]).abs().sum(dim=(1, 2))
    return torch.stack([transport, (total - number).abs(), variation], dim=1)


def dot_map(points: Tensor, present: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Number of points in each cell: [B, n, 2], [B, n] -> [B, h, w]."""
    column = (points[..., 0] // stride).clamp(0, grid[1] - 1)
    row = (points[..., 1] // stride).clamp(0, grid[0] - 1)
    batch = torch.arange(len(points), device=points.device)[:, None]
    cell = ((batch * grid[0] + row) * grid[1] + column).long().flatten()
    dots = torch.zeros(len(points) * grid[0] * grid[1], dtype=points.dtype, device=points.device)
    return dots.index_add_(0, cell, present.to(points.dtype).flatten()).view(-1, *grid)


def separable_dual(
    mass: Tensor,
    dx2: Tensor,
    dy2: Tensor,
    present: Tensor,
    number: Tensor,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> Tensor:
    """beta [B, h, w] of D' [B, h, w] against points of mass 1 / N; dx2 [B, n, w], dy2 [B, n, h]: squared offsets, pixels.

    As published, beta = r log(v + 1e-16) with v = D' / (K^T u + 1e-16) and u = (1/N) / (K v + 1e-16), from u = 1/N.
    K = exp(-C / r) = exp(-dy^2 / r) exp(-dx^2 / r) is never formed: n (h + w) numbers instead of n h w. Points that are not
    ``present`` [B, n] take part in nothing. A crop keeps the iterate at which, looked at every 10th iteration,
    |K^T u * v - D'|^2 is within the tolerance. The published rule to go back one iterate from NaN or infinity could apply
    only to a density that is not finite itself, since no denominator is below 1e-16; its loss is not finite anyway.
    """
    along_x = (dx2 / -REGULARISATION).exp() * present[..., None]  # [B, n, w]
    along_y = (dy2 / -REGULARISATION).exp()  # [B, n, h]
    turned, lines, tiny = along_y.transpose(1, 2), along_x.flatten(0, 1)[..., None], mass.new_full((), TINY)

    def to_cells(u: Tensor) -> Tensor:
        return torch.baddbmm(tiny, turned, u[..., None] * along_x)

    u = share = 1 / number[:, None]
    final, stopped = mass, torch.zeros_like(mass[:, :1, :1], dtype=torch.bool)
    for iteration in range(1, iterations + 1):
        v = mass / to_cells(u)
        to_points = torch.baddbmm(tiny, torch.bmm(along_y, v).flatten(0, 1)[:, None], lines)
        u = share / to_points.view(present.shape)
        if iteration % CHECK_EVERY == 0 or iteration == iterations:
            final = torch.where(stopped, final, v)
            received = (to_cells(u) - TINY) * v  # the rule's have nothing added: v is up to 1e16 D'
            error = (received - mass).square().sum(dim=(1, 2), keepdim=True)
            stopped = stopped | (error <= tolerance)
    return REGULARISATION * (final + TINY).log()
