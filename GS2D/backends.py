"""Which rasterizer works on this machine, which of them is the fastest, and why another one is not taken."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

BACKENDS = ("auto", "reference", "native", "gsplat")
GSPLAT_VERSION = "1.5.3"
# An iteration takes a GPU 4.4 ms for one image as for 16, and one core 1.8 ms an image (800 Gaussians, H200).
FEW_IMAGES = 3
_INSTALL = f"pip install gsplat=={GSPLAT_VERSION}"


class Choice(NamedTuple):
    """A backend, and in words why it is this one."""

    backend: str
    reason: str


def choose_backend(images: int | None = None) -> Choice:
    """The fastest backend for fitting so many images (default: many) here: gsplat on CUDA, the native engine, reference."""
    problem = gsplat_problem()
    few = images is not None and images <= FEW_IMAGES
    if problem is None and not (few and native_problem() is None):
        return Choice("gsplat", f"{torch.cuda.get_device_name()} takes many images side by side")
    if native_problem() is None:
        return Choice("native", problem or f"a core is faster than the GPU for 1 to {FEW_IMAGES} images")
    return Choice("reference", f"{problem}; {native_problem()}; this is many times slower")


def resolve_backend(backend: str, device: torch.device | str | None = None, images: int | None = None) -> str:
    """The backend that ``auto`` stands for; ``ValueError`` for one that is unknown or cannot run, with the remedy.

    device: of the tensors that are to be drawn; images: how many are to be fitted, where that is what is asked.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}")
    if backend == "gsplat" and (problem := gsplat_problem()):
        raise ValueError(f"backend: {problem}; use 'native' or 'reference'")
    if backend != "auto":
        return backend
    if device is None:
        choice = choose_backend(images)
        if choice.backend == "reference" or (torch.cuda.is_available() and gsplat_problem()):
            _warn_once(f"backend {choice.backend}: {choice.reason}")
        return choice.backend
    if torch.device(device).type == "cuda":
        if problem := gsplat_problem():
            _warn_once(f"backend reference: {problem}; plain PyTorch draws on the GPU, which is many times slower")
        return "reference" if problem else "gsplat"
    if problem := native_problem():
        _warn_once(f"{problem}; drawing with the PyTorch reference, which is many times slower")
    return "reference" if problem else "native"


@functools.cache
def native_problem() -> str | None:
    """Why the native engine cannot run here, or ``None``; the first call may build it."""
    from GS2D import native

    try:
        native.load()
    except native.NativeUnavailable as error:
        return str(error)
    return None


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
    except Exception as error:  # its imports fail in many ways
        return f"gsplat cannot be imported ({_short(error)}); {_INSTALL}"
    if version.partition("+")[0] != GSPLAT_VERSION:
        return f"gsplat {version} draws differently from {GSPLAT_VERSION}, which the method prescribes; {_INSTALL}"
    try:
        with _one_build_at_a_time():
            operations = importlib.import_module("gsplat.cuda._backend")._C
    except Exception as error:  # compilers, linkers and loaders fail in many ways
        return f"gsplat's operations do not build or load ({_short(error)}); GST_TRACEBACK=1 shows all of it"
    if operations is None:
        toolkit = f"the CUDA {torch.version.cuda} toolkit"
        return f"gsplat's operations are not compiled and there is no nvcc to do it; install {toolkit}"
    return None


@contextlib.contextmanager
def _one_build_at_a_time() -> Iterator[None]:
    """A build removes the folder of one that is under way (``gsplat/cuda/_backend.py``), so that the others wait for it."""
    path = Path(os.environ.get("TORCH_EXTENSIONS_DIR", tempfile.gettempdir())) / f"gst-gsplat-{os.getuid()}.lock"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = path.open("w")
    except OSError:  # nothing can be written there: then nothing is built there either
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _short(error: BaseException) -> str:
    if os.environ.get("GST_TRACEBACK"):
        raise error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=3)
