"""Counting with a density network, and the field's error measures."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat, takewhile
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.pixels import COARSEST, STRIDE, normalise

WINDOW = 512  # pixels; the published protocol
WINDOWS_AT_ONCE = 8  # of one size through the network: more is no faster, and a whole large image would not fit a GPU

IMAGES_AT_ONCE = 4  # whose windows may share a batch
Item = TypeVar("Item")


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


def images_together(device: torch.device) -> int:
    """How many images are given to ``predict_together``: a CPU is as busy with one, whose digits then depend on no other."""
    return IMAGES_AT_ONCE if device.type == "cuda" else 1


def windows_of(height: int, width: int, window: int, overlap: int = 0) -> list[tuple[int, int, int, int]]:
    """Where the windows of ``predict`` stand; ``ValueError`` where the networks cannot take them or the image."""
    if min(height, width) < COARSEST:
        raise ValueError(
            f"images must be at least {COARSEST} x {COARSEST} pixels, got {height} x {width}: enlarge or pad them"
        )
    if window < COARSEST:
        raise ValueError(f"window: {window}, must be at least {COARSEST} pixels, the network's coarsest stride")
    if overlap:
        return _blended_windows(height, width, window, overlap)[0]
    parts = tile(height, width, window)
    for _, _, rows, columns in parts:
        if min(rows, columns) < COARSEST:
            raise ValueError(
                f"window: {window} cuts an image of {height} x {width} pixels into parts of {rows} x "
                f"{columns}, smaller than {COARSEST} on a side; use a window of at least {2 * COARSEST}"
            )
    return parts


def predict(
    model: Callable,
    image: Tensor,
    window: int = WINDOW,
    overlap: int = 0,
    flip: bool = False,
    batch: int = WINDOWS_AT_ONCE,
) -> list[Window]:
    """Densities of an image [3, H, W], uint8 or normalised, at most ``batch`` windows of one size through the network together.

    ``overlap`` 0 is the published protocol: the parts of ``tile``, one Window each. Above 0, windows of ``window`` pixels
    stand at steps of ``window - overlap`` pixels and are blended by linear ramps into one Window for the whole image, in
    cells of 8 pixels of which the last reach over the border by up to 7 (see ``_blend``). ``flip``: the mean with the
    mirrored windows' densities, mirrored back. Raises ``ValueError`` for a ``window`` or ``overlap`` that does not fit the
    networks' strides and for an image below 16 pixels.
    """
    return predict_together(model, [image], window, overlap, flip, batch)[0]


@torch.no_grad()
def predict_together(
    model: Callable,
    images: Sequence[Tensor],
    window: int = WINDOW,
    overlap: int = 0,
    flip: bool = False,
    batch: int = WINDOWS_AT_ONCE,
) -> list[list[Window]]:
    """``predict`` of several images, whose windows of one size share batches."""
    # Of each image its windows, whose density is None until it is known.
    windows = [[Window(*place, None) for place in windows_of(*image.shape[1:], window, overlap)] for image in images]
    by_size: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for index, parts in enumerate(windows):
        for number, part in enumerate(parts):
            by_size[part.height, part.width].append((index, number))
    for (height, width), chosen in by_size.items():
        corners = [(images[index], *windows[index][number][:2]) for index, number in chosen]
        for (index, number), density in zip(chosen, _densities(model, corners, height, width, flip, batch)):
            windows[index][number] = windows[index][number]._replace(density=density)
    return [[_blend(image, parts, window, overlap)] for image, parts in zip(images, windows)] if overlap else windows


def _densities(
    model: Callable, corners: list[tuple[Tensor, int, int]], height: int, width: int, flip: bool, batch: int
) -> Iterator[Tensor]:
    """The density [h, w] of each window of one size, given by its image, top and left.

    Zeros continue an image (its mean color, and what the networks' convolutions see beyond a border).
    """
    for first in range(0, len(corners), batch):
        inside = [
            image[:, top : top + height, left : left + width] for image, top, left in corners[first : first + batch]
        ]
        crops = torch.stack(
            [F.pad(normalise(part), (0, width - part.shape[2], 0, height - part.shape[1])) for part in inside]
        )
        densities = model(crops).density.float()[:, 0]  # [parts, h, w]
        if flip:
            # Only the columns that the cells cover are mirrored; the rest stays at the far end, where it is left out
            # again. Mirroring all of them would shift the cells against those of the first pass, by up to 15 pixels.
            rest = width % COARSEST
            mirrored = F.pad(crops[..., : width - rest].flip(-1), (0, rest))
            densities = (densities + model(mirrored).density.float()[:, 0].flip(-1)) / 2
        yield from densities


def _blended_windows(
    height: int, width: int, window: int, overlap: int
) -> tuple[list[tuple[int, int, int, int]], list[Tensor]]:
    """Windows (top, left, height, width) that overlap, row by row, and the weights [h, w] of their cells.

    They cover the image's sides up to multiples of 16, so that every window's cells are those of one grid and no border is
    left out.
    """
    if window % COARSEST:
        raise ValueError(f"window: {window}, must be a multiple of {COARSEST} pixels where windows overlap")
    if not 0 < overlap < window or overlap % STRIDE:
        raise ValueError(
            f"overlap: {overlap}, must be a multiple of {STRIDE} pixels, from 0 to below the window, {window}"
        )
    padded = [side + -side % COARSEST for side in (height, width)]
    (tops, row_weights), (lefts, column_weights) = (_ramps(side, window, overlap) for side in padded)
    sides = min(window, padded[0]), min(window, padded[1])
    weights = [rows[:, None] * columns for rows in row_weights for columns in column_weights]
    return [(top, left, *sides) for top in tops for left in lefts], weights


def _blend(image: Tensor, parts: list[Window], window: int, overlap: int) -> Window:
    """Overlapping windows as one density [ceil(H / 8), ceil(W / 8)].

    What the networks find beyond the border of the image counts to the last row and column.
    """
    height, width = image.shape[1:]
    padded = [side + -side % COARSEST for side in (height, width)]
    canvas = torch.zeros(padded[0] // STRIDE, padded[1] // STRIDE, device=image.device)
    for (top, left, _, _, density), weight in zip(parts, _blended_windows(height, width, window, overlap)[1]):
        rows, columns = density.shape
        canvas[top // STRIDE :, left // STRIDE :][:rows, :columns] += weight.to(density.device) * density
    rows, columns = math.ceil(height / STRIDE), math.ceil(width / STRIDE)
    canvas[rows - 1] += canvas[rows:].sum(dim=0)
    canvas[:, columns - 1] += canvas[:, columns:].sum(dim=1)
    return Window(0, 0, height, width, canvas[:rows, :columns].clone())


def _ramps(length: int, window: int, overlap: int) -> tuple[list[int], Tensor]:
    """Windows along one side of ``length`` pixels -> their first pixels [n], the weights of their cells [n, cells].

    Weights rise linearly over ``overlap`` pixels from either end and sum to 1 at every cell of the side. They are divided by
    their sum, since at the border one window stands alone, and the last one, pulled back to the border, may overlap more.
    """
    step, window = window - overlap, min(window, length)
    starts = [*range(0, length - window, step), length - window]
    within = torch.arange(window // STRIDE)
    ramp = ((torch.minimum(within, within.flip(0)) + 0.5) * STRIDE / overlap).clamp(max=1)
    cells = torch.tensor(starts)[:, None] // STRIDE + within  # [n, cells of a window]
    total = torch.zeros(length // STRIDE).index_add_(0, cells.flatten(), ramp.repeat(len(starts)))
    return starts, ramp / total[cells]


def count(model: Callable, image: Tensor, window: int = WINDOW, overlap: int = 0, flip: bool = False) -> float:
    """The predicted count of an image [3, H, W]: the sum of the densities of its windows (see ``predict``)."""
    return float(total(predict(model, image, window, overlap, flip)))


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
        if STRIDE * density.shape[0] > h or STRIDE * density.shape[1] > w:
            canvas[top : top + h, left : left + w] = _spread(density, h, w)
            continue
        pixels = density[_cells_of(h, density.shape[0])][:, _cells_of(w, density.shape[1])]
        total = pixels.sum()
        canvas[top : top + h, left : left + w] = pixels * (density.sum() / total if total > 0 else 0)
    return canvas


def _cells_of(pixels: int, cells: int) -> Tensor:
    """The cell that each of a side's pixels shows: [pixels]; the last one also beyond the last multiple of 16."""
    return ((torch.arange(pixels) + 0.5) * (cells / (pixels - pixels % COARSEST))).long().clamp(max=cells - 1)


def _spread(density: Tensor, height: int, width: int) -> Tensor:
    """Cells of 8 x 8 pixels of which the last reach over the border, each spread evenly over its pixels inside."""
    rows, columns = torch.arange(height) // STRIDE, torch.arange(width) // STRIDE
    area = rows.bincount()[:, None] * columns.bincount()
    return (density / area)[rows][:, columns]


def in_threads(load: Callable[[int], Item], indices: Iterable[int], threads: int) -> Iterator[Item]:
    """``load(index)`` of each index in order, made by threads while their predecessors are used, two for each at most."""
    indices = iter(indices)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(load, index) for index in islice(indices, 2 * threads))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(load, index) for index in islice(indices, 1))
        finally:
            for future in waiting:
                future.cancel()


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, made by a thread while their predecessors are used."""
    iterator, end = iter(items), object()
    made = in_threads(lambda _: next(iterator, end), repeat(None), 1)
    return takewhile(lambda item: item is not end, made)


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, samples: Iterable, device: torch.device | str, window: int = WINDOW
) -> list[Result]:
    """Count every sample (``image`` uint8 or normalised, ``count``, ``name``) in evaluation mode; the model's mode is restored.

    Windows of one size of ``IMAGES_AT_ONCE`` images go through the network together; see ``predict`` for the windows.
    """
    training = model.training
    model.eval()
    try:
        samples, results = iter(samples), []
        while group := list(islice(samples, IMAGES_AT_ONCE)):
            windows = predict_together(model, [s.image.to(device, non_blocking=True) for s in group], window)
            counts = torch.stack([total(parts) for parts in windows]).tolist()  # the device is waited for once
            results += [Result(s.name, float(s.count), predicted) for s, predicted in zip(group, counts)]
        return results
    finally:
        model.train(training)
