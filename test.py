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
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from datasets.crowd import SPLITS, Crowd
from models import MODELS, load_model, weights_file
from utils.cli import EXIT_FAILED, ProgressBar, default_workers, one_line, run_script
from utils.config import make_parser, number, option_values, parse_arguments
from utils.device import environment, fabric_devices, network_errors
from utils.evaluation import WINDOW, Result, predict
from utils.evaluation.localisation import localisation_scores
from utils.evaluation.model_card import note_evaluation
from utils.evaluation.report import write_report
from utils.evaluation.results import Counted, save_submission, write_results
from utils.evaluation.scores import count_scores
from utils.evaluation.sources import Picture, Source, find_sources, open_pictures
from utils.evaluation.video import CODECS, VideoCounts, clock
from utils.evaluation.windows import total
from utils.files import file_hash, make_folder, points_path, write_json
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
    add("--window", type=number(int, 32), default=WINDOW, metavar="N", help="side of the windows, pixels")
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
    if arguments.video_out and arguments.video_out.suffix.lower() not in CODECS:
        parser.error(f"--video-out {arguments.video_out}: must end in {' or '.join(CODECS)}")
    if not arguments.out and (arguments.save_density or arguments.figures):
        parser.error("--save-density and --figures write into a folder; add --out DIR")
    return arguments


def split_sources(data: Crowd) -> list[Source]:
    """The images of a split with their annotations, and the annotations whose image is missing."""
    points = [points_path(path) for path in data.images]
    sources = [
        Source(image.stem, image, points=path if data.annotated else None, upright=False)
        for image, path in zip(data.images, points)
    ]
    for path in sorted(set(data.images[0].parent.glob("*.npy")).difference(points)):
        reason = f"{path}: its image is missing; add it, or remove the annotation"
        sources.append(Source(path.stem, path, reason))
    return sources


def count_pictures(
    pictures: Iterable[Picture], fabric: Fabric, model: nn.Module, failed: list[tuple[str, str]], **options
) -> Iterator[Counted]:
    """Each picture with what ``predict`` finds in it; what cannot be counted goes to ``failed``, with the reason."""
    for name, image, points in pictures:
        begin = time.perf_counter()
        try:
            if isinstance(image, str):
                raise ValueError(image)
            with fabric.autocast():
                parts = predict(model, fabric.to_device(to_planes(image)), **options)
        except ValueError as error:
            failed.append((name, one_line(error)))
            continue
        parts = [part._replace(density=part.density.cpu()) for part in parts]
        yield Counted(name, image, points, parts, float(total(parts)), time.perf_counter() - begin)


def shown_images(images: Iterable[Counted], videos: dict[str, VideoCounts], show_all: bool) -> Iterator[Counted]:
    """All pictures, and of the frames, which the counts of their video take note of, those that the results show."""
    for image in images:
        video, _, frame = image.name.rpartition(" frame ")
        if video not in videos or videos[video].add(int(frame), image.image, image.parts, image.predicted) or show_all:
            yield image


def count_and_report(arguments: argparse.Namespace) -> int:
    """Load, count, report."""
    devices = fabric_devices(arguments.device)
    if arguments.precision == "16-mixed" and devices["accelerator"] == "cpu":
        raise ValueError("--precision 16-mixed: needs a GPU; take bf16-mixed or 32 on the CPU")
    weights, out = weights_file(arguments.save_path), arguments.out
    model, metadata = load_model(weights, arguments.model_name, arguments.topk)
    if arguments.images:
        sources, notes = find_sources(arguments.images)
        for line in notes:
            print(line, file=sys.stderr)
    else:
        sources = split_sources(Crowd(arguments.data_dir, None, arguments.split, training=False))
    paths = {source.name: source.path for source in sources if source.is_video}
    if arguments.video_out and len(paths) != 1:
        raise ValueError(f"--video-out {arguments.video_out}: one file for {len(paths)} videos; name one in --images")

    devices["devices"] = 1 if devices["accelerator"] == "cpu" else devices["devices"][:1]
    fabric = Fabric(**devices, precision=arguments.precision)
    model = fabric.to_device(model)
    if arguments.compile:
        model = torch.compile(model, dynamic=True)
    results, failed, located = [], [], []
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        videos = {name: VideoCounts(path, arguments.every, stack, arguments.video_out) for name, path in paths.items()}
        expected = [video.expected for video in videos.values()]
        total_images = len(sources) - len(videos) + sum(expected) if all(expected) else None
        pictures = open_pictures(sources, arguments.every, min(default_workers(), DECODERS))
        pictures = ProgressBar(iterable=pictures, total=total_images, desc="count", unit="img")
        options = {"window": arguments.window, "flip": arguments.flip_average}
        images = count_pictures(pictures, fabric, model, failed, **options)
        images = shown_images(images, videos, show_all=bool(arguments.save_density or arguments.figures))
        if out:
            images = write_results(out, images, arguments.save_density, arguments.figures)
        for image in images:
            truth = math.nan if image.points is None else float(len(image.points))
            results.append(Result(image.name, truth, image.predicted))
            if image.points is not None:
                located.append((image.heads, image.points))
        facts = {name: video.save(name, out) for name, video in videos.items() if video.counts}
        counted = pictures.n - len(failed)

    for result in results:
        truth = "" if result.truth != result.truth else f"truth {result.truth:g}, "
        print(f"{result.name}: {truth}predicted {result.predicted:.2f}")
    for name, film in facts.items():
        peak = f"peak {film['peak']:.2f} at {clock(film['peak_time'])}"
        print(f"{name}: {film['frames']} frames counted, mean {film['mean']:.2f}, {peak}")
    if arguments.video_out and facts:
        print(f"{arguments.video_out}: the video with its density")
    for name, reason in failed:
        print(f"error: {name}: {reason}" if name not in reason else f"error: {reason}", file=sys.stderr)
    if not results:
        raise ValueError(f"none of {len(failed)} images could be counted")
    speed = counted / (time.perf_counter() - started)
    scores = count_scores(results)
    if scores["scored"]:
        mae, mse = scores["mae"], scores["mse"]
        print(
            f"{scores['scored']} images: MAE {mae['value']:.3f}, MSE {mse['value']:.3f} (MSE: root of the mean squared "
            f"error; 95 % of resamples: MAE {mae['low']:.1f} to {mae['high']:.1f}, MSE {mse['low']:.1f} to {mse['high']:.1f})"
        )
    print(f"{counted} images counted, {scores['scored']} scored, {len(failed)} failed; {speed:.2f} images/s")
    places = localisation_scores(*zip(*located)) if out and located else None
    facts = {"failed": failed, "localisation": places, "model": metadata, "images": counted, "videos": facts or None}
    facts |= {"weights_sha256": file_hash(weights), "configuration": option_values(arguments)}
    facts = scores | facts | {"versions": environment(), "images_per_second": speed}
    if out:
        card = weights.parent / CARD
        facts["model_card"] = os.path.relpath(card, out) if card.is_file() else None
        write_json(out / "summary.json", facts, default=str)
        write_report([out], out / "report.html")
        print(f"look at {out / 'report.html'}")
    if arguments.data_dir and facts["scored"]:
        note_evaluation(weights, arguments.data_dir, facts)
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
