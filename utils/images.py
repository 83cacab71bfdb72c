"""Reading and writing of image files, the same way for every stage."""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from utils.files import atomic_write

MAX_PIXELS = 300_000_000
_DENSEST = 9000  # pixels that a byte may stand for; deflate makes one of 1032 bytes, of 8 pixels at most
# What photographs come in, also under another's suffix. Pillow knows many more formats, and some run other programs.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
_GET_AGAIN = "it is empty, cut off or no image that is read: get the file again, or convert it to JPEG or PNG"

_ORIENTATION, _BITS_PER_SAMPLE = 0x0112, 258  # tags of EXIF and TIFF
# What undoes an orientation; turning to the left undoes turning to the right, all others undo themselves.
INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}

# Of a JPEG and its markers.
_BLOCK = 16  # pixels: 8 x 8 of the color, which has half the resolution
_PIECE = 8  # blocks in a piece, at least; a marker every 8 costs 0.3 to 0.6 % of a photograph's file
_MARGIN = 2  # pixels: one next to a border takes part of its color from beyond it
_START, _FRAME, _RESTARTS, _SCAN, _END = b"\xff\xd8", b"\xff\xc0", b"\xff\xdd", b"\xff\xda", 0xD9
# Three in a frame, brightness in 2 x 2 blocks, colors in one.
_CHANNELS = bytes((3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1))

# UCF-QNRF holds photographs of 67 megapixels; Pillow starts to complain at 89. ``load_image`` has its own limits.
Image.MAX_IMAGE_PIXELS = None
# Whole images are the unit of parallel work here, and OpenCV's thread pool hangs in the forked workers of a DataLoader.
cv2.setNumThreads(0)


class Shape(NamedTuple):
    """Height and width of the stored pixel grid, and the EXIF orientation, 1 to 8, that says how to show it."""

    height: int
    width: int
    orientation: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the image as every tool shows it."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def load_image(path: Path | str, upright: bool = False) -> np.ndarray:
    """Decode an image file to uint8 [H, W, 3], RGB.

    The stored pixel grid is returned, to which the annotations of the published data sets refer; with ``upright`` the
    image is turned by its EXIF orientation, as photographs are shown. Grey, palette and CMYK images become RGB, and what
    is transparent lies on white, as it is shown. Raises ``OSError`` for a file that cannot be opened and ``ValueError`` for
    one that is empty, cut off, no image, deeper than 8 bits a channel, of several pages, transparent everywhere, larger
    than ``MAX_PIXELS`` or than its bytes can hold; both name the file.
    """
    with _checked(path) as image:
        # Asked before decoding, after which Pillow has turned a TIFF and forgotten that it was.
        orientation, turned = _orientation(image), image.format == "TIFF"
        pixels = _decode(image, path)
    if upright == turned:
        return pixels
    return np.ascontiguousarray(turn(pixels, orientation if upright else INVERSE[orientation]))


def open_image(path: Path | str) -> np.ndarray | Pieces:
    """What ``load_image(path)`` gives, to be asked for its ``shape`` and for parts, ``[top:bottom, left:right]``; the same errors.

    A JPEG that ``save_jpeg`` wrote is decoded only where it is asked for.
    """
    try:
        return Pieces(Path(path).read_bytes(), lambda: load_image(path))
    except (ValueError, MemoryError):
        return load_image(path)


def image_shape(path: Path | str) -> Shape:
    """Size and orientation of an image that ``load_image`` reads, from its header; the same errors."""
    with _checked(path) as image:
        orientation, (width, height) = _orientation(image), image.size
        if image.format == "TIFF" and orientation >= 5:  # Pillow gives its size as it is after turning
            height, width = width, height
        return Shape(height, width, orientation)


