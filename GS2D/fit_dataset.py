"""Fitting a whole data set: what ``2dgs_counting_1gs_gsplat.py`` runs (a name that starts with a digit cannot be imported)."""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from GS2D.backends import choose_backend, native_problem, resolve_backend
from GS2D.fitting import FitConfig, FitResult, Problem, fit_side_by_side, optimise, prepare
from GS2D.gaussians import SAME_POINT, Gaussians2D, distance_to_points, read_file
from GS2D.rasterize import BACKENDS
from utils.cli import Outcome, ProgressBar, default_workers, for_each, one_line, report_failures
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
from utils.sharding import Shard, detect_shard, parse_shard

DEFAULT_CONFIG = Path(__file__).with_name("config_qnrf_gsplat.yml")
UNUSED_KEYS = ("display_interval", "gradient_threshold", "gaussian_threshold", "display_loss")
RESULTS = "loss_results.csv"


class FitJob(NamedTuple):
    """One image to fit; ``downsample`` divides its size first."""

    image: Path
    points: Path
    output: Path
    config: FitConfig
    backend: str
    seed: int
    downsample: float


def image_seed(seed: int, stem: str) -> int:
    """A seed that depends on the run's seed and the image's name alone: not on order, workers or shards."""
    return int(np.random.SeedSequence([seed, zlib.crc32(stem.encode())]).generate_state(1)[0])


def fit_file(job: FitJob) -> tuple[float, float, int, int]:
    """Fit one image and write its file -> (render loss, shape loss, iterations, Gaussians)."""
    import torch

    torch.set_num_threads(1)  # one image is one core's work, and sums do not depend on the number of threads
    problem = read_problem(job)
    try:
        result = optimise(*problem, job.config, job.backend)
    except (ValueError, MemoryError) as error:
        raise type(error)(f"{job.image}: {error}") from None
    return write_result(job, result)


