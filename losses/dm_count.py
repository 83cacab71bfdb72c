"""DM-Count (Wang, Liu, Samaras and Hoai, NeurIPS 2020): counts, optimal transport and total variation.

POT has no solver that agrees with the released one: that one adds 1e-16 to every denominator, and exp(-C / 10) underflows
beyond 30 pixels, so that these decide the dual variable of most cells. ``ot.sinkhorn`` without them stops at its first
iterate or, in the log domain, returns the exact dual: gradients differ by 10 % to several times. Hence the loop here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from losses.inputs import Annotations, offsets, samples

TINY = 1e-16  # added to denominators and to the logarithm's argument; part of the result
CHECK_EVERY = 10  # iterations between two looks at the stopping rule


def dm_count_loss(
    density: Tensor,
    sample: Annotations,
    *,
    ot_weight: float = 0.1,
    tv_weight: float = 0.01,
    **options,
) -> Tensor:
    """|sum D - N| + 0.1 OT + 0.01 TV: [B, 1, h, w] -> scalar; options: those of ``dm_count_terms``.

    As in the released code OT is summed over the batch, the others are averaged. Every annotation counts 1, whatever its
    target. The gradient of OT is that of <D, g> with g held constant, whose value is 0 up to rounding: the loss's value
    says nothing about the transport. Without annotations: |sum of D|. Raises ValueError where shapes do not fit.
    """
    transport, count, variation = dm_count_terms(density, sample, **options).unbind(dim=1)
    return count.mean() + ot_weight * transport.sum() + tv_weight * variation.mean()


def dm_count_terms(
    density: Tensor,
    sample: Annotations,
    *,
    stride: int = 8,
    regularisation: float = 10.0,
    iterations: int = 100,
    tolerance: float = 1e-9,
    solver: str = "separable",
) -> Tensor:
    """<D, g>, |S - N| and N sum |D' - dots / (N + 1e-6)| of each crop, [B, 3], with S = sum D, D' = D / (S + 1e-6).

    g = beta S / (S^2 + 1e-8) - <D, beta> / (S^2 + 1e-8), beta the dual variable of D' by one of ``SOLVERS``. dots: points
    counted in the cell they lie in, or in the nearest where they lie outside the crop.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver: {solver!r}, must be one of {', '.join(SOLVERS)}")
    terms = []
    for cells, points, _ in samples(density, sample):
        total, number = cells.sum(), len(points)
        count = (total - number).abs()
        if not number:
            terms.append(torch.stack([torch.zeros_like(count), count, torch.zeros_like(count)]))
            continue
        mass = cells / (total + 1e-6)
        with torch.no_grad():
            squared = tuple(offset.square() for offset in offsets(points, cells.shape, stride))
            beta = SOLVERS[solver](mass, *squared, regularisation, iterations, tolerance)
            scale = total.square() + 1e-8
            gradient = beta * (total / scale) - (cells * beta).sum() / scale
        variation = number * (mass - dots(points, cells.shape, stride) / (number + 1e-6)).abs().sum()
        terms.append(torch.stack([(cells * gradient).sum(), count, variation]))
    return torch.stack(terms)


def dots(points: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Number of points in each cell: [n, 2] -> [h, w]."""
    column = (points[:, 0] // stride).clamp(0, grid[1] - 1).long()
    row = (points[:, 1] // stride).clamp(0, grid[0] - 1).long()
    return (row * grid[1] + column).bincount(minlength=grid[0] * grid[1]).to(points.dtype).view(*grid)


def separable_dual(mass: Tensor, dx2: Tensor, dy2: Tensor, regularisation: float, *rule: float) -> Tensor:
    """``dense_dual`` with exp(-C / r) = exp(-dy^2 / r) exp(-dx^2 / r), never formed: n (h + w) numbers instead of n h w."""
    along_x, along_y = (dx2 / -regularisation).exp(), (dy2 / -regularisation).exp()  # [n, w], [n, h]
    return regularisation * _sinkhorn(
        mass,
        len(dx2),
        lambda u: along_y.T @ (u[:, None] * along_x),
        lambda v: ((along_y @ v) * along_x).sum(dim=1),
        *rule,
    )


def dense_dual(mass: Tensor, dx2: Tensor, dy2: Tensor, regularisation: float, *rule: float) -> Tensor:
    """beta [h, w] of D' [h, w] against points of mass 1 / n, as published; dx2 [n, w], dy2 [n, h]: squared offsets.

    K = exp(-C / r) [n, M] with C the squared distance in pixels.
    """
    kernel = ((dy2[:, :, None] + dx2[:, None]) / -regularisation).exp().flatten(1)
    return regularisation * _sinkhorn(
        mass,
        len(dx2),
        lambda u: (u @ kernel).view_as(mass),
        lambda v: kernel @ v.flatten(),
        *rule,
    )


def log_dual(
    mass: Tensor, dx2: Tensor, dy2: Tensor, regularisation: float, iterations: int, tolerance: float
) -> Tensor:
    """The exact dual variable, by the same iterations on log u and log v: nothing underflows at any distance.

    Cells without mass count as 1e-16, which keeps their dual variable finite.
    """
    log_kernel = ((dy2[:, :, None] + dx2[:, None]) / -regularisation).flatten(1)  # [n, M]
    log_mass = (mass.flatten() + TINY).log()
    share = -torch.tensor(float(len(dx2)), dtype=mass.dtype, device=mass.device).log()
    log_u = share.expand(len(dx2), 1)
    for iteration in range(1, iterations + 1):
        log_v = log_mass - (log_kernel + log_u).logsumexp(dim=0)
        log_u = share - (log_kernel + log_v).logsumexp(dim=1, keepdim=True)
        if iteration % CHECK_EVERY == 0:
            transported = (log_v + (log_kernel + log_u).logsumexp(dim=0)).exp()
            if (transported - mass.flatten()).square().sum() <= tolerance:
                break
    return regularisation * log_v.view_as(mass)


SOLVERS = {"separable": separable_dual, "dense": dense_dual, "log": log_dual}


def _sinkhorn(
    mass: Tensor,
    number: int,
    to_cells: Callable[[Tensor], Tensor],
    to_points: Callable[[Tensor], Tensor],
    iterations: int,
    tolerance: float,
) -> Tensor:
    """log v [h, w] of v = D' / (K^T u + 1e-16), u = (1/n) / (K v + 1e-16), from u = 1/n and v = 1/M.

    Stops when, looked at every 10th iteration, |K^T u * v - D'|^2 is within the tolerance; where u or v becomes NaN or
    infinite, with the iterate before.
    """
    u, v = mass.new_full((number,), 1 / number), torch.full_like(mass, 1 / mass.numel())
    for iteration in range(1, iterations + 1):
        new_v = mass / (to_cells(u) + TINY)
        new_u = 1 / number / (to_points(new_v) + TINY)
        if not (new_u.isfinite().all() and new_v.isfinite().all()):
            break
        u, v = new_u, new_v
        if iteration % CHECK_EVERY == 0 and (to_cells(u) * v - mass).square().sum() <= tolerance:
            break
    return (v + TINY).log()
