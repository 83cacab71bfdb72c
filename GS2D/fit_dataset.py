"""Fitting a whole data set: what ``2dgs_counting_1gs_gsplat.py`` runs (a name that starts with a digit cannot be imported)."""

from __future__ import annotations

import argparse
import csv
import io
import os
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from GS2D.backends import BACKENDS, choose_backend
from GS2D.fitting import FitConfig, FitResult, Problem, fit_problems, fit_side_by_side, prepare
from GS2D.gaussians import read_file
from GS2D.points import check_points
from utils.cli import Outcome, ProgressBar, attempt, default_workers, for_each, one_line, report_failures
from utils.config import make_parser, number, parse_arguments
from utils.device import fabric_devices
from utils.files import (
    SPLITS,
    atomic_write,
    gaussians_path,
    list_images,
    make_folder,
    points_path,
    read_points,
    remove_stale_partials,
)
from utils.images import image_size, load_image

DEFAULT_CONFIG = Path(__file__).with_name("config_qnrf_gsplat.yml")
UNUSED_KEYS = ("display_interval", "gradient_threshold", "gaussian_threshold", "display_loss")
RESULTS = "loss_results.csv"


class Shard(NamedTuple):
    """Every ``count``-th image from ``index`` on; ``local_rank`` numbers the processes of one machine, for choosing a GPU."""

    index: int = 0
    count: int = 1
    local_rank: int = 0


def parse_shard(text: str) -> Shard:
    """An argparse type: ``i/n``, the i-th of n shares, counted from 1."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no share i/n with 1 <= i <= n, such as 2/8")
    return Shard(int(index) - 1, int(count))


def detect_shard() -> Shard:
    """The share by the environment: rank and size of ``torchrun`` or of a SLURM step, times the task of a SLURM array."""
    rank, size, local_rank = 0, 1, 0
    for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")):
        if all(name in os.environ for name in names):
            rank, size, local_rank = (int(os.environ[name]) for name in names)
            break
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        task, first, count, step = (
            int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
            for name, default in (("ID", 0), ("MIN", 0), ("COUNT", 1), ("STEP", 1))
        )
        rank, size = (task - first) // step * size + rank, count * size
    return Shard(rank, size, local_rank)


class FitJob(NamedTuple):
    """One image to fit."""

    image: Path
    config: FitConfig
    backend: str
    seed: int

    @property
    def settings(self) -> str:
        """What the result depends on, besides image and points; stored with it."""
        return f"{self.config} seed={self.seed}"


def image_seed(seed: int, stem: str) -> int:
    """A seed that depends on the run's seed and the image's name alone: not on order, workers or shards."""
    return int(np.random.SeedSequence([seed, zlib.crc32(stem.encode())]).generate_state(1)[0])


def read_problem(job: FitJob) -> Problem:
    """The image of a job and its points."""
    return prepare(load_image(job.image), read_points(points_path(job.image))[:, :2], job.config, job.seed)


def fit_file(job: FitJob) -> FitResult:
    """Fit one image and write its file."""
    torch.set_num_threads(1)  # one image is one core's work, and sums do not depend on the number of threads
    problem = read_problem(job)
    try:
        return write_result(job, fit_problems([problem], job.config, job.backend)[0])
    except MemoryError as error:  # names no image
        raise MemoryError(f"{job.image}: {error}") from None


def write_result(job: FitJob, result: FitResult) -> FitResult:
    """Write what was fitted."""
    losses = {"render_loss": result.render_loss, "shape_loss": result.shape_loss}
    attributes = {**losses, "iterations": result.iterations, "settings": job.settings}
    result.gaussians.save(gaussians_path(job.image), attributes=attributes)
    return result


def fit_jobs(jobs: list[FitJob], workers: int, description: str) -> Iterator[Outcome]:
    """Fit the images of all jobs, which share configuration and backend, and yield each outcome as its file is there.

    gsplat: many images side by side, which ``workers`` threads read. Otherwise ``workers`` images at the same time.
    """
    backend = jobs[0].backend if jobs else "native"
    if backend != "gsplat":
        threads = backend == "native"  # its calls release the interpreter's lock
        status = "loss {0.render_loss:.3f}".format
        yield from for_each(fit_file, jobs, workers, description, threads=threads, status=status)
        return
    headers = [attempt(image_size, job.image) for job in jobs]
    sizes = [header.result or (1, 1) for header in headers]  # reading the image says again what is wrong
    with ProgressBar(total=len(jobs), desc=description, unit="img") as bar:
        for outcome in fit_side_by_side(sizes, jobs, read_problem, jobs[0].config, "gsplat", workers=workers):
            if outcome.error is None:
                outcome = attempt(partial(write_result, result=outcome.result), outcome.item)
            bar.update()
            yield outcome


def _check_fitted(job: FitJob) -> bool:
    """Whether a fitted file has the job's settings; ``ValueError`` where it was fitted to other points."""
    gaussians, _, attributes = read_file(gaussians_path(job.image))
    points = read_points(points_path(job.image))[:, :2]
    check_points(job.image, gaussians, points, fixed=not job.config.learn_means)
    return attributes.get("settings", job.settings) == job.settings


