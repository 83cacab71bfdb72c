"""Many images fitted at once: an atlas of pages, one image a page, drawn by one call and moved by one step of Adam.

A fit of one image leaves a GPU idle: its kernels are shorter than the time that it takes to launch them. So the Gaussians of
many images go through each operation together. Every image has a page of its own, whose size is that of the largest image in
whole tiles, and its Gaussians keep the image's own coordinates: nothing of one image can reach another, and the numbers are
those of the image fitted alone, to the rounding of sums. What lies on a page outside its image has weight 0.

The chain from the parameters to the drawing and back is written out here (``shapes``, ``pull_back``), in about half the
launches that autograd takes; ``GS2D.fitting.loss_terms`` is the readable twin that the tests compare it with.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.adam import adam

from GS2D.rasterize import REACH, TILE, draw

COLUMNS = slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 8)  # of the parameters [N, 8]: means, u, v, c
# Target 12, weight 4, drawing (and its gradient, in place) 12, gsplat's alphas, their gradient and last ids 12; reserve.
BYTES_A_PIXEL = 64
BYTES_A_GAUSSIAN = 4096  # parameters, moments, gradients; keys and ids of 16 pixels' tiles, twice for the sort
MAX_PIXELS = 2**27  # an atlas; more fills no GPU better, and gsplat counts values in 32 bits
MAX_PAGES = 128
EMPTY_SHARE = 0.5  # of an atlas may lie outside its images
SMALL = 2**20  # pixels; an atlas up to here is not rebuilt for being half empty
AHEAD = 2**26  # pixels of images that are read before there is room for them


class Entry:
    """An image that is being fitted and what its fit carries along, on the atlas' device or not yet.

    image uint8 [H, W, 3], mask bool [H, W]: foreground; params float32 [N, 8] as in ``COLUMNS``, of which the first ``fixed``
    means stay; moments [2, N, 8] and step: Adam's. ``schedule`` yields how many iterations come next and takes the losses.
    """

    def __init__(
        self, image: np.ndarray, mask: np.ndarray, params: Tensor, fixed: int, schedule: Generator | None = None
    ) -> None:
        self.image, self.mask, self.params, self.fixed = image, mask, params, fixed
        self.moments = torch.zeros(2, *params.shape)
        self.step = torch.zeros(())
        self.page: int | None = None
        self.schedule, self.done, self.losses = schedule, 0, (0.0, 0.0)
        self.until = next(schedule, 0) if schedule and len(params) else 0

    def __len__(self) -> int:
        return len(self.params)

    @property
    def left(self) -> int:
        """Iterations until the schedule wants to see the losses; 0 when the fit is over."""
        return self.until - self.done

    def moved(self, iterations: int, losses: tuple[float, float]) -> None:
        """So many more iterations are done, the last of which began with these (render, shape) losses."""
        self.done, self.losses = self.done + iterations, losses
        if self.left == 0:
            with contextlib.suppress(StopIteration):  # the fit is over
                self.until += self.schedule.send(losses)


class Shapes(NamedTuple):
    """What is drawn of parameters [N, 8], and what ``pull_back`` reads again."""

    conics: Tensor  # [N, 3]
    colors: Tensor  # [N, 3]
    extent: Tensor  # [N, 2] pixels
    scales: Tensor  # [N, 2]
    inverse: Tensor  # [N, 2]: 1 / scales^2
    squares: Tensor  # [N, 2]: cos^2, sin^2 of the rotation
    product: Tensor  # [N]: cos sin
    sigmoid: Tensor  # [N, 4]: of v and c


def shapes(params: Tensor) -> Shapes:
    """scales = relu(u) + 1, rotation = pi sigmoid(v), rgb = sigmoid(c), and the conic as in ``rasterize.conics``."""
    scales = params[:, COLUMNS[1]].clamp(min=0).add_(1)
    variances = scales * scales
    inverse = variances.reciprocal()
    sigmoid = torch.sigmoid(params[:, 4:])
    theta = sigmoid[:, 0] * math.pi
    cos, sin = torch.cos(theta), torch.sin(theta)
    squares = torch.stack([cos, sin], dim=1).square_()
    product = cos * sin
    both = torch.stack([inverse, variances])  # [2, N, 2]: of the inverse covariance, of the covariance
    xx, yy = (both * squares).sum(-1), (both * squares.flip(1)).sum(-1)  # [2, N] each
    xy = (inverse[:, 0] - inverse[:, 1]).mul_(product)
    conics = torch.stack([xx[0], xy, yy[0]], dim=1)
    extent = torch.stack([xx[1], yy[1]], dim=1).sqrt_().mul_(REACH)
    return Shapes(conics, sigmoid[:, 1:].contiguous(), extent, scales, inverse, squares, product, sigmoid)


def pull_back(params: Tensor, s: Shapes, by_conics: Tensor, by_colors: Tensor, out: Tensor) -> None:
    """Write the gradient by u, v, c into ``out`` [N, 8], given those by conics and colors: the chain rule of ``shapes``."""
    by_xx_yy, by_xy = by_conics[:, ::2], by_conics[:, 1]
    cross = s.product * by_xy
    by_inverse = torch.stack(
        [(s.squares * by_xx_yy).sum(1).add_(cross), (s.squares.flip(1) * by_xx_yy).sum(1).sub_(cross)], dim=1
    )
    torch.mul(by_inverse.mul_(s.inverse).div_(s.scales).mul_(-2), params[:, COLUMNS[1]] > 0, out=out[:, COLUMNS[1]])
    cos2, sin2 = s.squares[:, 0] - s.squares[:, 1], 2 * s.product
    by_theta = (cos2 * by_xy).addcmul_(sin2, by_xx_yy[:, 0] - by_xx_yy[:, 1], value=-1)
    by_theta.mul_(s.inverse[:, 0] - s.inverse[:, 1]).mul_(math.pi)
    slope = torch.addcmul(s.sigmoid, s.sigmoid, s.sigmoid, value=-1)  # sigmoid (1 - sigmoid)
    torch.mul(by_theta[:, None], slope[:, :1], out=out[:, COLUMNS[2]])
    torch.mul(by_colors, slope[:, 1:], out=out[:, COLUMNS[3]])


def whole_tiles(size: Sequence[int]) -> tuple[int, int]:
    """(height, width) rounded up to whole tiles."""
    return -(-size[0] // TILE) * TILE, -(-size[1] // TILE) * TILE


def fits_together(sizes: Sequence[tuple[int, int]], pixels: int) -> bool:
    """Whether images of these (height, width) make an atlas: within ``pixels``, and not mostly empty. One always does."""
    if len(sizes) == 1:
        return True
    height, width = whole_tiles(np.max(sizes, axis=0).tolist())
    area = len(sizes) * height * width
    used = sum(math.prod(whole_tiles(size)) for size in sizes)
    return len(sizes) <= MAX_PAGES and area <= pixels and used >= (1 - EMPTY_SHARE) * area


def capacity(device: torch.device) -> int:
    """Pixels of an atlas that the memory of ``device`` has room for, at 800 Gaussians in 1.5 million pixels."""
    if device.type != "cuda":
        return 2**23  # on a CPU an atlas gains nothing; the tests draw on it
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + cached
    return min(MAX_PIXELS, int(0.8 * free / (BYTES_A_PIXEL + BYTES_A_GAUSSIAN * 800 / 1.5e6)))


class Atlas:
    """The pages, and the Gaussians of all images as one tensor; ``reference`` on any device or ``gsplat`` on CUDA."""

    def __init__(self, backend: str, device: torch.device, shape_weight: float, max_ratio: float) -> None:
        self.backend, self.device = backend, device
        self.shape_weight, self.max_ratio = shape_weight, max_ratio
        self.entries: list[Entry] = []
        self._make_pages(0, 0, 0)

    def _make_pages(self, pages: int, height: int, width: int) -> None:
        self.target = self.weight = None  # the old ones go before the new ones come
        weight = torch.zeros(pages, height, width, 1, device=self.device)  # 1 / foreground values; 0 outside the image
        self.target = torch.zeros(pages, height, width, 3, device=self.device)  # the image, black in the background
        self.weight = weight

    def hold(self, entries: Sequence[Entry]) -> None:
        """Make these the images that ``advance`` moves; those that stay keep their page if the pages keep their size."""
        for entry in set(self.entries) - set(entries):
            entry.page = None
        self.entries = list(entries)
        if not self.entries:
            self._make_pages(0, 0, 0)
            return
        pages, height, width = (0, 0, 0) if self.weight is None else self.weight.shape[:3]
        needed = whole_tiles(np.max([entry.mask.shape for entry in self.entries], axis=0).tolist())
        area = len(self.entries) * needed[0] * needed[1]
        too_small = len(self.entries) > pages or needed[0] > height or needed[1] > width
        if too_small or pages * height * width > max(SMALL, 2 * area):
            for entry in self.entries:
                entry.page = None
            self._make_pages(len(self.entries), *needed)
        free = sorted(set(range(len(self.target))) - {entry.page for entry in self.entries}, reverse=True)
        for entry in self.entries:
            if entry.page is None:
                entry.page = free.pop()
                self._paint(entry)
        self._gather()

    def _paint(self, entry: Entry) -> None:
        height, width = entry.mask.shape
        mask = torch.from_numpy(np.ascontiguousarray(entry.mask)).to(self.device)[:, :, None]
        image = torch.from_numpy(np.ascontiguousarray(entry.image)).to(self.device).float().div_(255).mul_(mask)
        target, weight = self.target[entry.page], self.weight[entry.page]
        weight.zero_()  # of another image before: what has no weight may stay
        target[:height, :width] = image
        values = 3 * int(np.count_nonzero(entry.mask))
        weight[:height, :width] = 1 / values if values else 0.0

    def _gather(self) -> None:
        """Parameters and moments of all images in one tensor, of which theirs become parts."""
        device, sizes = self.device, [len(entry) for entry in self.entries]
        self.params = torch.cat([entry.params.to(device) for entry in self.entries])
        self.moments = torch.cat([entry.moments.to(device) for entry in self.entries], dim=1)
        self.gradient = torch.zeros_like(self.params)
        parts = zip(self.entries, self.params.split(sizes), self.moments.split(sizes, 1), self.gradient.split(sizes))
        for entry, entry.params, entry.moments, entry.gradient in parts:
            entry.step = entry.step.to(device)
        pages = [entry.page for entry in self.entries]
        self.page = torch.repeat_interleave(torch.tensor(pages), torch.tensor(sizes)).to(device)
        self.two_pages = self.page[:, None].expand(-1, 2).reshape(-1)  # for u's two columns
        self.limit = torch.full((len(self.target),), self.max_ratio, device=device)
        free = [torch.arange(len(entry)) >= entry.fixed for entry in self.entries]
        self.free = torch.cat(free).float()[:, None].to(device) if any(part.any() for part in free) else None

    def advance(self, iterations: int, learning_rate: float) -> list[tuple[float, float]]:
        """Do ``iterations`` (at least 1) steps -> the (render, shape) loss of each image before the last of them.

        In the order that ``hold`` was given. The host waits for the device here and in gsplat's tile lists only. Where memory
        runs out, torch's error comes through between two steps: what the entries hold is whole, their ``step`` says how far
        they came.
        """
        tensors = [
            (entry.params, entry.gradient, entry.moments[0], entry.moments[1], entry.step) for entry in self.entries
        ]
        tensors = [list(column) for column in zip(*tensors)]
        for _ in range(iterations - 1):
            self._gradient(losses=False)
            _move(tensors, learning_rate)
        render, shape = self._gradient(losses=True)
        _move(tensors, learning_rate)
        pages = torch.tensor([entry.page for entry in self.entries])
        return [tuple(pair) for pair in torch.stack([render, shape], dim=1).cpu()[pages].tolist()]

    def _gradient(self, losses: bool) -> tuple[Tensor, Tensor] | None:
        """The gradient of all losses into ``self.gradient``; the losses [pages] themselves only where they are asked for."""
        pages, height, width, _ = self.target.shape
        means, current = self.params[:, :2].contiguous(), shapes(self.params)
        leaves = [current.conics, current.colors, *([] if self.free is None else [means])]
        for leaf in leaves:
            leaf.requires_grad_()
        gaussians = means, current.conics, current.colors
        drawing = draw(*gaussians, width, height, self.backend, self.page, pages, current.extent)
        # The gradient of w |drawing - target| by the drawing is w sign(drawing - target): autograd begins there.
        difference = drawing.detach().sub_(self.target)
        render = torch.linalg.vector_norm(difference.mul_(self.weight), 1, dim=(1, 2, 3)) if losses else None
        by_conics, by_colors, *by_means = torch.autograd.grad(drawing, leaves, difference.sign_().mul_(self.weight))
        pull_back(self.params, Shapes(*(t.detach() for t in current)), by_conics, by_colors, self.gradient)
        if by_means:
            torch.mul(by_means[0], self.free, out=self.gradient[:, :2])
        worst = self._add_shape_gradient()
        return (render, (worst - self.max_ratio) * self.shape_weight) if losses else None

    def _add_shape_gradient(self) -> Tensor:
        """Add the gradient of the shape losses; the ratio [pages] of each image's most elongated Gaussian, at least 1.5."""
        u = self.params[:, COLUMNS[1]]
        other = u.flip(1).add_(1e-10)
        ratio = u / other  # u1 / u2, u2 / u1
        worst = self.limit.scatter_reduce(0, self.two_pages, ratio.reshape(-1), "amax")
        punished = ratio == worst[self.page, None]
        slope = torch.where(punished, self.shape_weight / other, 0)
        by_u = self.gradient[:, COLUMNS[1]]
        by_u.add_(slope).sub_(slope.mul_(ratio).flip(1))
        return worst


