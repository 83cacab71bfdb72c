"""What a prepared data set holds and what is odd about it: warnings, a table and ``dataset_report.json``."""

from __future__ import annotations

import contextlib
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from scipy.spatial import cKDTree

from utils.cli import one_line, warn
from utils.dataset_report import DATASETS, OWN, REPORT
from utils.files import SPLITS, file_hash, list_images, points_path, read_json_lines, read_points, write_json
from utils.images import image_size

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CROP_SIZES = {  # of training, pixels
    name: (yaml.safe_load((_CONFIGS / f"{name}.yml").read_text(encoding="utf-8")) or {}).get("crop_size", 512)
    for name in DATASETS
    if name != OWN
}
CLOSE = 0.5  # pixels
_PRINTED = 40
_OUTSIDE = 1.0  # pixels: the sides of a resized image are rounded, its points are not
_AGAIN = "run preprocess_dataset_*.py again"
RECORD = "preprocess.jsonl"  # one line an image: what preprocessing made of it and from what


def read_record(root: Path) -> dict[str, dict[str, Any]]:
    """The entries of ``root/preprocess.jsonl`` by image; lines that cannot be read are left out, a later one wins."""
    return {entry["image"]: entry for entry in read_json_lines(root / RECORD) if isinstance(entry.get("image"), str)}


def lost_images(root: Path) -> list[str]:
    """Images of the record that are not there any more."""
    return [name for name in read_record(root) if not (root / name).exists()]


class Published(NamedTuple):
    """Numbers that a data set was published with; ``train+val`` where its authors give no validation split."""

    images: Mapping[str, int]
    points: int | None = None


PUBLISHED = {
    "qnrf": Published({"train+val": 1201, "test": 334}, 1_251_642),
    "jhu": Published({"train": 2272, "val": 500, "test": 1600}),
    "nwpu": Published({"train": 3109, "val": 500, "test": 1500}),
    "sha": Published({"train+val": 300, "test": 182}, 241_677),
    "shb": Published({"train+val": 400, "test": 316}, 88_488),
    "ucf50": Published({"train+val": 40, "test": 10}, 63_974),
}


class ImageFacts(NamedTuple):
    """What is known of one prepared image; problems and ``errors`` are lines that name a file and the remedy."""

    name: str  # relative to the root: train/IMG_0001.jpg
    height: int | None
    width: int | None
    grey: bool | None
    points: int | None  # None: no annotations, or none that can be read
    dropped: int
    duplicates: int
    close: int
    bytes: int
    jpeg_problem: str | None  # why the image cannot be read
    points_problem: str | None  # why the annotations cannot be read
    errors: tuple[str, ...]  # all else
    orientation: int  # the EXIF orientation by which the raw image was turned upright; 1: as it was stored
    warnings: tuple[str, ...] = ()
    states: Mapping[str, str] = {}  # of the stages of its preparation, see ``datasets.check``

    @property
    def split(self) -> str:
        return self.name.split("/")[0]

    @property
    def all_errors(self) -> list[str]:
        return [*filter(None, (self.jpeg_problem, self.points_problem)), *self.errors]


