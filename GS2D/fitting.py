"""Fitting one 2D Gaussian to the image around every annotated point (Shang and Hong, AAAI 2026, section on splatting).

Learned for each point: u [N, 2], v [N, 1], c [N, 3], activated as

    scales = relu(u) + 1 (pixels),   rotation = pi sigmoid(v),   rgb = sigmoid(c)

The means stay on the annotations, opacities are 1, and the drawing order is the order of the points. The loss is the mean
absolute difference to the image over the foreground, plus 0.2 times how far the most elongated Gaussian passes a ratio of 1.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from GS2D.gaussians import Gaussians2D
from GS2D.rasterize import ALPHA_MIN, conics, draw, resolve_backend

SHAPE_WEIGHT = 0.2  # weight of the elongation penalty
MAX_RATIO = 1.5  # elongation that is not punished
LONE_POINT_DISTANCE = 8.0  # pixels; stands for the neighbour distance of a single point
MIN_SCALE_PARAM = 2.0  # smallest starting value of u
MIN_MASK_SCALE, MAX_MASK_SCALE = 2.0, 0.015  # pixels, and fraction of the image's long side
CHECK_EVERY = 50  # iterations between two looks at the convergence rule
FAST_RATE = 4  # factor on the learning rate until the loss stalls for the first time, with a tolerance only


@dataclass(frozen=True)
class FitConfig:
    """How an image is fitted; the defaults are the released ones.

    background_gaussians: free Gaussians added behind the annotated ones, whose means are learned; use_background_mask: leave
    pixels far from every point out of the loss, except for what is drawn onto them; learn_means: let the annotated means move
    too; tolerance: 0 runs every iteration at one learning rate, above 0 the fit ends early (see ``has_stalled``).
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


def fit_image(
    image: np.ndarray, points: np.ndarray, config: FitConfig = FitConfig(), *, backend: str = "auto", seed: int = 0
) -> FitResult:
    """Fit one Gaussian to ``image`` (uint8 [H, W, 3]) around each of ``points`` ([N, 2], (x, y) in pixels).

    ``backend`` as in ``GS2D.rasterize``; ``seed`` draws the starting rotations (and background means). Without points, and
    without background Gaussians, nothing is fitted and both losses are 0. Raises ``ValueError`` for an image or points of
    another shape, and for points that are not finite.
    """
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
    if len(start.means) == 0:
        empty = start.activate()
        return FitResult(empty, 0.0, 0.0, 0, empty)
    mask = foreground(points, *image.shape[:2]) if config.use_background_mask else np.ones(image.shape[:2], bool)
    return optimise(image, mask, start, len(points), config, backend)


def neighbour_distance(points: np.ndarray) -> np.ndarray:
    """Root of the mean squared distance to the 3 nearest other points, float64 [N]; fewer if there are fewer, 8 for one."""
    neighbours = min(3, len(points) - 1)
    if neighbours < 1:
        return np.full(len(points), LONE_POINT_DISTANCE)
    distances, _ = cKDTree(points).query(points, k=neighbours + 1)
    return np.sqrt((distances[:, 1:] ** 2).mean(axis=1))


def initial_parameters(image: np.ndarray, points: np.ndarray, background_gaussians: int, seed: int) -> Parameters:
    """Where the fit starts: u = max(log d, 2) on both axes, v = logit(U(0, 1)), c = logit of the color under the mean."""
    height, width = image.shape[:2]
    random = np.random.default_rng(seed)
    free = random.uniform((0, 0), (width, height), (background_gaussians, 2))
    means = np.concatenate([np.asarray(points, np.float64).reshape(-1, 2), free])
    with np.errstate(divide="ignore"):  # duplicates: log 0 = -inf, and the maximum takes over
        scale = np.maximum(np.log(neighbour_distance(means)), MIN_SCALE_PARAM)
    rotation = random.uniform(np.finfo(np.float32).tiny, 1, (len(means), 1))
    column = np.clip(means[:, 0].astype(int), 0, width - 1)
    row = np.clip(means[:, 1].astype(int), 0, height - 1)
    color = np.clip(image[row, column] / 255, 0.001, 0.999)
    tensors = means, np.repeat(scale[:, None], 2, axis=1), _logit(rotation), _logit(color)
    return Parameters(*(torch.from_numpy(np.ascontiguousarray(t, dtype=np.float32)) for t in tensors))


