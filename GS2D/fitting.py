"""Fitting one 2D Gaussian to the image around every annotated point (Shang and Hong, AAAI 2026, section on splatting).

Learned for each point: u [N, 2], v [N, 1], c [N, 3], activated as

    scales = relu(u) + 1 (pixels),   rotation = pi sigmoid(v),   rgb = sigmoid(c)

The means stay on the annotations, opacities are 1, and the drawing order is the order of the points. The loss is the mean
absolute difference to the image over the foreground, plus 0.2 times how far the most elongated Gaussian passes a ratio of 1.5.

A fit of one image leaves a GPU idle: its kernels are shorter than the time that it takes to launch them. So ``gsplat`` fits
many images at once (``fit_side_by_side``). Every image has a page of its own and its Gaussians keep its own coordinates: nothing
of one image can reach another, and the numbers are those of the image fitted alone, to the rounding of sums.
"""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from GS2D import native
from GS2D.gaussians import Gaussians2D
from GS2D.rasterize import ALPHA_MIN, conics, draw, resolve_backend
from utils.cli import Outcome, attempt, default_workers
from utils.device import network_errors

SHAPE_WEIGHT = 0.2  # weight of the elongation penalty
MAX_RATIO = 1.5  # elongation that is not punished
LONE_POINT_SPACING = 8.0  # pixels; stands for the neighbour distance of a single point
MIN_SCALE_PARAM = 2.0  # smallest starting value of u
MIN_MASK_SCALE, MAX_MASK_SCALE = 2.0, 0.015  # pixels, and fraction of the image's long side
CHECK_EVERY = 50  # iterations between two looks at the convergence rule
# Target 12, weight 4, four tensors of the drawing's size 48, gsplat's alphas, their gradient and last ids 12; Gaussians, reserve.
BYTES_A_PIXEL = 96
MAX_PIXELS = 2**27  # side by side; more fills no GPU better, and gsplat counts values in 32 bits
MAX_PAGES = 128


@dataclass(frozen=True)
class FitConfig:
    """How an image is fitted; the defaults are the released ones.

    background_gaussians: free Gaussians added behind the annotated ones, whose means are learned; use_background_mask: leave
    pixels far from every point out of the loss, except for what is drawn onto them; learn_means: let the annotated means move
    too; tolerance: 0 runs every iteration, above 0 the fit ends early (see ``has_stalled``).
    """

    iterations: int = 4000
    learning_rate: float = 0.01
    background_gaussians: int = 0
    use_background_mask: bool = True
    learn_means: bool = False
    tolerance: float = 0.0


class FitResult(NamedTuple):
    """One Gaussian for each point, the final losses, the iterations done."""

    gaussians: Gaussians2D
    render_loss: float
    shape_loss: float
    iterations: int


class Problem(NamedTuple):
    """One image to fit: uint8 [H, W, 3], its foreground bool [H, W], where it starts, and how many of its Gaussians are points.

    start float32 [N, 8]: columns x, y, u1, u2, v, c1, c2, c3; those of the points first. The first ``fixed`` means stay.
    """

    image: np.ndarray
    mask: np.ndarray
    start: Tensor
    annotated: int
    fixed: int


def fit_image(
    image: np.ndarray, points: np.ndarray, config: FitConfig = FitConfig(), *, backend: str = "auto", seed: int = 0
) -> FitResult:
    """Fit one Gaussian to ``image`` (uint8 [H, W, 3]) around each of ``points`` ([N, 2], (x, y) in pixels).

    ``backend`` as in ``GS2D.rasterize``; ``seed`` draws the starting rotations (and background means). Without points, and
    without background Gaussians, nothing is fitted and both losses are 0. Raises ``ValueError`` for an image or points of
    another shape, and for points that are not finite.
    """
    return fit_problems([prepare(image, points, config, seed)], config, backend)[0]


def fit_images(
    images: Sequence[np.ndarray],
    points: Sequence[np.ndarray],
    config: FitConfig = FitConfig(),
    *,
    backend: str = "auto",
    seeds: Sequence[int] | None = None,
) -> list[FitResult]:
    """``fit_image`` for many images at once, of any sizes, with a seed each (default: 0) -> their results in order.

    Tensor backends draw them side by side, the native engine one a core; the results are those of single fits, on the tensor
    backends to the rounding of sums. Raises ``ValueError`` before anything is fitted where an image or its points are
    unusable, naming which, and where the device's memory runs out.
    """
    seeds = [0] * len(images) if seeds is None else seeds
    if not len(images) == len(points) == len(seeds):
        raise ValueError(f"images, points, seeds: {len(images)}, {len(points)} and {len(seeds)}; one each an image")
    problems = []
    for index, (image, some, seed) in enumerate(zip(images, points, seeds)):
        try:
            problems.append(prepare(image, some, config, seed))
        except ValueError as error:
            raise ValueError(f"image {index}: {error}") from None
    return fit_problems(problems, config, backend)


