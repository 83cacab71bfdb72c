"""Evaluate a checkpoint on a data set, or count in pictures and videos of one's own.

python test.py --save-path runs/qnrf_vgg/best_model.pth --data-dir data/UCF-Train-Val-Test --device 0 --out results
python test.py --save-path runs/qnrf_vgg/best_model.pth --images holiday.jpg concert.mp4 --out counted
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from datasets.crowd import SPLITS, Crowd
from models import MODELS, load_model, weights_file
from utils.cli import EXIT_FAILED, ProgressBar, default_workers, one_line, run_script
from utils.config import make_parser, number, option_values, parse_arguments
from utils.device import environment, fabric_devices, network_errors
from utils.evaluation import Result, Window, in_threads
from utils.evaluation.model_card import note_evaluation
from utils.evaluation.report import write_report
from utils.evaluation.results import localisation, results_folder, save_submission
from utils.evaluation.scores import count_scores
from utils.evaluation.sources import Picture, find_sources, own_images
from utils.evaluation.video import VideoCounts
from utils.evaluation.windows import images_together, predict_together, total, windows_of
from utils.files import file_hash, make_folder, points_path, read_points, write_json
from utils.images import load_image
from utils.lock import lock_folder
from utils.pixels import to_planes
from utils.training.run_folder import CARD

DECODERS = 4  # threads at most: twice as many decoded images wait in memory


def parse() -> argparse.Namespace:
    parser = make_parser("Evaluate a checkpoint of this project or of the authors.")
    parser.usage = "%(prog)s --save-path FILE (--data-dir P | --images PATH ...) [options]"
    switch = argparse.BooleanOptionalAction

    add = parser.add_argument_group("network").add_argument
    add("--save-path", "--save-dir", type=Path, required=True, metavar="FILE", help=".pth, .tar, or a run's folder")
    add("--model-name", choices=tuple(MODELS), help="network (default: what the file says of itself)")
    add("--topk", type=number(float, 0, 1, above=True), metavar="X", help="vgg_trans: neighbours (default: the file's)")

    add = parser.add_argument_group("images").add_argument
    add("--data-dir", "--root-path", type=Path, metavar="P", help="prepared data set")
    add("--split", choices=SPLITS, default="test", help="of the data set")
    add("--images", type=Path, nargs="+", metavar="PATH", help="pictures, folders and videos without truth instead")
    add("--video-out", type=Path, metavar="FILE", help="the video again with its density and count, .mp4 or .avi")
    add("--every", type=number(int, 1), default=1, metavar="N", help="of a video every n-th frame")

    add = parser.add_argument_group("prediction").add_argument
    add("--device", default="auto", metavar="D", help="GPU id or cpu; auto: the first GPU if any")
    add("--precision", choices=("32", "16-mixed", "bf16-mixed"), default="32", help="of the network")
    add("--compile", action=switch, default=False, help="compile the network with torch.compile, once for all sizes")
    add("--window", type=number(int, 16), default=512, metavar="N", help="side of the windows, pixels")
    add("--overlap", type=number(int, 0), default=0, metavar="N", help="of blended windows, pixels (0: as published)")
    add("--flip-average", action=switch, default=False, help="mean with the mirrored image's prediction")

    add = parser.add_argument_group("results").add_argument
    add("--out", type=Path, metavar="DIR", help="folder for results.csv, summary.json and report.html")
    add("--save-density", choices=("npy", "h5"), help="also densities/, people per pixel [H, W]; needs --out")
    add("--figures", action=switch, default=False, help="also figures/ as PNG and PDF; needs --out")
    add("--nwpu-submission", type=Path, metavar="FILE", help="'id count' of every image, for NWPU's server")
    arguments = parse_arguments(parser)
    if (arguments.data_dir is None) == (arguments.images is None):
        parser.error("give either --data-dir or --images")
    if arguments.video_out and not arguments.images:
        parser.error("--video-out needs a video in --images")
    if not arguments.out and (arguments.save_density or arguments.figures):
        parser.error("--save-density and --figures write into a folder; add --out DIR")
    return arguments


def split_images(data: Crowd, threads: int, check: Callable[[np.ndarray], None]) -> Iterator[Picture]:
    """The images of a split, decoded and checked by threads while those before them are counted."""

    def load(index: int) -> Picture:
        path = data.images[index]
        try:
            points = read_points(points_path(path))[:, :2] if data.annotated else None
            image = load_image(path)
            check(image)
            return path.stem, image, points
        except (OSError, ValueError) as error:
            return path.stem, one_line(error), None

    yield from in_threads(load, range(len(data)), threads)
    stems = {path.stem for path in data.images}
    for path in sorted(data.images[0].parent.glob("*.npy")):
        if path.stem not in stems:
            yield path.stem, f"{path}: its image is missing; add it, or remove the annotation", None


def count_images(
    fabric: Fabric, model: nn.Module, pictures: Iterator[Picture], windows: dict[str, Any]
) -> Iterator[tuple[Picture, list[Window] | str, float]]:
    """Each picture, its windows (on the CPU) or why it has none, and its share of the seconds that its group took."""
    while group := list(islice(pictures, images_together(fabric.device))):
        begin = time.perf_counter()
        planes = [fabric.to_device(to_planes(image)) for _, image, _ in group if not isinstance(image, str)]
        with fabric.autocast():
            predicted = iter(predict_together(model, planes, **windows))
        counted = [
            image if isinstance(image, str) else [part._replace(density=part.density.cpu()) for part in next(predicted)]
            for _, image, _ in group
        ]
        seconds = (time.perf_counter() - begin) / len(group)
        yield from ((picture, parts, seconds) for picture, parts in zip(group, counted))


def count_and_report(arguments: argparse.Namespace) -> int:
    """Load, count, report."""
    devices = fabric_devices(arguments.device)
    if arguments.precision == "16-mixed" and devices["accelerator"] == "cpu":
        raise ValueError("--precision 16-mixed: needs a GPU; take bf16-mixed or 32 on the CPU")
    weights = weights_file(arguments.save_path)
    model, metadata = load_model(weights, arguments.model_name, arguments.topk)
    windows = {"window": arguments.window, "overlap": arguments.overlap}
    sources, threads = [], min(default_workers(), DECODERS)

    def check(image: np.ndarray) -> None:
        """``ValueError`` for an image of which the windows are not for the networks."""
        windows_of(*image.shape[:2], **windows)

    if arguments.images:
        sources, notes = find_sources(arguments.images)
        for line in notes:
            print(line, file=sys.stderr)
        expected = None if any(source.is_video for source in sources) else len(sources)
        images = own_images(
            sources, arguments.every, threads, check, lambda text: progress.set_postfix_str(text, refresh=False)
        )
    else:
        data = Crowd(arguments.data_dir, None, arguments.split, training=False)
        expected, images = len(data), split_images(data, threads, check)

    devices["devices"] = 1 if devices["accelerator"] == "cpu" else devices["devices"][:1]
    fabric = Fabric(**devices, precision=arguments.precision)
    model = fabric.to_device(model)
    if arguments.compile:
        model = torch.compile(model, dynamic=True)
    results, failed = [], []
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = None
        if arguments.out:
            folder = stack.enter_context(results_folder(arguments.out, arguments.save_density, arguments.figures))
        keep = bool(arguments.save_density or arguments.figures)
        own = {source.name: source.path for source in sources if source.is_video}
        videos = VideoCounts(own, arguments.every, stack, arguments.out, arguments.video_out, show_all=keep)
        progress = stack.enter_context(ProgressBar(total=expected, desc="count", unit="img"))
        for (name, image, points), parts, seconds in count_images(
            fabric, model, images, {**windows, "flip": arguments.flip_average}
        ):
            progress.update()
            if isinstance(parts, str):
                failed.append((name, parts))
                continue
            predicted = float(total(parts))
            if videos.add(name, image, parts, predicted):
                continue
            results.append(Result(name, math.nan if points is None else float(len(points)), predicted))
            if folder:
                folder.add(name, image, points, parts, predicted, seconds)
        lines = videos.save()

    for result in results:
        truth = "" if result.truth != result.truth else f"truth {result.truth:g}, "
        print(f"{result.name}: {truth}predicted {result.predicted:.2f}")
    for line in lines:
        print(line)
    for name, reason in failed:
        print(f"error: {name}: {reason}" if name not in reason else f"error: {reason}", file=sys.stderr)
    if not results:
        raise ValueError(f"none of {len(failed)} images could be counted")
    counted = len(results) + videos.left_out
    speed = counted / (time.perf_counter() - started)
    scores = count_scores(results)
    if scores["scored"]:
        mae, mse = scores["mae"], scores["mse"]
        print(
            f"{scores['scored']} images: MAE {mae['value']:.3f}, MSE {mse['value']:.3f} (MSE: root of the mean squared "
            f"error; 95 % of resamples: MAE {mae['low']:.1f} to {mae['high']:.1f}, MSE {mse['low']:.1f} to {mse['high']:.1f})"
        )
    print(f"{counted} images counted, {scores['scored']} scored, {len(failed)} failed; {speed:.2f} images/s")
    places = localisation(folder.heads, folder.truths) if folder else None
    facts = {"failed": failed, "localisation": places, "model": metadata, "images": counted}
    facts |= {"weights_sha256": file_hash(weights), "configuration": option_values(arguments)}
    facts |= {"versions": environment(), "images_per_second": speed, "videos": videos.facts or None}
    facts = scores | facts
    if arguments.data_dir and facts["scored"]:
        try:
            note_evaluation(weights, arguments.data_dir, facts)
        except OSError as error:
            print(f"{one_line(error)}; the scores are not in the model card", file=sys.stderr)
    if arguments.out:
        card = weights.parent / CARD
        facts["model_card"] = os.path.relpath(card, arguments.out) if card.is_file() else None
        write_json(arguments.out / "summary.json", facts, default=str)
        write_report([arguments.out], arguments.out / "report.html")
        print(f"look at {arguments.out / 'report.html'}")
    if arguments.nwpu_submission:
        if failed:
            raise ValueError(f"{arguments.nwpu_submission}: not written, since {len(failed)} images are missing")
        make_folder(arguments.nwpu_submission.parent)
        save_submission(arguments.nwpu_submission, results)
    return EXIT_FAILED if failed else 0


def main() -> int:
    """Evaluate as the command line says."""
    arguments = parse()
    lock = lock_folder(make_folder(arguments.out)) if arguments.out else contextlib.nullcontext()
    with lock, network_errors(f"lower --window {arguments.window}, or take --precision bf16-mixed"):
        return count_and_report(arguments)


if __name__ == "__main__":
    run_script(main)
