"""Direct regression on density maps of Gaussians (Zhang et al., CVPR 2016, MCNN)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from losses.inputs import Annotations, samples

NEIGHBOURS, BETA = 3, 0.3
DISTANCES = (4.0, 128.0)  # pixels; neighbour distances outside are clipped, as for the boxes that define the targets
SMALLEST_SHARE = 1e-6  # of a Gaussian that must lie in the crop before it is scaled up to its target


def regression_loss(
    density: Tensor, batch: Annotations, *, stride: int = 8, sigma: float = 15.0, adaptive: bool = False
) -> Tensor:
    """1 / (2 B) sum over crops and cells of (D - T)^2, the scale of MCNN's Eq. 2: [B, 1, h, w] -> scalar.

    T [h, w] is ``target_density``: of width sigma (pixels), or with ``adaptive`` of 0.3 times the mean distance to the 3
    nearest annotations. Without annotations T is 0. Raises ValueError where shapes do not fit together.
    """
    total = density.new_zeros((), dtype=torch.float32)
    for cells, points, targets in samples(density, batch):
        widths = BETA * clipped_neighbour_distance(points) if adaptive else torch.full_like(targets, sigma)
        truth = target_density(points, widths, targets, cells.shape, stride)
        total = total + (cells - truth).square().sum() / 2
    return total / len(density)


def target_density(points: Tensor, widths: Tensor, masses: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Isotropic Gaussians [n, 2] of standard deviations ``widths`` [n], integrated over each cell (exactly): [h, w].

    What of a Gaussian lies in the crop is scaled to its mass of ``masses`` [n], so that the sum is the count that the other
    losses regress.
    """
    scale = math.sqrt(2) * widths[:, None]
    shares = []  # of each Gaussian in each row, [n, h], and in each column, [n, w]
    for axis, count in ((1, grid[0]), (0, grid[1])):
        edges = torch.arange(count + 1, dtype=points.dtype, device=points.device) * stride
        shares.append(torch.erf((edges - points[:, axis, None]) / scale).diff(dim=1) / 2)
    rows, columns = shares
    inside = (rows.sum(dim=1) * columns.sum(dim=1)).clamp(min=SMALLEST_SHARE)
    return (rows * (masses / inside)[:, None]).T @ columns


def clipped_neighbour_distance(points: Tensor) -> Tensor:
    """Mean distance to the 3 nearest other points (fewer where there are fewer), clipped to [4, 128] pixels: [n].

    A single point has 128.
    """
    if len(points) < 2:
        return torch.full_like(points[:, 0], DISTANCES[1])
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
    nearest = distances.topk(min(NEIGHBOURS, len(points) - 1), dim=1, largest=False).values
    return nearest.mean(dim=1).clamp(*DISTANCES)
