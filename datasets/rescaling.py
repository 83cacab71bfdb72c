"""A rectangle of a rescaled image, of which only the pixels under the rectangle are read.

The arithmetic is that of OpenCV's ``resize`` with ``INTER_LINEAR``: pixel j of n lies at x = (j + 1/2) W / n - 1/2 of the W source
pixels, between floor(x) and floor(x) + 1, whose weights are rounded to 1/2048; sums along x are cut to 1/128, products of these with
the weights along y to 1/4, and the sum of the two is rounded. A rectangle has the pixels that it would have if all of the image were
rescaled, to the last bit.
"""

from __future__ import annotations

import cv2
import numpy as np

from GS2D import native

_WEIGHT = np.float32(2048)


def rescaled_rectangle(
    image: np.ndarray, size: tuple[int, int], top: int, left: int, height: int, width: int
) -> np.ndarray:
    """``resize(image, size)[top : top + height, left : left + width]`` of uint8 [H, W, 3]; ``size``: (rows, columns).

    Without the native engine OpenCV rescales all of the image, with the same result.
    """
    if not native.works():
        whole = cv2.resize(image[:, :], size[::-1], interpolation=cv2.INTER_LINEAR)
        return whole[top : top + height, left : left + width]
    rows, columns = taps(image.shape[0], size[0], top, height), taps(image.shape[1], size[1], left, width)
    part = []
    for axis in (rows, columns):
        first = axis[0, 0]
        part.append(slice(first, axis[-1, 1] + 1))
        axis[:, :2] -= first
    return native.resize(image[tuple(part)], rows, columns)


def taps(source: int, target: int, first: int, count: int) -> np.ndarray:
    """Where pixels ``first`` to ``first + count`` of ``target`` come from: int32 [count, 4], two source pixels, two weights.

    Beyond a border both source pixels are that of the border.
    """
    # As OpenCV computes it: the scale is the inverse of a quotient, the position in double, what is left of it in float.
    position = ((np.arange(first, first + count) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    pixel = np.floor(position)
    fraction = position - pixel
    weights = np.rint((1 - fraction) * _WEIGHT), np.rint(fraction * _WEIGHT)
    sources = np.clip(pixel, 0, source - 1), np.clip(pixel + 1, 0, source - 1)
    return np.stack([*sources, *weights], axis=1).astype(np.int32)
