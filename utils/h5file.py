"""Writing h5 files so that a reader sees the old file or the whole new one, and reading those that others wrote."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from utils.files import atomic_write


@contextlib.contextmanager
def write_h5(path: Path) -> Iterator[h5py.File]:
    """Yield a new h5 file that takes the place of ``path`` when the block ends without an error.

    Raises ``OSError`` with one line that names ``path``, whatever the library says.
    """
    # Made in memory: on a full disk the library fails again when it closes its file, and prints tracebacks about that.
    contents = io.BytesIO()
    with h5py.File(contents, "w") as file:
        yield file
    with atomic_write(path) as partial:
        partial.write_bytes(contents.getvalue())


@contextlib.contextmanager
def read_h5(path: Path, what: str, remedy: str) -> Iterator[h5py.File]:
    """Yield an open h5 file; what the block or the library says of its contents becomes a ``ValueError`` that names it.

    Raises ``FileNotFoundError`` where there is no such file. ``remedy``: the command that makes it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {what}; {remedy}")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except MemoryError:
        raise
    # The library answers damaged files with OSError, RuntimeError, KeyError, TypeError, ValueError and others.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable {what} ({reason}); delete it and {remedy}") from None


def add_array(file: h5py.File, name: str, array: np.ndarray) -> h5py.Dataset:
    """Store an array compressed, the same bytes every time."""
    options = {"compression": "gzip"} if array.size else {}  # h5py compresses by chunks; an empty array has none
    return file.create_dataset(name, data=array, track_times=False, **options)


def read_array(file: h5py.File, name: str, kinds: str) -> np.ndarray:
    """A dataset whose numbers are of one of NumPy's ``kinds``.

    ``ValueError`` for anything else, and for a dataset that claims far more than its file can hold, before memory is taken
    for it. Chunks count as well, since one is decompressed as a whole. Data in other files is refused: a path in a file that
    somebody sent is no reason to read what lies there.
    """
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"has no dataset '{name}', but {', '.join(map(repr, list(file)[:5])) or 'nothing'}")
    if dataset.external or dataset.is_virtual or dataset.file.filename != file.filename:
        raise ValueError(f"'{name}' lies in another file")
    if dataset.dtype.kind not in kinds:
        raise ValueError(f"'{name}' holds {dataset.dtype}")
    claimed = max(dataset.size, math.prod(dataset.chunks or ())) * dataset.dtype.itemsize
    if claimed > 2000 * os.path.getsize(file.filename):  # gzip shrinks at most about 1000 times
        raise ValueError(f"'{name}' claims {claimed:,} bytes, more than the file can hold")
    return dataset[()]
