"""Counting people in three lines, through ``torch.hub`` or by import; the network runs as in the published evaluation.

    counter = torch.hub.load(".", "gst_vgg19_trans", source="local", weights="runs/qnrf_vgg_trans")
    counter.count("photo.jpg")

``torch.hub.load`` takes the folder of this project (``source="local"``, no network needed) or its repository. From Python
with this folder on the path: ``from hubconf import Counter``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

from models import load_model
from utils.device import fabric_devices
from utils.evaluation import WINDOW, Window, density_map, predict
from utils.evaluation.localisation import locate_windows
from utils.evaluation.windows import WINDOWS_AT_ONCE, total
from utils.images import load_image
from utils.pixels import normalise, to_planes

dependencies = ["PIL", "cv2", "h5py", "numpy", "scipy", "simplejpeg", "torch", "yaml"]


class Counter:
    """A trained network that counts, with the published windows.

    weights: a .pth, .tar or .safetensors file, also the authors', or the folder of a run; what the file says of itself, or
    else its layers, decides which network it is. device: ``auto`` (the first GPU if any), ``cpu``, or a GPU's number.
    batch: windows that go through the network together. window, flip: see ``utils.evaluation.predict``.

    An image is a path, a PIL image, or an array uint8 [H, W, 3] in RGB or [H, W] in grey, and counts in its own size. A
    path and a PIL image are turned upright by their EXIF orientation; an array is taken as it is.

    >>> counter = Counter("runs/qnrf_vgg/best_model.pth", device="cpu")
    >>> people = counter.count("photo.jpg")
    >>> density = counter.density("photo.jpg")
    >>> density.shape, density.dtype.name, bool(abs(density.sum() - people) < 1e-3 * people)
    ((150, 200), 'float32', True)
    >>> heads = counter.locate("photo.jpg")
    >>> heads.shape[1]
    3

    Raises ``OSError`` or ``ValueError`` with one line for a file that cannot be read and a device that is not there.
    """

    def __init__(
        self,
        weights: str | os.PathLike,
        device: str | int = "auto",
        batch: int = WINDOWS_AT_ONCE,
        window: int = WINDOW,
        flip: bool = False,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch: {batch}, must be at least 1 window")
        self.model, self.description = load_model(weights)
        devices = fabric_devices(str(device).removeprefix("cuda:"))
        self.device = torch.device("cpu" if devices["accelerator"] == "cpu" else f"cuda:{devices['devices'][0]}")
        self.model.to(self.device)
        self.options = {"window": window, "flip": flip, "batch": batch}

    def count(self, image) -> float | list[float]:
        """The number of people in an image: the sum of its density. A list or tuple of images gives a list of numbers.

        >>> counter = Counter("runs/qnrf_vgg", device="cpu")
        >>> array = np.asarray(Image.open("photo.jpg"))
        >>> one, other = counter.count(["photo.jpg", array])
        >>> one == other == counter.count(Image.open("photo.jpg"))
        True
        """
        if isinstance(image, (list, tuple)):
            return [self.count(one) for one in image]
        return float(total(self._windows(image)))

    def density(self, image) -> np.ndarray:
        """Where the people are: float32 [H, W], people per pixel."""
        return density_map(self._windows(image)).numpy()

    def locate(self, image) -> np.ndarray:
        """The heads: float64 [M, 3], x, y (pixels) and mass of the density's maxima (``locate_windows``).

        In dense crowds, where heads share a maximum, they are fewer than the count.
        """
        return locate_windows(self._windows(image))

    def _windows(self, image) -> Sequence[Window]:
        parts = predict(self.model, normalise(to_planes(_pixels(image)).to(self.device)), **self.options)
        return [part._replace(density=part.density.cpu()) for part in parts]


def _pixels(image) -> np.ndarray:
    """uint8 [H, W, 3], RGB, of what a caller may give as an image."""
    if isinstance(image, (str, os.PathLike)):
        return load_image(image, upright=True)
    if isinstance(image, Image.Image) and np.asarray(image).itemsize == 1:  # Pillow would cut deeper ones off at 255
        image = ImageOps.exif_transpose(image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"image: {pixels.dtype} {list(pixels.shape)}; give a path, a PIL image, or an array uint8 [H, W, 3] in RGB"
        )
    return pixels


def gst_vgg19(weights: str | os.PathLike, **options) -> Counter:
    """A ``Counter`` on VGG19 features (``--model-name vgg``); ``options`` are its device, batch and so on.

    >>> counter = torch.hub.load(".", "gst_vgg19", source="local", weights="runs/qnrf_vgg", device="cpu")
    >>> counter.count("photo.jpg") > 0
    True
    """
    return _counter("vgg", weights, options)


def gst_vgg19_trans(weights: str | os.PathLike, **options) -> Counter:
    """The same for VGG19 features with the graph-modulated encoder (``--model-name vgg_trans``)."""
    return _counter("vgg_trans", weights, options)


def _counter(name: str, weights: str | os.PathLike, options: dict) -> Counter:
    counter = Counter(weights, **options)
    network = counter.description["model_name"]
    if network != name:
        entry = {"vgg": "gst_vgg19", "vgg_trans": "gst_vgg19_trans"}.get(network, "hubconf.Counter")
        raise ValueError(f"{weights}: weights of {network}, not of {name}; load {entry}")
    return counter
