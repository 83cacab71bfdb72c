"""Batches of annotations for losses, put together as the loading processes do it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.crowd import Batch, TrainSample, collate
from losses import KERNELS, build_kernel, build_loss


class Crop(NamedTuple):
    """The annotations of one crop."""

    points: Tensor
    scales: Tensor
    rotations: Tensor
    targets: Tensor


def random_crop(count, size=128, seed=0, low=-0.1, high=1.1) -> Crop:
    """Points (some outside, where low and high allow it), scales, rotations, targets."""
    random = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, 2, generator=random, dtype=torch.float64) * (high - low) + low) * size
    scales = torch.exp(torch.randn(count, 2, generator=random, dtype=torch.float64) * 0.6 + 2)
    rotations = torch.rand(count, 1, generator=random, dtype=torch.float64) * math.pi
    targets = 0.3 + 0.7 * torch.rand(count, generator=random, dtype=torch.float64)
    return Crop(points.float(), scales.float(), rotations.float(), targets.float())


def random_density(*shape, seed=0, total=None) -> Tensor:
    """Uniform numbers, scaled to a sum of ``total``."""
    density = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (density if total is None else density * (total / density.sum())).float()


def crop_at(points, targets=None, scale=8.0) -> Crop:
    """Round Gaussians at ``points``, each with its target (1 where none are given)."""
    points = torch.as_tensor(points).float().reshape(-1, 2)
    targets = torch.ones(len(points)) if targets is None else torch.as_tensor(targets).float()
    return Crop(points, torch.full_like(points, scale), torch.zeros(len(points), 1), targets)


def batch_of(crops, size=None, kernel: Callable[..., Tensor] | None = None, short_side=None) -> Batch:
    """``crops`` through ``collate``, with what ``kernel`` makes of each in a crop of ``size`` (height, width)."""
    samples = []
    for crop in crops:
        annotations = crop._asdict()
        targets, side = annotations.pop("targets"), min(size or (8, 8)) if short_side is None else short_side
        made = kernel(**annotations, crop_size=size, short_side=side) if kernel else None
        image = torch.zeros(3, 1, 1, dtype=torch.uint8)
        samples.append(TrainSample(image, **annotations, targets=targets, name="IMG", short_side=side, kernel=made))
    return collate(samples)


def loss_on_crops(name: str, short_side=None, **options) -> Callable[..., Tensor]:
    """(density, crops, number=None) -> the loss of that name for a step of ``number`` crops, with the options of its kernel where it has one, else its own."""
    kernel = build_kernel(name, **options)
    loss = build_loss(name, **({} if name in KERNELS else options))

    def compute(density, crops, number=None):
        return loss(
            density, batch_of(crops, tuple(8 * side for side in density.shape[-2:]), kernel, short_side), number
        )

    return compute


def loss_and_gradient(loss, density, crops, *number):
    """The loss of crops and its gradient by the density."""
    density = torch.as_tensor(density).clone().requires_grad_()
    value = loss(density, crops, *number)
    value.backward()
    return value.detach(), density.grad