def write_results(folder: Path) -> None:
    """Write ``loss_results.csv`` (file name, render loss, shape loss) for every fitted file of ``folder``.

    The losses stand in the files themselves, so that the table is whole after any number of restarts and shards; rows of
    files that carry none (the authors') are kept.
    """
    table = folder / RESULTS
    seen: set[Path] = set()
    while (files := set(folder.glob("[!.]*_gs_params.h5"))) != seen:  # another share may finish meanwhile
        seen = files
        before = table.read_text(encoding="utf-8") if table.exists() else ""
        rows = {row[0]: row for row in csv.reader(before.splitlines()) if len(row) == 3}
        for path in files:
            try:
                attributes = read_file(path)[2]
            except ValueError:  # reported where the file is looked at for fitting
                continue
            if "render_loss" in attributes:
                losses = (f"{attributes[name]:.9g}" for name in ("render_loss", "shape_loss"))
                rows[path.name] = [path.name, *losses]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows[name] for name in sorted(rows))
        if text.getvalue() != before:
            with atomic_write(table) as partial:
                partial.write_text(text.getvalue(), encoding="utf-8")


def parse_folder_options(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[Path]]:
    """For the scripts that go on with what was fitted: their options, and the ``gs_params`` folders to work on."""
    help_text = "prepared data set (default: the configuration's root_path)"
    parser.add_argument("--root-path", "--data-dir", type=Path, help=help_text)
    parser.add_argument("--gs-dir", type=Path, help="work on this gs_params folder only")
    fit_keys = [action.dest for action in _make_parser()._actions]  # all scripts read the same file
    arguments = parse_arguments(parser, default_config=DEFAULT_CONFIG, unused_keys=UNUSED_KEYS, foreign_keys=fit_keys)
    root, folder = arguments.root_path, arguments.gs_dir
    if root is None and folder is None:
        raise ValueError("neither --gs-dir nor --root-path (root_path of the configuration) is given")
    folders = [folder] if folder else [root / split / "gs_params" for split in SPLITS]
    folders = [folder for folder in folders if any(folder.glob("[!.]*_gs_params.h5"))]
    if not folders:
        raise FileNotFoundError(f"{folder or root}: no *_gs_params.h5 there; run 2dgs_counting_1gs_gsplat.py first")
    return arguments, folders


