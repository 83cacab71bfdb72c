"""What the losses read from a batch of density maps and annotations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from losses.tiles import centres


class Annotations(Protocol):
    """The annotations of B crops, such as ``datasets.crowd.Batch``: lists of B entries, in pixels of the crop."""

    points: Sequence[Tensor]  # [n, 2], (x, y)
    scales: Sequence[Tensor]  # [n, 2], standard deviations of the fitted Gaussians
    rotations: Sequence[Tensor]  # [n, 1], radians
    targets: Sequence[Tensor]  # [n], share of each annotation that belongs to the crop
    kernels: Sequence[Any]  # stored transport kernels in compressed sparse rows, or None


def check_density(density: Tensor) -> None:
    """Raise ValueError unless ``density`` is [B, 1, h, w]."""
    if density.ndim != 4 or density.shape[1] != 1 or not density.numel():
        raise ValueError(f"density: shape {tuple(density.shape)}, expected [B, 1, h, w] with at least one cell")


def samples(density: Tensor, batch: Annotations) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Density [h, w], points [n, 2] and targets [n] of each crop of ``density`` [B, 1, h, w], on its device.

    Half precision becomes float32: sums over thousands of cells and exponentials need it. Raises ValueError where shapes
    do not fit together or a point is not finite.
    """
    check_density(density)
    if not len(density) == len(batch.points) == len(batch.targets):
        lengths = f"{len(density)}, {len(batch.points)} and {len(batch.targets)}"
        raise ValueError(f"density, points, targets: {lengths} samples, expected equally many")
    if density.dtype in (torch.float16, torch.bfloat16):
        density = density.float()
    for b, (cells, points, targets) in enumerate(zip(density[:, 0], batch.points, batch.targets)):
        points = torch.as_tensor(points).detach().to(cells)
        targets = torch.as_tensor(targets).detach().to(cells)
        points = points if points.numel() else points.reshape(0, 2)  # an empty file may hold shape (0,)
        if points.ndim != 2 or points.shape[1] != 2 or targets.shape != points.shape[:1]:
            shapes = f"shapes {tuple(points.shape)} and {tuple(targets.shape)}"
            raise ValueError(f"points[{b}], targets[{b}]: {shapes}, expected [n, 2] and [n]")
        if not points.isfinite().all():
            row = int((~points.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"points[{b}]: {points[row].tolist()} in row {row}, must be finite; drop the point")
        yield cells, points, targets


def offsets(points: Tensor, grid: Sequence[int], stride: int) -> tuple[Tensor, Tensor]:
    """Distances along x [n, w] and along y [n, h] from points [n, 2] to the centres of (h, w) cells, pixels."""
    return centres(grid[1], stride, points) - points[:, :1], centres(grid[0], stride, points) - points[:, 1:]
