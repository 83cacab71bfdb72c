"""A user's own folder of images, and the annotations that belong to them."""

from __future__ import annotations

import collections
import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath

import numpy as np

from datasets.raw.point_formats import (
    Annotated,
    read_coco,
    read_csv,
    read_labelme,
    read_points_json,
    read_via,
    read_yolo,
)
from utils.cli import one_line
from utils.files import IMAGE_SUFFIXES
from utils.images import image_size

# The endings that a format's files have; one file for each image, or one for many.
FORMATS = {
    "csv": (".csv",),
    "json": (".json",),
    "coco": (".json",),
    "yolo": (".txt",),
    "labelme": (".json",),
    "via": (".json", ".csv"),
}
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def find_images(root: Path) -> dict[str | None, list[Path]]:
    """All images in ``root`` and its folders, sorted, by the split folder they lie in: train, val or test in any case.

    None stands for no such folder. Raises ``FileNotFoundError`` for a folder that is missing or holds no image.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; check the input path")
    found: dict[str | None, list[Path]] = {}
    for path in _walk(root):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(_split_of(path.relative_to(root)), []).append(path)
    if not found:
        raise FileNotFoundError(f"{root}: holds no image ({', '.join(IMAGE_SUFFIXES)}); check the input path")
    return found


def read_annotations(
    format: str,
    root: Path,
    images: Sequence[Path],
    annotations: Path | None = None,
    categories: Sequence[str] = (),
    unannotated: str | None = None,
) -> tuple[dict[Path, np.ndarray | None], list[str]]:
    """The points of the images: float64 [N, 3] = x, y, size (NaN where unknown), or None where they cannot be read.

    ``annotations`` is one file for all images or the folder of the files; without it they are looked for in ``root``.
    An image that no file speaks of is left out of the result (``unannotated`` "skip") or has no points ("empty"); None
    chooses "empty" for YOLO, whose tools write no file for an empty image, and "skip" for all else. What is left out,
    and which labels were counted, is said. ``categories`` are the labels that count, all without them.

    Also returns one line for each image whose annotation is wrong. Raises ``OSError`` or ``ValueError`` where nothing can
    be read or it is not clear to which image an annotation belongs.
    """
    if annotations and not annotations.exists():
        raise FileNotFoundError(f"{annotations}: no such file or folder; check --annotations")
    for_all = format in ("coco", "via") or (annotations and annotations.is_file())
    if for_all and format in ("yolo", "labelme"):
        raise ValueError(f"{annotations}: {format} has a file for each image; give their folder as --annotations")
    read = _read_shared if for_all else _read_single
    annotated, problems = read(format, root, images, annotations)
    wrong = {image for image, value in annotated.items() if value is None}
    if not annotated:
        raise FileNotFoundError(
            f"{annotations or root}: no annotation of format {format} for any image here; check --format, and give "
            "--annotations if the files are elsewhere or one is for all images"
        )
    missing = [image for image in images if image not in annotated]
    unannotated = unannotated or ("empty" if format == "yolo" else "skip")
    if missing:
        first = f"{len(missing)} of {len(images)} images (first {missing[0]}) have no annotation and"
        if unannotated == "empty":
            print(
                f"warning: {first} count as images without points; --unannotated skip leaves them out", file=sys.stderr
            )
        else:
            print(f"warning: {first} are left out; --unannotated empty counts them as without points", file=sys.stderr)
    _report_labels(annotated, categories)
    points: dict[Path, np.ndarray | None] = {}
    for image in images:
        value = annotated.get(image, Annotated([]) if unannotated == "empty" else None)
        if value is not None:
            rows = [mark[:3] for mark in value.marks if not categories or mark.label in categories]
            points[image] = np.array(rows, np.float64).reshape(-1, 3)
        elif image in wrong:
            points[image] = None
    return points, problems


def _read_single(
    format: str, root: Path, images: Sequence[Path], folder: Path | None
) -> tuple[dict[Path, Annotated | None], list[str]]:
    """Each image from a file of its own name."""
    files: dict[tuple[Path, str], Path] = {}
    for path in _walk(folder or root):
        if path.suffix.lower() in FORMATS[format]:
            other = files.setdefault((path.parent, _normal(path.stem)), path)
            if other is not path:
                raise ValueError(f"{path}: {other.name} differs only in upper and lower case; remove one of the two")
    owner: dict[Path, Path] = {}
    found: dict[Path, Annotated | None] = {}
    problems = []
    for image in images:
        parent = image.parent.relative_to(root)
        folders = [folder / parent, folder] if folder else [image.parent, root / _labels_folder(parent)]
        path = next((files[key] for place in folders if (key := (place, _normal(image.stem))) in files), None)
        if path is None:
            continue
        if path in owner:
            raise ValueError(f"{path}: belongs to {owner[path]} and to {image}; use folders like those of the images")
        owner[path] = image
        try:
            found[image] = _checked(_read_one(format, path, image), path, image)
        except (OSError, ValueError) as error:
            found[image] = None
            problems.append(one_line(error))
    single = [path for path in files.values() if path not in owner]
    if single and owner:
        print(f"warning: {len(single)} files belong to no image and are not read (first {single[0]})", file=sys.stderr)
    return found, problems


def _read_one(format: str, path: Path, image: Path) -> Annotated:
    if format == "yolo":
        height, width = image_size(image)
        return read_yolo(path, width, height)
    if format == "labelme":
        return read_labelme(path)[""]
    return (read_csv if format == "csv" else read_points_json)(path, named=False)[""]


def _read_shared(
    format: str, root: Path, images: Sequence[Path], source: Path | None
) -> tuple[dict[Path, Annotated | None], list[str]]:
    """All images from files that name them."""
    read = {"csv": read_csv, "json": read_points_json, "coco": read_coco, "via": read_via}[format]
    if source and source.is_file():
        paths = [source]
    else:
        paths = [path for path in _walk(source or root) if path.suffix.lower() in FORMATS[format]]
    by_stem: dict[str, list[Path]] = {}
    for image in images:
        by_stem.setdefault(_normal(image.stem), []).append(image)
    found: dict[Path, Annotated | None] = {}
    named_by: dict[Path, str] = {}
    strangers, problems = [], []
    for path in paths:
        for name, value in read(path).items():
            entry = f"{path}: {name!r:.200}"
            image = _image_named(name, path, root, by_stem, entry)
            if image is None:
                strangers.append(entry)
            elif image in named_by:
                raise ValueError(f"{entry}: means {image}, and so does {named_by[image]}; keep one of the two")
            else:
                named_by[image] = entry
                try:
                    found[image] = _checked(value, path, image)
                except (OSError, ValueError) as error:
                    found[image] = None
                    problems.append(one_line(error))
    if strangers:
        print(
            f"warning: {len(strangers)} annotated images are not in the input (first {strangers[0]})", file=sys.stderr
        )
    return found, problems


def _image_named(name: str, path: Path, root: Path, by_stem: Mapping[str, list[Path]], entry: str) -> Path | None:
    """The image that ``name`` in the file ``path`` means: its path may begin elsewhere, its ending may differ.

    Of several, the one that agrees in most folders, counted from the image upwards. ``ValueError`` for a tie.
    """
    parts = [_normal(part) for part in PureWindowsPath(name).parts]  # separators of both kinds
    if not parts:
        return None
    if path.is_relative_to(root):
        parts = [*map(_normal, path.relative_to(root).parent.parts), *parts]
    file, named_split = PurePath(parts[-1]), _split_of(PurePath(*parts))
    stem = file.stem if file.suffix.lower() in IMAGE_SUFFIXES else file.name
    ranked = []
    for image in by_stem.get(stem, []):
        relative = image.relative_to(root)
        if named_split in (None, _split_of(relative)) or _split_of(relative) is None:
            own = [_normal(part) for part in relative.parts]
            folders_shared = len(os.path.commonprefix([own[-2::-1], parts[-2::-1]]))
            ranked.append((folders_shared, own[-1] == file.name, image))
    ranked.sort(key=lambda rank: rank[:2], reverse=True)
    if len(ranked) > 1 and ranked[0][:2] == ranked[1][:2]:
        raise ValueError(f"{entry}: may mean {ranked[0][2]} or {ranked[1][2]}; name images with their folder")
    return ranked[0][2] if ranked else None


def _checked(value: Annotated, path: Path, image: Path) -> Annotated:
    """``value``, if it was made for an image of this size; tools that turn a photograph upright measure in another grid."""
    if value.image_size is not None:
        height, width = image_size(image)
        if value.image_size != (width, height):
            told = " x ".join(f"{length:g}" for length in value.image_size)
            reason = f"{path}: made for an image of {told} pixels, but {image} is stored as {width} x {height}"
            raise ValueError(f"{reason}; annotate the image as it is stored, without turning or scaling it")
    return value


def _report_labels(annotated: Mapping[Path, Annotated | None], categories: Sequence[str]) -> None:
    labels = collections.Counter(mark.label for value in annotated.values() if value for mark in value.marks)
    there = ", ".join(f"{label!r} {count}" for label, count in labels.most_common(20))
    for category in categories:
        if category not in labels:
            raise ValueError(f"--category {category}: no object has this label; found: {there or 'none'}")
    if categories:
        print(f"labels found: {there}; counted: {', '.join(map(repr, categories))}")
    elif len(labels) > 1:
        print(f"labels found: {there}; all are counted, --category chooses")


def _walk(root: Path) -> list[Path]:
    """The files in ``root`` and its folders, sorted, without hidden ones; links to folders are followed once."""
    seen, found = set(), []
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            found += [Path(folder, name) for name in files if not name.startswith(".")]
        seen.add(real)
    return sorted(found)


def _split_of(relative: PurePath) -> str | None:
    """The split that the first folder of such a name tells."""
    return next((_SPLIT_FOLDERS[part.lower()] for part in relative.parts[:-1] if part.lower() in _SPLIT_FOLDERS), None)


def _labels_folder(folder: Path) -> Path:
    """YOLO's place for the labels of ``images``: the same path with that folder called ``labels``."""
    parts = list(folder.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _normal(name: str) -> str:
    """File systems differ in how they compose accents."""
    return unicodedata.normalize("NFC", name)