def prepare(image: np.ndarray, points: np.ndarray, config: FitConfig, seed: int) -> Problem:
    """Check an image and its points, and make of them what the backends fit. Raises ``ValueError`` as ``fit_image``."""
    image, points = np.asarray(image), np.asarray(points, dtype=np.float32)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"image: {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]; convert it to 8-bit RGB")
    points = points.reshape(0, 2) if points.size == 0 else points
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points: shape {list(points.shape)}, expected [N, 2]")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        raise ValueError(f"points: row {bad[0]} is {points[bad[0]].tolist()}; coordinates must be finite numbers")
    start = initial_parameters(image, points, config.background_gaussians, seed)
    mask = foreground(points, *image.shape[:2]) if config.use_background_mask else np.ones(image.shape[:2], bool)
    return Problem(image, mask, start, len(points), 0 if config.learn_means else len(points))


def fit_problems(problems: Sequence[Problem], config: FitConfig, backend: str) -> list[FitResult]:
    """Run Adam on all of them, by the backend.

    The losses returned are those that the last iteration started from, as the released code reports them.
    """
    backend = resolve_backend(backend)
    if backend == "native":
        with concurrent.futures.ThreadPoolExecutor(default_workers()) as pool:  # its calls release the lock
            return list(pool.map(lambda problem: _fit_native(problem, config), problems))
    sizes, indices = [problem.mask.shape for problem in problems], range(len(problems))
    outcomes = fit_side_by_side(sizes, indices, lambda index: problems[index], config, backend)
    return [outcome.result for outcome in sorted(outcomes, key=lambda outcome: outcome.item)]


def rms_neighbour_distance(points: np.ndarray) -> np.ndarray:
    """Root of the mean squared distance to the 3 nearest other points, float64 [N]; fewer if there are fewer, 8 for one."""
    neighbours = min(3, len(points) - 1)
    if neighbours < 1:
        return np.full(len(points), LONE_POINT_SPACING)
    distances, _ = cKDTree(points).query(points, k=neighbours + 1)
    return np.sqrt((distances[:, 1:] ** 2).mean(axis=1))


def initial_parameters(image: np.ndarray, points: np.ndarray, background_gaussians: int, seed: int) -> Tensor:
    """Where the fit starts [N, 8]: u = max(log d, 2) on both axes, v = logit(U(0, 1)), c = logit of the color under the mean."""
    height, width = image.shape[:2]
    random = np.random.default_rng(seed)
    free = random.uniform((0, 0), (width, height), (background_gaussians, 2))
    means = np.concatenate([points, free])
    with np.errstate(divide="ignore"):  # duplicates: log 0 = -inf, and the maximum takes over
        scale = np.maximum(np.log(rms_neighbour_distance(means)), MIN_SCALE_PARAM)
    rotation = random.uniform(np.finfo(np.float32).tiny, 1, len(means))
    column = np.clip(means[:, 0], 0, width - 1).astype(int)
    row = np.clip(means[:, 1], 0, height - 1).astype(int)
    color = np.clip(image[row, column] / 255, 0.001, 0.999)
    start = np.column_stack([means, scale, scale, _logit(rotation), _logit(color)])
    return torch.from_numpy(start.astype(np.float32))


def activate(params: Tensor) -> Gaussians2D:
    """The Gaussians that parameters [N, 8] stand for."""
    # Contiguous, since torch takes another sigmoid, with other last bits, through memory with gaps.
    means, u, v, c = (part.contiguous() for part in params.split([2, 2, 1, 3], dim=1))
    return Gaussians2D(means, torch.relu(u) + 1, math.pi * torch.sigmoid(v), torch.sigmoid(c))


