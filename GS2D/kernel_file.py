"""The file that a transport kernel is kept in (``*_kernel.h5``): K [N + 1, M] in compressed sparse rows.

Datasets ``indptr`` int64 [N + 2], ``indices`` int32, ``data`` float32 and ``shape`` = (N + 1, M); the last row is the background.
Attributes: ``grid`` = (h, w) cells with M = h * w in row-major order, ``params_hash`` of the Gaussians it was computed from, and
the kernel's parameters by name, ``stride`` among them.
"""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

_REMEDY = "delete it and run python GS2D/build_kernels.py"


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
    partial = path.with_name(f".{path.stem}.{socket.gethostname()}.{os.getpid()}.partial{path.suffix}")
    rows, cells = len(kernel.indptr) - 1, kernel.grid[0] * kernel.grid[1]
    arrays = {"indptr": (kernel.indptr, "i8"), "indices": (kernel.indices, "i4"), "data": (kernel.data, "f4")}
    try:
        with h5py.File(partial, "w") as file:
            for name, (array, dtype) in arrays.items():
                options = {"compression": "gzip", "shuffle": True} if len(array) else {}
                file.create_dataset(name, data=np.asarray(array, dtype), track_times=False, **options)
            file.create_dataset("shape", data=np.array([rows, cells]), track_times=False)
            file.attrs.update({**kernel.attributes, "grid": kernel.grid})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_attributes(path: Path) -> dict[str, Any] | None:
    """The attributes of a kernel file, or None where it is missing or unreadable (and must be built)."""
    try:
        with h5py.File(path, "r") as file:
            return {name: value.tolist() if isinstance(value, np.generic) else value for name, value in file.attrs.items()}
    except OSError:
        return None


def load_kernel(path: Path) -> StoredKernel:
    """Read a kernel. Raises ``FileNotFoundError`` or ``ValueError``, naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such kernel; run python GS2D/build_kernels.py")
    try:
        with h5py.File(path, "r") as file:
            missing = [name for name in ("indptr", "indices", "data", "shape") if name not in file]
            if missing or "grid" not in file.attrs:
                raise ValueError(f"{path}: has no {', '.join(missing) or 'grid'}; {_REMEDY}")
            stored = sum(file[name].size * file[name].dtype.itemsize for name in ("indptr", "indices", "data"))
            if stored > 2000 * path.stat().st_size:  # gzip shrinks at most about 1000 times
                raise ValueError(f"{path}: claims {stored:,} bytes, more than the file can hold; {_REMEDY}")
            indptr, indices, data = file["indptr"][()], file["indices"][()], file["data"][()]
            attributes, (rows, cells) = dict(file.attrs), file["shape"][()].tolist()
    except (OSError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a readable kernel ({error}); {_REMEDY}") from None
    grid = tuple(int(side) for side in attributes.pop("grid"))
    if len(indptr) != rows + 1 or grid[0] * grid[1] != cells:
        raise ValueError(f"{path}: {len(indptr)} row starts and {grid} cells do not fit shape {rows} x {cells}; {_REMEDY}")
    return StoredKernel(indptr, indices, data, grid, attributes)
