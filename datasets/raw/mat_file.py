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
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CELL, _STRUCT = 1, 2
_NUMERIC = range(6, 16)  # double, single, int8 to uint64
_OTHER = {3: "an object", 4: "text", 5: "a sparse matrix"}
_COMPLEX_FLAG = 0x800
_MAX_DEPTH = 8
_MAX_BYTES = 1 << 25  # of one decompressed variable; the largest crowd needs a hundredth


class MatObject(str):
    """In place of a value that is no array of real numbers, cell or struct: what it is, in words."""


def read_mat(path: Path | str, variable: str) -> Any:
    """The value of ``variable`` in a MATLAB 5 file.

    Raises ``ValueError`` where it is missing, and like ``read_any``.
    """
    found = _read(Path(path), {variable})
    if variable not in found:
        names = ", ".join(sorted(found)) or "none"
        raise ValueError(f"{path}: no key {variable} (keys found: {names}); save the points [N, 2] under that name")
    return found[variable]


def read_any(path: Path | str, variables: Sequence[str]) -> tuple[str, Any]:
    """Name and value of the first of ``variables`` that a MATLAB 5 file holds, or of the only one that it holds.

    Numbers become a float64 array with MATLAB's dimensions, a cell array the list of its values, a struct array
    a list of dicts, anything else a ``MatObject``. Raises ``FileNotFoundError``, or ``ValueError`` for a file that is
    damaged, of another version, or lacks the variable.
    """
    found = _read(Path(path), None)
    name = next((name for name in variables if name in found), next(iter(found)) if len(found) == 1 else None)
    if name is None:
        names = ", ".join(sorted(found)) or "none"
        raise ValueError(f"{path}: no key {variables[0]} (keys found: {names}); save the points [N, 2] under that name")
    return name, found[name]


def _read(path: Path, wanted: Collection[str] | None) -> dict[str, Any]:
    """The variables by name; the value of one that is not ``wanted`` is None. Without ``wanted`` all are read."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such annotation file; add it, or remove its image")
    data = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if data[:8] == b"\x89HDF\r\n\x1a\n" or (order and struct.unpack(f"{order}H", data[124:126])[0] == 0x200):
        raise ValueError(f"{path}: MATLAB 7.3 files are not supported; save it with MATLAB's option -v7")
    found: dict[str, Any] = {}
    try:
        if not order:
            raise ValueError("it does not begin like a MATLAB 5 file")
        for matrix in _variables(data, order):
            name, flags, dimensions, rest = _matrix_head(matrix, order)
            if name in found:
                raise ValueError(f"the variable {name} is there twice")
            read = wanted is None or name in wanted
            found[name] = _value(flags, dimensions, rest, order, 0) if read else None
    except (ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"{path}: not a readable .mat file ({error}); get it again, or save it with -v7") from None
    return found


def _variables(data: bytes, order: str) -> Iterator[bytes]:
    """The matrix element of each variable, without its tag."""
    position = _HEADER
    while position < len(data):
        kind, content, position = _element(data, position, order)
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            content = stream.decompress(content, _MAX_BYTES)
            if not stream.eof:
                raise ValueError("a compressed variable is cut off or too large")
            kind, content, _ = _element(content, 0, order)
        if kind != _MATRIX:
            raise ValueError(f"an element of type {kind} where a variable should be")
        yield content


def _element(data: bytes, position: int, order: str) -> tuple[int, bytes, int]:
    """The element at ``position`` -> (type, content, position of the next)."""
    kind, size = struct.unpack_from(f"{order}II", data, position)
    if kind >> 16:  # a small element: its length shares the word of the type, up to 4 bytes of content follow
        start, size, kind = position + 4, kind >> 16, kind & 0xFFFF
        if size > 4:
            raise ValueError(f"a small element of {size} bytes")
        following = position + 8
    else:
        start = position + 8
        # Compressed elements are not padded, all others to 8 bytes.
        following = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
    if start + size > len(data):
        raise ValueError("it is cut off")
    return kind, data[start : start + size], following


def _numbers(data: bytes, position: int, order: str) -> tuple[np.ndarray, int]:
    kind, content, position = _element(data, position, order)
    if kind not in _NUMBERS:
        raise ValueError(f"an element of type {kind} where numbers should be")
    return np.frombuffer(content, f"{order}{_NUMBERS[kind]}"), position


def _matrix_head(data: bytes, order: str) -> tuple[str, int, list[int], bytes]:
    """Name, array flags, dimensions and what follows them."""
    flags, position = _numbers(data, 0, order)
    dimensions, position = _numbers(data, position, order)
    _, name, position = _element(data, position, order)
    if len(flags) != 2 or len(dimensions) < 2 or flags.dtype.kind != "u" or dimensions.dtype.kind != "i":
        raise ValueError("an array without its flags or dimensions")
    if (dimensions < 0).any():
        raise ValueError(f"an array with dimensions {dimensions.tolist()}")
    text = name.decode("utf-8", "replace")
    if not text.isprintable():
        raise ValueError(f"an array called {text!r}")
    return text, int(flags[0]), dimensions.tolist(), data[position:]


def _value(flags: int, dimensions: list[int], data: bytes, order: str, depth: int) -> Any:
    kind, size = flags & 0xFF, math.prod(dimensions)
    if depth > _MAX_DEPTH:
        raise ValueError(f"arrays nested more than {_MAX_DEPTH} deep")
    if kind in _NUMERIC and not flags & _COMPLEX_FLAG:
        # MATLAB stores whole numbers in the smallest type that holds them, whatever the array's class.
        numbers, _ = _numbers(data, 0, order)
        if numbers.size != size:
            raise ValueError(f"{numbers.size} numbers in an array with dimensions {dimensions}")
        return numbers.reshape(dimensions, order="F").astype(np.float64)
    if kind == _CELL:
        return _nested(data, 0, size, order, depth)
    if kind == _STRUCT:
        length, position = _numbers(data, 0, order)
        _, names, position = _element(data, position, order)
        if length.size != 1 or not 0 < length[0] <= 64:
            raise ValueError("a struct without the length of its field names")
        step = int(length[0])
        fields = [names[i : i + step].split(b"\0")[0].decode("utf-8", "replace") for i in range(0, len(names), step)]
        values = _nested(data, position, size * len(fields), order, depth)
        rows = range(0, len(values), len(fields) or 1)
        return [dict(zip(fields, values[i : i + len(fields)], strict=True)) for i in rows]
    return MatObject("complex numbers" if kind in _NUMERIC else _OTHER.get(kind, f"a value of class {kind}"))


def _nested(data: bytes, position: int, count: int, order: str, depth: int) -> list[Any]:
    values = []
    for _ in range(count):
        kind, content, position = _element(data, position, order)
        if kind != _MATRIX:
            raise ValueError(f"an element of type {kind} where an array should be")
        # An element without bytes is an empty array.
        head = _matrix_head(content, order)[1:] if content else None
        values.append(_value(*head, order, depth + 1) if head else np.zeros((0, 0)))
    return values
