"""From raw images and points to a prepared data set: what all preprocess_dataset_*.py scripts share."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from datasets.images import load_image, save_jpeg
from utils.cli import Outcome, default_workers, for_each, report_failures
from utils.config import make_parser, number, parse_arguments
from utils.files import IMAGE_SUFFIXES, atomic_write, gaussians_path, make_folder, points_path, remove_stale_partials

INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
LONE_POINT_DISTANCE = 128.0
_JPEG_MAX_SIDE = 65500
_RECORD = "preprocess.jsonl"


class Settings(NamedTuple):
    """How images are resized and encoded."""

    min_size: int = 512
    max_size: int = 2048
    interpolation: str = "bilinear"
    quality: int = 75


class Job(NamedTuple):
    """One image to prepare: ``read(annotation)`` gives its points, ``output`` is the JPEG, beside it the npy."""

    image: Path
    annotation: Path
    read: Callable[[Path], np.ndarray]
    output: Path
    with_distance: bool
    settings: Settings


class Counts(NamedTuple):
    """Points that an image keeps, and points dropped since they lie outside it."""

    points: int
    dropped: int


def resized_size(height: int, width: int, minimum: int, maximum: int) -> tuple[int, int, float]:
    """Height, width and ratio that bring the short side into [minimum, maximum], the aspect ratio kept."""
    short = min(height, width)
    ratio = min(max(short, minimum), maximum) / short
    return round(height * ratio), round(width * ratio), ratio


def points_inside(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which points (x, y) lie in [0, width] x [0, height], borders included: bool [N]."""
    return ((points >= 0) & (points <= (width, height))).all(axis=1)