def _move(tensors: list[list[Tensor]], learning_rate: float) -> None:
    """One step of Adam on parameters, gradients, both moments and counters: torch's fused step, and one launch to count."""
    *parts, steps = tensors
    options = {"amsgrad": False, "weight_decay": 0, "maximize": False}
    adam(*parts, [], steps, fused=True, beta1=0.9, beta2=0.999, lr=learning_rate, eps=1e-8, **options)


def fit_all(
    sizes: Sequence[tuple[int, int]],
    loads: Sequence[Callable[[], Entry]],
    atlas: Atlas,
    learning_rate: float,
    workers: int,
) -> Iterator[tuple[int, Entry | Exception]]:
    """Fit all images and yield (index, entry) as each fit ends: large images first, the next as soon as one is done.

    sizes: (height, width) of the images, which ``workers`` threads read ahead by ``loads``. One that cannot be read or is too
    large for the device gives its exception (``OSError``, ``ValueError``, ``MemoryError``). Where the device's memory runs out
    the atlas is halved; the images that leave it keep what they have and come in again later.
    """
    pixels = capacity(atlas.device)
    queue = sorted(range(len(sizes)), key=lambda index: whole_tiles(sizes[index]))  # the next one last
    running: dict[int, Entry] = {}
    read: dict[int, concurrent.futures.Future[Entry]] = {}
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        while queue or running:
            while queue and fits_together([sizes[index] for index in (*running, queue[-1])], pixels):
                ahead = 0
                for index in reversed(queue):
                    if index not in read:
                        read[index] = pool.submit(loads[index])
                    ahead += math.prod(sizes[index])
                    if ahead > AHEAD:
                        break
                index = queue.pop()
                try:
                    entry = read.pop(index).result()
                except (OSError, ValueError, MemoryError) as error:
                    yield index, error
                    continue
                if entry.left:
                    running[index] = entry
                else:
                    yield index, entry
            if not running:
                continue
            losses = None
            try:
                atlas.hold(list(running.values()))
                steps = min(entry.left for entry in running.values())
                losses = atlas.advance(steps, learning_rate)
            except RuntimeError as error:  # torch.OutOfMemoryError is one, and CUDA itself has another
                if "out of memory" not in str(error):
                    raise
            if losses is None:  # after the handler, whose traceback holds on to what was allocated
                atlas.hold([])
                torch.cuda.empty_cache()
                for entry in running.values():  # some steps may be done
                    entry.done = int(entry.step)
                if len(running) == 1:
                    index, entry = running.popitem()
                    size = "{1} x {0}".format(*entry.mask.shape)
                    text = f"{size} pixels: too large for {atlas.device}'s memory; use --backend native"
                    yield index, MemoryError(text)
                    continue
                half = (len(running) + 1) // 2
                pixels = min(pixels, half * max(math.prod(whole_tiles(sizes[index])) for index in running))
                for index in list(running)[: half - 1 : -1]:
                    read[index] = pool.submit(lambda entry=running.pop(index): entry)
                    queue.append(index)
                continue
            for entry, loss in zip(running.values(), losses):
                entry.moved(steps, loss)
            for index in [index for index, entry in running.items() if not entry.left]:
                yield index, running.pop(index)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
