"""What the losses read from a batch of density maps and annotations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from GS2D.kernel import BlockKernel


class Annotations(Protocol):
    """The annotations of B crops, such as ``datasets.crowd.Batch``, checked where they were loaded; pixels of the crop."""

    points: Tensor  # [B, n, 2], (x, y), zeros after the last point of a crop
    targets: Tensor  # [B, n], share of each annotation that belongs to the crop, zeros after the last
    counts: Tensor  # [B], points of each crop
    sizes: Sequence[int]  # the same, known without asking the device
    kernel: BlockKernel | None  # of the crops, for the losses that transport
    received: Tensor | None  # [R], what each row of that kernel ought to receive


def check_density(density: Tensor) -> None:
    """Raise ValueError unless ``density`` is [B, 1, h, w]."""
    if density.ndim != 4 or density.shape[1] != 1 or not density.numel():
        raise ValueError(f"density: shape {tuple(density.shape)}, expected [B, 1, h, w] with at least one cell")


def cells_of(density: Tensor, batch: Annotations) -> tuple[Tensor, Tensor]:
    """Cells [B, h, w] and points [B, n, 2] of ``density`` [B, 1, h, w], on its device, at least float32.

    Sums over thousands of cells and exponentials need more than half precision. Raises ValueError where shapes do not fit.
    """
    check_density(density)
    if len(batch.points) != len(density):
        raise ValueError(f"density, points: {len(density)} and {len(batch.points)} samples, expected equally many")
    cells = density[:, 0].float() if density.dtype in (torch.float16, torch.bfloat16) else density[:, 0]
    return cells, batch.points.to(cells)


def samples(density: Tensor, batch: Annotations) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Density [h, w], points [n, 2] and targets [n] of each crop: ``cells_of``, one by one."""
    for cells, points, targets, size in zip(*cells_of(density, batch), batch.targets, batch.sizes):
        yield cells, points[:size], targets[:size].to(cells)
