"""Which rasterizer works on this machine, which of them is the fastest, and why another one is not taken."""

from __future__ import annotations

import functools
import importlib
import os
import tempfile
import warnings
from pathlib import Path

import torch
from filelock import FileLock

from GS2D import native

BACKENDS = ("auto", "reference", "native", "gsplat")
GSPLAT_VERSION = "1.5.3"
_INSTALL = f"pip install gsplat=={GSPLAT_VERSION}"


def choose_backend(backend: str = "auto", device: torch.device | str | None = None) -> tuple[str, str]:
    """What draws, and in words why. ``auto``: the fastest here, gsplat on CUDA, the native engine on a CPU, or the reference.

    device: of the tensors that are to be drawn, where they lie somewhere. Raises ``ValueError`` for a backend that is unknown
    or cannot run, with the remedy.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}")
    if backend in ("native", "reference"):
        return backend, "as asked for"
    kind = torch.device(device).type if device is not None else None
    problem = "gsplat does not run on a CPU" if kind == "cpu" else gsplat_problem()
    if problem is None:
        return "gsplat", f"{torch.cuda.get_device_name()} takes many images side by side"
    if backend == "gsplat":
        raise ValueError(f"backend: {problem}; use 'native' or 'reference'")
    engine_problem = "the tensors are on the GPU" if kind == "cuda" else native.problem()
    if engine_problem is None:
        return "native", problem
    return "reference", f"{problem}; {engine_problem}; this is many times slower"


def resolve_backend(backend: str, device: torch.device | str | None = None) -> str:
    """The backend of ``choose_backend``, with a warning where that is not what one expects of ``auto``."""
    chosen, reason = choose_backend(backend, device)
    has_idle_gpu = device is None and torch.cuda.is_available() and chosen != "gsplat"
    if backend == "auto" and (chosen == "reference" or has_idle_gpu):
        warnings.warn(f"backend {chosen}: {reason}", stacklevel=2)
    return chosen


@functools.cache
def gsplat_problem() -> str | None:
    """Why gsplat cannot draw here, with the remedy, or ``None``; the first call may compile its operations, for minutes.

    gsplat itself answers each of these with an ``AttributeError`` at the first drawing, or draws other pictures: versions
    after 1.5.3 clamp alpha at 0.99.
    """
    if not torch.cuda.is_available():
        return "gsplat needs a CUDA device and none is available"
    try:
        version = importlib.import_module("gsplat").__version__
        if version.partition("+")[0] != GSPLAT_VERSION:
            return f"gsplat {version} draws differently from {GSPLAT_VERSION}, which the method prescribes; {_INSTALL}"
        # A build removes the folder of one that is under way (gsplat/cuda/_backend.py), so that the others wait for it.
        with FileLock(Path(tempfile.gettempdir()) / f"gst-gsplat-{os.getuid()}.lock"):
            operations = importlib.import_module("gsplat.cuda._backend")._C
    except Exception as error:  # imports, compilers, linkers and loaders fail in many ways
        if os.environ.get("GST_TRACEBACK"):
            raise
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        return f"gsplat cannot be imported or built ({reason}); {_INSTALL}, and GST_TRACEBACK=1 shows all of it"
    if operations is None:
        toolkit = f"the CUDA {torch.version.cuda} toolkit"
        return f"gsplat's operations are not compiled and there is no nvcc to do it; install {toolkit}"
    return None
