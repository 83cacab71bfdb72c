"""What ``--device`` means for Lightning Fabric, and what is said where its memory runs out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


def fabric_devices(device: str) -> dict[str, object]:
    """Keyword arguments of ``lightning_fabric.Fabric`` for ``--device``: a GPU id, several (``0,1``), ``cpu`` or ``auto``.

    Raises ``ValueError`` for ids that do not exist here.
    """
    if device == "auto":
        device = "0" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        # torchrun starts the processes itself and says how many there are on this machine.
        return {"accelerator": "cpu", "devices": int(os.environ.get("LOCAL_WORLD_SIZE", 1))}
    try:
        ids = [int(part) for part in device.split(",")]
    except ValueError:
        raise ValueError(f"--device {device}: neither cpu nor GPU ids such as 0 or 0,1") from None
    available = torch.cuda.device_count()
    missing = [i for i in ids if not 0 <= i < available]
    if missing:
        raise ValueError(f"--device {device}: this machine has {available} GPUs, no GPU {missing[0]}; try --device cpu")
    return {"accelerator": "cuda", "devices": ids}


@contextlib.contextmanager
def memory_errors(remedy: str) -> Iterator[None]:
    """Turn the many ways in which memory runs out into one ``ValueError`` that ends in ``remedy``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        text = str(error)
        if "DataLoader worker" in text and ("killed" in text or "exited unexpectedly" in text):
            raise ValueError(f"a process that loads images was killed (out of memory?); {remedy}") from None
        if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
            raise ValueError(f"out of memory; {remedy}") from None
        raise