def neighbour_distance(points: np.ndarray) -> np.ndarray:
    """Mean distance from each of the points [N, 2] to its 3 nearest others, float64 [N], in pixels.

    With fewer than 4 points the others that there are count. A lone point has none and gets 128, the upper bound to
    which these distances are clipped when training samples are cut.
    """
    if len(points) < 2:
        return np.full(len(points), LONE_POINT_DISTANCE)
    # As released: squares of float32 coordinates are subtracted, and the smallest of a row is taken for the point itself. That
    # costs accuracy far from the origin (d^2 is off by up to 1 at 2000 px), but files then equal the authors'.
    points = np.asarray(points, np.float32)
    squares = (points * points).sum(axis=1)
    rows = []
    for block in np.array_split(np.arange(len(points)), -(-len(points) // 1024)):  # bounds the memory of a dense crowd
        squared = squares[block, None] - 2 * (points[block] @ points.T) + squares
        nearest = np.sort(np.partition(squared, min(3, len(points) - 1), axis=1)[:, :4], axis=1)[:, 1:]
        rows.append(np.sqrt(np.maximum(nearest, 0)).mean(axis=1))
    return np.concatenate(rows)


def prepare_image(job: Job) -> Counts:
    """Resize one image and its points; write the JPEG and the npy, float32 [N, 2], or [N, 3] with distances."""
    points = job.read(job.annotation)
    image = load_image(job.image)
    inside = points_inside(points, *image.shape[:2])
    minimum, maximum, interpolation, quality = job.settings
    height, width, ratio = resized_size(*image.shape[:2], minimum, maximum)
    if max(height, width) > _JPEG_MAX_SIDE:
        raise ValueError(
            f"{job.image}: becomes {width} x {height} pixels, too long for a JPEG; cut it up or lower --min-size"
        )
    if ratio != 1:
        image = cv2.resize(image, (width, height), interpolation=INTERPOLATIONS[interpolation])
    # float32 before the product, as in the released data: large coordinates then agree to the last bit.
    points = points[inside].astype(np.float32) * np.float32(ratio)
    columns = [points, neighbour_distance(points)[:, None]] if job.with_distance else [points]
    # The npy goes first and comes last, so that an image with an npy is whole at any moment.
    points_path(job.output).unlink(missing_ok=True)
    save_jpeg(image, job.output, quality)
    with atomic_write(points_path(job.output)) as partial:
        np.save(partial, np.hstack(columns).astype(np.float32))
    return Counts(len(points), int((~inside).sum()))


def make_preprocess_parser(description: str, defaults: Settings) -> argparse.ArgumentParser:
    """The options that all preprocessing scripts have."""
    parser = make_parser(description)
    parser.add_argument(
        "--input-dataset-path", "--origin-dir", type=Path, required=True, metavar="P", help="folder of the raw data set"
    )
    parser.add_argument(
        "--output-dataset-path", "--data-dir", type=Path, required=True, metavar="P", help="folder to write to"
    )
    parser.add_argument(
        "--min-size", type=number(int, 1), default=defaults.min_size, help="smallest short side, pixels"
    )
    parser.add_argument("--max-size", type=number(int, 1), default=defaults.max_size, help="largest short side, pixels")
    parser.add_argument(
        "--interpolation", choices=list(INTERPOLATIONS), default=defaults.interpolation, help="how images are resized"
    )
    parser.add_argument("--quality", type=number(int, 1, 100), default=defaults.quality, help="JPEG quality")
    parser.add_argument("--workers", type=number(int, 1), default=default_workers(), help="parallel processes")
    return parser


def parse_preprocess_arguments(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Settings]:
    """Parse the command line, and check the two folders before anything is written."""
    arguments = parse_arguments(parser)
    if arguments.min_size > arguments.max_size:
        parser.error(f"--min-size {arguments.min_size} is greater than --max-size {arguments.max_size}")
    arguments.input_dataset_path = source = arguments.input_dataset_path.resolve()
    root = arguments.output_dataset_path.resolve()
    if root.is_relative_to(source):
        raise ValueError(f"{root}: lies in the input folder {source}; choose an output path outside of it")
    return arguments, Settings(*(getattr(arguments, name) for name in Settings._fields))


def prepare(root: Path, jobs: Sequence[Job], problems: Sequence[str], workers: int) -> int:
    """Run the jobs that are not done yet, print what became of them and return the exit code.

    ``problems`` are lines about files for which there is no job; they count as failures. ``root/preprocess.jsonl``
    records from what each image was made (settings, and size and time of the raw files): an image is done if that has
    not changed and its files are there. The record grows with each finished image, so that an interrupted run goes on
    where it stopped.
    """
    started = time.perf_counter()
    planned = {str(job.output.relative_to(root)): job for job in jobs}
    made_from = {name: _made_from(job) for name, job in planned.items()}
    folders = list(dict.fromkeys(job.output.parent for job in jobs))
    for folder in folders:
        remove_stale_partials(make_folder(folder))
    record = _read_record(root)
    moved = _remove_moved(root, planned, record)
    _warn_of_strangers(root, folders, planned)
    done = [
        name
        for name in planned
        if name in record
        and record[name]["made_from"] == made_from[name]
        and (root / name).exists()
        and points_path(root / name).exists()
    ]
    todo = {name: job for name, job in planned.items() if name not in set(done)}
    record = {name: entry for name, entry in record.items() if name not in todo}
    if todo or moved:
        _write_record(root, record)
    outcomes = [Outcome(problem, None, problem) for problem in problems] + [Outcome(name, None, None) for name in done]
    dropped_lines = []
    for name, outcome in zip(todo, for_each(prepare_image, list(todo.values()), workers, "preprocess"), strict=True):
        outcomes.append(outcome)
        if outcome.error:
            continue
        counts, source = outcome.result, todo[name].image
        record[name] = {"image": name, "source": str(source), **counts._asdict(), "made_from": made_from[name]}
        _append_record(root, record[name])
        if counts.dropped:
            total = counts.points + counts.dropped
            dropped_lines.append(f"{source}: {counts.dropped} of {total} points lie outside the image and are dropped")
    print(*dropped_lines, sep="\n", end="\n" if dropped_lines else "")
    _print_table(root, folders, [record[name] for name in planned if name in record])
    finished, seconds = len(todo.keys() & record.keys()), time.perf_counter() - started
    if todo:
        speed = f"{seconds:.1f} s ({finished / seconds:.1f} images/s)"
        print(f"prepared {finished} images in {speed}, {len(done)} were up to date")
    else:
        print(f"nothing to do: all {len(done)} images in {root} are up to date")
    fitted = sum(name in record and gaussians_path(root / name).exists() for name in todo)
    if fitted:
        print(
            f"warning: {fitted} of these images had Gaussians already; unless those were fitted to images prepared the "
            "same way, run 2dgs_counting_1gs_gsplat.py with --overwrite",
            file=sys.stderr,
        )
    return report_failures(outcomes)


def _made_from(job: Job) -> dict[str, Any]:
    """What decides over the contents of a job's files."""
    # A dangling link has no stat; it becomes that image's error.
    stats = [path.stat() for path in (job.image, job.annotation) if path.exists()]
    return {**job.settings._asdict(), "raw_files": [[stat.st_size, stat.st_mtime_ns] for stat in stats]}


def _read_record(root: Path) -> dict[str, dict[str, Any]]:
    """The entries of the record by image; a line that a kill cut off counts as not written."""
    record = {}
    if (root / _RECORD).exists():
        for line in (root / _RECORD).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                kinds = {"image": str, "source": str, "points": int, "dropped": int, "made_from": dict}
                record[entry["image"]] = {key: kind(entry[key]) for key, kind in kinds.items()}
            except (ValueError, KeyError, TypeError):
                continue
    return record


def _write_record(root: Path, record: Mapping[str, Mapping[str, Any]]) -> None:
    remove_stale_partials(root)
    with atomic_write(root / _RECORD) as partial:
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in record.values()), encoding="utf-8")


