"""A user's own folder of images, and the annotations that belong to them."""

from __future__ import annotations

import collections
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import NamedTuple

import numpy as np

from datasets.raw.formats import FORMATS, Request
from datasets.raw.grids import STORED, UPRIGHT, choose_grids, stated_grid, to_upright
from datasets.raw.labelstudio import without_upload_prefix
from datasets.raw.marks import Annotated
from datasets.raw.raw_text import one_form
from datasets.raw.recognise import recognise, why_other
from datasets.raw.suspicion import refuse_corners, refuse_empty, suspect
from utils.cli import one_line
from utils.files import PICTURES, UNREAD, find_files, unread_kinds
from utils.images import Shape, image_shape

_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def find_images(root: Path) -> dict[str | None, list[Path]]:
    """All images in ``root`` and its folders, sorted, by the split folder they lie in: train, val or test in any case.

    None stands for no such folder. Images of a kind that is not read are said. Raises ``FileNotFoundError`` for a folder
    that is missing or holds no image.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; check the input path")
    found: dict[str | None, list[Path]] = {}
    paths = find_files(root)
    for path in paths:
        if path.suffix.lower() in PICTURES:
            found.setdefault(_split_of(path.relative_to(root)), []).append(path)
    unread = unread_kinds([path.name for path in paths])
    if not found:
        if unread:
            raise FileNotFoundError(f"{root}: {unread}; convert them to JPEG")
        raise FileNotFoundError(f"{root}: holds no image ({', '.join(PICTURES)}); check the input path")
    if unread:
        print(f"warning: {root}: {unread}; convert them to JPEG, or they are left out", file=sys.stderr)
    return found


class Found(NamedTuple):
    """What was read: the marks of each image (None: they cannot be read), the file that says so, lines about problems."""

    annotated: dict[Path, Annotated | None]
    sources: dict[Path, Path]
    problems: list[str]


def read_annotations(
    format: str,
    root: Path,
    images: Sequence[Path],
    annotations: Path | None = None,
    categories: Sequence[str] = (),
    unannotated: str | None = None,
    attribute: str | None = None,
) -> tuple[dict[Path, np.ndarray | None], list[str]]:
    """The points of the images, upright: float64 [N, 3] = x, y, size (NaN where unknown); None where they cannot be read.

    ``format`` is one of ``FORMATS``, or "auto" for the one that the files are of. ``annotations`` is one file for all
    images or the folder of the files; without it they are looked for in ``root``. An image that no file speaks of is left
    out of the result (``unannotated`` "skip") or has no points ("empty"); None chooses "empty" for YOLO, whose tools write
    no file for an empty image, and "skip" for all else. What is left out, which labels were counted, and which images
    are stored turned, is said. ``categories`` are the labels that count, all without them; ``attribute`` is the column or
    region attribute that holds the labels.

    Also returns one line for each image whose annotation is wrong. Raises ``OSError`` or ``ValueError`` where nothing can
    be read, not one object is annotated, or it is not clear to which image an annotation belongs.
    """
    if annotations and not annotations.exists():
        raise FileNotFoundError(f"{annotations}: no such file or folder; check --annotations")
    if format == "auto":
        format, why = recognise(root, images, annotations)
        print(f"format: {format} ({why})")
    categories = tuple(dict.fromkeys(map(one_form, categories)))
    if attribute and format not in ("csv", "via"):
        raise ValueError(
            f"--label-attribute {attribute}: format {format} has its labels in one place; drop this option"
        )
    form = FORMATS[format]
    for_all = form.files == "all" or bool(annotations and annotations.is_file())
    if for_all and form.files == "each":
        raise ValueError(f"{annotations}: {format} has a file for each image; give their folder as --annotations")
    shapes = _Shapes()
    ask = Request(for_all, categories, attribute, say=_say_once())
    found = (_read_shared if for_all else _read_single)(format, root, images, annotations, ask, shapes)
    if not found.annotated and form.files == "both" and not annotations:
        found = _read_shared(format, root, images, None, ask._replace(named=True), shapes)
    annotated, _, problems = found
    for image, value in annotated.items():
        if value is not None:
            annotated[image] = value._replace(marks=[m._replace(label=one_form(m.label)) for m in value.marks])
    if not annotated:
        raise FileNotFoundError(
            f"{annotations or root}: no annotation of format {format} for any image here; check --format, and give "
            "--annotations if the files are elsewhere or one is for all images"
        )
    unannotated = unannotated or ("empty" if format == "yolo" else "skip")
    _report_missing([image for image in images if image not in annotated], len(images), unannotated)
    _report_labels(annotated, categories)
    refuse_empty(format, annotated, set(found.sources.values()), annotations or root)
    grids = _find_grids(found, shapes, STORED if form.stored else UPRIGHT)
    grid_sizes = {
        image: (shapes[image].width, shapes[image].height)
        if grids.get(image) == STORED
        else shapes[image].upright[::-1]
        for image, value in annotated.items()
        if value is not None
    }
    refuse_corners(annotated, grid_sizes, annotations or root)
    points: dict[Path, np.ndarray | None] = {}
    for image in images:
        if image in annotated and annotated[image] is None:
            points[image] = None
        elif image in annotated or unannotated == "empty":
            marks = annotated[image].marks if image in annotated else []
            rows = [mark[:3] for mark in marks if not categories or mark.label in categories]
            own = np.array(rows, np.float64).reshape(-1, 3)
            points[image] = to_upright(own, shapes[image], grids[image]) if image in grids else own
    sized = {image: (rows, shapes[image].upright) for image, rows in points.items() if rows is not None and len(rows)}
    suspect(sized, annotations or root)
    return points, problems


class _Shapes(dict[Path, Shape]):
    """The sizes of images, each read once."""

    def __missing__(self, image: Path) -> Shape:
        self[image] = image_shape(image)
        return self[image]

    def both(self, image: Path | None) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """(width, height) upright and as stored; None without an image that can be read."""
        try:
            shape = self[image] if image else None
        except (OSError, ValueError):
            return None
        return (shape.upright[::-1], (shape.width, shape.height)) if shape else None


def _say_once() -> Callable[[Path, str], None]:
    """Of the same remark on many files, the first alone."""
    said = set()

    def say(path: Path, text: str) -> None:
        if text not in said:
            said.add(text)
            print(f"{path}: {text}")

    return say


def _read_single(
    format: str, root: Path, images: Sequence[Path], folder: Path | None, ask: Request, shapes: _Shapes
) -> Found:
    """Each image from a file of its own name, or from one that names it."""
    form = FORMATS[format]
    files: dict[tuple[str, str], Path] = {}
    for path in find_files(folder or root):
        if path.suffix.lower() in form.suffixes:
            other = files.setdefault((one_form(str(path.parent)), _image_stem(format, path)), path)
            if other is not path:
                same = "differs only in upper and lower case" if other.stem == path.stem else "is for the same image"
                raise ValueError(f"{path}: {other.name} {same}; remove one of the two")
    owner: dict[Path, Path] = {}
    for image in images:
        parent = image.parent.relative_to(root)
        folders = [folder / parent, folder] if folder else [image.parent, root / _labels_folder(parent)]
        keys = [(one_form(str(place)), one_form(name)) for place in folders for name in (image.stem, image.name)]
        path = next((files[key] for key in keys if key in files), None)
        if path is None:
            continue
        if path in owner:
            raise ValueError(f"{path}: belongs to {owner[path]} and to {image}; use folders like those of the images")
        owner[path] = image
    lone = [path for path in files.values() if path not in owner]
    if form.image_named:
        by_stem, owned = _by_stem(images), set(owner.values())
        for path in lone:
            name = form.image_named(path)
            image = _image_named(name, path, root, by_stem, str(path)) if name else None
            if image and image not in owned:
                owner[path] = image
                owned.add(image)
        lone = [path for path in lone if path not in owner]
    if lone and owner:
        print(f"warning: {len(lone)} files belong to no image and are not read (first {lone[0]})", file=sys.stderr)
    found = Found({}, {}, [])
    for path, image in owner.items():
        found.sources[image] = path
        try:
            shapes[image]  # an image that cannot be read is this image's problem, whatever is annotated
            found.annotated[image] = form.read(path, ask._replace(sizes=lambda _, image=image: shapes.both(image)))[""]
        except (OSError, ValueError) as error:
            found.annotated[image] = None
            found.problems.append(one_line(error))
    return found


def _read_shared(
    format: str, root: Path, images: Sequence[Path], source: Path | None, ask: Request, shapes: _Shapes
) -> Found:
    """All images from files that name them."""
    if source and source.is_file():
        paths = [source]
    else:
        paths = [path for path in find_files(source or root) if path.suffix.lower() in FORMATS[format].suffixes]
        others = {path: why for path in paths if len(paths) > 1 and (why := why_other(path, format))}
        if len(others) < len(paths):
            paths = [path for path in paths if path not in others]
            for why in others.values():
                print(f"warning: not read, being no annotations of format {format}: {why}", file=sys.stderr)
    by_stem, found = _by_stem(images), Found({}, {}, [])
    named_by: dict[Path, str] = {}
    strangers: dict[str, str] = {}
    for path in paths:

        def sizes(name: str, path: Path = path) -> tuple[tuple[int, int], tuple[int, int]] | None:
            return shapes.both(_image_named(name, path, root, by_stem, f"{path}: {name!r:.200}"))

        for name, value in FORMATS[format].read(path, ask._replace(sizes=sizes)).items():
            entry = f"{path}: {name!r:.200}"
            image = _image_named(name, path, root, by_stem, entry)
            if image is None:
                strangers[entry] = name
                continue
            if image in named_by:
                raise ValueError(f"{entry}: means {image}, and so does {named_by[image]}; keep one of the two")
            named_by[image], found.sources[image] = entry, path
            try:
                shapes[image]
                found.annotated[image] = value
            except (OSError, ValueError) as error:
                found.annotated[image] = None
                found.problems.append(one_line(error))
    if strangers:
        line = f"{len(strangers)} annotated images are not in the input (first {next(iter(strangers))})"
        unread = unread_kinds(list(strangers.values()))
        print(f"warning: {line}{f': {unread}' if unread else ''}", file=sys.stderr)
    return found


def _find_grids(found: Found, shapes: _Shapes, usual: str) -> dict[Path, str]:
    """The grid that each image's annotations were made in; one that was made for another size is a problem."""
    stated: dict[Path, str | None] = {}
    for image, value in found.annotated.items():
        if value is not None:
            try:
                stated[image] = stated_grid(value, shapes[image], found.sources[image], image)
            except ValueError as error:
                found.annotated[image] = None
                found.problems.append(one_line(error))
    there = {image: value for image, value in found.annotated.items() if value is not None}
    grids, lines = choose_grids(there, shapes, stated, usual)
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)
    return grids


