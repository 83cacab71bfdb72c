"""What only a GPU can show: CUDA against the CPU, every precision, waits of a step, and what things cost. See gpu_check.sh.

python scripts/gpu_check.py [--only NAME ...]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import train_gs
from datasets.crowd import Batch, TrainSample, collate
from GS2D.gaussians import Gaussians2D
from GS2D.options import KERNEL_OPTIONS
from GS2D.points import mean_neighbour_distance
from losses import LOSSES, build_kernel, build_loss
from models import build_model
from scripts import gpu_fit_check
from utils.files import gaussians_path, points_path
from utils.images import load_image, save_jpeg
from utils.training.run_folder import RunFolder
from utils.training.train_options import parse_train_options

CUDA = "cuda"
CROP = 512
COUNTS = (0, 1, 20, 300, 3000)  # annotations in a crop
PRECISIONS = ("32", "bf16-mixed", "16-mixed")


class Row(NamedTuple):
    """One line of the table; ``goal``: a figure that this GPU and its host reach or do not, which is no failure."""

    name: str
    ok: bool
    figure: str
    goal: bool = False

    @property
    def state(self) -> str:
        return "ok" if self.ok else "missed" if self.goal else "FAILED"


def random_sample(points: int, crop: int, loss: str) -> TrainSample:
    """A crop with uniform points, scales log-normal around 5.5 pixels, and the kernel of its loss."""
    random = np.random.default_rng([0, points])
    means = random.uniform(0, crop, (points, 2)).astype(np.float32)
    scales = np.exp(random.normal(np.log(5.5), 0.6, (points, 2))).astype(np.float32)
    rotations = random.uniform(0, np.pi, (points, 1)).astype(np.float32)
    make, kernel = build_kernel(loss), None
    if make:
        kernel = make(points=means, scales=scales, rotations=rotations, crop_size=crop, short_side=1.5 * crop)
    arrays = (torch.from_numpy(array) for array in (means, scales, rotations, np.ones(points, np.float32)))
    return TrainSample(torch.zeros(3, 16, 16, dtype=torch.uint8), *arrays, "", 1.5 * crop, kernel)


def random_batch(counts: tuple[int, ...], loss: str, crop: int = CROP) -> tuple[Batch, Tensor]:
    """Crops with ``counts`` points, and a density [B, 1, h, w] whose sums are near them, on the CPU."""
    random, cells = torch.Generator().manual_seed(len(counts)), crop // 8
    density = torch.rand(len(counts), 1, cells, cells, generator=random)
    density *= (2 * torch.tensor(counts).clamp(min=1) / cells**2)[:, None, None, None]
    return collate([random_sample(count, crop, loss) for count in counts]), density


def to_device(batch: Batch, device: str) -> Batch:
    """All tensors of a batch on a device."""
    moved = {name: value.to(device) for name, value in batch._asdict().items() if isinstance(value, Tensor)}
    if batch.kernel is not None:
        moved["kernel"] = type(batch.kernel)(*(part.to(device) for part in batch.kernel))
    return batch._replace(**moved)


def loss_and_gradient(loss: Callable, density: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    density = density.detach().requires_grad_()
    value = loss(density, batch)
    return value.detach(), torch.autograd.grad(value, density)[0]


def versions() -> Iterator[Row]:
    """What ran where."""
    import gsplat
    import lightning_fabric

    device = torch.cuda.get_device_properties(0)
    packages = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    others = f"fabric {lightning_fabric.__version__}, gsplat {gsplat.__version__}, Python {platform.python_version()}"
    yield Row("versions", True, f"{device.name}, {device.total_memory / 2**30:.0f} GiB; {packages}, {others}")


def losses_equal() -> Iterator[Row]:
    """Every loss and its gradient on CUDA against the CPU, for each number of points and for all in one batch; twice."""
    # Sums in another order move DM-Count's dual variable where 1e-16 decides it, and the generalized loss's plan.
    bounds = {"dm-count": 2e-2, "gloss": 1e-3}
    for name in LOSSES:
        worst, repeats = 0.0, True
        for counts in [*((count,) for count in COUNTS), COUNTS]:
            batch, density = random_batch(counts, name)
            loss, there = build_loss(name), to_device(batch, CUDA)
            value, gradient = loss_and_gradient(loss, density, batch)
            first = loss_and_gradient(loss, density.to(CUDA), there)
            again = loss_and_gradient(loss, density.to(CUDA), there)
            repeats &= torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
            error = (first[1].cpu() - gradient).abs().max() / gradient.abs().max()
            worst = max(worst, float((first[0].cpu() - value).abs() / value.abs()), float(error))
        bound = bounds.get(name, 1e-5)
        ok = worst <= bound and (repeats or name not in ("gst", "bl", "bl+"))
        yield Row(f"{name}: CUDA = CPU", ok, f"{worst:.1e} relative (at most {bound:g}); twice the same: {repeats}")


def milliseconds(run: Callable[[], object], repeats: int = 30) -> float:
    """Median of single runs, from the host's call to the GPU's end."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def published_dm_count(points: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """DM-Count's loss and gradient on the dense matrix exp(-C / 10) [n, M], reading back in each iteration whether all is
    finite and in every tenth whether to stop, as published."""
    density = density.detach().requires_grad_()
    cells, number = density.flatten(), len(points)
    centres = (torch.arange(density.shape[-1], device=points.device) + 0.5) * 8
    with torch.no_grad():
        mass = cells / (cells.sum() + 1e-6)
        plan = (torch.cdist(points, torch.cartesian_prod(centres, centres).flip(1)).square() / -10).exp()
        u, v = torch.full_like(points[:, 0], 1 / number), torch.full_like(mass, 1 / len(mass))
        for iteration in range(1, 101):
            before = u, v
            v = mass / (plan.T @ u + 1e-16)
            u = 1 / number / (plan @ v + 1e-16)
            if not (u.isfinite().all() and v.isfinite().all()):
                u, v = before
                break
            if iteration % 10 == 0 and ((plan.T @ u) * v - mass).square().sum() <= 1e-9:
                break
        beta, total = 10 * (v + 1e-16).log(), cells.sum()
        scale = total.square() + 1e-8
        gradient = beta * total / scale - (cells * beta).sum() / scale
        column, row = (points / 8).long().unbind(dim=1)
        dots = torch.zeros_like(mass).index_add_(0, 64 * row + column, torch.ones_like(points[:, 0]))
    variation = number * (cells / (cells.sum() + 1e-6) - dots / (number + 1e-6)).abs().sum()
    value = (cells.sum() - number).abs() + 0.1 * (cells * gradient).sum() + 0.01 * variation
    return value.detach(), torch.autograd.grad(value, density)[0]


def costs() -> Iterator[Row]:
    """Milliseconds of loss and gradient of one crop; the kernel is part of the batch."""
    times: dict[str, list[float]] = {}
    counts = (50, 1000, 3000)
    for count in counts:
        for name in LOSSES:
            batch, density = random_batch((count,), name)
            batch, density, loss = to_device(batch, CUDA), density.to(CUDA), build_loss(name)
            run = milliseconds(lambda: loss_and_gradient(loss, density, batch), 5 if name == "gloss" else 30)
            times.setdefault(name, []).append(run)
        times.setdefault("DM-Count as published", []).append(
            milliseconds(lambda: published_dm_count(batch.points[0], density), 10)
        )
    for name, values in times.items():
        ratios = " / ".join(f"{value / gst:.1f}" for value, gst in zip(values, times["gst"]))
        figure = " / ".join(f"{value:.2f}" for value in values) + f" ms at {counts} points, {ratios} times gst"
        goals = {
            "gst": (max(values) <= 0.5, "; goal 0.5 ms"),
            "DM-Count as published": (bool(min(np.divide(values, times["gst"])) >= 20), "; goal 20 times"),
        }
        reached, goal = goals.get(name, (True, ""))
        yield Row(f"cost: {name}", reached, figure + goal, goal=True)


def make_data(root: Path, images: int, side: int, points: int) -> Path:
    """A prepared data set of random pictures."""
    random = np.random.default_rng(0)
    for split, count in (("train", images), ("val", 1)):
        for i in range(count):
            path = root / split / f"IMG_{i:04}.jpg"
            gaussians_path(path).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.kron(random.integers(0, 255, (side // 8, side // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            save_jpeg(pixels, path, 90)
            means = random.uniform(0, side, (points, 2)).astype(np.float32)
            np.save(points_path(path), np.c_[means, mean_neighbour_distance(means)].astype(np.float32))
            shapes = random.uniform(3, 14, (points, 2)), random.uniform(0, 3, (points, 1)), np.ones((points, 3))
            Gaussians2D(means, *shapes).save(gaussians_path(path))
    return root


def run_of(folder: Path, data: Path, *options: str) -> tuple[train_gs.Fabric, argparse.Namespace, train_gs.Run]:
    """A training run as ``train_gs.py`` with these options would set it up."""
    fixed = ["--data-dir", str(data), "--save-dir", str(folder), "--backbone-weights", "none", "--device", "0"]
    arguments = parse_train_options(
        ("vgg", "vgg_trans"), tuple(LOSSES), KERNEL_OPTIONS, [*fixed, "--num-workers", "2", *options]
    )
    fabric = train_gs.start_fabric(arguments)
    return fabric, arguments, train_gs.set_up_run(fabric, RunFolder(folder), arguments)


def epoch_of(fabric, arguments, run, loader=None, epoch: int = 0) -> dict:
    run.train.set_epoch(epoch)
    run.sampler.epoch = epoch
    torch.manual_seed(arguments.seed + epoch)
    parts = fabric, run.model, run.optimizer, run.average, loader or run.loader
    return train_gs.train_epoch(*parts, epoch, arguments, train_gs.ProgressBar(disable=True), run.guard)


# With float32 and deterministic algorithms the bits are those without graphs; else cuDNN may choose others: of the loss.
ROUNDING = {"32": 2e-3, "bf16-mixed": 3e-2, "16-mixed": 1e-2}


def trains() -> Iterator[Row]:
    """An epoch of both networks in every precision, and with every option that changes the step, with graphs and without."""
    variants = [(model, "--precision", p) for model in ("vgg", "vgg_trans") for p in PRECISIONS]
    variants += [(model, "--deterministic", "--no-tf32") for model in ("vgg", "vgg_trans")]
    options = "--ema 0.9", "--accumulate 3", "--grad-clip 1 --precision 16-mixed", "--batch-size 4"
    options += (
        "--channels-last --precision bf16-mixed",
        "--deterministic --accumulate 3 --batch-size 4 --grad-clip 1 --ema 0.9",
    )
    variants += [("vgg", *words.split()) for words in options]
    variants += [("vgg", "--loss", name) for name in LOSSES if name != "gst"]
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", 10, 192, 20)
        for model, *more in variants:
            begin = time.perf_counter()
            sizes = ["--crop-size", "128", "--model-name", model, "--epochs", "2", "--lr", "1e-5", "--num-workers", "0"]
            found, weights = [], []
            for graphs in ("--graphs", "--no-graphs"):
                with contextlib.redirect_stderr(io.StringIO()) as said:
                    fabric, arguments, run = run_of(Path(folder) / "run", data, *sizes, *more, graphs)
                    found.append(epoch_of(fabric, arguments, run))
                weights.append([parameter.detach().clone() for parameter in run.network.parameters()])
                if graphs == "--graphs":
                    refused = said.getvalue().strip()
            torch.use_deterministic_algorithms(False)
            one, other = (metrics["loss"] for metrics in found)
            same = all(torch.equal(*pair) for pair in zip(*weights, strict=True))
            apart = abs(one - other) / abs(other)
            ok = same if "--deterministic" in more else apart <= ROUNDING[arguments.precision]
            figure = f"loss {one:.4f}, without graphs {other:.4f}, " + (
                "the same bits" if same else f"{apart:.1e} apart"
            )
            figure += f", gradient {found[0]['gradient_norm']:.3g}, {time.perf_counter() - begin:.1f} s; {refused}"
            yield Row(" ".join(["train", model, *more]), bool(ok and np.isfinite(one) and not refused), figure)


def resumes() -> Iterator[Row]:
    """Two epochs in one go against one and one more, bit for bit; files without a scaler; another weight decay."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_data(root / "data", 8, 160, 10)
        sizes = ["--crop-size", "128", "--val-start", "9", "--deterministic", "--lr", "1e-4"]
        for precision in ("32", "16-mixed"):
            options = [*sizes, "--precision", precision]

            def train(name: str, *more: str, options: list[str] = options) -> dict:
                fixed = ["--data-dir", str(data), "--save-dir", str(root / name), "--backbone-weights", "none"]
                sys.argv = ["train_gs.py", *fixed, *options, *more]
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    train_gs.main()
                return torch.load(RunFolder(root / name).checkpoints()[-1], map_location="cpu", weights_only=True)

            whole = train("whole" + precision, "--epochs", "2")
            half = train("half" + precision, "--epochs", "1")
            resumed = train("half" + precision, "--epochs", "2")
            weights = [state["model_state_dict"] for state in (whole, resumed)]
            same = all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
            yield Row(f"resume, {precision}", same, "the same bits" if same else "other weights")
            half["scaler"] = {}
            torch.save(half, root / "foreign.tar")
            again = train(
                "other" + precision, "--epochs", "2", "--resume", str(root / "foreign.tar"), "--weight-decay", "0.5"
            )
            decay = again["optimizer_state_dict"]["param_groups"][0]["weight_decay"]
            yield Row(f"resume without a scaler, {precision}", decay == 0.5, f"weight decay {decay}")
    torch.use_deterministic_algorithms(False)


