"""The file that a transport kernel is kept in (``*_kernel.h5``): K [N + 1, M] in compressed sparse rows.

Datasets ``indptr`` int64 [N + 2], ``indices`` int32, ``data`` float32 and ``shape`` = (N + 1, M); the last row is the background.
Attributes: ``grid`` = (h, w) cells with M = h * w in row-major order, ``params_hash`` of the Gaussians it was computed from, and
the kernel's parameters by name, ``stride`` among them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from GS2D.h5file import add_array, check_size, read_h5, write_h5

_REMEDY = "run python GS2D/build_kernels.py"
_ARRAYS = {"indptr": "iu", "indices": "iu", "data": "f", "shape": "iu"}  # name -> kinds of numbers


class StoredKernel(NamedTuple):
    """K in compressed sparse rows; ``attributes`` say what it was computed from and how."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    grid: tuple[int, int]
    attributes: dict[str, Any]


def params_hash(*arrays: np.ndarray) -> str:
    """SHA-256 of float32 arrays: tells whether a kernel still belongs to its Gaussians."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
    return digest.hexdigest()


def save_kernel(path: Path, kernel: StoredKernel) -> None:
    """Write a kernel; ``path`` appears only once whole."""
    rows, cells = len(kernel.indptr) - 1, kernel.grid[0] * kernel.grid[1]
    with write_h5(path) as file:
        add_array(file, "indptr", np.asarray(kernel.indptr, np.int64))
        add_array(file, "indices", np.asarray(kernel.indices, np.int32))
        add_array(file, "data", np.asarray(kernel.data, np.float32))
        add_array(file, "shape", np.array([rows, cells]))
        file.attrs.update({**kernel.attributes, "grid": kernel.grid})


def read_attributes(path: Path) -> dict[str, Any] | None:
    """The attributes of a kernel file, or None where it is missing or unreadable (and must be built)."""
    try:
        with read_h5(path, "kernel", _REMEDY) as file:
            return {
                name: value.tolist() if isinstance(value, np.generic) else value for name, value in file.attrs.items()
            }
    except ValueError:
        return None


def load_kernel(path: Path) -> StoredKernel:
    """Read a kernel. Raises ``FileNotFoundError`` or ``ValueError``, naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such kernel; run python GS2D/build_kernels.py")
    with read_h5(path, "kernel", _REMEDY) as file:
        missing = [name for name in _ARRAYS if name not in file]
        if missing or "grid" not in file.attrs:
            raise ValueError(f"{path}: has no {', '.join(missing) or 'grid'}; delete it and {_REMEDY}")
        arrays = [_read_array(file, name, path) for name in _ARRAYS]
        attributes = dict(file.attrs)
    *arrays, shape = arrays
    try:
        grid = tuple(int(side) for side in attributes.pop("grid"))
        kernel = StoredKernel(*arrays, grid, attributes)
        problem = _damage(kernel, shape.tolist())
    except (TypeError, ValueError, OverflowError):
        problem = "its grid is no pair of whole numbers"
    if problem:
        raise ValueError(f"{path}: {problem}; delete it and {_REMEDY}")
    return kernel


def _read_array(file: h5py.File, name: str, path: Path) -> np.ndarray:
    array = file[name]
    if not isinstance(array, h5py.Dataset) or array.ndim != 1 or array.dtype.kind not in _ARRAYS[name]:
        kind = "floats" if name == "data" else "whole numbers"
        raise ValueError(f"{path}: '{name}' is no row of {kind}; delete it and {_REMEDY}")
    check_size(array, path, f"delete it and {_REMEDY}")
    return array[()]


def _damage(kernel: StoredKernel, shape: list[int]) -> str | None:
    """Why the arrays are no matrix of ``shape`` in compressed sparse rows over the grid, if they are none."""
    indptr, indices, data, (height, width), _ = kernel
    cells = height * width
    if [len(indptr) - 1, cells] != shape or min(height, width) < 1:
        return f"{len(indptr)} row starts and {kernel.grid} cells do not fit shape {' x '.join(map(str, shape))}"
    if not len(indices) == len(data) == indptr[-1] or indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any():
        return "its row starts do not fit its values"
    if len(indices) and not 0 <= indices.min() <= indices.max() < cells:
        return f"cells outside its grid of {height} x {width}"
    if not np.isfinite(data).all():
        return "holds NaN or infinite values"
    return None


def restrict(
    kernel: StoredKernel, kept: np.ndarray, top: int, left: int, grid: tuple[int, int], flip: bool
) -> StoredKernel:
    """The part of a whole image's kernel that belongs to a crop of ``grid`` cells whose first one is (top, left).

    ``kept`` bool [N] says which annotations stay as rows; the columns are divided by what remains of them, and a cell of which
    nothing remains goes to the background. ``flip`` mirrors left and right.
    """
    rows = len(kernel.indptr) - 1
    row = np.repeat(np.arange(rows), np.diff(kernel.indptr))
    i, j = np.divmod(kernel.indices.astype(np.int64), kernel.grid[1])
    i, j = i - top, j - left
    inside = np.append(kept, True)[row] & (i >= 0) & (i < grid[0]) & (j >= 0) & (j < grid[1])
    row, i, j, data = row[inside], i[inside], j[inside], kernel.data[inside].astype(np.float64)
    cell = i * grid[1] + (grid[1] - 1 - j if flip else j)
    row = np.append(np.cumsum(kept) - 1, kept.sum())[row]
    total = np.bincount(cell, data, minlength=grid[0] * grid[1])
    orphans = np.flatnonzero(total == 0)
    row = np.concatenate([row, np.full(len(orphans), kept.sum())])
    cell = np.concatenate([cell, orphans])
    data = np.concatenate([data / total[cell[: len(data)]], np.ones(len(orphans))])
    order = np.lexsort((cell, row))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=kept.sum() + 1))])
    return StoredKernel(indptr, cell[order].astype(np.int32), data[order].astype(np.float32), grid, kernel.attributes)
