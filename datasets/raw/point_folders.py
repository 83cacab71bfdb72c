"""A user's own folder of images, and the annotations that belong to them."""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import NamedTuple

import numpy as np

from datasets.raw import exports, places
from datasets.raw.lines import read_xy, read_yolo
from datasets.raw.marks import Annotated, Request, counted
from datasets.raw.mat_file import read_points_mat
from datasets.raw.raw_text import DamagedError, OtherFormatError, one_form
from datasets.raw.tables import read_csv
from utils.cli import one_line, warn
from utils.files import PICTURES, UNREAD, find_files, unread_kinds
from utils.images import image_shape, turn_points


class Format(NamedTuple):
    """One format; ``files`` are "each" (one an image), "all" (one for many) or "both"."""

    suffixes: tuple[str, ...]
    files: str
    read: Callable[[Path, Request], dict[str, Annotated]]
    grid: str = places.UPRIGHT  # in which annotations are taken as made where nothing tells


FORMATS = {
    "csv": Format((".csv", ".tsv"), "both", read_csv),
    "json": Format((".json",), "both", exports.read_points_json),
    "coco": Format((".json",), "all", exports.read_coco),
    "yolo": Format((".txt",), "each", read_yolo),
    "labelme": Format((".json",), "each", exports.read_labelme),
    "via": Format((".json", ".csv"), "all", exports.read_via),
    "cvat": Format((".xml",), "all", exports.read_cvat),
    "labelstudio": Format((".json",), "all", exports.read_labelstudio),
    "xy": Format((".txt",), "each", read_xy),
    "pnt": Format((".pnt",), "all", exports.read_pnt),
    "mat": Format((".mat",), "each", read_points_mat, places.STORED),
}
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def find_images(root: Path) -> dict[str | None, list[Path]]:
    """All images in ``root`` and its folders, sorted, by the split folder they lie in: train, val or test in any case.

    None stands for no such folder. A warning names images of a kind that is not read. Raises ``FileNotFoundError`` for a
    folder that is missing or holds no image.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; check the input path")
    images: dict[str | None, list[Path]] = {}
    paths = find_files(root)
    for path in paths:
        if path.suffix.lower() in PICTURES:
            images.setdefault(_split_of(path.relative_to(root)), []).append(path)
    unread = unread_kinds([path.name for path in paths])
    if not images:
        none = f"holds no image ({', '.join(PICTURES)}); check the input path"
        raise FileNotFoundError(f"{root}: {f'{unread}; convert them to JPEG' if unread else none}")
    if unread:
        warn(f"{root}: {unread}; convert them to JPEG, or they are left out")
    return images


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
    are stored turned, is printed. ``categories`` are the labels that count, all without them; ``attribute`` is the column
    or region attribute that holds the labels.

    Also returns one line for each image whose annotation is wrong. Raises ``OSError`` or ``ValueError`` where nothing can
    be read, not one object is annotated, or it is not clear to which image an annotation belongs.
    """
    if annotations and not annotations.exists():
        raise FileNotFoundError(f"{annotations}: no such file or folder; check --annotations")
    folder, place = _Folder(root, images, annotations), annotations or root
    categories = tuple(dict.fromkeys(map(one_form, categories)))
    if format == "auto":
        format = _recognise(folder, categories, place)
    if attribute and format not in ("csv", "via"):
        raise ValueError(f"--label-attribute {attribute}: format {format} has its labels in one place; drop it")
    if folder.one_for_all and FORMATS[format].files == "each":
        raise ValueError(f"{annotations}: {format} has a file for each image; give --annotations their folder")
    request = Request(attribute=attribute, notice=functools.cache(print))
    annotated, sources, problems = _read(folder, format, request, categories)
    if not sources:
        remedy = "check --format, and give --annotations if the files are elsewhere or one is for all"
        raise FileNotFoundError(f"{place}: no annotation of format {format} for any image here; {remedy}")
    shapes = {image: folder.shape(image) for image in annotated}
    grids = places.choose_grids(annotated, shapes, FORMATS[format].grid)
    unannotated = unannotated or ("empty" if format == "yolo" else "skip")
    _report_missing([image for image in images if image not in sources], len(images), unannotated)
    _report_labels(annotated, categories)
    if not problems:
        places.refuse_empty(format, annotated, set(sources.values()), place)
    sizes = {image: places.grid_size(shape, grids[image]) for image, shape in shapes.items()}
    places.refuse_corners(annotated, sizes, place)
    points: dict[Path, np.ndarray | None] = {}
    for image in images:
        if image in annotated:
            marks = [mark for mark in annotated[image].marks if not categories or mark.label in categories]
            points[image] = own = np.array([mark[:3] for mark in marks], np.float64).reshape(-1, 3)
            if grids[image] == places.STORED:
                own[:, :2] = turn_points(own[:, :2], shapes[image])
        elif image in sources:
            points[image] = None
        elif unannotated == "empty":
            points[image] = np.zeros((0, 3))
    places.suspect({image: (points[image], shapes[image].upright) for image in annotated if len(points[image])}, place)
    return points, problems


