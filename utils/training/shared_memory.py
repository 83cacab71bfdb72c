"""What is said where loading processes, which hand batches over in ``/dev/shm``, run out of it, as in containers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

FOLDER = "/dev/shm"


@contextlib.contextmanager
def shared_memory_errors(num_workers: int, batch_size: int, timeout: int) -> Iterator[None]:
    """Turn what a lack of shared memory looks like into that one line, and a loader that gives nothing into another."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        text = str(error)
        if num_workers and isinstance(error, (EOFError, ConnectionError)):
            # A process that was killed while it handed a batch over, before the loader has noticed.
            raise RuntimeError("DataLoader worker exited unexpectedly") from error
        if "DataLoader timed out" in text:
            raise ValueError(
                f"no batch came for --loading-timeout {timeout} seconds: the disk of --data-dir does not answer, or {FOLDER} is "
                "full (docker run --shm-size); --num-workers 0 shows which"
            ) from None
        is_full = num_workers and text == "[Errno 28] No space left on device"
        if is_full or "shared memory" in text or "Bus error" in text:
            raise ValueError(
                f"not enough shared memory in {FOLDER} for --num-workers {num_workers} and --batch-size {batch_size}; "
                "enlarge it (docker run --shm-size), or lower --num-workers (0 needs none) or --prefetch"
            ) from None
        raise