def mask_scales(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """s0 = clamp(d / 6, 2, 0.015 max(H, W)) [N], pixels: how far around a point the image counts as foreground."""
    return np.minimum(np.maximum(neighbour_distance(points) / 6, MIN_MASK_SCALE), MAX_MASK_SCALE * max(height, width))


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
    gaussians = parameters.activate()
    opacities = torch.ones_like(gaussians.means[:, 0])
    shape = conics(gaussians.scales, gaussians.rotations)
    drawing = draw(gaussians.means, shape, gaussians.colors, opacities, width, height, backend)
    values = 3 * mask.sum()
    render = (drawing - image * mask[:, :, None]).abs().sum() / values if values > 0 else drawing.sum() * 0
    u1, u2 = parameters.scale.unbind(1)
    ratio = torch.maximum(u1 / (u2 + 1e-10), u2 / (u1 + 1e-10))
    return render, SHAPE_WEIGHT * torch.relu(ratio - MAX_RATIO).max()


def has_stalled(losses: list[float], tolerance: float) -> bool:
    """Whether the loss, looked at every ``CHECK_EVERY`` iterations, fell by less than ``tolerance`` of itself since last time.

    With a tolerance, the fit takes ``FAST_RATE`` times the learning rate until the loss stalls, then the learning rate itself
    until it stalls again. Most of a faithful fit's 4000 iterations are travel: Adam moves each parameter by at most about the
    learning rate in an iteration, and scales have many pixels to go. On the tree images a tolerance of 1e-3 ends within 0.5 %
    of the loss after 4000 iterations, in about a seventh of them.
    """
    return len(losses) > 1 and losses[-2] - losses[-1] < tolerance * losses[-1]


def optimise(
    image: np.ndarray, mask: np.ndarray, start: Parameters, annotated: int, config: FitConfig, backend: str
) -> FitResult:
    """Run Adam from ``start`` on ``image`` (uint8 [H, W, 3]) with the foreground ``mask`` (bool [H, W]).

    The first ``annotated`` Gaussians are those of the points, the rest are background. The losses returned are those that the
    last iteration started from, as the released code reports them.
    """
    backend = resolve_backend(backend)
    fixed = 0 if config.learn_means else annotated
    fit = (_NativeFit if backend == "native" else _TorchFit)(image, mask, start, fixed, backend)
    render = shape = 0.0
    done = 0
    for rate in (FAST_RATE, 1) if config.tolerance > 0 else (1,):
        losses: list[float] = []
        while done < config.iterations and not has_stalled(losses, config.tolerance):
            steps = min(CHECK_EVERY, config.iterations - done) if config.tolerance > 0 else config.iterations
            render, shape = fit.advance(steps, rate * config.learning_rate)
            done += steps
            losses.append(render + shape)
    params = fit.parameters.activate().params
    annotations, background = (Gaussians2D.from_params(part) for part in params.tensor_split([annotated]))
    return FitResult(annotations, render, shape, done, background)


class _TorchFit:
    """Adam over ``loss_terms``, on the CPU (reference) or on CUDA (gsplat); the first ``fixed`` means stay in place."""

    def __init__(self, image: np.ndarray, mask: np.ndarray, start: Parameters, fixed: int, backend: str) -> None:
        device = "cuda" if backend == "gsplat" else "cpu"
        self.backend = backend
        self.image = torch.from_numpy(image).to(device).float() / 255
        self.mask = torch.from_numpy(mask).to(device).float()
        self.fixed, free = start.means.to(device).split([fixed, len(start.means) - fixed])
        self.learned = [tensor.to(device).clone().requires_grad_() for tensor in (free, *start[1:])]
        self.adam = torch.optim.Adam([tensor for tensor in self.learned if len(tensor)])

    def _current(self) -> Parameters:
        free, *others = self.learned
        return Parameters(torch.cat([self.fixed, free]), *others)

    def advance(self, iterations: int, learning_rate: float) -> tuple[float, float]:
        """Do ``iterations`` steps -> render and shape loss before the last one."""
        self.adam.param_groups[0]["lr"] = learning_rate
        for _ in range(iterations):
            self.adam.zero_grad(set_to_none=True)
            render, shape = loss_terms(self._current(), self.image, self.mask, self.backend)
            (render + shape).backward()
            self.adam.step()
        return render.item(), shape.item()

    @property
    def parameters(self) -> Parameters:
        """The parameters as they are now."""
        return Parameters(*(tensor.detach().cpu() for tensor in self._current()))


class _NativeFit:
    """The same on the native engine, where a call does all its iterations."""

    def __init__(self, image: np.ndarray, mask: np.ndarray, start: Parameters, fixed: int, backend: str) -> None:
        from GS2D import native

        self.fit, self.state = native.fit, native.FitState()
        self.options = {"fixed_means": fixed, "shape_weight": SHAPE_WEIGHT, "max_ratio": MAX_RATIO}
        self.image, self.mask, self.arrays = image, mask, [tensor.numpy() for tensor in start]

    def advance(self, iterations: int, learning_rate: float) -> tuple[float, float]:
        """Do ``iterations`` steps -> render and shape loss before the last one."""
        steps = {"iterations": iterations, "learning_rate": learning_rate, "state": self.state}
        *self.arrays, render, shape, _ = self.fit(self.image, self.mask, *self.arrays, **steps, **self.options)
        return render, shape

    @property
    def parameters(self) -> Parameters:
        """The parameters as they are now."""
        return Parameters(*map(torch.from_numpy, self.arrays))


def _logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)