class _Folder:
    """The images of a folder, and the ``files`` that may speak of them: one for all, or all in a folder."""

    def __init__(self, root: Path, images: Sequence[Path], annotations: Path | None) -> None:
        self.root, self.one_for_all = root, annotations is not None and annotations.is_file()
        self.files = [annotations] if self.one_for_all else find_files(annotations or root)
        self.base = annotations.parent if self.one_for_all else annotations or root
        self.by_stem: dict[str, list[Path]] = {}
        for image in images:
            self.by_stem.setdefault(one_form(image.stem), []).append(image)
        self.shape = functools.cache(image_shape)

    def image_named(self, name: str, path: Path) -> Path | None:
        """The image that ``name`` in the file ``path`` means: its path may begin elsewhere, its ending may differ.

        Of several, the one that agrees in most folders, counted from the image upwards. ``ValueError`` for a tie.
        """
        within = path.relative_to(self.root if path.is_relative_to(self.root) else self.base).parent
        parts = [one_form(part) for part in (*within.parts, *PureWindowsPath(name).parts)]  # separators of both kinds
        if not PureWindowsPath(name).name:
            return None
        file, named_split = PurePath(parts[-1]), _split_of(PurePath(*parts))
        stem = file.stem if file.suffix.lower() in PICTURES + UNREAD else file.name
        ranked = []
        for image in self.by_stem.get(stem, []):
            relative = image.relative_to(self.root)
            if named_split in (None, _split_of(relative)) or _split_of(relative) is None:
                own = [one_form(part) for part in relative.parts]
                folders_shared = len(os.path.commonprefix([own[-2::-1], parts[-2::-1]]))
                ranked.append((folders_shared, own[-1] == file.name, image))
        ranked.sort(key=lambda rank: rank[:2], reverse=True)
        if len(ranked) > 1 and ranked[0][:2] == ranked[1][:2]:
            which = f"may mean {ranked[0][2]} or {ranked[1][2]}"
            raise ValueError(f"{path}: {name!r:.200}: {which}; tell them apart by their folders")
        if not ranked and (plain := exports.without_upload_prefix(name)) is not None:
            return self.image_named(plain, path)
        return ranked[0][2] if ranked else None


