"""Fitting one 2D Gaussian to the image around every annotated point (Shang and Hong, AAAI 2026, section on splatting).

Learned for each point: u [N, 2], v [N, 1], c [N, 3], activated as

    scales = relu(u) + 1 (pixels),   rotation = pi sigmoid(v),   rgb = sigmoid(c)

The means stay on the annotations, opacities are 1, and the drawing order is the order of the points. The loss is the mean
absolute difference to the image over the foreground, plus 0.2 times how far the most elongated Gaussian passes a ratio of 1.5.
"""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from GS2D import native
from GS2D.atlas import Atlas, Entry, fit_all
from GS2D.gaussians import Gaussians2D
from GS2D.rasterize import ALPHA_MIN, rasterize, resolve_backend
from utils.cli import default_workers

SHAPE_WEIGHT = 0.2  # weight of the elongation penalty
MAX_RATIO = 1.5  # elongation that is not punished
LONE_POINT_SPACING = 8.0  # pixels; stands for the neighbour distance of a single point
MIN_SCALE_PARAM = 2.0  # smallest starting value of u
MIN_MASK_SCALE, MAX_MASK_SCALE = 2.0, 0.015  # pixels, and fraction of the image's long side
CHECK_EVERY = 50  # iterations between two looks at the convergence rule


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


class Parameters(NamedTuple):
    """What the optimiser sees: means [N, 2], scale u [N, 2], rotation v [N, 1], color c [N, 3]; float32."""

    means: Tensor
    scale: Tensor
    rotation: Tensor
    color: Tensor

    def activate(self) -> Gaussians2D:
        """The Gaussians that these parameters stand for."""
        scales = torch.relu(self.scale) + 1
        return Gaussians2D(self.means, scales, math.pi * torch.sigmoid(self.rotation), torch.sigmoid(self.color))


class FitResult(NamedTuple):
    """One Gaussian for each point, the background Gaussians (none by default), the final losses, the iterations done."""

    gaussians: Gaussians2D
    render_loss: float
    shape_loss: float
    iterations: int
    background: Gaussians2D


class Problem(NamedTuple):
    """One image to fit: uint8 [H, W, 3], its foreground bool [H, W], where it starts; the first ``annotated`` are the points."""

    image: np.ndarray
    mask: np.ndarray
    start: Parameters
    annotated: int


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

    Tensor backends draw them side by side (``GS2D.atlas``), the native engine one a core; the results are those of single
    fits, on the tensor backends to the rounding of sums. Raises ``ValueError`` before anything is fitted where an image or
    its points are unusable, naming which; ``MemoryError`` for an image that is too large for the device even alone.
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
    return Problem(image, mask, start, len(points))


def fit_problems(problems: list[Problem], config: FitConfig, backend: str) -> list[FitResult]:
    """Run Adam on all of them, by the backend; the first error, once the others are done.

    The losses returned are those that the last iteration started from, as the released code reports them.
    """
    backend = resolve_backend(backend, images=len(problems))
    if backend == "native":
        if len(problems) == 1:
            return [_fit_native(problems[0], config)]
        with concurrent.futures.ThreadPoolExecutor(default_workers()) as pool:  # its calls release the lock
            return list(pool.map(lambda problem: _fit_native(problem, config), problems))
    sizes = [problem.mask.shape for problem in problems]
    loads = [lambda problem=problem: problem for problem in problems]
    outcomes = dict(fit_side_by_side(sizes, loads, config, backend))
    results = [outcomes[index] for index in range(len(problems))]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def rms_neighbour_distance(points: np.ndarray) -> np.ndarray:
    """Root of the mean squared distance to the 3 nearest other points, float64 [N]; fewer if there are fewer, 8 for one."""
    neighbours = min(3, len(points) - 1)
    if neighbours < 1:
        return np.full(len(points), LONE_POINT_SPACING)
    distances, _ = cKDTree(points).query(points, k=neighbours + 1)
    return np.sqrt((distances[:, 1:] ** 2).mean(axis=1))


def initial_parameters(image: np.ndarray, points: np.ndarray, background_gaussians: int, seed: int) -> Parameters:
    """Where the fit starts: u = max(log d, 2) on both axes, v = logit(U(0, 1)), c = logit of the color under the mean."""
    height, width = image.shape[:2]
    random = np.random.default_rng(seed)
    free = random.uniform((0, 0), (width, height), (background_gaussians, 2))
    means = np.concatenate([points, free])
    with np.errstate(divide="ignore"):  # duplicates: log 0 = -inf, and the maximum takes over
        scale = np.maximum(np.log(rms_neighbour_distance(means)), MIN_SCALE_PARAM)
    rotation = random.uniform(np.finfo(np.float32).tiny, 1, (len(means), 1))
    column = np.clip(means[:, 0], 0, width - 1).astype(int)
    row = np.clip(means[:, 1], 0, height - 1).astype(int)
    color = np.clip(image[row, column] / 255, 0.001, 0.999)
    tensors = means, np.repeat(scale[:, None], 2, axis=1), _logit(rotation), _logit(color)
    return Parameters(*(torch.from_numpy(np.ascontiguousarray(t, dtype=np.float32)) for t in tensors))


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


