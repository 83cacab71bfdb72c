"""A user's own folder of images, and the annotations that belong to them."""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath

import numpy as np

from datasets.raw.exports import without_upload_prefix
from datasets.raw.formats import FORMATS, recognise
from datasets.raw.grids import STORED, UPRIGHT, choose_grids, fitting_grid, grid_size
from datasets.raw.marks import Annotated, Request, Sizes, counted
from datasets.raw.raw_text import OtherFormatError, one_form
from datasets.raw.suspicion import refuse_corners, refuse_empty, suspect
from utils.cli import one_line, warn
from utils.files import PICTURES, UNREAD, find_files, unread_kinds
from utils.images import image_shape, turn_points

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
    if format == "auto":
        format, shown_by = recognise(root, images, annotations)
        print(f"format: {format} (as {shown_by} shows)")
    if attribute and format not in ("csv", "via"):
        raise ValueError(f"--label-attribute {attribute}: format {format} has its labels in one place; drop it")
    categories = tuple(dict.fromkeys(map(one_form, categories)))
    place = annotations or root
    reading = _Reading(format, root, images, categories)
    reading.read(annotations, Request(attribute=attribute, notice=functools.cache(print)))
    if not reading.annotated:
        remedy = "check --format, and give --annotations if the files are elsewhere or one is for all"
        raise FileNotFoundError(f"{place}: no annotation of format {format} for any image here; {remedy}")
    grids = reading.choose_grids()
    annotated = {image: value for image, value in reading.annotated.items() if value is not None}
    unannotated = unannotated or ("empty" if format == "yolo" else "skip")
    _report_missing([image for image in images if image not in reading.annotated], len(images), unannotated)
    _report_labels(annotated, categories)
    if len(annotated) == len(reading.annotated):
        refuse_empty(format, annotated, set(reading.sources.values()), place)
    refuse_corners(annotated, {image: grid_size(reading.shape(image), grids[image]) for image in annotated}, place)
    points: dict[Path, np.ndarray | None] = {}
    for image in images:
        if image in annotated:
            marks = [mark for mark in annotated[image].marks if not categories or mark.label in categories]
            own = np.array([mark[:3] for mark in marks], np.float64).reshape(-1, 3)
            points[image] = own
            if grids[image] == STORED:
                own[:, :2] = turn_points(own[:, :2], reading.shape(image))
        elif image in reading.annotated:
            points[image] = None
        elif unannotated == "empty":
            points[image] = np.zeros((0, 3))
    sized = {image: (points[image], reading.shape(image).upright) for image in annotated if len(points[image])}
    suspect(sized, place)
    return points, reading.problems