def _read(
    folder: _Folder, format: str, request: Request, categories: Sequence[str]
) -> tuple[dict[Path, Annotated], dict[Path, Path], list[str]]:
    """What the files of one format say of the images: the marks of each, the file that speaks of it, and what is wrong.

    Of an image whose annotations cannot be read there are no marks, its file, and a line on why. A format for one image or
    many is taken as one for many where no file is called like an image.
    """
    form = FORMATS[format]
    paths = [path for path in folder.files if path.suffix.lower() in form.suffixes]
    own: dict[Path, Path] = {}
    for path in paths if form.files != "all" and not folder.one_for_all else ():
        stem = path.stem.removeprefix("GT_").removesuffix("_ann") if format == "mat" else path.stem
        if image := folder.image_named(stem, path):
            if image in own:
                raise ValueError(f"{path}: {own[image]} is for the same image; remove one of the two")
            own[image] = path
    if own and len(own) < len(paths):
        first = next(path for path in paths if path not in own.values())
        warn(f"{len(paths) - len(own)} files belong to no image and are not read (first {first})")
    annotated: dict[Path, Annotated] = {}
    sources: dict[Path, Path] = {}
    problems: list[str] = []
    strangers: list[str] = []
    others: list[OtherFormatError] = []
    shared = [] if form.files == "each" else [(None, path) for path in paths]
    for owner, path in own.items() or shared:
        try:
            if owner:
                folder.shape(owner)  # one that cannot be read is this image's problem, whatever is annotated
            found = counted(form.read(path, request._replace(named=owner is None)), categories)
        except (OSError, ValueError) as error:
            if owner:
                sources[owner] = path
                problems.append(one_line(error))
            elif isinstance(error, OtherFormatError):
                others.append(error)
            else:
                raise
            continue
        for name, value in found.items():
            entry, image = f"{path}: {name!r:.200}", owner or folder.image_named(name, path)
            if image is None:
                strangers.append(entry)
                continue
            if image in sources:
                raise ValueError(f"{entry}: means {image}, and so does {sources[image]}; keep one of the two")
            sources[image] = path
            try:
                annotated[image] = places.in_pixels(value, folder.shape(image), path, image)
            except (OSError, ValueError) as error:
                problems.append(one_line(error))
    if others and len(others) == len(paths):
        raise others[0]
    for error in others:
        warn(f"not read, being no annotations of format {format}: {error}")
    if strangers:
        warn(f"{len(strangers)} annotated images are not in the input (first {strangers[0]})")
    return annotated, sources, problems


def _recognise(folder: _Folder, categories: Sequence[str], place: Path) -> str:
    """The one format by which the files speak of the images; ``ValueError`` for several or none, then with the reasons."""
    shown_by: dict[str, Path] = {}
    empty: dict[str, Path] = {}  # texts without a line may be YOLO's or have points
    reasons: dict[str, str] = {}  # by suffix, of the first reader that refuses a file
    for name, form in FORMATS.items():
        if folder.one_for_all and form.files == "each":
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                annotated, sources, problems = _read(folder, name, Request(), categories)
        except (OtherFormatError, DamagedError) as error:
            annotated, problems = {}, [str(error)]
        marked = next((image for image, value in annotated.items() if value.marks), None)
        if annotated:
            known = marked or form.suffixes != (".txt",)
            (shown_by if known else empty)[name] = sources[marked or next(iter(annotated))]
        for line in problems:
            reasons.setdefault(Path(line.partition(": ")[0]).suffix, line)
    formats = shown_by or dict(list(empty.items())[:1])
    if len(formats) > 1:
        shown = "; ".join(f"{name} ({path})" for name, path in formats.items())
        raise ValueError(f"{place}: the annotations may be {shown}; choose with --format")
    for name, path in formats.items():
        print(f"format: {name} (as {path} shows)")
        return name
    suffixes = ", ".join(sorted({suffix for form in FORMATS.values() for suffix in form.suffixes}))
    looked = "; ".join(reasons.values()) or f"it has no file {suffixes} of an image or of all"
    remedy = f"choose with --format {{{','.join(FORMATS)}}}, and give --annotations if they are elsewhere"
    raise ValueError(f"{place}: holds no annotations that are recognised ({looked}); {remedy}")


def _report_missing(missing: Sequence[Path], total: int, unannotated: str) -> None:
    what = "are left out; --unannotated empty counts them as without points"
    if unannotated == "empty":
        what = "count as images without points; --unannotated skip leaves them out"
    if missing:
        warn(f"{len(missing)} of {total} images (first {missing[0]}) have no annotation and {what}")


def _report_labels(annotated: Mapping[Path, Annotated], categories: Sequence[str]) -> None:
    labels = collections.Counter(mark.label for value in annotated.values() for mark in value.marks)
    there = ", ".join(f"{label!r} {count}" for label, count in labels.most_common(20))
    if categories and set(labels) == {""}:
        remedy = "drop it, or name with --label-attribute the column (csv) or attribute (via) that holds them"
        raise ValueError(f"--category {categories[0]}: these annotations give no labels; {remedy}")
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
