"""From raw images and points to a prepared data set: what all preprocess_dataset_*.py scripts share."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from datasets.raw.annotations import prepared_stem
from datasets.raw.places import points_inside
from datasets.report import CROP_SIZES, RECORD, read_record, write_report
from GS2D.points import mean_neighbour_distance
from utils.cli import Outcome, default_workers, for_each, report_failures, warn
from utils.config import make_parser, number, parse_arguments
from utils.files import (
    IMAGE_SUFFIXES,
    OWN,
    atomic_write,
    gaussians_path,
    make_folder,
    points_path,
    remove_stale_partials,
)
from utils.images import image_shape, is_grey, load_image, save_jpeg
from utils.lock import lock_folder

INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_JPEG_MAX_SIDE = 65500


class Settings(NamedTuple):
    """How images are resized and encoded."""

    min_size: int = 512
    max_size: int = 2048
    interpolation: str = "bilinear"
    quality: int = 75


class Job(NamedTuple):
    """One image to prepare: ``output`` is the JPEG, beside it the npy.

    Points are float64 [N, 2], (x, y), or [N, 3] with a size in pixels, NaN where it is unknown. They come from
    ``read(annotation)`` or are the annotation; an image whose annotation is None gets no npy. With ``upright`` the image
    is turned by its EXIF orientation, and the points are those of the turned one.
    """

    image: Path
    annotation: Path | np.ndarray | None
    read: Callable[[Path], np.ndarray] | None
    output: Path
    with_distance: bool
    settings: Settings
    upright: bool = False


class Prepared(NamedTuple):
    """What the record keeps of an image: points (None: not annotated), points dropped since they lie outside, size.

    ``orientation`` is the EXIF orientation by which the image was turned; 1: as it was stored.
    """

    points: int | None
    dropped: int
    height: int
    width: int
    grey: bool
    orientation: int = 1


def resized_size(height: int, width: int, minimum: int, maximum: int) -> tuple[int, int, float]:
    """Height, width and ratio that bring the short side into [minimum, maximum], the aspect ratio kept."""
    short = min(height, width)
    ratio = min(max(short, minimum), maximum) / short
    return round(height * ratio), round(width * ratio), ratio


def prepare_image(job: Job) -> Prepared:
    """Resize one image and its points; write the JPEG and the npy, float32 [N, 2], or [N, 3] with distances.

    The distance is the size that the annotation gives, and to the neighbours where it gives none.
    """
    rows = job.read(job.annotation) if isinstance(job.annotation, Path) else job.annotation
    image = load_image(job.image, job.upright)
    orientation = image_shape(job.image).orientation if job.upright else 1
    grey = is_grey(image)
    minimum, maximum, interpolation, quality = job.settings
    raw_height, raw_width = image.shape[:2]
    height, width, ratio = resized_size(raw_height, raw_width, minimum, maximum)
    if max(height, width) > _JPEG_MAX_SIDE:
        raise ValueError(
            f"{job.image}: becomes {width} x {height} pixels, too long for a JPEG; cut or lower --min-size"
        )
    if ratio != 1:
        image = cv2.resize(image, (width, height), interpolation=INTERPOLATIONS[interpolation])
    # The npy goes first and comes last, so that an image with an npy is whole at any moment.
    points_path(job.output).unlink(missing_ok=True)
    save_jpeg(image, job.output, quality)
    if rows is None:
        return Prepared(None, 0, height, width, grey, orientation)
    inside = points_inside(rows[:, :2], raw_width, raw_height)
    # float32 before the product, as in the released data: large coordinates then agree to the last bit.
    with np.errstate(over="ignore"):
        rows = rows[inside].astype(np.float32) * np.float32(ratio)
    points = rows[:, :2]
    if job.with_distance:
        sizes = rows[:, 2] if rows.shape[1] == 3 else np.full(len(rows), np.nan)
        if np.isinf(sizes).any():
            raise ValueError(f"{job.image}: the annotated size of a point is no number of pixels; correct it")
        distance = np.where(np.isnan(sizes), mean_neighbour_distance(points), sizes)
        points = np.hstack([points, distance[:, None]])
    with atomic_write(points_path(job.output)) as partial:
        np.save(partial, points.astype(np.float32))
    return Prepared(len(points), int((~inside).sum()), height, width, grey, orientation)


def make_preprocess_parser(description: str, defaults: Settings) -> argparse.ArgumentParser:
    """The options that all preprocessing scripts have."""
    parser = make_parser(description)
    folder = {"type": Path, "required": True, "metavar": "P"}
    parser.add_argument("--input-dataset-path", "--origin-dir", **folder, help="folder of the raw data set")
    parser.add_argument("--output-dataset-path", "--data-dir", "--root-path", **folder, help="folder to write to")
    for name, text in (("min", "smallest"), ("max", "largest")):
        default = getattr(defaults, f"{name}_size")
        parser.add_argument(f"--{name}-size", type=number(int, 1), default=default, help=f"{text} short side, pixels")
    ways = list(INTERPOLATIONS)
    parser.add_argument("--interpolation", choices=ways, default=defaults.interpolation, help="how images are resized")
    parser.add_argument("--quality", type=number(int, 1, 100), default=defaults.quality, help="JPEG quality")
    parser.add_argument("--workers", type=number(int, 1), default=default_workers(), help="parallel processes")
    return parser


def parse_preprocess_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, and check the two folders before anything is written."""
    arguments = parse_arguments(parser)
    if arguments.min_size > arguments.max_size:
        parser.error(f"--min-size {arguments.min_size} is greater than --max-size {arguments.max_size}")
    arguments.input_dataset_path = source = arguments.input_dataset_path.resolve()
    root = arguments.output_dataset_path.resolve()
    if root.is_relative_to(source):
        raise ValueError(f"{root}: lies in the input folder {source}; choose an output path outside of it")
    if root.is_dir():
        with lock_folder(root):  # a second run must not get as far as another split.json; ``prepare`` holds it for good
            pass
    return arguments