def chosen_gpu(device: str, local_rank: int) -> int | None:
    """The GPU that ``--device`` names, by itself that of the process's rank; None for ``cpu``, ``ValueError`` for others."""
    if device == "auto" and torch.cuda.is_available():
        return local_rank % torch.cuda.device_count()
    asked = fabric_devices(device)
    if asked["accelerator"] == "cuda" and len(asked["devices"]) > 1:
        raise ValueError(f"--device {device}: a process takes one GPU; start several with torchrun --nproc-per-node")
    return asked["devices"][0] if asked["accelerator"] == "cuda" else None


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser("Fit one 2D Gaussian to the image around every annotated point.")
    parser.add_argument(
        "--root-path", "--data-dir", type=Path, required=True, help="prepared data set with train/, val/, test/"
    )
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=["train"], help="splits to fit")
    parser.add_argument("--num-epochs", type=number(int, 1), default=4000, help="iterations for each image")
    parser.add_argument("--learning-rate", type=number(float, 0, above=True), default=0.01, help="Adam's learning rate")
    parser.add_argument("--downsample-ratio", type=float, choices=(1,), default=1, help="images are fitted as they are")
    parser.add_argument("--bk-num", type=number(int, 0), default=0, help="free background Gaussians to add")
    parser.add_argument(
        "--use-bk-mask",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave pixels far from every point out of the loss",
    )
    parser.add_argument(
        "--gt-points", action=argparse.BooleanOptionalAction, default=True, help="keep the means on the annotations"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="rasterizer")
    parser.add_argument("--device", default="auto", help="GPU id or cpu (default: that of the process's rank, if any)")
    parser.add_argument(
        "--workers",
        type=number(int, 1),
        default=default_workers(),
        help="images fitted at the same time on CPUs, or read ahead for a GPU (which decides itself how many it takes)",
    )
    parser.add_argument(
        "--tolerance",
        type=number(float, 0, 1),
        default=0,
        help="end an image's fit once its loss falls by less than this fraction in 50 iterations, 2e-4 say (0: never)",
    )
    parser.add_argument(
        "--shard", type=parse_shard, help="fit the i-th of n shares, as i/n (default: torchrun's, SLURM's, or all)"
    )
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the starting rotations")
    parser.add_argument("--overwrite", action="store_true", help="fit again what is already there")
    return parser


def main() -> int:
    """Fit every image of the chosen splits that is not fitted yet."""
    arguments = parse_arguments(_make_parser(), default_config=DEFAULT_CONFIG, unused_keys=UNUSED_KEYS)
    config = FitConfig(
        iterations=arguments.num_epochs,
        learning_rate=arguments.learning_rate,
        background_gaussians=arguments.bk_num,
        use_background_mask=arguments.use_bk_mask,
        learn_means=not arguments.gt_points,
        tolerance=arguments.tolerance,
    )
    shard = arguments.shard or detect_shard()
    gpu = chosen_gpu(arguments.device, shard.local_rank)
    backend, reason = choose_backend(arguments.backend, "cpu" if gpu is None else None)
    if arguments.backend == "auto":
        print(f"backend {backend}: {reason}")
    if backend == "gsplat":
        torch.cuda.set_device(gpu)
    outcomes: list[Outcome] = []
    for split in arguments.splits:
        images = list_images(arguments.root_path / split)
        folder = make_folder(gaussians_path(images[0]).parent)
        remove_stale_partials(folder)
        # Neighbours in name are often alike in size, so that shares take about equally long.
        jobs, present, other_settings, images = [], 0, 0, images[shard.index :: shard.count]
        for image in images:
            job = FitJob(image, config, backend, image_seed(arguments.seed, image.stem))
            try:
                if gaussians_path(image).exists() and not arguments.overwrite:
                    other_settings += not _check_fitted(job)
                    present += 1
                else:
                    jobs.append(job)
            except (OSError, ValueError) as error:
                outcomes.append(Outcome(job, None, one_line(error)))
        share = f" (share {shard.index + 1} of {shard.count})" if shard.count > 1 else ""
        print(f"{split}{share}: {len(images)} images, {present} already there, {len(jobs)} to fit ({backend})")
        if other_settings:
            print(f"{split}: {other_settings} of them were fitted with other settings; --overwrite fits them again")
        begin, results = time.perf_counter(), []
        try:
            for outcome in fit_jobs(jobs, arguments.workers, f"fit {split}"):
                outcomes.append(outcome)
                results += [outcome.result] if outcome.result else []
        finally:
            write_results(folder)
        if results:
            seconds = time.perf_counter() - begin
            loss, iterations = np.mean([(result.render_loss, result.iterations) for result in results], axis=0)
            saved = f", {iterations:.0f} of {config.iterations} iterations on average" if config.tolerance else ""
            print(
                f"{split}: fitted {sum(len(result.gaussians) for result in results)} Gaussians in {len(results)} images, "
                f"{seconds:.1f} s ({len(results) / seconds:.2f} images/s), mean render loss {loss:.4f}{saved}"
            )
    return report_failures(outcomes)
