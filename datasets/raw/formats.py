"""Which annotation formats there are: what their files are called, who reads them, and how they are recognised."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.raw import exports
from datasets.raw.lines import read_xy, read_yolo
from datasets.raw.marks import Annotated, Request
from datasets.raw.mat_file import read_points_mat
from datasets.raw.raw_text import DamagedError, OtherFormatError, one_form
from datasets.raw.tables import read_csv
from datasets.raw.via import read_via
from utils.cli import one_line
from utils.files import find_files


class Format(NamedTuple):
    """One format; ``files`` are "each" (one an image), "all" (one for many) or "both"."""

    suffixes: tuple[str, ...]
    files: str
    read: Callable[[Path, Request], dict[str, Annotated]]
    stored: bool = False  # where neither a size nor the points tell: the stored grid rather than the upright one


FORMATS = {
    "csv": Format((".csv", ".tsv"), "both", read_csv),
    "json": Format((".json",), "both", exports.read_points_json),
    "coco": Format((".json",), "all", exports.read_coco),
    "yolo": Format((".txt",), "each", read_yolo),
    "labelme": Format((".json",), "both", exports.read_labelme),
    "via": Format((".json", ".csv"), "all", read_via),
    "cvat": Format((".xml",), "all", exports.read_cvat),
    "labelstudio": Format((".json",), "all", exports.read_labelstudio),
    "xy": Format((".txt",), "each", read_xy),
    "pnt": Format((".pnt",), "all", exports.read_pnt),
    "mat": Format((".mat",), "each", read_points_mat, stored=True),
}
_LOOKED_AT = 20  # files of one suffix
_REASONS = 3  # that are given where nothing is recognised

# Files of tools that are known and not read, by suffix: what they are, and what to do.
_TABLE = "save its results as a csv table with the columns x and y, in pixels, and take --format csv"
_UNREAD = {
    ".zip": ("an archive, such as ImageJ's RoiSet.zip", f"unpack it, or, of ImageJ, measure the ROIs and {_TABLE}"),
    ".roi": ("a ROI of ImageJ", f"measure the ROIs in ImageJ and {_TABLE}"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), ("a spreadsheet", "save it as csv, and take --format csv")),
    ".qpdata": ("of a project of QuPath", f"measure the centroids in QuPath and {_TABLE}"),
    ".geojson": ("GeoJSON, as QuPath writes it", f"measure the centroids in QuPath and {_TABLE}"),
    **dict.fromkeys((".ndjson", ".jsonl"), ("a list of JSON lines", "export COCO, and take --format coco")),
}


def recognise(root: Path, images: Sequence[Path], annotations: Path | None = None) -> tuple[str, Path]:
    """The format of the annotations of these images, and a file that shows it.

    ``annotations`` is the file or folder that holds them, else ``root``. Raises ``ValueError`` where several formats or
    none are found, in the latter case with the files that were looked at and why they were not taken.
    """
    stems = {one_form(name) for image in images for name in (image.stem, image.name)}
    paths = [annotations] if annotations and annotations.is_file() else find_files(annotations or root)
    suffixes = {suffix for form in FORMATS.values() for suffix in form.suffixes} | set(_UNREAD)
    formats: dict[str, Path] = {}
    refused: list[str] = []
    paths.sort(key=lambda path: (path.suffix.lower(), path))
    for suffix, group in itertools.groupby(paths, lambda path: path.suffix.lower()):
        own = [path for path in group if suffix != ".txt" or one_form(path.stem) in stems]
        for i, path in enumerate(own[:_LOOKED_AT] if suffix in suffixes else ()):
            name, reasons = _try_readers(path, one_form(path.stem) in stems)
            if name:
                formats.setdefault(name, path)
            elif not i:
                refused += reasons
    if len(formats) > 1:  # an empty text may be YOLO's or have points
        formats.pop("empty", None)
    if "empty" in formats:
        formats = {"yolo": formats["empty"]}
    if len(formats) == 1:
        return next(iter(formats.items()))
    place = annotations or root
    if not formats:
        looked = "; ".join(refused[:_REASONS]) or f"it has no file {', '.join(sorted(suffixes))} of an image or of all"
        remedy = f"choose with --format {{{','.join(FORMATS)}}}, and give --annotations if they are elsewhere"
        raise ValueError(f"{place}: holds no annotations that are recognised ({looked}); {remedy}")
    shown = "; ".join(f"{name} ({path})" for name, path in formats.items())
    raise ValueError(f"{place}: the annotations may be {shown}; choose with --format")


def _try_readers(path: Path, of_image: bool) -> tuple[str | None, list[str]]:
    """The format that a file is of, "empty" for a text without a line, or None and why it is of none.

    ``of_image``: it is called like an image. A file for many images that its reader takes for one of its own, if a wrong
    one, is of that format; one for an image must be right, since there are others.
    """
    suffix, wrong, other = path.suffix.lower(), [], []
    if suffix in _UNREAD:
        what, remedy = _UNREAD[suffix]
        return None, [f"{path}: is {what}, which is not read: {remedy}"]
    request = Request(named=not of_image, sizes=lambda name: ((1, 1), (1, 1)))
    for name, form in FORMATS.items():
        if suffix in form.suffixes:
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    images = form.read(path, request)
                if images:
                    return "empty" if suffix == ".txt" and not images[""].marks else name, []
            except (OSError, OtherFormatError, DamagedError) as error:
                other.append(one_line(error))
            except ValueError as error:
                if not of_image:
                    return name, []
                wrong.append(str(error))
    # Of readers that take a file for another's, the one that came farthest into it knows best.
    return None, wrong or sorted(other, key=lambda reason: -reason.partition("; ")[0].count(": "))[:1]