class AtHand(list):
    """Batches of one size as a loader."""

    @property
    def batch_size(self) -> int:
        return len(self[0].images)

    @property
    def sampler(self) -> range:
        return range(len(self) * self.batch_size)


class Strict:
    """A loader after whose second batch every wait of the host for the device is counted, until its last."""

    def __init__(self, loader) -> None:
        self.loader, self.caught = loader, []
        self.batch_size, self.sampler = loader.batch_size, loader.sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for index, batch in enumerate(self.loader):
                torch.cuda.set_sync_debug_mode("warn" if 2 <= index < len(self) - 1 else "default")
                yield batch
            torch.cuda.set_sync_debug_mode("default")
        self.caught = [str(warning.message) for warning in caught if "called a synchronizing" in str(warning.message)]


def steps() -> Iterator[Row]:
    """A step: waits, launches, where the time goes, beside the network alone, replayed as well; whole epochs from disk."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", 24, 1024, 800)
        variants = [("vgg", 1, 512, ["32"], 200), ("vgg", 1, 512, ["bf16-mixed", "--channels-last"], 350)]
        variants += [("vgg", 8, 256, ["bf16-mixed", "--channels-last"], 1200)]
        variants += [("vgg_trans", 1, 512, ["32"], 100), ("vgg_trans", 1, 512, ["bf16-mixed", "--channels-last"], 175)]
        for model, batch_size, crop, options, least in variants:
            name = " ".join([model, f"{batch_size} x {crop}", *options])
            sizes = ["--epochs", "9", "--num-workers", "8", "--model-name", model, "--batch-size", str(batch_size)]
            sizes += ["--crop-size", str(crop), "--precision"]
            fabric, arguments, run = run_of(Path(folder) / "run", data, *sizes, *options)
            epoch_of(fabric, arguments, run)  # measures cuDNN's algorithms, starts the loading processes
            train_gs.SHOW_SECONDS, strict = 1e9, Strict(run.loader)
            epoch_of(fabric, arguments, run, strict, 1)
            train_gs.SHOW_SECONDS = 0.5
            waits = f"{len(strict.caught)} {strict.caught[:1]}"
            yield Row(f"waits in {len(strict) - 3} steps, {name}", not strict.caught, waits)
            held = AtHand(run.loader)
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                epoch_of(fabric, arguments, run, held, 2)
            launches = sum(event.count for event in profiler.key_averages() if "LaunchKernel" in event.key) / len(held)
            alone = network_alone(fabric, arguments, run, held[0])
            ready = epoch_of(fabric, arguments, run, AtHand(held * 6), 3)
            alone = (alone + network_alone(fabric, arguments, run, held[0])) / 2
            begin = time.perf_counter()
            for epoch in range(4, 8):  # from the loading processes, with their start of an epoch
                epoch_of(fabric, arguments, run, None, epoch)
            fresh = 4 * len(run.train) / (time.perf_counter() - begin)
            count, rate = 6 * len(held), ready["images_per_second"]
            step, parts = 1000 * ready["seconds"] / count, ready["time"].items()
            split = ", ".join(f"{part} {1000 * value / count:.2f}" for part, value in parts if part)
            beside = f"{step:.2f} ms, the network alone {alone:.2f}: {step / alone:.2f} times"
            yield Row(f"step, {name}", step <= 1.15 * alone, f"{beside}; goal 1.15", goal=True)
            yield Row(f"parts of a step, {name}", True, f"{split} ms; {launches:.0f} launches")
            loaded = f"{fresh:.0f} with 8 loading processes, whole epochs; {rate:.0f} at hand; goal {least}"
            yield Row(f"crops a second, {name}", fresh >= least, loaded, goal=True)


def network_alone(fabric, arguments, run, batch) -> float:
    """Milliseconds of forward, backward and fused Adam."""
    images = train_gs.normalise(batch.images)
    if arguments.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        fabric.backward(run.model(images).density.sum())
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)

    for _ in range(5):
        step()
    return milliseconds(lambda: [step() for _ in range(20)], 3) / 20


def whole_runs() -> Iterator[Row]:
    """A run of minutes as a user starts it: what of its time is training; four side by side against one."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", 240, 768, 300)
        recipe = ["--crop-size", "256", "--precision", "bf16-mixed", "--channels-last", "--lr", "1e-5", "--device", "0"]
        fixed = ["--data-dir", str(data), "--backbone-weights", "none", *recipe]

        def begin(name: str, batch: int, workers: int, minutes: float) -> subprocess.Popen:
            options = [*fixed, "--batch-size", str(batch), "--num-workers", str(workers), "--minutes", str(minutes)]
            command = [sys.executable, "train_gs.py", *options, "--save-dir", f"{folder}/{name}", "--overwrite"]
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def crops(names: list[str], wall: float) -> tuple[float, float]:
            """Crops a second of all while they trained, and the share of ``wall`` that one trained."""
            found = [RunFolder(Path(folder) / name).metrics() for name in names]
            seconds = [sum(epoch["seconds"] for epoch in epochs) for epochs in found]
            return sum(len(epochs) * 240 / took for epochs, took in zip(found, seconds)), seconds[0] / wall

        start = time.perf_counter()
        begin("one", 8, 8, 0.2).wait()
        wall = time.perf_counter() - start
        rate, share = crops(["one"], wall)
        start_up = (1 - share) * wall
        figure = f"{100 * share:.0f} % of {wall:.0f} s are steps ({rate:.0f} crops a second), {start_up:.1f} s are not"
        yield Row("a run of 12 s", start_up <= 12, f"{figure}; goal 10 s and a validation", goal=True)
        begin("large", 32, 8, 0.15).wait()
        large, _ = crops(["large"], 1)
        names = [f"job{number}" for number in range(4)]
        for run in [begin(name, 8, 2, 0.15) for name in names]:
            run.wait()
        four, _ = crops(names, 1)
        figure = f"{four:.0f} crops a second, one at batch 32 {large:.0f}"
        yield Row("four runs side by side", four >= large, figure, goal=True)