def _decode(image: Image.Image, path: Path | str) -> np.ndarray:
    if image.format == "JPEG" and image.mode == "RGB":
        # A third of Pillow's time for the same pixels; what it finds wrong or does not know is Pillow's to judge.
        with contextlib.suppress(ValueError):
            return simplejpeg.decode_jpeg(Path(path).read_bytes(), "RGB", strict=True)
    image.load()
    if image.has_transparency_data:  # what lies under transparent pixels is anything, black as a rule
        image = image.convert("RGBA")
        least, most = image.getchannel("A").getextrema()
        if not most:
            raise _Refused("it is transparent everywhere", "save it without its alpha channel")
        if least < 255:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def image_size(path: Path | str) -> tuple[int, int]:
    """Height and width of an image that ``load_image`` reads, as it is stored; the same errors."""
    return image_shape(path)[:2]


def is_grey(image: np.ndarray) -> bool:
    """Whether the three channels of uint8 [H, W, 3] are equal everywhere."""
    return bool((image == image[..., :1]).all())


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """An array [H, W, ...] in the stored grid, turned and mirrored as an EXIF orientation says (a view)."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if orientation in (2, 3, 6, 7) else image


def turn_points(points: np.ndarray, shape: Shape) -> np.ndarray:
    """Points [N, 2], (x, y) in the stored grid of ``shape``, in the upright one; x = 0 and x = W are its borders."""
    x, y = points[:, 0], points[:, 1]
    if shape.orientation >= 5:
        x, y = y, x
    height, width = shape.upright
    x = width - x if shape.orientation in (2, 3, 6, 7) else x
    y = height - y if shape.orientation in (3, 4, 7, 8) else y
    return np.stack([x, y], axis=1)


def _orientation(image: Image.Image) -> int:
    # Pillow decodes a whole PNG to look for EXIF data behind its pixels, where nobody writes them.
    if image.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"} & image.info.keys():
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data, which Pillow answers with anything; the pixels may be whole
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _depth(image: Image.Image) -> int:
    """Bits of a channel in the file; Pillow reads some modes by their upper 8 bits, which may hold next to nothing."""
    if image.mode in ("I", "F") or ";16" in image.mode:
        return 16
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, 1)
        return max(bits) if isinstance(bits, tuple) else int(bits)
    return 16 if any("16" in str(tile[3]) for tile in getattr(image, "tile", ()) if image.format == "PNG") else 8


class _Refused(ValueError):
    """An image that is not read: the reason, the remedy."""


@contextlib.contextmanager
def _checked(path: Path | str) -> Iterator[Image.Image]:
    """The opened image, refused by its header or before its pixels are decoded; errors of the block are about this file."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check(image, os.stat(path).st_size)
            yield image
            return
    except _Refused as refused:
        reason, remedy = refused.args
    except MemoryError:
        reason, remedy = "not enough memory to decode it", "use fewer workers or make it smaller beforehand"
    # Pillow's decoders answer damaged files with OSError, ValueError, SyntaxError, struct.error and others.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason, remedy = str(error) or type(error).__name__, _GET_AGAIN
    raise ValueError(f"{path}: cannot read this image ({reason}); {remedy}")


