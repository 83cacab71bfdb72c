"""Writing h5 files so that a reader sees the old file or the whole new one."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np


@contextlib.contextmanager
def write_h5(path: Path) -> Iterator[h5py.File]:
    """Yield a new h5 file that takes the place of ``path`` when the block ends without an error.

    Raises ``OSError`` with one line that names ``path``, whatever the library says.
    """
    partial = path.with_name(f".{path.stem}.{socket.gethostname()}.{os.getpid()}.partial{path.suffix}")
    try:
        with h5py.File(partial, "w") as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise OSError(f"{path}: cannot write this file ({reason}); check permissions and the space left") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def add_array(file: h5py.File, name: str, array: np.ndarray) -> h5py.Dataset:
    """Store an array compressed, the same bytes every time."""
    options = {"compression": "gzip"} if array.size else {}  # h5py compresses by chunks; an empty array has none
    return file.create_dataset(name, data=array, track_times=False, **options)


def check_size(dataset: h5py.Dataset, path: Path, remedy: str) -> None:
    """``ValueError`` where a dataset claims far more than its file can hold, before anything is allocated for it."""
    claimed = dataset.size * dataset.dtype.itemsize
    if claimed > 2000 * path.stat().st_size:  # gzip shrinks at most about 1000 times
        raise ValueError(
            f"{path}: '{dataset.name[1:]}' claims {claimed:,} bytes, more than the file can hold; {remedy}"
        )
