"""Parts of a JPEG, decoded without the rest of it.

Behind a restart marker a JPEG's coding starts afresh, at a whole byte and with nothing known of what came before (ITU-T T.81,
E.1.4). ``restart_interval`` sets the markers so that they cut each row of blocks at the same columns. The pieces under a rectangle,
behind a header that says how large they are together, are then a JPEG themselves, for any decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import simplejpeg

_BLOCK = 16  # pixels: 8 x 8 of the color, which has half the resolution
_PIECE = 8  # blocks in a piece, at least; a marker every 8 costs 0.3 to 0.6 % of a photograph's file
_MARGIN = 2  # pixels: one next to a border takes part of its color from beyond it
_START, _FRAME, _RESTARTS, _SCAN, _END = b"\xff\xd8", b"\xff\xc0", b"\xff\xdd", b"\xff\xda", 0xD9
_CHANNELS = bytes(
    (3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1)
)  # three in a frame, brightness in 2 x 2 blocks, colors in one


def restart_interval(width: int) -> int:
    """Blocks from one restart marker to the next: at least 8, as few as divide a row of an image ``width`` pixels wide."""
    columns = -(-width // _BLOCK)
    return next(n for n in range(min(_PIECE, columns), columns + 1) if columns % n == 0)


class Pieces:
    """A JPEG cut into pieces: ``shape`` as of its pixels, uint8 [H, W, 3], and ``self[top:bottom, left:right]``, which decodes."""

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
