"""Training samples: image, points and Gaussians rescaled, cut out and flipped together.

Every function is pure. The random numbers of a sample are drawn at once (``draw_augmentation``), so that a sample is a
function of its generator's seed alone.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from GS2D import native
from utils.pixels import COARSEST

GREY_PROBABILITY = 0.12
FLIP_PROBABILITY = 0.5
MIN_SCALE, MAX_SCALE = 0.75, 1.25
MIN_BOX, MAX_BOX = 4.0, 128.0
MIN_BOX_FRACTION = 0.3


class Sample(NamedTuple):
    """An image with its N annotations, all lengths in pixels of the image."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    points: np.ndarray  # float32 [N, 2], (x, y)
    distance: np.ndarray  # float32 [N], to neighbouring points
    scales: np.ndarray  # float32 [N, 2], standard deviations of the Gaussians
    rotations: np.ndarray  # float32 [N, 1], angles of the first axes, radians


class Augmentation(NamedTuple):
    """What is done to a sample; ``left`` and ``top`` are the crop's corner in the rescaled image."""

    grey: bool
    scale: float
    top: int
    left: int
    flip: bool
    brightness: float = 1.0
    contrast: float = 1.0


def draw_augmentation(
    generator: np.random.Generator,
    height: int,
    width: int,
    crop_size: int,
    name: str,
    *,
    stride: int | None = None,
    jitter: float = 0.0,
) -> Augmentation:
    """Draw how one image is augmented.

    Always five uniform numbers, in this order: grey, scale, top, left, flip. The scale is used only if the crop still
    fits into the rescaled image. With a ``stride`` the image is not rescaled, and the crop's corner is a multiple of it:
    the cells of the crop are then cells of the image. Raises ``ValueError``, naming the image, if the crop does not fit as
    the image is.
    """
    if min(height, width) < crop_size:
        raise ValueError(too_small(name, height, width, crop_size))
    grey, scale, top, left, flip = generator.random(5)
    factor = MIN_SCALE + (MAX_SCALE - MIN_SCALE) * float(scale)
    if stride or min(_rescaled(height, width, factor)) < crop_size:
        factor = 1.0
    step, sides = stride or 1, _rescaled(height, width, factor)
    rows, columns = ((side - crop_size) // step + 1 for side in sides)  # where the corner may lie
    brightness, contrast = 1 + jitter * (2 * generator.random(2) - 1) if jitter else (1.0, 1.0)
    return Augmentation(
        grey=bool(grey < GREY_PROBABILITY),
        scale=factor,
        top=int(top * rows) * step,
        left=int(left * columns) * step,
        flip=bool(flip < FLIP_PROBABILITY),
        brightness=float(brightness),
        contrast=float(contrast),
    )


def too_small(name: str, height: int, width: int, crop_size: int) -> str:
    """What is said of an image that no crop fits into: the largest crop that does is a multiple of the networks' stride."""
    fits = min(height, width) // COARSEST * COARSEST
    lower = f"lower --crop-size to {fits} or less, or " if fits else ""
    return f"{name}: {width} x {height} pixels, smaller than the crop of {crop_size}; {lower}preprocess with --min-size {crop_size}"


def augment(
    sample: Sample, augmentation: Augmentation, crop_size: int, whole: float = 0.0
) -> tuple[Sample, np.ndarray, np.ndarray]:
    """Rescale, crop, make grey, expose, flip -> (crop with the n points that stay, their targets float32 [n], which stay: bool [N]).

    Of the image only the pixels under the crop are read.
    """
    image = cut_out(sample.image, augmentation, crop_size)
    if augmentation.grey:
        image = grey(image)
    if (augmentation.brightness, augmentation.contrast) != (1, 1):
        image = expose(image, augmentation.brightness, augmentation.contrast)
    inside, targets, stays = crop(sample, augmentation, crop_size, whole)
    return inside._replace(image=image[:, ::-1] if augmentation.flip else image), targets, stays


def cut_out(image: np.ndarray, augmentation: Augmentation, size: int) -> np.ndarray:
    """The pixels of a crop: uint8 [size, size, 3], those that all of ``image``, rescaled, would have there.

    They are OpenCV's with ``INTER_LINEAR``, to the last bit, of which only those under the crop are computed: sums along x are
    cut to 1/128, products of these with the weights along y to 1/4, and the sum of the two is rounded. Without the native
    engine OpenCV itself rescales all of the image.
    """
    top, left = augmentation.top, augmentation.left
    crop = slice(top, top + size), slice(left, left + size)
    if augmentation.scale == 1:
        return np.array(image[crop])
    height, width = _rescaled(*image.shape[:2], augmentation.scale)
    if not native.works():
        return cv2.resize(image[:, :], (width, height), interpolation=cv2.INTER_LINEAR)[crop]
    rows, columns = taps(image.shape[0], height, top, size), taps(image.shape[1], width, left, size)
    part = tuple(slice(axis[0, 0], axis[-1, 1] + 1) for axis in (rows, columns))
    for axis, under in zip((rows, columns), part):
        axis[:, :2] -= under.start
    return native.resize(image[part], rows, columns)


def taps(source: int, target: int, first: int, count: int) -> np.ndarray:
    """Where pixels ``first`` to ``first + count`` of ``target`` come from: int32 [count, 4], two source pixels, two weights.

    Pixel j of n lies at x = (j + 1/2) W / n - 1/2 of the W source pixels, between floor(x) and floor(x) + 1, whose weights are
    whole numbers of 2048 parts. Beyond a border both source pixels are that of the border.
    """
    # As OpenCV computes it: the scale is the inverse of a quotient, the position in double, what is left of it in float.
    position = ((np.arange(first, first + count) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    pixel = np.floor(position)
    fraction = position - pixel
    weights = np.rint((1 - fraction) * np.float32(2048)), np.rint(fraction * np.float32(2048))
    sources = np.clip(pixel, 0, source - 1), np.clip(pixel + 1, 0, source - 1)
    return np.stack([*sources, *weights], axis=1).astype(np.int32)


def box_fraction(points: np.ndarray, distance: np.ndarray, left: float, top: float, size: float) -> np.ndarray:
    """Which part of each point's box lies inside the crop [left, left + size] x [top, top + size]: [N], in [0, 1].

    The box is a square around the point, its side the neighbour distance clipped to [4, 128] pixels.
    """
    side = np.clip(distance, MIN_BOX, MAX_BOX)[:, None]  # [N, 1]
    corner = np.array([left, top], points.dtype)
    low = np.maximum(points - side / 2, corner)
    high = np.minimum(points + side / 2, corner + points.dtype.type(size))
    return np.clip(np.maximum(high - low, 0).prod(axis=1) / side[:, 0] ** 2, 0, 1)


def crop(
    sample: Sample, augmentation: Augmentation, size: int, whole: float = 0.0
) -> tuple[Sample, np.ndarray, np.ndarray]:
    """The annotations of a crop, rescaled, moved and mirrored with it; the image is left as it is.

    -> (sample of n points, their targets [n], which points of the sample before they are: bool [N])

    Points stay whose box lies at least 30 % inside, also some just outside the square; that fraction is their target. With
    ``whole`` those stay of which this share lies inside, and their target is 1.
    """
    factor, left, top = np.float32(augmentation.scale), augmentation.left, augmentation.top
    points, distance, scales = sample.points * factor, sample.distance * factor, sample.scales * factor
    fraction = box_fraction(points, distance, left, top, size)
    stays = fraction >= (whole or MIN_BOX_FRACTION)
    points, rotations = points[stays] - np.array([left, top], points.dtype), sample.rotations[stays]
    if augmentation.flip:
        points, rotations = np.hstack([size - points[:, :1], points[:, 1:]]), -rotations
    inside = Sample(sample.image, points, distance[stays], scales[stays], rotations)
    return inside, np.ones_like(fraction[stays]) if whole else fraction[stays], stays


def grey(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] with the luma (ITU-R 601) in all three channels."""
    return np.array(Image.fromarray(np.ascontiguousarray(image)).convert("L").convert("RGB"))


def expose(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """uint8 [H, W, 3] with brightness (mean + contrast (value - mean)) in the place of each value, of the mean of all."""
    mean = image.mean()
    values = brightness * (mean + contrast * (np.arange(256) - mean))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)[image]


def _rescaled(height: int, width: int, factor: float) -> tuple[int, int]:
    return round(height * factor), round(width * factor)
