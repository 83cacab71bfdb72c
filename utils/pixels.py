"""What the networks see of an image, RGB with the mean and the deviation of ImageNet, and how finely they answer."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

STRIDE = 8  # pixels in a density cell
COARSEST = 16  # pixels, the stride of the features: the networks leave out what lies beyond its multiples
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor) -> Tensor:
    """uint8 [..., 3, H, W] -> float32, (value / 255 - mean) / std, on the device of ``images``; floats pass unchanged.

    Images travel to the device as bytes and are normalised there.
    """
    if images.is_floating_point():
        return images
    mean, std = _constants(images.device)
    return images.float().div_(255).sub_(mean).div_(std)


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Copied to a device once, since it waits for a copy from ordinary memory."""
    return tuple(torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))


def to_planes(image: np.ndarray) -> Tensor:
    """uint8 array [H, W, 3] -> uint8 tensor [3, H, W], contiguous."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
