"""Where the files of a data set live, how points are read and how files are written.

Layout of a prepared data set (every path is derived from the stem of the image):

    ROOT/train/IMG_0001.jpg
    ROOT/train/IMG_0001.npy                          float [N, 3] = x, y, neighbour distance (val, test: [N, 2])
    ROOT/train/gs_params/IMG_0001_gs_params.h5
    ROOT/train/kernels/IMG_0001_kernel.h5
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")  # of prepared and published data sets
PICTURES = (*IMAGE_SUFFIXES, ".bmp", ".tif", ".tiff", ".webp")  # of people's own photographs
# Photographs and pictures that people have and that are not read.
UNREAD = tuple(".heic .heif .avif .jxl .jp2 .dng .cr2 .cr3 .nef .arw .raf .orf .psd .gif".split())
LONGEST_NAME = 255  # bytes that file systems take for the name of a file
_STALE_AFTER_SECONDS = 24 * 3600

SPLITS = ("train", "val", "test")
REPORT = "dataset_report.json"  # of a prepared folder, see ``datasets.report``
OWN = "own"  # in the place of a published data set's name
DATASETS = ("qnrf", "jhu", "nwpu", "sha", "shb", "ucf50", OWN)
Content = TypeVar("Content", dict, list)


def points_path(image: Path) -> Path:
    """The annotations of a prepared image."""
    return image.with_name(f"{image.stem}.npy")


def gaussians_path(image: Path) -> Path:
    """The fitted Gaussians of a prepared image."""
    return image.parent / "gs_params" / f"{image.stem}_gs_params.h5"


def kernel_path(image: Path) -> Path:
    """The stored transport kernel of a prepared image."""
    return image.parent / "kernels" / f"{image.stem}_kernel.h5"


def find_files(root: Path, onerror: Callable[[OSError], None] | None = None) -> list[Path]:
    """The files in ``root`` and its folders, sorted, without hidden ones; links to folders are followed once.

    ``onerror`` gets why a folder cannot be read.
    """
    seen, found = set(), []
    for folder, folders, files in os.walk(root, onerror=onerror, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            found += [Path(folder, name) for name in files if not name.startswith(".")]
        seen.add(real)
    return sorted(found)


def unread_kinds(names: Iterable[str]) -> str | None:
    """What to say of images of a kind that is not read."""
    suffixes = [suffix for name in names if (suffix := os.path.splitext(name)[1].lower()) in UNREAD]
    some = ", ".join(sorted(set(suffixes)))
    return f"{len(suffixes)} images are of a kind that is not read: {some}" if suffixes else None


def list_images(folder: Path) -> list[Path]:
    """The images directly in ``folder``, sorted by name.

    Raises ``FileNotFoundError`` for a missing folder or one without images, and ``ValueError`` where two images share a
    stem (their derived files would be the same).
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; check the data path (preprocess_dataset_*.py writes it)")
    images = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    if not images:
        raise FileNotFoundError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)}); check the data path")
    seen: dict[str, Path] = {}
    for path in images:
        if path.stem in seen:
            raise ValueError(f"{path}: {seen[path.stem].name} has the same stem; rename or remove one of the two")
        seen[path.stem] = path
    return images


@functools.cache
def split_hashes(root: str) -> dict[str, tuple[int, str]]:
    """Split -> (images, hash): SHA-256 over the names of the images and the bytes of their annotations, in order of name.

    Two runs with the same hash had the same images, divided in the same way, with the same points at the same size.
    """
    found = {}
    for split in SPLITS:
        with contextlib.suppress(OSError, ValueError):
            images = list_images(Path(root) / split)
            paths = [points_path(image) for image in images]
            lines = [f"{path.stem} {file_hash(path) if path.is_file() else '-'}\n" for path in paths]
            found[split] = len(images), hashlib.sha256("".join(lines).encode()).hexdigest()
    return found


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path, otherwise: Content) -> Content:
    """The content of a JSON file that this project wrote; ``otherwise`` where it is missing, broken or of another type."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return otherwise
    return content if isinstance(content, type(otherwise)) else otherwise


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line, but for lines that are none, such as one that a kill cut off."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict)]


def read_report(root: Path) -> dict[str, Any]:
    """The report, of which ``dataset``, one of ``DATASETS``, and ``crop_size`` matter to others; empty without one."""
    return read_json(root / REPORT, {})


def data_name(dataset: str, root: Path | str) -> str:
    """What data are called: a published data set by its name, one's own by their folder's."""
    return Path(root).resolve().name or OWN if dataset == OWN else dataset


def write_json(path: Path, content: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write a JSON file, unless it says so already. ``default`` makes of a value what JSON knows."""
    text = (json.dumps(content, indent=1, default=default) + "\n").encode()
    if not path.is_file() or path.read_bytes() != text:
        with atomic_write(path) as partial:
            partial.write_bytes(text)


def read_points(path: Path) -> np.ndarray:
    """Annotations of a prepared image, float32 [N, 2] or [N, 3] (x, y in pixels, and the neighbour distance if stored).

    An image without annotations may be stored with shape (0,), (0, 2) or (0, 3). Raises ``FileNotFoundError`` or
    ``ValueError``, naming the file, for one that is missing, unreadable, of another shape or not finite.
    """
    again = "run preprocess_dataset_*.py again"
    try:
        points = np.load(path, allow_pickle=False).astype(np.float32)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such annotation file; {again}") from None
    # NumPy answers damaged headers with ValueError, TypeError, errors of the tokenizer and others.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable npy file ({reason}); {again}") from None
    if points.size == 0 and points.ndim <= 2:
        columns = points.shape[1] if points.ndim == 2 and points.shape[1] in (2, 3) else 2
        return np.zeros((0, columns), np.float32)
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise ValueError(f"{path}: shape {points.shape}, expected [N, 2] or [N, 3]; {again}")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        raise ValueError(f"{path}: row {bad[0]} is {points[bad[0]].tolist()}; points must be finite numbers")
    return points


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends without an error.

    A reader therefore sees the old file or the whole new one, also after a kill or a full disk. The suffix is kept, since
    many writers choose a format by it. An ``OSError`` of the block is raised again with the name of ``path``.
    """
    path = Path(path)
    stem = hashlib.sha256(os.fsencode(path.stem)).hexdigest()[:32]  # file systems take no name of any length
    partial = path.with_name(f".{stem}.{socket.gethostname()}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    # Writers report a full disk without a name, or with that of the partial file.
    except OSError as error:
        reason = f"cannot write this file ({error.strerror or error}); check permissions and the space left"
        raise OSError(f"{path}: {reason}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def remove_stale_partials(folder: Path) -> None:
    """Delete what killed processes left behind in ``folder``: partial files of dead processes of this host, or a day away."""
    for partial in folder.glob(".*.partial*"):
        host, _, pid = partial.name.partition(".partial")[0].rpartition(".")
        with contextlib.suppress(FileNotFoundError):
            dead = host.endswith(f".{socket.gethostname()}") and pid.isdigit() and not _alive(int(pid))
            # Far in the future, as after a change of the clock, is as good as old: nobody writes a file for that long.
            if dead or abs(time.time() - partial.stat().st_mtime) > _STALE_AFTER_SECONDS:
                partial.unlink()


def _alive(pid: int) -> bool:
    """Whether a process runs; one that was killed is listed until its parent asks for it, which in many containers nobody does."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return not Path("/proc/self").exists()  # a system without /proc: left to the clock


def make_folder(path: Path | str) -> Path:
    """Create ``path`` with its parents."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    return path