def loss_terms(parameters: Parameters, image: Tensor, mask: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Render loss and shape loss of one image ([H, W, 3] in [0, 1], mask [H, W] with 1 for foreground).

    Render loss: sum |drawing - image| over the foreground and sum |drawing| over the background (where the image itself is
    added to the drawing, so that only what spills over is punished), divided by the number of foreground values. Shape loss:
    the elongation of the worst Gaussian beyond 1.5, on the raw parameters u.
    """
    height, width = mask.shape
    drawing = rasterize(parameters.activate(), width, height, backend)
    values = 3 * mask.sum()
    render = (drawing - image * mask[:, :, None]).abs().sum() / values if values > 0 else drawing.sum() * 0
    u1, u2 = parameters.scale.unbind(1)
    ratio = torch.maximum(u1 / (u2 + 1e-10), u2 / (u1 + 1e-10))
    return render, SHAPE_WEIGHT * torch.relu(ratio - MAX_RATIO).max()


def has_stalled(losses: list[tuple[float, float]], tolerance: float) -> bool:
    """Whether neither the render loss nor the sum with the shape loss fell by ``tolerance`` of itself since the last look.

    losses: (render, shape), looked at every ``CHECK_EVERY`` iterations. Both, since the shape loss is that of a single
    Gaussian: it may rise for a while and hide that the others are still on their way, or fall when they have arrived. The
    learning rate stays what it is: a higher one sends some Gaussians so far beyond the ratio of 1.5 that they do not return
    (a crowd of 962, at twice the rate: 0.0136 of the kernel's mass moved instead of 0.0017).
    """
    if len(losses) < 2:
        return False
    (render, shape), (new_render, new_shape) = losses[-2:]
    pairs = (render, new_render), (render + shape, new_render + new_shape)
    return all(before - now < tolerance * now for before, now in pairs)


def schedule(config: FitConfig) -> Generator[int, tuple[float, float], None]:
    """Yield how many iterations to do and take the (render, shape) loss before the last of them, until the fit is over."""
    done, losses = 0, []
    while done < config.iterations and not (config.tolerance > 0 and has_stalled(losses, config.tolerance)):
        steps = min(CHECK_EVERY, config.iterations - done) if config.tolerance > 0 else config.iterations
        losses.append((yield steps))
        done += steps


def fit_side_by_side(
    sizes: Sequence[tuple[int, int]],
    loads: Sequence[Callable[[], Problem]],
    config: FitConfig,
    backend: str,
    *,
    workers: int = 1,
) -> Iterator[tuple[int, FitResult | Exception]]:
    """Fit images of these (height, width), read when there is room for them -> (index, result), each as its fit ends.

    See ``GS2D.atlas.fit_all`` for the order and for exceptions; ``workers`` threads read ahead.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if backend == "gsplat" else torch.device("cpu")
    annotated: dict[int, int] = {}

    def load(index: int) -> Entry:
        problem = loads[index]()
        annotated[index] = problem.annotated
        fixed = 0 if config.learn_means else problem.annotated
        return Entry(problem.image, problem.mask, torch.cat(problem.start, dim=1), fixed, schedule(config))

    loaders = [partial(load, index) for index in range(len(loads))]
    atlas = Atlas(backend, device, SHAPE_WEIGHT, MAX_RATIO)
    for index, entry in fit_all(sizes, loaders, atlas, config.learning_rate, workers):
        if not isinstance(entry, Exception):
            parameters = entry.params.cpu().split([2, 2, 1, 3], dim=1)
            entry = _result(parameters, annotated[index], *entry.losses, entry.done)
        yield index, entry


def _result(parameters: Sequence[Tensor], annotated: int, render: float, shape: float, done: int) -> FitResult:
    params = Parameters(*parameters).activate().params
    annotations, background = (Gaussians2D.from_params(part) for part in params.tensor_split([annotated]))
    return FitResult(annotations, render, shape, done, background)


def _fit_native(problem: Problem, config: FitConfig) -> FitResult:
    """The same on the native engine, where a call does all its iterations; one core."""
    image, mask, start, annotated = problem
    if len(start.means) == 0 or config.iterations == 0:
        return _result(start, annotated, 0.0, 0.0, 0)
    *arrays, render, shape, done = native.fit(
        image,
        mask,
        *(tensor.numpy() for tensor in start),
        iterations=config.iterations,
        learning_rate=config.learning_rate,
        fixed_means=0 if config.learn_means else annotated,
        shape_weight=SHAPE_WEIGHT,
        max_ratio=MAX_RATIO,
        tolerance=config.tolerance,
        check_every=CHECK_EVERY,
    )
    return _result([torch.from_numpy(array) for array in arrays], annotated, render, shape, done)


def _logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)
