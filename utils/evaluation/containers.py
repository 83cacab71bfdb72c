"""Whether a video file is whole, by the lengths that its container states.

The number of frames in a header is duration times rate, an estimate where the rate varies or the sound is longer than the
picture. The lengths of the outermost elements are exact: a file that is shorter was cut off.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_SEGMENT = b"\x18\x53\x80\x67"  # of Matroska: the element that holds everything


def is_cut_off(path: Path) -> bool:
    """Whether an AVI, MP4 (MOV, M4V) or Matroska (WebM) file ends before its container says; other kinds do not tell."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF":
            return 8 + int.from_bytes(head[4:8], "little") > length
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _end_of_boxes(file, length) > length
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _end_of_segment(file) > length
    return False


def _end_of_boxes(file: BinaryIO, length: int) -> int:
    """Where the last box of ISO 14496-12 ends: 4 bytes of length, 4 of type; 1: 8 bytes follow; 0: up to the end."""
    position = 0
    while position + 8 <= length:
        file.seek(position)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        size = int.from_bytes(head[8:16], "big") if size == 1 else size or length - position
        if size < 8 or not head[4:8].isalnum():  # what follows is no box
            break
        position += size
    return position


def _end_of_segment(file: BinaryIO) -> int:
    """Where the segment of RFC 8794's document ends; 0 where it does not say, as in a live recording."""
    file.seek(4)
    size, known = _variable_length(file)
    if not known:
        return 0
    file.seek(size, 1)
    if file.read(4) != _SEGMENT:
        return 0
    size, known = _variable_length(file)
    return file.tell() + size if known else 0


def _variable_length(file: BinaryIO) -> tuple[int, bool]:
    """An EBML number, whose first byte's leading zeros count the bytes that follow; all ones: unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return 0, False
    following = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & ((1 << (7 - following)) - 1)]) + file.read(following), "big")
    return value, value != (1 << 7 * (following + 1)) - 1
