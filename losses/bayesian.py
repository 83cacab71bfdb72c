"""Bayesian loss, BL and BL+ (Ma, Wei, Hong and Gong, ICCV 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.inputs import Annotations, offsets, samples

BACKGROUNDS = {"paper": 0.15, "code": 1.0}  # form of the background's distance -> its share of the short side


def bayesian_loss(
    density: Tensor,
    sample: Annotations,
    *,
    stride: int = 8,
    sigma: float = 8.0,
    background: str | None = None,
    background_ratio: float | None = None,
) -> Tensor:
    """Mean over the batch of sum_n |target_n - (K D)_n|, K being ``posterior``: [B, 1, h, w] -> scalar.

    The targets are the shares of the annotations that belong to the crop, as in the released code. BL+, with
    ``background``, adds the row of the background with target 0. Without annotations: |sum of D|. The short side of the
    image is taken from ``sample.short_sides`` [B] (pixels) where there is such an attribute; otherwise it is the crop's.
    Raises ValueError where shapes do not fit together.
    """
    if background not in (None, *BACKGROUNDS):
        raise ValueError(f"background: {background!r}, must be None or one of {', '.join(BACKGROUNDS)}")
    losses, short_sides = [], getattr(sample, "short_sides", None)
    for b, (cells, points, targets) in enumerate(samples(density, sample)):
        if not len(points):
            losses.append(cells.sum().abs())
            continue
        with torch.no_grad():
            short_side = short_sides[b] if short_sides is not None else stride * min(cells.shape)
            ratio = BACKGROUNDS.get(background) if background_ratio is None else background_ratio
            reach = ratio * float(short_side) if background else 0.0
            kernel = posterior(points, cells.shape, stride, sigma, background, reach)
        received = kernel @ cells.flatten()
        losses.append((targets - received[: len(points)]).abs().sum() + received[len(points) :].abs().sum())
    return torch.stack(losses).mean()


def posterior(
    points: Tensor, grid: tuple[int, int], stride: int, sigma: float, background: str | None = None, reach: float = 0.0
) -> Tensor:
    """K = softmax over the annotations of -|x_m - p_n|^2 / (2 sigma^2): [n, 2] -> [n, M], or [n + 1, M] with background.

    With d the distance of a cell to its nearest annotation (pixels), the background's squared distance is
    (reach - d)^2 in the paper, and reach^2 / (d^2 + 1e-5) in the released code.
    """
    dx, dy = offsets(points, grid, stride)
    squared = dy.square()[:, :, None] + dx.square()[:, None]  # [n, h, w]
    if background:
        nearest = squared.amin(dim=0, keepdim=True)
        far = (reach - nearest.sqrt()).square() if background == "paper" else reach**2 / (nearest + 1e-5)
        squared = torch.cat([squared, far])
    return squared.div_(-2 * sigma**2).flatten(1).softmax(dim=0)
