"""What a prepared data set holds and what is odd about it: errors, warnings, a table and ``dataset_report.json``."""

from __future__ import annotations

import contextlib
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.spatial import cKDTree

from utils.cli import one_line, warn
from utils.files import (
    DATASETS,
    OWN,
    REPORT,
    SPLITS,
    file_hash,
    list_images,
    points_path,
    read_json_lines,
    read_points,
    write_json,
)
from utils.images import image_size, is_grey, load_image

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CROP_SIZES = {  # of training, pixels
    name: (yaml.safe_load((_CONFIGS / f"{name}.yml").read_text(encoding="utf-8")) or {}).get("crop_size", 512)
    for name in DATASETS
    if name != OWN
}
CLOSE = 0.5  # pixels
_OUTSIDE = 1.0  # pixels: the sides of a resized image are rounded, its points are not
_AGAIN = "run preprocess_dataset_*.py again"
_SHORT = {"without_points": "empty", "smaller_than_crop": "small"}  # titles of the table
RECORD = "preprocess.jsonl"  # one line an image: what preprocessing made of it and from what
_RECORD_TYPES = {"image": str, "source": str, "points": (int, type(None)), "dropped": int, "height": int, "width": int}
_RECORD_TYPES |= {"grey": bool, "orientation": int, "made_from": dict}
# The images and points that a data set was published with; "train+val" where its authors give no validation split.
PUBLISHED = {
    "qnrf": ({"train+val": 1201, "test": 334}, 1_251_642),
    "jhu": ({"train": 2272, "val": 500, "test": 1600}, None),
    "nwpu": ({"train": 3109, "val": 500, "test": 1500}, None),
    "sha": ({"train+val": 300, "test": 182}, 241_677),
    "shb": ({"train+val": 400, "test": 316}, 88_488),
    "ucf50": ({"train+val": 40, "test": 10}, 63_974),
}


@dataclass
class ImageFacts:
    """What is known of one prepared image; ``errors`` and ``warnings`` are lines that name a file and the remedy."""

    name: str  # relative to the root: train/IMG_0001.jpg
    height: int | None = None
    width: int | None = None
    grey: bool = False
    annotated: bool = False  # its npy is there
    points: int | None = None  # None: no annotations, or none that can be read
    dropped: int = 0
    duplicates: int = 0
    close: int = 0
    bytes: int = 0
    orientation: int = 1  # the EXIF orientation by which the raw image was turned upright; 1: as it was stored
    jpeg_problem: str = ""  # why the image cannot be read, which is also one of its errors
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)  # of the stages of its preparation, see ``datasets.check``

    @property
    def split(self) -> str:
        return self.name.split("/")[0]


def read_record(root: Path) -> dict[str, dict[str, Any]]:
    """The entries of ``root/preprocess.jsonl`` by image, a later one wins; lines that are not as written there are left out."""
    entries = read_json_lines(root / RECORD)
    whole = (e for e in entries if all(key in e and isinstance(e[key], kind) for key, kind in _RECORD_TYPES.items()))
    return {entry["image"]: entry for entry in whole}


def lost_images(root: Path) -> list[str]:
    """Images of the record that are not there any more."""
    return [name for name in read_record(root) if not (root / name).exists()]


def find_images(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The images of all splits, each with its entry in the record, if any. Raises ``FileNotFoundError`` without ``root``."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; check --data-dir (preprocess_dataset_*.py writes it)")
    images, record = [], read_record(root)
    for split in SPLITS:
        with contextlib.suppress(FileNotFoundError):  # a split may be missing, or empty after a run in which all failed
            images += list_images(root / split)
    return [(image, record.get(image.relative_to(root).as_posix(), {})) for image in images]


