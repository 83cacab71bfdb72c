"""The raw formats of the data sets: one finder and one reader for each.

A finder pairs the images of a raw folder with their annotation files; a reader turns one annotation file into points,
float64 [N, 2], (x, y) in pixels of the raw image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from utils.files import list_images

_UCF_SUFFIX = "_ann.mat"


def prepared_stem(stem: str) -> str:
    """The stem of a prepared image: UCF-QNRF's ``img_0001`` is written as ``IMG_0001``, every other name is kept."""
    return f"IMG_{stem.removeprefix('img_')}" if stem.startswith("img_") else stem


def find_ucf(folder: Path) -> tuple[dict[Path, Path | None], list[str]]:
    """Pair the images of a UCF-QNRF folder (``Train`` or ``Test``) with their annotations, sorted by name.

    ``img_0001.jpg`` belongs to ``img_0001_ann.mat`` in the same folder. Returns every image with its annotation, or
    None where that is missing, and one line for each file that lacks its partner. Raises ``FileNotFoundError`` for a
    folder that is missing or holds no image, and ``ValueError`` for two images that would be prepared under one name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; the input path must hold Train/ and Test/ with img_0001.jpg, "
            f"img_0001{_UCF_SUFFIX}, ..."
        )
    images = list_images(folder)
    stems: dict[str, Path] = {}
    for image in images:
        other = stems.setdefault(prepared_stem(image.stem), image)
        if other is not image:
            raise ValueError(f"{image}: would be written under the name of {other.name} too; rename or remove one")
    annotations = {path.name.removesuffix(_UCF_SUFFIX): path for path in sorted(folder.glob(f"[!.]*{_UCF_SUFFIX}"))}
    pairs = {image: annotations.pop(image.stem, None) for image in images}
    problems = [
        f"{image}: its annotation {image.stem}{_UCF_SUFFIX} is missing; add it, or remove the image"
        for image, annotation in pairs.items()
        if annotation is None
    ]
    problems += [
        f"{annotation}: its image {stem}.jpg is missing; add it, or remove the annotation"
        for stem, annotation in annotations.items()
    ]
    return pairs, problems


def read_ucf(path: Path | str) -> np.ndarray:
    """Read a UCF-QNRF annotation: key ``annPoints`` of a MATLAB file, as float64 [N, 2].

    An image without people may hold an empty array of any shape. Raises ``FileNotFoundError``, or ``ValueError`` for a
    file that is damaged, lacks the key or holds something other than finite numbers in two columns.
    """
    contents = _load_mat(path)
    if "annPoints" not in contents:
        found = ", ".join(sorted(key for key in contents if not key.startswith("__"))) or "none"
        raise ValueError(f"{path}: no key annPoints (keys found: {found}); save the points [N, 2] under that name")
    return _checked_points(contents["annPoints"], f"{path}: annPoints")


def _load_mat(path: Path | str) -> dict[str, Any]:
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such annotation file; add it, or remove its image")
    try:
        return scipy.io.loadmat(str(path), appendmat=False)
    except NotImplementedError:
        raise ValueError(f"{path}: MATLAB 7.3 files are not supported; save it with MATLAB's option -v7") from None
    # loadmat answers damaged files with nearly every built-in exception, and with zlib.error.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path}: not a readable .mat file ({error or type(error).__name__}); get it again") from None


def _checked_points(values: Any, where: str) -> np.ndarray:
    """``values`` as float64 [N, 2], or a ``ValueError`` that starts with ``where``."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        kind = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"{where} holds {kind} instead of numbers; store the points as a numeric array [N, 2]")
    if values.size == 0 and values.ndim <= 2:
        return np.zeros((0, 2))
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"{where} has shape {list(values.shape)}; store one row (x, y) for each point, [N, 2]")
    points = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        raise ValueError(f"{where}: row {bad[0] + 1} is {points[bad[0]].tolist()}; correct or remove this point")
    return points
