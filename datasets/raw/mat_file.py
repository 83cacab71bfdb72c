"""Reading MATLAB 5 files (what ``save -v7`` and ``-v6`` write) in plain Python.

``scipy.io.loadmat`` trusts the type codes and lengths inside a file. Of the 760 files with one wrong word that
``tests/test_annotations_mat.py: test_every_word_may_be_wrong`` makes, 13 end the process with a segmentation
fault in SciPy 1.17.1 (``annPoints`` with a 0, 15 or 255 in byte 192; ``image_info`` in bytes 144, 328 and 448), and 13 ask for
gigabytes. Here every length is checked against the bytes that there are, in the same time (40 us a file of 50 points).
Format: MathWorks, "MAT-File Format", chapter 1.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.raw.marks import Annotated, Mark, Request

# What the field calls an array of points, the usual names first.
POINT_NAMES = ("annPoints", "image_info", "location", "loc", "points", "gt_points", "gt", "annotation", "annotations")
POINT_NAMES += ("ann_points", "annpoints", "coordinates", "coords", "dots", "heads", "head", "centers", "center", "xy")
_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CELL, _STRUCT = 1, 2
_NUMERIC = range(6, 16)  # double, single, int8 to uint64
_COMPLEX_FLAG = 0x800
_MAX_DEPTH = 8
_MAX_BYTES = 1 << 25  # of one decompressed variable; the largest crowd needs a hundredth


def read_mat_points(path: Path, names: Sequence[str]) -> np.ndarray:
    """The points of a MATLAB 5 file as float64 [N, 2]: of the first of the variables ``names`` that it holds, or of the only one.

    The points may lie in cells and structs of one element, there under one of ``POINT_NAMES``. An image without people may
    hold an empty array of any shape. Raises ``ValueError`` for anything else than finite numbers in two columns, and like
    ``read_mat``.
    """
    variables = read_mat(path)
    name = next((name for name in (*names, *variables) if name in variables), None)
    if name is None or (name not in names and len(variables) > 1):
        there = ", ".join(sorted(variables)) or "none"
        raise ValueError(f"{path}: no key {names[0]} (keys found: {there}); save the points [N, 2] under that name")
    where, value = f"{path}: {name}", variables[name]
    # image_info[0, 0][0, 0][0] of ShanghaiTech: a cell, a struct and its first field.
    while isinstance(value, (list, dict)):
        if isinstance(value, list):
            value = value[0] if len(value) == 1 else f"an array of {len(value)} cells or structs"
        else:
            field = next((field for field in POINT_NAMES if field in value), None)
            value = value[field] if field else f"a struct without location (fields: {', '.join(value)})"
    if isinstance(value, str):
        raise ValueError(f"{where} holds {value} instead of numbers; store the points as a numeric array [N, 2]")
    if value.size == 0 and value.ndim <= 2:
        return np.zeros((0, 2))
    if value.ndim != 2 or value.shape[1] != 2:
        raise ValueError(f"{where} has shape {list(value.shape)}; store one row (x, y) for each point, [N, 2]")
    bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
    if bad.size:
        raise ValueError(f"{where}: row {bad[0] + 1} is {value[bad[0]].tolist()}; correct or remove this point")
    return value


def read_points_mat(path: Path, request: Request = Request()) -> dict[str, Annotated]:
    """The points of a MATLAB file under one of the names that the field uses, or of its only variable."""
    return {"": Annotated([Mark(x, y) for x, y in read_mat_points(path, POINT_NAMES).tolist()])}


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB 5 file.

    Numbers become a float64 array with MATLAB's dimensions, a cell array the list of its values, a struct array a list of
    dicts, anything else some words that say so. Raises ``FileNotFoundError``, or ``ValueError`` for a file that is damaged or of
    another version.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such annotation file; add it, or remove its image")
    data = path.read_bytes()
    if data[:8] == b"\x89HDF\r\n\x1a\n" or data[124:128] == b"\x00\x02IM":
        raise ValueError(f"{path}: MATLAB 7.3 files are not supported; save it with MATLAB's option -v7")
    try:
        if data[126:128] != b"IM":
            raise ValueError("it does not begin like a MATLAB 5 file of this byte order")
        return dict(_array(element) for element in _elements(data[_HEADER:]))
    except (ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"{path}: not a readable .mat file ({error}); get it again, or save it with -v7") from None


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each of the elements that stand one behind the other."""
    position = 0
    while position < len(data):
        kind, size = struct.unpack_from("<II", data, position)
        start, position = position + 8, position + 8
        if kind >> 16:  # a small element: its length shares the word of the type, up to 4 bytes of content follow
            start, size, kind = start - 4, kind >> 16, kind & 0xFFFF
        elif kind == _COMPRESSED:  # not padded, all others to 8 bytes
            position += size
        else:
            position += -(-size // 8) * 8
        if start + size > min(position, len(data)):
            raise ValueError("it is cut off")
        yield kind, data[start : start + size]


def _next(elements: Iterator[tuple[int, bytes]]) -> tuple[int, bytes]:
    element = next(elements, None)
    if element is None:
        raise ValueError("it is cut off")
    return element


def _numbers(elements: Iterator[tuple[int, bytes]]) -> np.ndarray:
    """The next element, which must be numbers."""
    kind, content = _next(elements)
    if kind not in _NUMBERS:
        raise ValueError(f"an element of type {kind} where numbers should be")
    return np.frombuffer(content, f"<{_NUMBERS[kind]}")


def _array(element: tuple[int, bytes], depth: int = 0) -> tuple[str, Any]:
    """Name and value of an element, which must be an array."""
    kind, content = element
    if kind == _COMPRESSED and not depth:
        stream = zlib.decompressobj()
        content = stream.decompress(content, _MAX_BYTES)
        if not stream.eof:
            raise ValueError("a compressed variable is cut off or too large")
        kind, content = _next(_elements(content))
    if kind != _MATRIX:
        raise ValueError(f"an element of type {kind} where an array should be")
    if not content and depth:
        return "", np.zeros((0, 0))
    parts = _elements(content)
    flags, dimensions, name = _numbers(parts), _numbers(parts), _next(parts)[1].decode("utf-8", "replace")
    if len(flags) != 2 or len(dimensions) < 2 or flags.dtype.kind != "u" or dimensions.dtype.kind != "i":
        raise ValueError("an array without its flags or dimensions")
    if (dimensions < 0).any() or not name.isprintable():
        raise ValueError(f"an array called {name!r} with dimensions {dimensions.tolist()}")
    return name, _value(parts, int(flags[0]), dimensions.tolist(), depth)


def _value(parts: Iterator[tuple[int, bytes]], flags: int, dimensions: list[int], depth: int) -> Any:
    """What the rest of an array's elements holds, with these flags and dimensions."""
    kind, size = flags & 0xFF, math.prod(dimensions)
    if depth > _MAX_DEPTH:
        raise ValueError(f"arrays nested more than {_MAX_DEPTH} deep")
    if kind in _NUMERIC and not flags & _COMPLEX_FLAG:
        # MATLAB stores whole numbers in the smallest type that holds them, whatever the array's class.
        numbers = _numbers(parts)
        if numbers.size != size:
            raise ValueError(f"{numbers.size} numbers in an array with dimensions {dimensions}")
        return numbers.reshape(dimensions, order="F").astype(np.float64)
    if kind == _CELL:
        return [_array(_next(parts), depth + 1)[1] for _ in range(size)]
    if kind == _STRUCT:
        length, names = _numbers(parts), _next(parts)[1]
        if length.size != 1 or not 0 < length[0] <= 64:
            raise ValueError("a struct without the length of its field names")
        cuts = range(0, len(names), int(length[0]))
        fields = [names[i : i + cuts.step].split(b"\0")[0].decode("utf-8", "replace") for i in cuts]
        values = range(size if fields else 0)
        return [{field: _array(_next(parts), depth + 1)[1] for field in fields} for _ in values]
    return "complex numbers, text or something else"