def _check(image: Image.Image, size: int) -> None:
    """Refuse an image by its header; ``size``: bytes of its file."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _Refused(f"{width} x {height} pixels, more than {MAX_PIXELS:,}", "make it smaller beforehand")
    if width * height > _DENSEST * size:
        raise _Refused(f"{width} x {height} pixels, more than its bytes can hold", _GET_AGAIN)
    if _depth(image) > 8:
        raise _Refused(f"more than 8 bits per channel, mode {image.mode}", "save it with 8 bits per channel")
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format != "MPO":  # behind whose first picture phones store no other one
        raise _Refused(f"it holds {pages} pages", "save each as an image of its own")


def save_jpeg(image: np.ndarray, path: Path, quality: int) -> None:
    """Write uint8 [H, W, 3] as a JPEG of which ``open_image`` decodes parts; ``path`` appears whole or not at all."""
    with atomic_write(path) as partial:
        blocks = restart_interval(image.shape[1])
        Image.fromarray(image).save(partial, "JPEG", quality=quality, restart_marker_blocks=blocks)


def restart_interval(width: int) -> int:
    """Blocks from one restart marker to the next: at least 8, as few as divide a row of an image ``width`` pixels wide."""
    columns = -(-width // _BLOCK)
    return next(n for n in range(min(_PIECE, columns), columns + 1) if columns % n == 0)


class Pieces:
    """A JPEG cut into pieces: ``shape`` as of its pixels, uint8 [H, W, 3], and ``self[top:bottom, left:right]``, which decodes.

    Behind a restart marker a JPEG's coding starts afresh, at a whole byte and with nothing known of what came before (ITU-T
    T.81, E.1.4). ``restart_interval`` sets the markers so that they cut each row of blocks at the same columns. The pieces
    under a rectangle, behind a header that says how large they are together, are then a JPEG themselves, for any decoder.
    """

    def __init__(self, data: bytes, read_whole: Callable[[], np.ndarray]) -> None:
        """``read_whole``: all pixels, for where a piece is damaged. Raises ``ValueError`` for what is no JPEG cut so."""
        self._data, self._read_whole = data, read_whole
        self._size_at, interval, self._first = _read_header(data)
        height, width = struct.unpack_from(">HH", data, self._size_at)
        self.shape = (height, width, 3)
        rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
        if not rows or not interval or columns % interval:
            raise ValueError("no restart markers at the same columns of each row")
        self._sides = _BLOCK, _BLOCK * interval  # of a piece, pixels
        self._grid = rows, columns // interval
        self._ends = _ends(data, self._first, rows * self._grid[1])

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        """uint8 [h, w, 3], RGB, the same as of the whole image."""
        pixels = [wanted.indices(length)[:2] for wanted, length in zip(part, self.shape)]
        (top, bottom), (left, right) = pieces = [
            (max(start - _MARGIN, 0) // side, min(-(-(stop + _MARGIN) // side), count))
            for (start, stop), side, count in zip(pixels, self._sides, self._grid)
        ]
        corner = top * self._sides[0], left * self._sides[1]
        ends = [min(last * side, length) for (_, last), side, length in zip(pieces, self._sides, self.shape)]
        header = bytearray(self._data[: self._first])
        struct.pack_into(">HH", header, self._size_at, ends[0] - corner[0], ends[1] - corner[1])
        joined: list[bytes] = [header]
        wanted = [row * self._grid[1] + column for row in range(top, bottom) for column in range(left, right)]
        for n, piece in enumerate(wanted):
            marker = 0xD0 + n % 8 if n + 1 < len(wanted) else _END
            joined += self._data[self._ends[piece] + 2 : self._ends[piece + 1]], bytes((0xFF, marker))
        try:
            decoded = simplejpeg.decode_jpeg(b"".join(joined), "RGB", strict=True)
        except (ValueError, MemoryError):
            return self._read_whole()[part]
        return decoded[tuple(slice(start - n, stop - n) for (start, stop), n in zip(pixels, corner))]


def _read_header(data: bytes) -> tuple[int, int, int]:
    """Where height and width stand, the blocks from one restart marker to the next, and where the first piece begins."""
    at, size_at, interval = 2, 0, 0
    while data[:2] == _START and (mark := data[at : at + 2]):
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if mark == _FRAME and data[at + 9 : at + 19] == _CHANNELS:
            size_at = at + 5
        elif mark == _RESTARTS:
            interval = int.from_bytes(data[at + 4 : at + 6], "big")
        elif mark == _SCAN and size_at:
            return size_at, interval, at + 2 + length
        at += 2 + length
    raise ValueError("no JPEG of three channels in sequential Huffman coding")


def _ends(data: bytes, first: int, count: int) -> list[int]:
    """Where each of ``count`` pieces ends, the first of which begins at ``first``: its marker's index; before them, ``first`` - 2."""
    codes = np.frombuffer(data, np.uint8)
    at = first + np.flatnonzero(codes[first:-1] == 0xFF)
    at = at[codes[at + 1] != 0][:count]  # 0xFF 0 is a byte of the coding
    if len(at) < count or not np.array_equal(codes[at + 1], np.append(0xD0 + np.arange(count - 1) % 8, _END)):
        raise ValueError(f"no {count} pieces")
    return [first - 2, *at.tolist()]
