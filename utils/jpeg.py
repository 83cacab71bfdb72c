"""Parts of a JPEG, decoded without the rest of it.

Behind a restart marker a JPEG's coding starts afresh, at a whole byte and with nothing known of what came before (ITU-T T.81,
E.1.4). ``restart_interval`` sets the markers so that they cut each row of blocks at the same columns. The pieces under a rectangle,
behind a header that says how large they are together, are then a JPEG themselves, for any decoder. JPEGs without such markers,
which is what cameras write, are decoded whole.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import simplejpeg

_PIECE = 8  # blocks of 16 pixels in a piece, at least; a marker every 8 costs 0.3 to 0.6 % of a photograph's file
# Color is stored at half the resolution: a pixel next to a border takes part of its color from beyond it.
_MARGIN = 2
_SEQUENTIAL = (0xC0, 0xC1)  # Huffman coding, all of a block at once
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, 0xFF, *range(0xD0, 0xDA)}  # no length follows
_RESTARTS, _SCAN, _START, _END = 0xDD, 0xDA, b"\xff\xd8", 0xD9


def restart_interval(width: int) -> int:
    """Blocks from one restart marker to the next: at least 8, as few as divide a row of an image ``width`` pixels wide."""
    columns = -(-width // 16)
    return next(n for n in range(min(_PIECE, columns), columns + 1) if columns % n == 0)


class _Header(NamedTuple):
    height: int
    width: int
    size: int  # where the file says so, a byte's index
    block: tuple[int, int]  # height and width of a block of all three channels, pixels
    interval: int  # blocks from one restart marker to the next
    length: int  # bytes before the first piece


class Pieces:
    """A JPEG cut into pieces: ``shape`` as of its pixels, uint8 [H, W, 3], and ``self[top:bottom, left:right]``, which decodes."""

    def __init__(self, data: bytes) -> None:
        """Raises ``ValueError`` for what is no JPEG cut so."""
        try:
            self._header = header = _read_header(data)
        except (IndexError, struct.error):
            raise ValueError("its header ends early") from None
        self.shape = (header.height, header.width, 3)
        rows, columns = -(-header.height // header.block[0]), -(-header.width // header.block[1])
        if not header.interval or columns % header.interval:
            raise ValueError("no restart markers at the same columns of each row")
        self._grid = rows, columns // header.interval
        self._data, self._ends = data, _ends(data, header.length, rows * self._grid[1])

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        """uint8 [h, w, 3], RGB, the same as of the whole image. Raises ``ValueError`` for damaged pieces and no rectangle."""
        header, across = self._header, self._grid[1]
        sides = header.block[0], header.block[1] * header.interval  # of a piece, pixels
        pixels = [wanted.indices(length) for wanted, length in zip(part, self.shape)]
        if any(start >= stop or step != 1 for start, stop, step in pixels):
            raise ValueError("no rectangle")
        (top, bottom), (left, right) = pieces = [
            _span(*p[:2], n, count) for p, n, count in zip(pixels, sides, self._grid)
        ]
        corner = top * sides[0], left * sides[1]
        size = [min(last * n, side) - first for (_, last), n, side, first in zip(pieces, sides, self.shape, corner)]
        head = bytearray(self._data[: header.length])
        struct.pack_into(">HH", head, header.size, *size)
        joined: list[bytes] = [head]
        wanted = [row * across + column for row in range(top, bottom) for column in range(left, right)]
        for n, piece in enumerate(wanted):
            marker = 0xD0 + n % 8 if n + 1 < len(wanted) else _END
            joined += self._data[self._ends[piece] + 2 : self._ends[piece + 1]], bytes((0xFF, marker))
        decoded = simplejpeg.decode_jpeg(b"".join(joined), "RGB", strict=True)
        return decoded[tuple(slice(start - n, stop - n) for (start, stop, _), n in zip(pixels, corner))]


def _span(start: int, stop: int, side: int, count: int) -> tuple[int, int]:
    """First of ``count`` pieces of ``side`` pixels that pixels from ``start`` to ``stop`` need, and the one after the last."""
    return max(start - _MARGIN, 0) // side, min(-(-(stop + _MARGIN) // side), count)


def _read_header(data: bytes) -> _Header:
    if data[:2] != _START:
        raise ValueError("no JPEG")
    at, interval, frame = 2, 0, None
    while True:
        mark, kind, length = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF or kind in _ALONE or (kind in _FRAMES and kind not in _SEQUENTIAL):
            raise ValueError("no sequential Huffman coding")
        if kind in _SEQUENTIAL:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            sampling = data[at + 11 : at + 10 + 3 * channels : 3]
            block = 8 * max(s & 15 for s in sampling), 8 * max(s >> 4 for s in sampling)
            frame = height, width, at + 5, block
            if (bits, channels) != (8, 3) or not all((height, width, *block)):
                raise ValueError("no three channels of 8 bits")
        elif kind == _RESTARTS:
            (interval,) = struct.unpack_from(">H", data, at + 4)
        elif kind == _SCAN:
            if frame is None or data[at + 4] != 3:
                raise ValueError("its channels are in scans of their own")
            return _Header(*frame, interval, at + 2 + length)
        at += 2 + length


def _ends(data: bytes, first: int, count: int) -> list[int]:
    """Where each of ``count`` pieces ends, the first of which begins at ``first``: its marker's index; before them, ``first`` - 2."""
    codes = np.frombuffer(data, np.uint8)
    at = first + np.flatnonzero(codes[first:-1] == 0xFF)
    at = at[codes[at + 1] != 0][:count]  # 0xFF 0 is a byte of the coding
    if len(at) < count or not np.array_equal(codes[at + 1], np.append(0xD0 + np.arange(count - 1) % 8, _END)):
        raise ValueError(f"no {count} pieces")
    return [first - 2, *at.tolist()]
