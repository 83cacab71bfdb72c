"""What a result was made with."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Versions of Python, of every installed package and of the GPU's software."""
    packages = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "packages": dict(sorted(packages.items(), key=lambda item: str(item[0]).lower())),
    }
