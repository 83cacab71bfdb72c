"""One run at a time in a folder: a second one is told who is there.

The lock is ``flock`` on ``FOLDER/.run.lock``. The kernel drops it when its holder ends, however that ends, so that a lock is
never stale and no clock plays a part; the file that a killed run leaves means nothing and goes with the next run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from utils.files import remove_stale_partials

LOCK = ".run.lock"
_PATIENCE = 1.0  # seconds; ``holder`` takes the lock for a moment, and so does a run that is just ending
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: set[int] = set()


@contextlib.contextmanager
def hold(folder: Path | str) -> Iterator[None]:
    """Keep other runs out of ``folder``, which must exist, while the block runs; remove what killed ones left there.

    Raises ``OSError`` with one line that says who holds it. Where the file system knows no locks this warns and goes on; where
    nothing can be written there is nothing to protect, and the first file of the run says so.
    """
    path = Path(folder) / LOCK
    descriptor, deadline = None, time.monotonic() + _PATIENCE
    while descriptor is None:
        try:
            descriptor = _take(path)
        except BlockingIOError:
            if time.monotonic() > deadline:
                reason = f"in use by {_read(path)}; wait until that ends, or choose another folder"
                raise OSError(f"{folder}: {reason}") from None
            time.sleep(0.05)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                print(f"warning: {folder}: no locks on this file system; start one run at a time", file=sys.stderr)
            with contextlib.suppress(OSError):
                remove_stale_partials(Path(folder))
            yield
            return
    _held.add(descriptor)
    try:
        remove_stale_partials(Path(folder))
        yield
    finally:
        if descriptor in _held:  # not in a forked child
            _held.remove(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(descriptor)


def holder(folder: Path | str) -> str | None:
    """Who works in ``folder`` at this moment, in words, or None."""
    try:
        descriptor = os.open(Path(folder) / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(Path(folder) / LOCK)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _take(path: Path) -> int | None:
    """The descriptor of the locked file, or None where the file was replaced meanwhile."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A run that ends removes its file; a lock on a removed file would keep nobody out.
        if os.fstat(descriptor).st_ino != _inode(path):
            os.close(descriptor)
            return None
    except OSError:
        os.close(descriptor)
        raise
    name = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    text = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M')} ({name:.300})"
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
        os.truncate(descriptor, 0)
        os.write(descriptor, text.encode(errors="replace"))
    return descriptor


def _inode(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_ino
    return None


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return " ".join(path.read_text(encoding="utf-8", errors="replace").split()) or "another process"
    return "another process"


def _forget() -> None:
    """A lock lasts until the last copy of its descriptor is closed: loading workers must not outlive their run with it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