def read_problem(job: FitJob) -> Problem:
    """The image of a job and its points, in the size in which they are fitted; errors name the file."""

    image, points = load_image(job.image), read_points(job.points)[:, :2]
    if job.downsample != 1:
        import cv2

        height, width = _size(job, image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    try:
        return prepare(image, points / job.downsample, job.config, job.seed)
    except (ValueError, MemoryError) as error:
        raise type(error)(f"{job.image}: {error}") from None


def _size(job: FitJob, size: tuple[int, int]) -> tuple[int, int]:
    return max(1, round(size[0] / job.downsample)), max(1, round(size[1] / job.downsample))


def write_result(job: FitJob, result: FitResult) -> tuple[float, float, int, int]:
    """Write what was fitted, in pixels of the whole image -> (render loss, shape loss, iterations, Gaussians)."""
    import torch

    params = result.gaussians.params
    params[:, 2:4] *= job.downsample
    points = torch.from_numpy(read_points(job.points)[:, :2])
    params[:, :2] = params[:, :2] * job.downsample if job.config.learn_means else points
    attributes = {
        "render_loss": result.render_loss,
        "shape_loss": result.shape_loss,
        "iterations": result.iterations,
        "settings": settings(job),
    }
    Gaussians2D.from_params(params).save(job.output, attributes=attributes)
    return result.render_loss, result.shape_loss, result.iterations, len(params)


def fit_jobs(jobs: list[FitJob], workers: int, description: str) -> Iterator[Outcome]:
    """Fit the images of all jobs, which share configuration and backend, and yield each outcome as its file is there.

    gsplat: many images in one atlas, and ``workers`` threads read ahead. Otherwise ``workers`` images at the same time.
    """

    if not jobs or jobs[0].backend != "gsplat":
        threads = bool(jobs) and jobs[0].backend == "native"  # its calls release the interpreter's lock
        yield from for_each(fit_file, jobs, workers, description, threads=threads, status=_status)
        return
    readable, sizes = [], []
    with ProgressBar(total=len(jobs), desc=description, unit="img") as bar:
        for job in jobs:
            try:
                sizes.append(_size(job, image_size(job.image)))
                readable.append(job)
            except (OSError, ValueError) as error:
                bar.update()
                yield Outcome(job, None, one_line(error))
        loads = [lambda job=job: read_problem(job) for job in readable]
        for index, result in fit_side_by_side(sizes, loads, jobs[0].config, "gsplat", workers=workers):
            job, error = readable[index], None
            try:
                if isinstance(result, Exception):
                    raise result
                result = write_result(job, result)
                bar.set_postfix_str(_status(result), refresh=False)
            except MemoryError as failure:
                result, error = None, f"{job.image}: {one_line(failure)}"
            except (OSError, ValueError) as failure:
                result, error = None, one_line(failure)
            bar.update()
            yield Outcome(job, result, error)


def settings(job: FitJob) -> str:
    """What the result depends on, besides image and points; stored with it."""
    return f"{job.config} seed={job.seed} downsample={job.downsample:g}"


def _check_fitted(job: FitJob) -> bool:
    """Whether a fitted file has the job's settings; ``ValueError`` where it was fitted to other points."""

    gaussians, _, attributes = read_file(job.output)
    points = read_points(job.points)[:, :2]
    remedy = "delete the former, or fit again with --overwrite"
    if len(gaussians) != len(points):
        raise ValueError(
            f"{job.output}: {len(gaussians)} Gaussians, but {job.points} has {len(points)} points; {remedy}"
        )
    if not job.config.learn_means and not distance_to_points(gaussians.means, points) <= SAME_POINT:
        raise ValueError(f"{job.output}: its means are not the points of {job.points}; {remedy}")
    return attributes.get("settings", settings(job)) == settings(job)


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


def gaussian_folders(root: Path | None, gs_dir: Path | None) -> list[Path]:
    """The ``gs_params`` folders that a script works on: the one given, or those of every split below ``root``."""
    if gs_dir is not None:
        folders = [gs_dir]
    elif root is not None:
        folders = [root / split / "gs_params" for split in SPLITS if (root / split / "gs_params").is_dir()]
    else:
        raise ValueError("neither --gs-dir nor --root-path (root_path of the configuration) is given")
    if not folders or not folders[0].is_dir():
        raise FileNotFoundError(f"{gs_dir or root}: no gs_params folder there; run 2dgs_counting_1gs_gsplat.py first")
    return folders


def fit_options() -> tuple[str, ...]:
    """The keys that a fit's configuration file may hold; other scripts read the same file."""
    return tuple(action.dest for action in _make_parser()._actions)


def chosen_gpus(device: str) -> list[int]:
    """The GPUs that ``--device`` names; none for ``cpu``. ``ValueError`` for ids that do not exist here."""
    import torch

    if device == "auto":
        # Under torchrun and SLURM each process takes the one of its rank.
        return list(range(torch.cuda.device_count())) if _launched() else [0] if torch.cuda.is_available() else []
    asked = fabric_devices(device)
    return asked["devices"] if asked["accelerator"] == "cuda" else []


def _launched() -> bool:
    return any(int(os.environ.get(name, 1)) > 1 for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS"))


def choose(backend: str, device: str, gpus: list[int]) -> str:
    """The backend to fit a data set with, and a line that says which and why, where that was not the user's word."""

    if backend == "gsplat" and not gpus:
        resolve_backend(backend)
        raise ValueError("--backend gsplat: needs a GPU, and --device cpu rules it out; choose --backend native")
    if backend != "auto":
        return resolve_backend(backend)
    if gpus:
        backend, reason = choose_backend()
    elif native_problem():
        backend, reason = "reference", native_problem()
    else:
        backend, reason = "native", "no GPU" if device == "auto" else f"--device {device}"
    print(f"backend {backend}: {reason}")
    return backend


def one_process_a_gpu(gpus: list[int], shard: Shard) -> int:
    """Run this same command once for each GPU, each on its share of the images -> the worst of their exit codes."""
    count = shard.count * len(gpus)
    shares = [["--shard", f"{shard.index * len(gpus) + i + 1}/{count}", "--device", str(g)] for i, g in enumerate(gpus)]
    processes = [subprocess.Popen([sys.executable, *sys.argv, *share]) for share in shares]
    try:
        return max(abs(process.wait()) for process in processes)
    finally:  # Ctrl-C reaches them all; each says itself what it leaves
        for process in processes:
            process.wait()


def _say_rate(split: str, done: int, count: int, seconds: float) -> bool:
    """A line about the speed, once the first images are through, where the rest takes a while."""
    if seconds < 10 or done == count:
        return False
    left = (count - done) * seconds / done
    an_hour = done / seconds * 3600
    tqdm.write(f"{split}: {done} of {count} images in {seconds:.0f} s, {an_hour:.0f} an hour, {left:.0f} s left")
    return True


def _status(result: tuple[float, float, int, int]) -> str:
    return f"loss {result[0]:.3f}"


def _make_parser() -> argparse.ArgumentParser:

    parser = make_parser("Fit one 2D Gaussian to the image around every annotated point.")
    parser.add_argument(
        "--root-path", "--data-dir", type=Path, required=True, help="prepared data set with train/, val/, test/"
    )
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=["train"], help="splits to fit")
    parser.add_argument("--num-epochs", type=number(int, 1), default=4000, help="iterations for each image")
    parser.add_argument("--learning-rate", type=number(float, 0, above=True), default=0.01, help="Adam's learning rate")
    parser.add_argument(
        "--downsample-ratio", type=number(float, 1), default=1, help="divide the image's size before the fit"
    )
    parser.add_argument("--bk-num", type=number(int, 0), default=0, help="free background Gaussians to add")
    yes_no = argparse.BooleanOptionalAction
    parser.add_argument(
        "--use-bk-mask", action=yes_no, default=True, help="leave pixels far from every point out of the loss"
    )
    parser.add_argument("--gt-points", action=yes_no, default=True, help="keep the means on the annotations")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="rasterizer")
    parser.add_argument(
        "--device", default="auto", help="GPU id, several (0,1: a process each) or cpu (default: the first GPU, if any)"
    )
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
    import torch

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
    gpus = chosen_gpus(arguments.device)
    backend = choose(arguments.backend, arguments.device, gpus)
    if backend == "gsplat":
        if len(gpus) > 1 and (arguments.shard or shard.count == 1):
            return one_process_a_gpu(gpus, shard)
        torch.cuda.set_device(gpus[shard.local_rank % len(gpus)])
    outcomes: list[Outcome] = []
    for split in arguments.splits:
        images = list_images(arguments.root_path / split)
        folder = make_folder(gaussians_path(images[0]).parent)
        remove_stale_partials(folder)
        jobs, present, other_settings, images = [], 0, 0, shard.of(images)
        for image in images:
            seed = image_seed(arguments.seed, image.stem)
            paths = image, points_path(image), gaussians_path(image)
            job = FitJob(*paths, config, backend, seed, arguments.downsample_ratio)
            try:
                if job.output.exists() and not arguments.overwrite:
                    other_settings += not _check_fitted(job)
                    present += 1
                else:
                    jobs.append(job)
            except (OSError, ValueError) as error:
                outcomes.append(Outcome(image, None, one_line(error)))
        share = f" (share {shard.index + 1} of {shard.count})" if shard.count > 1 else ""
        print(f"{split}{share}: {len(images)} images, {present} already there, {len(jobs)} to fit ({backend})")
        if other_settings:
            print(f"{split}: {other_settings} of them were fitted with other settings; --overwrite fits them again")
        begin, done, said = time.perf_counter(), [], False
        try:
            for outcome in fit_jobs(jobs, arguments.workers, f"fit {split}"):
                done.append(outcome)
                said = said or _say_rate(split, len(done), len(jobs), time.perf_counter() - begin)
        finally:
            write_results(folder)
        outcomes += done
        fitted = [outcome.result for outcome in done if outcome.result]
        if fitted:
            seconds = time.perf_counter() - begin
            mean = np.mean([result[0] for result in fitted])
            print(
                f"{split}: fitted {sum(result[3] for result in fitted)} Gaussians in {len(fitted)} images, "
                f"{seconds:.1f} s ({len(fitted) / seconds:.2f} images/s), mean render loss {mean:.4f}"
            )
            if config.tolerance > 0:
                iterations = np.mean([result[2] for result in fitted])
                saved = 1 - iterations / config.iterations
                print(f"{split}: {iterations:.0f} of {config.iterations} iterations on average, {saved:.0%} saved")
    return report_failures(outcomes)
