"""Reading and writing of image files, the same way for every stage."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.files import atomic_write

MAX_PIXELS = 300_000_000

# UCF-QNRF holds photographs of 67 megapixels; Pillow starts to complain at 89. ``load_image`` has its own limit.
Image.MAX_IMAGE_PIXELS = None
# Whole images are the unit of parallel work here, and OpenCV's thread pool hangs in the forked workers of a DataLoader.
cv2.setNumThreads(0)


def load_image(path: Path | str) -> np.ndarray:
    """Decode an image file to uint8 [H, W, 3], RGB.

    The stored pixel grid is returned: an EXIF orientation is not applied, since annotations refer to the grid. Grey,
    palette and CMYK images become RGB. Raises ``OSError`` for a file that cannot be opened and ``ValueError`` for one
    that is empty, cut off, no image, deeper than 8 bits or larger than ``MAX_PIXELS``; both name the file.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                reason, remedy = f"{width} x {height} pixels, more than {MAX_PIXELS:,}", "make it smaller beforehand"
            elif image.mode in ("I", "F") or ";16" in image.mode:
                reason, remedy = f"more than 8 bits per channel, mode {image.mode}", "save it with 8 bits per channel"
            else:
                return np.array(image.convert("RGB"))
    except MemoryError:
        reason, remedy = "not enough memory to decode it", "use fewer workers or make it smaller beforehand"
    # Pillow's decoders answer damaged files with OSError, ValueError, SyntaxError, struct.error and others.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason, remedy = str(error) or type(error).__name__, "it is empty, cut off or no image: get the file again"
    raise ValueError(f"{path}: cannot read this image ({reason}); {remedy}")


def save_jpeg(image: np.ndarray, path: Path, quality: int) -> None:
    """Write uint8 [H, W, 3] as a JPEG; ``path`` appears whole or not at all."""
    with atomic_write(path) as partial:
        Image.fromarray(image).save(partial, "JPEG", quality=quality)
