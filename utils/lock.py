"""One run at a time in a folder: a second one is told who is there.

The lock is that of the library ``filelock`` on ``FOLDER/.run.lock``, an ``flock``: the kernel drops it when its holder ends,
however that ends, so that a lock is never stale and no clock plays a part. The file that a killed run leaves means nothing and
goes with the next run.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from utils.cli import warn
from utils.files import remove_stale_partials

LOCK = ".run.lock"
_PATIENCE = 1.0  # seconds; ``lock_holder`` takes the lock for a moment, and so does a run that is just ending


@contextlib.contextmanager
def lock_folder(folder: Path | str) -> Iterator[None]:
    """Keep other runs out of ``folder``, which must exist, while the block runs; remove what killed ones left there.

    Raises ``OSError`` with one line that says who holds it. Where the file system knows no locks, or nothing can be written, which
    the first file of the run says, this warns and goes on.
    """
    path = Path(folder) / LOCK
    lock = FileLock(path, fallback_to_soft=False)  # the library's substitute for locks would outlive a killed run
    try:
        lock.acquire(timeout=_PATIENCE, poll_interval=0.05)
        who = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M')}"
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            path.write_text(" ".join(f"{who} ({command:.300})".split()), encoding="utf-8", errors="replace")
    except Timeout:
        reason = f"in use by {_read_holder(path)}; wait until that ends, or choose another folder"
        raise OSError(f"{folder}: {reason}") from None
    except OSError as error:
        warn(f"{folder}: cannot be locked ({error.strerror}); start one run at a time")
    try:
        with contextlib.suppress(OSError):
            remove_stale_partials(Path(folder))
        yield
    finally:
        if lock.is_locked:  # not in a forked child
            with contextlib.suppress(OSError):
                path.unlink()  # one that waits for this file sees that it is gone, and makes another
            lock.release()


def lock_holder(folder: Path | str) -> str | None:
    """Who works in ``folder`` at this moment, in words, or None."""
    path = Path(folder) / LOCK
    lock = FileLock(path, fallback_to_soft=False)
    try:
        if path.exists():
            lock.acquire(timeout=0)
            lock.release()
    except Timeout:
        return _read_holder(path)
    except OSError:  # no locks on this file system
        pass
    return None


def _read_holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace") or "another process"
    return "another process"