def _append_record(root: Path, entry: Mapping[str, Any]) -> None:
    try:
        with (root / _RECORD).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        reason = f"cannot write this file ({error.strerror}); check its permissions and the space left"
        raise OSError(f"{root / _RECORD}: {reason}") from None


def _remove_moved(root: Path, planned: Mapping[str, Job], record: dict[str, dict[str, Any]]) -> bool:
    """Remove what earlier runs made of an image that now belongs to another split, lest it be in both."""
    sources = {str(job.image) for job in planned.values()}
    moved = [name for name, entry in record.items() if name not in planned and entry["source"] in sources]
    for name in moved:
        (root / name).unlink(missing_ok=True)
        points_path(root / name).unlink(missing_ok=True)
        del record[name]
    if moved:
        print(f"{len(moved)} images changed their split and were removed from the old one")
    return bool(moved)


def _warn_of_strangers(root: Path, folders: Sequence[Path], planned: Mapping[str, Job]) -> None:
    for folder in folders:
        images = [path for path in sorted(folder.glob("[!.]*")) if path.suffix.lower() in IMAGE_SUFFIXES]
        strangers = [path.name for path in images if str(path.relative_to(root)) not in planned]
        if strangers:
            print(
                f"warning: {folder}: {len(strangers)} images are not of this input and split (first {strangers[0]}); "
                "remove them, or choose a new output path",
                file=sys.stderr,
            )


def _print_table(root: Path, folders: Sequence[Path], entries: Sequence[Mapping[str, Any]]) -> None:
    print(f"{'split':<6} {'images':>7} {'points':>9} {'dropped':>8}")
    for folder in folders:
        chosen = [entry for entry in entries if (root / entry["image"]).parent == folder]
        points, dropped = (sum(entry[key] for entry in chosen) for key in Counts._fields)
        print(f"{folder.name:<6} {len(chosen):>7} {points:>9} {dropped:>8}")