def look_at(root: Path, image: Path, entry: Mapping[str, Any], decode: bool = False) -> ImageFacts:
    """What an image, its npy and the record's ``entry`` say; without ``decode`` the image's header, where the entry has no size."""
    keys = "height", "width", "grey", "dropped", "orientation"
    facts = ImageFacts(image.relative_to(root).as_posix(), **{key: entry[key] for key in keys if key in entry})
    prepared = facts.height, facts.width
    try:
        facts.bytes = image.stat().st_size
        if decode:
            pixels = load_image(image)
            facts.grey, (facts.height, facts.width) = is_grey(pixels), pixels.shape[:2]
        elif not entry or not facts.bytes:
            facts.height, facts.width = image_size(image)
    except (OSError, ValueError) as error:
        facts.bytes, facts.jpeg_problem = 0, one_line(error)
        facts.errors.append(facts.jpeg_problem)
    size = f"{facts.width} x {facts.height}"
    if entry and prepared != (facts.height, facts.width):
        facts.errors.append(f"{image}: {size} pixels, prepared as {prepared[1]} x {prepared[0]}; {_AGAIN}")
    path = points_path(image)
    facts.annotated = path.exists()
    if not facts.annotated:
        return facts
    try:
        rows = read_points(path)[:, :2]
    except (OSError, ValueError) as error:
        facts.errors.append(one_line(error))
        return facts
    facts.points, (facts.duplicates, facts.close) = len(rows), crowding(rows)
    limits = (facts.width or math.inf) + _OUTSIDE, (facts.height or math.inf) + _OUTSIDE
    outside = rows[((rows < -_OUTSIDE) | (rows > limits)).any(axis=1)]
    if len(outside):
        lie = f"lie outside the image of {size}, as {outside[0].tolist()}"
        facts.errors.append(f"{path}: {len(outside)} points {lie}; {_AGAIN}")
    if entry.get("points") not in (None, len(rows)):
        facts.warnings.append(f"{path}: {len(rows)} points, prepared with {entry['points']}")
    return facts


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
        "without_annotations": [f.name for f in facts if not f.annotated],
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
    some = {split: [f for f in facts if f.split == split] for split in SPLITS}
    splits = {split: _split_numbers(of_split, findings) for split, of_split in some.items() if of_split}
    errors = [*(line for fact in facts for line in fact.errors), *errors]
    warnings = [line for fact in facts for line in fact.warnings]
    if not facts:
        errors.append(f"{root}: holds no images in train, val or test; preprocess_dataset_*.py writes them")
    errors += [f"{root / name}: was prepared but is missing; {_AGAIN}" for name in lost_images(root)]
    remedy = f"so it cannot be trained on; lower --crop-size, or preprocess with --min-size {crop_size}"
    small = [root / name for name in findings["smaller_than_crop"] if name.startswith("train/")]
    errors += [f"{path}: smaller than the crop of {crop_size}, {remedy}" for path in small]
    for split, of_split in some.items():
        lacking = [root / fact.name for fact in of_split if not fact.annotated]
        if split != "test" or len(lacking) < len(of_split):
            errors += [f"{points_path(path)}: no such annotation file; {_AGAIN}" for path in lacking]
        elif lacking and dataset != "nwpu":  # whose authors keep them
            warnings.append(f"{root / split}: no image has annotations; test.py then predicts without scoring")
    warnings += _warnings(findings)
    published, differences = _compare(root, dataset, splits)
    report = {"dataset": dataset, "crop_size": crop_size, "errors": errors, "warnings": warnings + differences}
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


def _compare(root: Path, dataset: str | None, splits: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(found, published) of images by split and of points; warnings where they differ."""
    images, points = PUBLISHED.get(dataset, ({}, None))
    published, warnings = {"images": {}} if images else {}, []
    for group, expected in images.items():
        found = sum(splits[split]["images"] for split in group.split("+") if split in splits)
        published["images"][group] = found, expected
        if found != expected:
            warnings.append(f"{root}: {found} images in {group.replace('+', ' and ')}, published are {expected}")
    if points:
        found = sum(numbers["points"] + numbers["dropped"] for numbers in splits.values())
        published["points"] = found, points
        if abs(found - points) > 0.01 * points:
            warnings.append(f"{root}: {found:,} points with the dropped ones, published are {points:,}")
    return published, warnings


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
            most = max(counts, key=counts.get)
            yield f"{sum(counts.values())} {what}, in {len(counts)} images (most in {most}: {counts[most]})"


def print_report(report: Mapping[str, Any], stages: Mapping[str, Mapping[str, str]], kind: str = "warning") -> None:
    """Print errors, as lines of this ``kind``, and warnings on stderr, then a row of numbers and ``stages`` for each split."""
    sys.stdout.flush()
    for line in report["errors"]:
        print(f"{kind}: {line}", file=sys.stderr)
    for line in report["warnings"]:
        warn(line)
    splits = {split: {**numbers, **stages.get(split, {})} for split, numbers in report["splits"].items()}
    titles = dict.fromkeys(title for cells in splits.values() for title in cells)
    rows = [["split", *(_SHORT.get(title, title) for title in titles)]]
    for split, cells in splits.items():
        found = (cells.get(title) for title in titles)
        rows.append([split, *("-" if cell is None else str(cell) for cell in found)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print(" ".join(cell.rjust(width) for cell, width in zip(row, widths)))


def write_report(root: Path, dataset: str | None, crop_size: int) -> None:
    """Print what ``root`` holds, warnings first, and write ``root/dataset_report.json``.

    Fast enough for the end of a preprocessing run: it trusts ``preprocess.jsonl`` and decodes no image; ``python -m
    datasets.check`` does. ``dataset`` is one of ``PUBLISHED``, "own", or None where nobody said.
    """
    report = summarise(root, dataset, crop_size, [look_at(root, *item) for item in find_images(root)])
    print_report(report, {})
    write_json(root / REPORT, report)
