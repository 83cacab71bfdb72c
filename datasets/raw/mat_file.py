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
from collections.abc import Collection, Sequence
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
_OTHER = {3: "an object", 4: "text", 5: "a sparse matrix"}
_COMPLEX_FLAG = 0x800
_MAX_DEPTH = 8
_MAX_BYTES = 1 << 25  # of one decompressed variable; the largest crowd needs a hundredth


class MatObject(str):
    """In place of a value that is no array of real numbers, cell or struct: what it is, in words."""


def read_mat_points(path: Path, names: Sequence[str], lone: bool = False) -> np.ndarray:
    """The points of a MATLAB 5 file as float64 [N, 2]: of the first of the variables ``names`` that it holds.

    With ``lone`` the only variable of a file counts, whatever its name. The points may lie in cells and structs of one
    element, there under one of ``POINT_NAMES``. An image without people may hold an empty array of any shape. Raises
    ``ValueError`` for anything else than finite numbers in two columns, and like ``read_mat``.
    """
    variables = read_mat(path, None if lone else names)
    name = next((name for name in names if name in variables), None)
    if name is None and lone and len(variables) == 1:
        name = next(iter(variables))
    if name is None:
        there = ", ".join(sorted(variables)) or "none"
        raise ValueError(f"{path}: no key {names[0]} (keys found: {there}); save the points [N, 2] under that name")
    where, value = f"{path}: {name}", variables[name]
    # image_info[0, 0][0, 0][0] of ShanghaiTech: a cell, a struct and its first field.
    while isinstance(value, (list, dict)):
        if isinstance(value, list):
            value = value[0] if len(value) == 1 else MatObject(f"an array of {len(value)} cells or structs")
        else:
            field = next((field for field in POINT_NAMES if field in value), None)
            value = value[field] if field else MatObject(f"a struct without location (fields: {', '.join(value)})")
    if isinstance(value, MatObject):
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
    return {"": Annotated([Mark(x, y) for x, y in read_mat_points(path, POINT_NAMES, lone=True).tolist()])}


def read_mat(path: Path, names: Collection[str] | None = None) -> dict[str, Any]:
    """The variables of a MATLAB 5 file; the value of one that is not among the ``names``, if they are given, is None.

    Numbers become a float64 array with MATLAB's dimensions, a cell array the list of its values, a struct array a list of
    dicts, anything else a ``MatObject``. Raises ``FileNotFoundError``, or ``ValueError`` for a file that is damaged or of
    another version.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such annotation file; add it, or remove its image")
    data = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if data[:8] == b"\x89HDF\r\n\x1a\n" or (order and struct.unpack(f"{order}H", data[124:126])[0] == 0x200):
        raise ValueError(f"{path}: MATLAB 7.3 files are not supported; save it with MATLAB's option -v7")
    variables: dict[str, Any] = {}
    try:
        if not order:
            raise ValueError("it does not begin like a MATLAB 5 file")
        elements = _Elements(data, order, _HEADER)
        while elements.position < len(data):
            name, value = elements.array(names)
            if name in variables:
                raise ValueError(f"the variable {name} is there twice")
            variables[name] = value
    except (ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"{path}: not a readable .mat file ({error}); get it again, or save it with -v7") from None
    return variables


class _Elements:
    """The elements in some bytes of a MATLAB 5 file, one behind the other, in the file's byte order."""

    def __init__(self, data: bytes, order: str, position: int = 0) -> None:
        self.data, self.order, self.position = data, order, position

    def element(self) -> tuple[int, bytes]:
        """Type and content of the next one."""
        kind, size = struct.unpack_from(f"{self.order}II", self.data, self.position)
        if kind >> 16:  # a small element: its length shares the word of the type, up to 4 bytes of content follow
            start, size, kind = self.position + 4, kind >> 16, kind & 0xFFFF
            if size > 4:
                raise ValueError(f"a small element of {size} bytes")
            following = self.position + 8
        else:
            start = self.position + 8
            # Compressed elements are not padded, all others to 8 bytes.
            following = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > len(self.data):
            raise ValueError("it is cut off")
        self.position = following
        return kind, self.data[start : start + size]

    def numbers(self) -> np.ndarray:
        """The next one, which must be numbers."""
        kind, content = self.element()
        if kind not in _NUMBERS:
            raise ValueError(f"an element of type {kind} where numbers should be")
        return np.frombuffer(content, f"{self.order}{_NUMBERS[kind]}")

    def array(self, names: Collection[str] | None = None, depth: int = 0) -> tuple[str, Any]:
        """Name and value of the next one, which must be an array; no value where the name is not among the ``names``."""
        kind, content = self.element()
        if kind == _COMPRESSED and not depth:
            stream = zlib.decompressobj()
            content = stream.decompress(content, _MAX_BYTES)
            if not stream.eof:
                raise ValueError("a compressed variable is cut off or too large")
            kind, content = _Elements(content, self.order).element()
        if kind != _MATRIX:
            raise ValueError(f"an element of type {kind} where an array should be")
        if not content and depth:
            return "", np.zeros((0, 0))
        inner = _Elements(content, self.order)
        flags, dimensions = inner.numbers(), inner.numbers()
        name = inner.element()[1].decode("utf-8", "replace")
        if len(flags) != 2 or len(dimensions) < 2 or flags.dtype.kind != "u" or dimensions.dtype.kind != "i":
            raise ValueError("an array without its flags or dimensions")
        if (dimensions < 0).any() or not name.isprintable():
            raise ValueError(f"an array called {name!r} with dimensions {dimensions.tolist()}")
        wanted = names is None or name in names
        return name, inner.value(int(flags[0]), dimensions.tolist(), depth) if wanted else None

    def value(self, flags: int, dimensions: list[int], depth: int) -> Any:
        """What the rest holds, as an array with these flags and dimensions."""
        kind, size = flags & 0xFF, math.prod(dimensions)
        if depth > _MAX_DEPTH:
            raise ValueError(f"arrays nested more than {_MAX_DEPTH} deep")
        if kind in _NUMERIC and not flags & _COMPLEX_FLAG:
            # MATLAB stores whole numbers in the smallest type that holds them, whatever the array's class.
            numbers = self.numbers()
            if numbers.size != size:
                raise ValueError(f"{numbers.size} numbers in an array with dimensions {dimensions}")
            return numbers.reshape(dimensions, order="F").astype(np.float64)
        if kind == _CELL:
            return [self.array(depth=depth + 1)[1] for _ in range(size)]
        if kind == _STRUCT:
            length, names = self.numbers(), self.element()[1]
            if length.size != 1 or not 0 < length[0] <= 64:
                raise ValueError("a struct without the length of its field names")
            step = int(length[0])
            fields = [
                names[i : i + step].split(b"\0")[0].decode("utf-8", "replace") for i in range(0, len(names), step)
            ]
            return [{field: self.array(depth=depth + 1)[1] for field in fields} for _ in range(size if fields else 0)]
        return MatObject("complex numbers" if kind in _NUMERIC else _OTHER.get(kind, f"a value of class {kind}"))