def evaluation() -> Iterator[Row]:
    """test.py on 60 photographs of 1024 x 768."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", 60, 1024, 300)
        for path in (data / "train").glob("*.jpg"):
            save_jpeg(load_image(path)[:768], path, 90)
        weights = Path(folder) / "vgg.pth"
        torch.save(build_model("vgg").state_dict(), weights)
        fixed = ["--save-path", str(weights), "--data-dir", str(data), "--split", "train", "--device", "0"]
        for precision, least in (("32", 20), ("bf16-mixed", 30)):
            command = [sys.executable, "test.py", *fixed, "--precision", precision]
            done = subprocess.run(command, capture_output=True, text=True)
            found = re.search(r"([\d.]+) images/s", done.stdout)
            rate = float(found[1]) if found else 0.0
            yield Row(f"test.py, {precision}", rate >= least, f"{rate:.1f} images a second; goal {least}", goal=True)


def fitting() -> Iterator[Row]:
    """The checks of scripts/gpu_fit_check.py."""
    yield from (Row(*row) for row in gpu_fit_check.checks())


CHECKS = {
    check.__name__: check
    for check in (versions, losses_equal, trains, resumes, steps, whole_runs, evaluation, costs, fitting)
}


def rows(names: list[str]) -> Iterator[Row]:
    """The table; a check that raises is a row too."""
    for name in names:
        begin = time.perf_counter()
        try:
            yield from CHECKS[name]()
        except Exception as error:
            traceback.print_exc()
            yield Row(name, False, f"{type(error).__name__}: {error}".split("\n")[0][:200])
        print(f"  ({name}: {time.perf_counter() - begin:.0f} s)", file=sys.stderr, flush=True)


def main() -> int:
    """Print the table as Markdown; 1 where a check failed, not where a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), help="checks to run (default: all)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"error: PyTorch {torch.__version__} sees no CUDA GPU here; these checks need one", file=sys.stderr)
        return 1
    failed = missed = 0
    print("| check | | figure |\n|---|---|---|", flush=True)
    for row in rows(arguments.only):
        print(f"| {row.name} | {row.state} | {row.figure} |", flush=True)
        failed, missed = failed + (row.state == "FAILED"), missed + (row.state == "missed")
    print(f"\n{failed} failed, {missed} goals missed (they are those of an H100 or H200)")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