def find_images(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The images of all splits, each with its entry in the record. Raises ``FileNotFoundError`` where there is none at all."""
    images, record = [], read_record(root)
    for split in SPLITS:
        with contextlib.suppress(FileNotFoundError):  # a split may be missing, or empty after a run in which all failed
            images += list_images(root / split)
    if not images:
        raise FileNotFoundError(f"{root}: holds no images in train, val or test; preprocess_dataset_*.py writes them")
    return [(image, record.get(image.relative_to(root).as_posix(), {})) for image in images]


def look_at(root: Path, image: Path, entry: Mapping[str, Any], problem: str | None = None) -> ImageFacts:
    """What the npy, the record's entry and, where that lacks the size, the header of the image say.

    ``problem`` is a line that says why the image cannot be decoded, from a caller who tried; its header is then not read.
    """
    keys = ("height", "width", "grey", "dropped", "orientation")
    height, width, grey, dropped, orientation = (v if isinstance(v := entry.get(key), int) else None for key in keys)
    size = 0
    try:
        if problem is None:
            size = image.stat().st_size
            if not size or None in (height, width):
                height, width = image_size(image)
    except (OSError, ValueError) as error:
        size, problem = 0, one_line(error)
    points, duplicates, close, unreadable, errors = None, 0, 0, None, ()
    path = points_path(image)
    if path.exists():
        try:
            rows = read_points(path)[:, :2]
            points, (duplicates, close) = len(rows), crowding(rows)
            limits = (width or math.inf) + _OUTSIDE, (height or math.inf) + _OUTSIDE
            outside = ((rows < -_OUTSIDE) | (rows > limits)).any(axis=1)
            if outside.any():
                lie = f"lie outside the image of {width} x {height}, as {rows[outside][0].tolist()}"
                errors = (f"{path}: {outside.sum()} points {lie}; {_AGAIN}",)
        except (OSError, ValueError) as error:
            unreadable = one_line(error)
    name, counts = image.relative_to(root).as_posix(), (points, dropped or 0, duplicates, close)
    return ImageFacts(name, height, width, grey, *counts, size, problem, unreadable, errors, orientation or 1)


def crowding(points: np.ndarray) -> tuple[int, int]:
    """How many of the points [N, 2] repeat another, and how many of the different ones lie closer than ``CLOSE``."""
    distinct = np.unique(points.astype(np.float64), axis=0)
    duplicates = len(points) - len(distinct)
    if len(distinct) < 2:
        return duplicates, 0
    nearest = cKDTree(distinct).query(distinct, k=2)[0][:, 1]
    return duplicates, int((nearest < CLOSE).sum())


def summarise(
    root: Path, dataset: str | None, crop_size: int, facts: Sequence[ImageFacts], errors: Sequence[str] = ()
) -> dict[str, Any]:
    """The report as ``dataset_report.json`` holds it; ``errors`` are lines to add to its own."""
    findings = {
        "without_annotations": [f.name for f in facts if f.points is None and not f.points_problem],
        "without_points": [f.name for f in facts if f.points == 0],
        "dropped": {f.name: f.dropped for f in facts if f.dropped},
        "duplicates": {f.name: f.duplicates for f in facts if f.duplicates},
        "close": {f.name: f.close for f in facts if f.close},
        "smaller_than_crop": [f.name for f in facts if f.height and f.width and min(f.height, f.width) < crop_size],
        "jpeg_problems": {f.name: f.jpeg_problem for f in facts if f.jpeg_problem},
        "grey": [f.name for f in facts if f.grey],
        "turned": {f.name: f.orientation for f in facts if f.orientation != 1},
        "in_two_splits": _in_two_splits(root, facts),
    }
    splits = {split: _split_numbers([f for f in facts if f.split == split], findings) for split in SPLITS}
    splits = {split: numbers for split, numbers in splits.items() if numbers["images"]}
    errors = [*(line for fact in facts for line in fact.all_errors), *errors]
    warnings = [line for fact in facts for line in fact.warnings]
    errors += [f"{root / name}: was prepared but is missing; {_AGAIN}" for name in lost_images(root)]
    remedy = f"so it cannot be trained on; lower --crop-size, or preprocess with --min-size {crop_size}"
    small = [root / name for name in findings["smaller_than_crop"] if name.startswith("train/")]
    errors += [f"{path}: smaller than the crop of {crop_size}, {remedy}" for path in small]
    for split, numbers in splits.items():
        lacking = [root / name for name in findings["without_annotations"] if name.startswith(f"{split}/")]
        if split != "test" or len(lacking) != numbers["images"]:
            errors += [f"{points_path(path)}: no such annotation file; {_AGAIN}" for path in lacking]
        elif dataset != "nwpu":  # whose authors keep them
            warnings.append(f"{root / split}: no image has annotations; test.py then predicts without scoring")
    warnings += _warnings(findings)
    published = _published(dataset, splits)
    for group, (found, expected) in published.get("images", {}).items():
        if found != expected:
            warnings.append(f"{root}: {found} images in {group.replace('+', ' and ')}, published are {expected}")
    found, expected = published.get("points", (0, 0))
    if abs(found - expected) > 0.01 * expected:
        warnings.append(f"{root}: {found:,} points with the dropped ones, published are {expected:,}")
    report = {"dataset": dataset, "crop_size": crop_size, "errors": errors, "warnings": warnings}
    return {**report, "splits": splits, "published": published, "findings": findings}


def _split_numbers(facts: Sequence[ImageFacts], findings: Mapping[str, Any]) -> dict[str, Any]:
    counts = [fact.points for fact in facts if fact.points is not None]
    numbers: dict[str, Any] = {"images": len(facts), "annotated": len(counts), "points": sum(counts)}
    for name in ("min", "median", "mean", "max"):
        numbers[name] = round(float(getattr(np, name)(counts)), 2) if counts else None
    names = {fact.name for fact in facts}
    for key in ("without_points", "smaller_than_crop", "grey"):
        numbers[key] = len(names.intersection(findings[key]))
    for key in ("dropped", "duplicates", "close"):
        numbers[key] = sum(getattr(fact, key) for fact in facts)
    return numbers


def _published(dataset: str | None, splits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """(found, published) of images by split, and of points where all splits are there."""
    if dataset not in PUBLISHED:
        return {}
    comparison: dict[str, Any] = {"images": {}}
    for group, expected in PUBLISHED[dataset].images.items():
        found = sum(splits[split]["images"] for split in group.split("+") if split in splits)
        comparison["images"][group] = found, expected
    if expected := PUBLISHED[dataset].points:
        comparison["points"] = sum(numbers["points"] + numbers["dropped"] for numbers in splits.values()), expected
    return comparison


def _in_two_splits(root: Path, facts: Sequence[ImageFacts]) -> list[list[str]]:
    """Images of different splits whose files have the same bytes. Only files of the same length are read."""
    by_size, by_content = defaultdict(list), defaultdict(list)
    for fact in facts:
        by_size[fact.bytes].append(fact)
    for size, group in by_size.items():
        if size and len({fact.split for fact in group}) > 1:
            for fact in group:
                by_content[file_hash(root / fact.name)].append(fact)
    return [[fact.name for fact in same] for same in by_content.values() if len({fact.split for fact in same}) > 1]


def _warnings(findings: Mapping[str, Any]) -> Iterator[str]:
    for names in findings["in_two_splits"]:
        yield f"{' and '.join(names)}: the same picture in two splits; keep it in one"
    correct = "correct the annotations if they are no two people"
    for key, what in (
        ("dropped", "points lay outside their image and were dropped"),
        ("duplicates", f"points repeat another of their image; {correct}"),
        ("close", f"points lie closer than {CLOSE} pixels to another; {correct}"),
    ):
        if counts := findings[key]:
            worst = sorted(counts, key=counts.get, reverse=True)[:3]
            some = ", ".join(f"{name} {counts[name]}" for name in worst) + (", ..." if len(counts) > 3 else "")
            yield f"{sum(counts.values())} {what}, in {len(counts)} images ({some})"


def print_report(report: Mapping[str, Any]) -> None:
    """Warnings on stderr, the first ``_PRINTED`` of them, then a table."""
    sys.stdout.flush()
    warnings = report["warnings"]
    for line in warnings[:_PRINTED]:
        warn(line)
    if len(warnings) > _PRINTED:
        warn(f"{len(warnings) - _PRINTED} more are listed in {REPORT}")
    columns = {"images": 7, "points": 9, "min": 6, "median": 7, "mean": 8, "max": 6, "without_points": 6, "dropped": 8}
    columns |= {"duplicates": 11, "close": 6, "smaller_than_crop": 6, "grey": 6}
    short = {"without_points": "empty", "smaller_than_crop": "small"}
    print(f"{'split':<6}" + "".join(f" {short.get(title, title):>{width}}" for title, width in columns.items()))
    for split, numbers in report["splits"].items():
        cells = {title: "-" if numbers[title] is None else f"{numbers[title]:.10g}" for title in columns}
        print(f"{split:<6}" + "".join(f" {cells[title]:>{width}}" for title, width in columns.items()))
    parts = [f"{group} {n} of {of} images" for group, (n, of) in report["published"].get("images", {}).items()]
    if "points" in report["published"]:
        parts.append("{:,} of {:,} points".format(*report["published"]["points"]))
    if parts:
        print(f"of the published {report['dataset']}: {', '.join(parts)}")


def write_report(root: Path, dataset: str | None, crop_size: int) -> None:
    """Print what ``root`` holds, warnings first, and write ``root/dataset_report.json``.

    Fast enough for the end of a preprocessing run: it trusts ``preprocess.jsonl`` and decodes no image; ``python -m
    datasets.check`` does. ``dataset`` is one of ``PUBLISHED``, "own", or None where nobody said.
    """
    report = summarise(root, dataset, crop_size, [look_at(root, *item) for item in find_images(root)])
    print_report({**report, "warnings": report["errors"] + report["warnings"]})
    write_json(root / REPORT, report)