class _Reading:
    """What the files of one format say of the images of a folder.

    ``annotated`` holds the marks of each image that a file speaks of (None: they cannot be read, and ``problems`` has a
    line on why), ``sources`` the file that says so.
    """

    def __init__(self, format: str, root: Path, images: Sequence[Path], categories: Sequence[str]) -> None:
        self.format, self.form, self.categories = format, FORMATS[format], categories
        self.root, self.images = root, images
        self.by_stem: dict[str, list[Path]] = {}
        for image in images:
            self.by_stem.setdefault(one_form(image.stem), []).append(image)
        self.shape = functools.cache(image_shape)
        self.annotated: dict[Path, Annotated | None] = {}
        self.sources: dict[Path, Path] = {}
        self.problems: list[str] = []

    def read(self, annotations: Path | None, request: Request) -> None:
        """Read the file or folder ``annotations``, or what lies beside the images."""
        for_all = self.form.files == "all" or bool(annotations and annotations.is_file())
        if for_all and self.form.files == "each":
            raise ValueError(f"{annotations}: {self.format} has a file for each image; give --annotations their folder")
        if not for_all:
            self._read_each(annotations, request._replace(named=False))
        if for_all or (self.form.files == "both" and not self.annotated):
            self._read_shared(annotations, request)

    def _read_each(self, folder: Path | None, request: Request) -> None:
        """Each image from a file of its own name."""
        files: dict[tuple[str, str], Path] = {}
        for path in find_files(folder or self.root):
            if path.suffix.lower() in self.form.suffixes:
                stem = path.stem  # with what ShanghaiTech and UCF-QNRF add to the image's
                stem = stem.removeprefix("GT_").removesuffix("_ann") if self.format == "mat" else stem
                other = files.setdefault((one_form(str(path.parent)), one_form(stem)), path)
                if other is not path:
                    raise ValueError(f"{path}: {other.name} is for the same image; remove one of the two")
        owner: dict[Path, Path] = {}
        for image in self.images:
            parent = image.parent.relative_to(self.root)
            folders = [folder / parent, folder] if folder else [image.parent, self.root / _labels_folder(parent)]
            keys = [(one_form(str(place)), one_form(name)) for place in folders for name in (image.stem, image.name)]
            path = next((files[key] for key in keys if key in files), None)
            if path in owner:
                raise ValueError(f"{path}: is for {owner[path]} and for {image}; use folders like those of the images")
            if path:
                owner[path] = image
        lone = [path for path in files.values() if path not in owner]
        if lone and owner:
            warn(f"{len(lone)} files belong to no image and are not read (first {lone[0]})")
        for path, image in owner.items():
            self.sources[image] = path
            request = request._replace(sizes=lambda _, image=image: self._sizes(image))
            try:
                self.shape(image)  # one that cannot be read is this image's problem, whatever is annotated
                self.annotated[image] = counted(self.form.read(path, request), self.categories)[""]
            except (OSError, ValueError) as error:
                self._fail(image, error)

    def _read_shared(self, source: Path | None, request: Request) -> None:
        """All images from files that name them."""
        if source and source.is_file():
            paths = [source]
        else:
            paths = [path for path in find_files(source or self.root) if path.suffix.lower() in self.form.suffixes]
        named_by: dict[Path, str] = {}
        strangers: dict[str, str] = {}
        others: list[OtherFormatError] = []
        for path in paths:
            request = request._replace(sizes=lambda name, path=path: self._sizes(self._image_named(name, path)))
            try:
                images = counted(self.form.read(path, request), self.categories)
            except OtherFormatError as error:
                others.append(error)
                continue
            for name, value in images.items():
                entry, image = f"{path}: {name!r:.200}", self._image_named(name, path)
                if image is None:
                    strangers[entry] = name
                    continue
                if image in named_by:
                    raise ValueError(f"{entry}: means {image}, and so does {named_by[image]}; keep one of the two")
                named_by[image], self.sources[image], self.annotated[image] = entry, path, value
        if others and len(others) == len(paths):
            raise others[0]
        for error in others:
            warn(f"not read, being no annotations of format {self.format}: {error}")
        if strangers:
            unread = unread_kinds(list(strangers.values()))
            line = f"{len(strangers)} annotated images are not in the input (first {next(iter(strangers))})"
            warn(f"{line}{f': {unread}' if unread else ''}")

    def choose_grids(self) -> dict[Path, str]:
        """The grid that each image's annotations were made in; one that was made for another size is a problem."""
        fitting: dict[Path, str | None] = {}
        for image, value in self.annotated.items():
            try:
                if value is not None:
                    fitting[image] = fitting_grid(value, self.shape(image), self.sources[image], image)
            except (OSError, ValueError) as error:
                self._fail(image, error)
        turned = dict.fromkeys(image for image in fitting if self.shape(image).orientation != 1)
        return choose_grids(fitting, turned, STORED if self.form.stored else UPRIGHT)

    def _fail(self, image: Path, error: Exception) -> None:
        self.annotated[image] = None
        self.problems.append(one_line(error))

    def _sizes(self, image: Path | None) -> Sizes | None:
        try:
            return (grid_size(self.shape(image), UPRIGHT), grid_size(self.shape(image), STORED)) if image else None
        except (OSError, ValueError):  # the image's problem, not that of the file that speaks of many
            return None

    def _image_named(self, name: str, path: Path) -> Path | None:
        """The image that ``name`` in the file ``path`` means: its path may begin elsewhere, its ending may differ.

        Of several, the one that agrees in most folders, counted from the image upwards. ``ValueError`` for a tie.
        """
        parts = [one_form(part) for part in PureWindowsPath(name).parts]  # separators of both kinds
        if not parts:
            return None
        if path.is_relative_to(self.root):
            parts = [*map(one_form, path.relative_to(self.root).parent.parts), *parts]
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
            raise ValueError(f"{path}: {name!r:.200}: {which}; name images with their folder")
        if not ranked and (plain := without_upload_prefix(name)) is not None:
            return self._image_named(plain, path)
        return ranked[0][2] if ranked else None


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


def _labels_folder(folder: Path) -> Path:
    """YOLO's place for the labels of ``images``: the same path with that folder called ``labels``."""
    parts = list(folder.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)
