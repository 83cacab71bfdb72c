"""Reading and writing of image files, the same way for every stage."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from utils.files import atomic_write

MAX_PIXELS = 300_000_000
# What photographs come in, also under another's suffix. Pillow knows many more formats, and some run other programs.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
_BITS = {"1": 1, "P": 1, "L": 2}  # of a pixel, the fewest that a file of this mode may have; others: 8 a band
_GET_AGAIN = "it is empty, cut off or no image: get the file again"
_SHRINKS = {"JPEG": 1100, "MPO": 1100, "PNG": 1100}  # times at most, by format; deflate 1032, a JPEG's blocks less

# UCF-QNRF holds photographs of 67 megapixels; Pillow starts to complain at 89. ``load_image`` has its own limits.
Image.MAX_IMAGE_PIXELS = None
# Whole images are the unit of parallel work here, and OpenCV's thread pool hangs in the forked workers of a DataLoader.
cv2.setNumThreads(0)


def load_image(path: Path | str) -> np.ndarray:
    """Decode an image file to uint8 [H, W, 3], RGB.

    The stored pixel grid is returned: an EXIF orientation is not applied, since annotations refer to the grid. Grey,
    palette and CMYK images become RGB. Raises ``OSError`` for a file that cannot be opened and ``ValueError`` for one
    that is empty, cut off, no image, deeper than 8 bits, larger than ``MAX_PIXELS`` or than its bytes can hold; both name
    the file.
    """
    with _checked(path, whole=True) as image:
        if image.format == "JPEG" and image.mode == "RGB":
            # A third of Pillow's time for the same pixels; what it finds wrong or does not know is Pillow's to judge.
            with contextlib.suppress(ValueError):
                return simplejpeg.decode_jpeg(image.fp.getbuffer(), "RGB", strict=True)
        return np.array(image.convert("RGB"))


def image_size(path: Path | str) -> tuple[int, int]:
    """Height and width of an image that ``load_image`` reads, from its header; the same errors."""
    with _checked(path) as image:
        return image.height, image.width


@contextlib.contextmanager
def _checked(path: Path | str, whole: bool = False) -> Iterator[Image.Image]:
    """The opened image, before its pixels are decoded; errors of the block are about this file. ``whole``: read into memory."""
    try:
        with Image.open(io.BytesIO(Path(path).read_bytes()) if whole else path, formats=_FORMATS) as image:
            width, height = image.size
            bits = width * height * _BITS.get(image.mode, 8 * len(image.getbands()))
            reason, remedy = None, "make it smaller beforehand"
            if width * height > MAX_PIXELS:
                reason = f"{width} x {height} pixels, more than {MAX_PIXELS:,}"
            elif image.mode in ("I", "F") or ";16" in image.mode:
                reason, remedy = f"more than 8 bits per channel, mode {image.mode}", "save it with 8 bits per channel"
            elif image.format in _SHRINKS and bits / 8 > _SHRINKS[image.format] * os.stat(path).st_size:
                reason, remedy = f"{width} x {height} pixels, more than its bytes can hold", _GET_AGAIN
            if reason is None:
                yield image
                return
    except MemoryError:
        reason, remedy = "not enough memory to decode it", "use fewer workers or make it smaller beforehand"
    # Pillow's decoders answer damaged files with OSError, ValueError, SyntaxError, struct.error and others.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason, remedy = str(error) or type(error).__name__, _GET_AGAIN
    raise ValueError(f"{path}: cannot read this image ({reason}); {remedy}")


def save_jpeg(image: np.ndarray, path: Path, quality: int) -> None:
    """Write uint8 [H, W, 3] as a JPEG; ``path`` appears whole or not at all."""
    with atomic_write(path) as partial:
        Image.fromarray(image).save(partial, "JPEG", quality=quality)
