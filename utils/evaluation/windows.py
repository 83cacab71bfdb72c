"""Windows of an image, what a density network finds in them, and the count and the picture that they make together."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.pixels import COARSEST, normalise

WINDOW = 512  # pixels; the published protocol
WINDOWS_AT_ONCE = 8  # of one size through the network: more is no faster, and a whole large image would not fit a GPU
Item = TypeVar("Item")
Made = TypeVar("Made")


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
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    tops = [row * (height // rows) for row in range(rows)] + [height]
    lefts = [column * (width // columns) for column in range(columns)] + [width]
    return [
        (tops[i], lefts[j], tops[i + 1] - tops[i], lefts[j + 1] - lefts[j]) for i in range(rows) for j in range(columns)
    ]


@torch.no_grad()
def predict(
    model: Callable, image: Tensor, window: int = WINDOW, flip: bool = False, batch: int = WINDOWS_AT_ONCE
) -> list[Window]:
    """Densities of the parts (``tile``) of an image [3, H, W], uint8 or normalised, at most ``batch`` of one size at once.

    ``flip``: the mean with the mirrored windows' densities, mirrored back. Raises ``ValueError`` for a ``window`` below
    32 pixels, which could cut an image into parts that the networks cannot take, and for an image below 16 pixels.
    """
    if window < 2 * COARSEST:
        raise ValueError(
            f"window: {window}, must be at least {2 * COARSEST} pixels, twice the network's coarsest stride"
        )
    places = tile(*image.shape[1:], window)
    by_size = defaultdict(list)
    for place in places:
        by_size[place[2:]].append(place)
    densities = {}
    for same_size in by_size.values():
        for first in range(0, len(same_size), batch):
            some = same_size[first : first + batch]
            crops = torch.stack([image[:, top : top + h, left : left + w] for top, left, h, w in some])
            densities.update(zip(some, _densities(model, normalise(crops), flip)))
    return [Window(*place, densities[place]) for place in places]


def _densities(model: Callable, crops: Tensor, flip: bool) -> Tensor:
    """Windows [n, 3, H, W] -> their densities [n, h, w]."""
    densities = model(crops).density.float()[:, 0]
    if flip:
        # Only the columns that the cells cover are mirrored; the rest stays at the far end, where it is left out
        # again. Mirroring all of them would shift the cells against those of the first pass, by up to 15 pixels.
        # There zeros stand for it, the mean color and what the networks' convolutions see beyond a border.
        rest = crops.shape[3] % COARSEST
        mirrored = F.pad(crops[..., : crops.shape[3] - rest].flip(-1), (0, rest))
        densities = (densities + model(mirrored).density.float()[:, 0].flip(-1)) / 2
    return densities


def count(model: Callable, image: Tensor, window: int = WINDOW, flip: bool = False) -> float:
    """The predicted count of an image [3, H, W]: the sum of the densities of its windows (see ``predict``)."""
    return float(total(predict(model, image, window, flip)))


def total(parts: Sequence[Window]) -> Tensor:
    """The count in the windows of one image, float64 on their device."""
    return sum(part.density.sum(dtype=torch.float64) for part in parts)


def density_map(parts: list[Window]) -> Tensor:
    """The windows' densities on one canvas [H, W], in people per pixel: its sum is the count.

    The networks leave out what a window has beyond a multiple of 16 pixels. There its outermost cells go on, and the whole
    window is scaled to its sum: no window ends in a dark stripe, and what is drawn stays where it was seen.
    """
    height = max(part.top + part.height for part in parts)
    width = max(part.left + part.width for part in parts)
    canvas = torch.zeros(height, width)
    for top, left, h, w, density in parts:
        density = density.cpu()
        pixels = density[_cells_of(h, density.shape[0])][:, _cells_of(w, density.shape[1])]
        total = pixels.sum()
        canvas[top : top + h, left : left + w] = pixels * (density.sum() / total if total > 0 else 0)
    return canvas


def _cells_of(pixels: int, cells: int) -> Tensor:
    """The cell that each of a side's pixels shows: [pixels]; the last one also beyond the last multiple of 16."""
    return ((torch.arange(pixels) + 0.5) * (cells / (pixels - pixels % COARSEST))).long().clamp(max=cells - 1)


def in_threads(function: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """``function`` of each item in order, by threads while those before are used; two items for each thread wait at most.

    ``items`` themselves are made by the caller's thread.
    """
    items = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(function, item) for item in islice(items, 2 * threads))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(items, 1))
        finally:
            for future in waiting:
                future.cancel()


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, samples: Iterable, device: torch.device | str, window: int = WINDOW
) -> list[Result]:
    """Count every sample (``image`` uint8 or normalised, ``count``, ``name``) in evaluation mode; the model's mode is restored."""
    training = model.training
    model.eval()
    try:
        counted = [
            (
                sample.name,
                float(sample.count),
                total(predict(model, sample.image.to(device, non_blocking=True), window)),
            )
            for sample in samples
        ]
    finally:
        model.train(training)
    return [
        Result(name, truth, float(predicted)) for name, truth, predicted in counted
    ]  # the device is waited for here
