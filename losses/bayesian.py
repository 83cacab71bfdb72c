"""The kernels of Bayesian loss, BL and BL+ (Ma, Wei, Hong and Gong, ICCV 2019); their loss is that of ``losses.transport``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from GS2D.kernel import Array, cell_grid, centres, checked_columns, compress, csr, softmax_rows, takes_native

BACKGROUNDS = {"paper": 0.15, "code": 1.0}  # form of the background's distance -> its share of the short side


def bayesian_kernel(
    points: Array,
    scales: Array,
    rotations: Array,
    crop_size: int | tuple[int, int],
    short_side: float,
    *,
    stride: int = 8,
    sigma: float = 8.0,
    background: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """K of one crop, ``posterior`` as a sparse matrix [N, M], or [N + 1, M] with a background (BL+).

    points [N, 2]: pixels of the crop; scales and rotations are not read. The background lies a share (``BACKGROUNDS``) of
    ``short_side`` away, the image's short side in pixels. Without annotations: one row of ones. backend: as in
    ``GS2D.kernel.transport_kernel``. Raises ValueError for points that are not finite and an unknown background.
    """
    if background not in (None, *BACKGROUNDS):
        raise ValueError(f"background: {background!r}, must be None or one of {', '.join(BACKGROUNDS)}")
    grid = cell_grid(crop_size, stride)
    points = checked_columns({"points": (points, 2)}).float().cpu()
    if not len(points):
        return compress(torch.ones(1, grid[0] * grid[1]))
    reach = BACKGROUNDS[background] * float(short_side) if background else 0.0
    if not takes_native(backend):
        return compress(posterior(points, grid, stride, sigma, background, reach))
    scale = math.sqrt(0.5) / sigma
    table = torch.cat([points, torch.tensor([scale, 0, 0, scale, 0]).expand(len(points), 5)], dim=1)

    def log_odds(nearest: Tensor, _: Tensor) -> Tensor:
        if not background:
            return torch.full_like(nearest, -math.inf)
        squared = 2 * sigma**2 * nearest
        return (squared - _background(squared, background, reach)) / (2 * sigma**2)

    kernel = softmax_rows(table, grid, stride, log_odds)
    if background:
        return kernel
    return csr(kernel.crow_indices()[:-1], kernel.col_indices(), kernel.values(), kernel.shape[1])


def posterior(
    points: Tensor, grid: tuple[int, int], stride: int, sigma: float, background: str | None = None, reach: float = 0.0
) -> Tensor:
    """K = softmax over the annotations of -|x_m - p_n|^2 / (2 sigma^2): [N, 2] -> [N, M], or [N + 1, M] with background."""
    dy = centres(grid[0], stride, points) - points[:, 1:]
    dx = centres(grid[1], stride, points) - points[:, :1]
    squared = (dy.square()[:, :, None] + dx.square()[:, None]).flatten(1)  # [N, M]
    if background:
        squared = torch.cat([squared, _background(squared.amin(dim=0, keepdim=True), background, reach)])
    return squared.div_(-2 * sigma**2).softmax(dim=0)


def _background(nearest: Tensor, form: str, reach: float) -> Tensor:
    """The background's squared distance from a cell whose nearest annotation has the squared distance ``nearest``.

    With d that distance (pixels): (reach - d)^2 in the paper, reach^2 / (d^2 + 1e-5) in the released code.
    """
    return (reach - nearest.sqrt()).square() if form == "paper" else reach**2 / (nearest + 1e-5)