def _by_stem(images: Sequence[Path]) -> dict[str, list[Path]]:
    by_stem: dict[str, list[Path]] = {}
    for image in images:
        by_stem.setdefault(one_form(image.stem), []).append(image)
    return by_stem


def _image_named(name: str, path: Path, root: Path, by_stem: Mapping[str, list[Path]], entry: str) -> Path | None:
    """The image that ``name`` in the file ``path`` means: its path may begin elsewhere, its ending may differ.

    Of several, the one that agrees in most folders, counted from the image upwards. ``ValueError`` for a tie.
    """
    parts = [one_form(part) for part in PureWindowsPath(name).parts]  # separators of both kinds
    if not parts:
        return None
    if path.is_relative_to(root):
        parts = [*map(one_form, path.relative_to(root).parent.parts), *parts]
    file, named_split = PurePath(parts[-1]), _split_of(PurePath(*parts))
    stem = file.stem if file.suffix.lower() in PICTURES + UNREAD else file.name
    ranked = []
    for image in by_stem.get(stem, []):
        relative = image.relative_to(root)
        if named_split in (None, _split_of(relative)) or _split_of(relative) is None:
            own = [one_form(part) for part in relative.parts]
            folders_shared = len(os.path.commonprefix([own[-2::-1], parts[-2::-1]]))
            ranked.append((folders_shared, own[-1] == file.name, image))
    ranked.sort(key=lambda rank: rank[:2], reverse=True)
    if len(ranked) > 1 and ranked[0][:2] == ranked[1][:2]:
        raise ValueError(f"{entry}: may mean {ranked[0][2]} or {ranked[1][2]}; name images with their folder")
    if not ranked and (plain := without_upload_prefix(name)) is not None:
        return _image_named(plain, path, root, by_stem, entry)
    return ranked[0][2] if ranked else None