def mask_scales(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """s0 = clamp(d / 6, 2, 0.015 max(H, W)) [N], pixels: how far around a point the image counts as foreground."""
    return np.minimum(
        np.maximum(rms_neighbour_distance(points) / 6, MIN_MASK_SCALE), MAX_MASK_SCALE * max(height, width)
    )


def foreground(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels that an isotropic Gaussian of ``mask_scales`` reaches (alpha >= 1/255) from some point; bool [H, W]."""
    mask = np.zeros((height, width), bool)
    # alpha = exp(-d^2 / (2 s0^2)) >= 1/255 within this many pixels.
    reaches = mask_scales(points, height, width) * math.sqrt(-2 * math.log(ALPHA_MIN))
    for (x, y), reach in zip(np.asarray(points, np.float64).tolist(), reaches.tolist()):
        left, right = (min(max(math.floor(v), 0), width) for v in (x - reach, x + reach + 1))
        top, bottom = (min(max(math.floor(v), 0), height) for v in (y - reach, y + reach + 1))
        dx, dy = np.arange(left, right) + 0.5 - x, np.arange(top, bottom) + 0.5 - y
        mask[top:bottom, left:right] |= dx * dx + (dy * dy)[:, None] <= reach * reach
    return mask


def has_stalled(before: Sequence[float], now: Sequence[float], tolerance: float) -> bool:
    """Whether neither the render loss nor the sum with the shape loss fell by ``tolerance`` of itself since the last look.

    before, now: (render, shape), looked at every ``CHECK_EVERY`` iterations. Both, since the shape loss is that of a single
    Gaussian: it may rise for a while and hide that the others are still on their way, or fall when they have arrived. The
    learning rate stays what it is: a higher one sends some Gaussians so far beyond the ratio of 1.5 that they do not return
    (a crowd of 962, at twice the rate: 0.0136 of the kernel's mass moved instead of 0.0017).
    """
    pairs = (before[0], now[0]), (sum(before), sum(now))
    return all(earlier - later < tolerance * later for earlier, later in pairs)


class Running:
    """An image whose fit is under way, on the device that draws it."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        image, mask = (torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in problem[:2])
        self.target = image * mask[:, :, None]  # uint8 [H, W, 3]: the image, black in the background
        self.values = 3 * int(np.count_nonzero(problem.mask))  # of the foreground
        self.params = problem.start.to(device, copy=True).requires_grad_()
        self.annotated, self.fixed = problem.annotated, problem.fixed
        self.moments: dict[str, Tensor] = {}  # Adam's
        self.done, self.losses, self.looked_at = 0, (0.0, 0.0), (math.inf, math.inf)

    def moved(self, iterations: int, losses: tuple[float, float], config: FitConfig) -> bool:
        """So many more iterations are done, the last of which began with these losses -> whether the fit is over."""
        self.done, self.losses = self.done + iterations, losses
        over = self.done == config.iterations
        if config.tolerance > 0 and self.done % CHECK_EVERY == 0:
            over = over or has_stalled(self.looked_at, losses, config.tolerance)
            self.looked_at = losses
        return over


class Pages(NamedTuple):
    """Images side by side, a page each of one size, and which page a Gaussian is on."""

    target: Tensor  # [P, H, W, 3]: the image, black in its background
    weight: Tensor  # [P, H, W, 1]: 1 / (3 foreground pixels) on the image, 0 on the rest of the page
    page: Tensor  # int64 [N]
    free: Tensor  # bool [N, 1]: the mean is learned


def lay_out(images: Sequence[Running]) -> Pages:
    """The pages of images, of the largest one's size."""
    device, sizes = images[0].params.device, [len(image.params) for image in images]
    height, width = np.max([image.target.shape[:2] for image in images], axis=0).tolist()
    target = torch.zeros(len(images), height, width, 3, device=device)
    weight = torch.zeros(len(images), height, width, 1, device=device)
    for page, image in enumerate(images):
        on_page = page, slice(image.target.shape[0]), slice(image.target.shape[1])
        target[on_page] = image.target
        weight[on_page] = 1 / image.values if image.values else 0.0
    page = torch.repeat_interleave(torch.arange(len(images)), torch.tensor(sizes))
    free = torch.cat([torch.arange(len(image.params)) >= image.fixed for image in images])
    return Pages(target.div_(255), weight, page.to(device), free[:, None].to(device))


def loss_terms(params: Tensor, pages: Pages, backend: str) -> Tensor:
    """Render loss and shape loss of every page, [P, 2], at parameters [N, 8].

    Render loss: sum |drawing - image| over the foreground and sum |drawing| over the background (where the image itself is
    added to the drawing, so that only what spills over is punished), divided by the number of foreground values. Shape loss:
    the elongation of the worst Gaussian beyond 1.5, on the raw parameters u.
    """
    count, height, width, _ = pages.target.shape
    gaussians = activate(params)
    means = torch.where(pages.free, gaussians.means, gaussians.means.detach())
    shape = conics(gaussians.scales, gaussians.rotations)
    drawing = draw(means, shape, gaussians.colors, width, height, backend, pages.page, count)
    render = ((drawing - pages.target).abs() * pages.weight).sum(dim=(1, 2, 3))
    u = params[:, 2:4]
    ratio = (u / (u.flip(1) + 1e-10)).amax(dim=1)
    worst = torch.full_like(render, MAX_RATIO).scatter_reduce(0, pages.page, ratio, "amax")
    return torch.stack([render, SHAPE_WEIGHT * (worst - MAX_RATIO)], dim=1)


def advance(
    images: Sequence[Running], iterations: int, learning_rate: float, backend: str
) -> list[tuple[float, float]]:
    """Do ``iterations`` (at least 1) steps of Adam -> the (render, shape) loss of each image before the last of them.

    The host waits for the device here and in gsplat's tile lists only.
    """
    pages, leaves = lay_out(images), [image.params for image in images]
    adam = torch.optim.Adam(leaves, lr=learning_rate, fused=True)
    for image in images:
        adam.state[image.params] = image.moments
    for _ in range(iterations):
        adam.zero_grad()
        losses = loss_terms(torch.cat(leaves), pages, backend)
        losses.sum().backward()
        adam.step()
    return [tuple(pair) for pair in losses.tolist()]


def fits_together(sizes: Sequence[tuple[int, int]], pixels: int) -> bool:
    """Whether pages for images of these (height, width) have at most so many ``pixels``. One image always does."""
    area = len(sizes) * math.prod(np.max(sizes, axis=0).tolist())
    return len(sizes) == 1 or (len(sizes) <= MAX_PAGES and area <= pixels)


def capacity(device: torch.device) -> int:
    """Pixels of all pages together that the memory of ``device`` has room for."""
    if device.type != "cuda":
        return 2**23  # on a CPU it gains nothing; the tests draw there
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(MAX_PIXELS, int(0.8 * (torch.cuda.mem_get_info(device)[0] + cached) / BYTES_A_PIXEL))


def fit_side_by_side(
    sizes: Sequence[tuple[int, int]],
    items: Sequence[Any],
    load: Callable[[Any], Problem],
    config: FitConfig,
    backend: str,
    *,
    workers: int = 1,
) -> Iterator[Outcome]:
    """Fit images of these (height, width), large ones first -> the outcome of each item as its fit ends and another comes in.

    ``load`` reads an item's image when there is room for it, in ``workers`` threads; one that cannot be read has an error.
    Raises ``ValueError`` where the device's memory runs out.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "gsplat" else torch.device("cpu")
    pixels, running = capacity(device), {}
    queue = sorted(range(len(sizes)), key=lambda index: sizes[index])  # the next one last
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        while queue or running:
            new = []
            while queue and fits_together([sizes[index] for index in (*running, *new, queue[-1])], pixels):
                new.append(queue.pop())
            for index, outcome in zip(new, pool.map(partial(attempt, load), [items[index] for index in new])):
                problem = outcome.result
                if problem is None:
                    yield outcome
                elif len(problem.start) == 0 or config.iterations == 0:
                    yield Outcome(items[index], _result(problem.start, problem.annotated, 0.0, 0.0, 0), None)
                else:
                    running[index] = Running(problem, device)
            if not running:
                continue
            to_a_look = (CHECK_EVERY - image.done % CHECK_EVERY for image in running.values())
            to_the_end = (config.iterations - image.done for image in running.values())
            iterations = min(*to_a_look, *to_the_end)
            with network_errors("use --device cpu, or free the GPU's memory and run the same command again"):
                losses = advance(list(running.values()), iterations, config.learning_rate, backend)
            over = [image.moved(iterations, loss, config) for image, loss in zip(running.values(), losses)]
            for index in [index for index, is_over in zip(running, over) if is_over]:
                image = running.pop(index)
                params = image.params.detach().cpu()
                yield Outcome(items[index], _result(params, image.annotated, *image.losses, image.done), None)


def _fit_native(problem: Problem, config: FitConfig) -> FitResult:
    """The same on the native engine, where a call does all its iterations; one core."""
    if len(problem.start) == 0 or config.iterations == 0:
        return _result(problem.start, problem.annotated, 0.0, 0.0, 0)
    params, render, shape, done = native.fit(
        problem.image,
        problem.mask,
        problem.start.numpy(),
        iterations=config.iterations,
        learning_rate=config.learning_rate,
        fixed_means=problem.fixed,
        shape_weight=SHAPE_WEIGHT,
        max_ratio=MAX_RATIO,
        tolerance=config.tolerance,
        check_every=CHECK_EVERY,
    )
    return _result(torch.from_numpy(params), problem.annotated, render, shape, done)


def _result(params: Tensor, annotated: int, render: float, shape: float, iterations: int) -> FitResult:
    return FitResult(activate(params[:annotated]), render, shape, iterations)


def _logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)
