"""Counting with a density network, and the field's error measures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

WINDOW = 512  # pixels; the published protocol
WINDOWS_AT_ONCE = 8  # of one size through the network: more is no faster, and a whole large image would not fit a GPU


class Window(NamedTuple):
    """A part of an image, pixels, and its density [h, w]."""

    top: int
    left: int
    height: int
    width: int
    density: Tensor


class Result(NamedTuple):
    """One evaluated image; its truth is NaN where nobody annotated it."""

    name: str
    truth: float
    predicted: float


def tile(height: int, width: int, window: int = WINDOW) -> list[tuple[int, int, int, int]]:
    """Cut an image into ceil(H / window) x ceil(W / window) parts (top, left, height, width), row by row, no overlap.

    Parts are H // rows by W // columns; the last row and column take the rest. An image of at most ``window`` on both sides
    is one part.
    """
    if window < 16:
        raise ValueError(f"window: {window}, must be at least 16 pixels, the network's coarsest stride")
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    tops = [row * (height // rows) for row in range(rows)] + [height]
    lefts = [column * (width // columns) for column in range(columns)] + [width]
    return [
        (tops[i], lefts[j], tops[i + 1] - tops[i], lefts[j + 1] - lefts[j]) for i in range(rows) for j in range(columns)
    ]


@torch.no_grad()
def predict(model: Callable, image: Tensor, window: int = WINDOW) -> list[Window]:
    """Densities of all parts of a normalised image [3, H, W]; parts of one size go through the network together."""
    by_size: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for top, left, height, width in tile(*image.shape[1:], window):
        by_size[height, width].append((top, left))
    parts = []
    for (height, width), corners in by_size.items():
        for first in range(0, len(corners), WINDOWS_AT_ONCE):
            chosen = corners[first : first + WINDOWS_AT_ONCE]
            crops = torch.stack([image[:, top : top + height, left : left + width] for top, left in chosen])
            densities = model(crops).density.float()[:, 0]  # [parts, h, w]
            parts += [Window(*corner, height, width, density) for corner, density in zip(chosen, densities)]
    return sorted(parts, key=lambda part: part[:2])


def count(model: Callable, image: Tensor, window: int = WINDOW) -> float:
    """The predicted count of a normalised image [3, H, W]: the sum of the densities of its windows."""
    return sum(float(part.density.sum(dtype=torch.float64)) for part in predict(model, image, window))


def density_map(parts: list[Window]) -> Tensor:
    """The windows' densities on one canvas [H, W], in people per pixel: its sum is the count."""
    height = max(part.top + part.height for part in parts)
    width = max(part.left + part.width for part in parts)
    canvas = torch.zeros(height, width)
    for top, left, h, w, density in parts:
        density = density.cpu()
        pixels = torch.nn.functional.interpolate(density[None, None], (h, w), mode="nearest-exact")[0, 0]
        total = pixels.sum()
        canvas[top : top + h, left : left + w] = pixels * (density.sum() / total if total > 0 else 0)
    return canvas


def evaluate(
    model: torch.nn.Module, samples: Iterable, device: torch.device | str, window: int = WINDOW
) -> list[Result]:
    """Count every sample (``image``, ``count``, ``name``) in evaluation mode; the model's mode is restored."""
    training = model.training
    model.eval()
    try:
        return [Result(s.name, float(s.count), count(model, s.image.to(device), window)) for s in samples]
    finally:
        model.train(training)


def mae_mse(results: list[Result]) -> tuple[float, float]:
    """(MAE, MSE) over annotated images; "MSE" is crowd counting's name for the root of the mean squared error."""
    errors = [result.predicted - result.truth for result in results if not math.isnan(result.truth)]
    if not errors:
        raise ValueError("no annotated image was evaluated; check the data path and the split")
    return sum(map(abs, errors)) / len(errors), math.sqrt(sum(error**2 for error in errors) / len(errors))