def _report_missing(missing: Sequence[Path], total: int, unannotated: str) -> None:
    if not missing:
        return
    first = f"{len(missing)} of {total} images (first {missing[0]}) have no annotation and"
    if unannotated == "empty":
        print(f"warning: {first} count as images without points; --unannotated skip leaves them out", file=sys.stderr)
    else:
        print(f"warning: {first} are left out; --unannotated empty counts them as without points", file=sys.stderr)


def _report_labels(annotated: Mapping[Path, Annotated | None], categories: Sequence[str]) -> None:
    labels = collections.Counter(mark.label for value in annotated.values() if value for mark in value.marks)
    there = ", ".join(f"{label!r} {count}" for label, count in labels.most_common(20))
    if categories and set(labels) == {""}:
        raise ValueError(
            f"--category {categories[0]}: these annotations give no labels; drop this option, or name with --label-attribute "
            "the column (csv) or attribute (via) that holds them"
        )
    for category in categories:
        if category not in labels:
            raise ValueError(f"--category {category}: no object has this label; found: {there or 'none'}")
    if categories:
        print(f"labels found: {there}; counted: {', '.join(map(repr, categories))}")
    elif len(labels) > 1:
        print(f"labels found: {there}; all are counted, --category chooses")


def _split_of(relative: PurePath) -> str | None:
    """The split that the first folder of such a name tells."""
    return next((_SPLIT_FOLDERS[part.lower()] for part in relative.parts[:-1] if part.lower() in _SPLIT_FOLDERS), None)


def _labels_folder(folder: Path) -> Path:
    """YOLO's place for the labels of ``images``: the same path with that folder called ``labels``."""
    parts = list(folder.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _image_stem(format: str, path: Path) -> str:
    """The stem of the image that a file is for by its own name."""
    stem = path.stem
    if format == "mat":  # as ShanghaiTech and UCF-QNRF call them
        stem = stem.removeprefix("GT_").removesuffix("_ann")
    return one_form(stem)