def prepare(
    arguments: argparse.Namespace,
    split: Mapping[str, Sequence[Path]],
    annotations: Mapping[Path, Path | np.ndarray | None],
    read: Callable[[Path], np.ndarray] | None,
    problems: Sequence[str],
    dataset: str = OWN,
    unannotated: Sequence[str] = (),
) -> int:
    """Prepare the images of ``split`` that are not done yet, print what became of them and return the exit code.

    An image is prepared if it has an annotation, a file for ``read`` or its points, or if its split is ``unannotated``.
    ``problems`` are lines about others; they count as failures. ``preprocess.jsonl`` in the output folder
    records from what each image was made (settings, size and time of the raw files or a hash of the points): an image is
    done if that has not changed and its files are there. The record grows with each finished image, so that an
    interrupted run goes on where it stopped. ``dataset`` is one of the published ones, with whose numbers and crop the
    report compares, or "own"; then the crop is ``arguments.crop_size``, and images are turned upright. Raises ``OSError``
    where another run works in the folder.
    """
    settings = Settings(*(getattr(arguments, name) for name in Settings._fields))
    root = make_folder(arguments.output_dataset_path)
    jobs = {}
    for name, images in split.items():
        for image in images:
            annotation = None if name in unannotated else annotations[image]
            if annotation is not None or name in unannotated:
                output = root / name / f"{prepared_stem(image.stem)}.jpg"
                job = Job(image, annotation, read, output, name == "train", settings, upright=dataset == OWN)
                jobs[str(output.relative_to(root))] = job
    with lock_folder(root):
        outcomes = [Outcome(problem, None, problem) for problem in problems]
        outcomes += _prepare(root, jobs, arguments.workers)
        if any(name in read_record(root) for name in jobs):
            write_report(root, dataset, CROP_SIZES.get(dataset) or arguments.crop_size)
    return report_failures(outcomes)


def _prepare(root: Path, jobs: Mapping[str, Job], workers: int) -> list[Outcome]:
    """Prepare the images that are not done yet, by their place in ``root``, and say so; what became of every image."""
    started = time.perf_counter()
    made_from = {name: _made_from(job) for name, job in jobs.items()}
    folders = list(dict.fromkeys(job.output.parent for job in jobs.values()))
    for folder in folders:
        remove_stale_partials(make_folder(folder))
    record = read_record(root)
    moved = _remove_moved(root, jobs, record)
    _warn_of_strangers(root, folders, jobs)
    todo = {
        name: job
        for name, job in jobs.items()
        if record.get(name, {}).get("made_from") != made_from[name]
        or not (root / name).exists()
        or points_path(root / name).exists() != (job.annotation is not None)
    }
    done = [name for name in jobs if name not in todo]
    if todo or moved:  # an entry must not speak of files that another run made
        others = [entry for name, entry in record.items() if name not in todo and name not in moved]
        with atomic_write(root / RECORD) as partial:
            partial.write_text("".join(json.dumps(entry) + "\n" for entry in others), encoding="utf-8")
    outcomes, lines = [Outcome(name, None, None) for name in done], []
    fitted = 0
    for name, outcome in zip(todo, for_each(prepare_image, list(todo.values()), workers, "preprocess"), strict=True):
        outcomes.append(outcome)
        if outcome.error:
            continue
        made, source = outcome.result, todo[name].image
        _append_record(root, {"image": name, "source": str(source), **made._asdict(), "made_from": made_from[name]})
        fitted += gaussians_path(root / name).exists()
        if made.dropped:
            total = made.points + made.dropped
            lines.append(f"{source}: {made.dropped} of {total} points lie outside the image and are dropped")
    if todo:
        finished, seconds = (
            sum(outcome.error is None for outcome in outcomes) - len(done),
            time.perf_counter() - started,
        )
        speed = f"{seconds:.1f} s ({finished / seconds:.1f} images/s)"
        lines.append(f"prepared {finished} images in {speed}, {len(done)} were up to date")
    elif done:
        lines.append(f"nothing to do: all {len(done)} images in {root} are up to date")
    else:
        lines.append("no image was prepared: none has an annotation that can be read")
    print(*lines, sep="\n")
    if fitted:
        what = (
            f"{fitted} of these images had Gaussians already; unless those were fitted to images prepared the same way"
        )
        warn(f"{what}, run 2dgs_counting_1gs_gsplat.py with --overwrite")
    return outcomes


def _made_from(job: Job) -> dict[str, Any]:
    """What decides over the contents of a job's files."""
    files = [path for path in (job.image, job.annotation) if isinstance(path, Path)]
    # A dangling link has no stat; it becomes that image's error.
    stats = [path.stat() for path in files if path.exists()]
    made_from = {**job.settings._asdict(), "raw_files": [[stat.st_size, stat.st_mtime_ns] for stat in stats]}
    if isinstance(job.annotation, np.ndarray):
        made_from["points_hash"] = hashlib.sha256(np.ascontiguousarray(job.annotation)).hexdigest()[:16]
    return made_from


def _append_record(root: Path, entry: Mapping[str, Any]) -> None:
    try:
        with (root / RECORD).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(root / RECORD)) from None


def _remove_moved(root: Path, planned: Mapping[str, Job], record: Mapping[str, dict[str, Any]]) -> list[str]:
    """Remove what earlier runs made of images that now belong to another split, lest they be in both; their old names."""
    sources = {str(job.image) for job in planned.values()}
    moved = [name for name, entry in record.items() if name not in planned and str(entry.get("source")) in sources]
    for name in moved:
        (root / name).unlink(missing_ok=True)
        points_path(root / name).unlink(missing_ok=True)
    if moved:
        print(f"{len(moved)} images changed their split and were removed from the old one")
    return moved


def _warn_of_strangers(root: Path, folders: Sequence[Path], planned: Mapping[str, Job]) -> None:
    for folder in folders:
        images = [path for path in sorted(folder.glob("[!.]*")) if path.suffix.lower() in IMAGE_SUFFIXES]
        strangers = [path.name for path in images if str(path.relative_to(root)) not in planned]
        if strangers:
            what = f"{len(strangers)} images are not of this input and split (first {strangers[0]})"
            warn(f"{folder}: {what}; remove them, or choose a new output path")
