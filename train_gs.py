"""Train a density network with the transported-mass loss of GST, or with a loss that it is measured against.

python train_gs.py --model-name vgg_trans --dataset qnrf --data-dir data/UCF-Train-Val-Test --device 0
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.crowd import Batch, Crowd
from datasets.loading import crop_loader, keep_pixels
from datasets.sampler import EpochSampler
from GS2D.options import KERNEL_OPTIONS, kernel_options
from losses import LOSSES, NEEDS_GAUSSIANS, build_kernel, build_loss
from models import MODELS, attention_variance, build_model, load_backbone, load_weights, rate_groups, read_checkpoint
from utils.cli import progress_options, run_script
from utils.config import option_values, save_arguments
from utils.device import network_errors, start_fabric
from utils.evaluation import density_map, evaluate, in_threads, predict
from utils.evaluation.model_card import write_card
from utils.files import make_folder, remove_stale_partials
from utils.images import load_image
from utils.lock import hold
from utils.pixels import normalise
from utils.training.checkpoint import find_start, prune_checkpoints, save_checkpoint, save_weights, set_aside
from utils.training.run_log import RunLog
from utils.training.schedule import TimeBudget, epochs_to_begin_with, rate_factor
from utils.training.shared_memory import shared_memory_errors
from utils.training.steps import EpochSums, Guard, Stopwatch, gradient_norm, guarded_average
from utils.training.train_options import CHANGEABLE_OPTIONS, parse_train_options

ATTENTION_WEIGHT = 0.1  # of the attention variance of vgg_trans
CHECK_EVERY = 32  # batches from one look at the guard to the next: the device is waited for
SHOW_SECONDS = 0.5  # from one look at loss and MAE to the next
SHOWN_EVERY = 5  # validations from one picture of the three densities to the next


class NonFinite(ValueError):
    """A loss or gradient that is not finite, and the batches that it came from, by their place in the epoch."""

    def __init__(self, what: str, batches: range) -> None:
        super().__init__(what)
        self.what, self.batches = what, batches


def chosen_kernel(arguments: argparse.Namespace) -> Callable[..., Tensor] | None:
    """What makes the transport kernels of the loss that ``--loss`` names."""
    return build_kernel(arguments.loss, **(kernel_options(arguments) if arguments.loss == "gst" else {}))


def chosen_loss(arguments: argparse.Namespace) -> Callable[[Tensor, Batch], Tensor]:
    """The loss that ``--loss`` names, with its options."""
    if arguments.loss == "mse":
        adaptive = arguments.sigma == "adaptive"
        return build_loss("mse", adaptive=True) if adaptive else build_loss("mse", sigma=arguments.sigma)
    return build_loss(arguments.loss)


def train_epoch(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    loader: DataLoader,
    epoch: int,
    arguments: argparse.Namespace,
    progress: tqdm,
    guard: Guard,
    budget: TimeBudget | None = None,
) -> dict[str, Any]:
    """One pass over the training crops -> means of loss, MAE, MSE and gradient norm, and where the time went.

    No step waits for the device. Raises ``NonFinite``, on all processes together, up to ``CHECK_EVERY`` batches after what
    was not finite; weights and the optimizer's state are those before it.
    """
    loss_of, parameters = chosen_loss(arguments), list(model.parameters())
    scaler = getattr(fabric.strategy.precision, "scaler", None)  # of 16-mixed, which skips steps that overflow
    if scaler is None:
        optimizer.optimizer.found_inf = guard.broken
    guard.start_epoch()
    torch.backends.cudnn.benchmark = not arguments.deterministic  # all crops are of one size
    sums, watch, shown = EpochSums(), Stopwatch(fabric.device), time.monotonic()
    for index, batch in enumerate(loader):
        group = min(arguments.accumulate, len(loader) - index // arguments.accumulate * arguments.accumulate)
        is_last = index % arguments.accumulate == group - 1
        images = normalise(batch.images)
        if arguments.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        watch.lap("data")
        with fabric.no_backward_sync(model, enabled=not is_last):
            density, attention = model(images)
            watch.lap("forward")
            loss = loss_of(density, batch)
            if attention:
                loss = loss + ATTENTION_WEIGHT * attention_variance(attention).sum()
            gated = guard.gate(loss, index)
            watch.lap("loss")
            fabric.backward(gated / group if group > 1 else gated)
        if is_last:
            done = (epoch + index / len(loader)) / arguments.epochs
            factor = rate_factor(arguments.lr_schedule, done, arguments.warm_up_epochs / arguments.epochs)
            for group, rate in zip(optimizer.param_groups, (arguments.lr, arguments.head_lr)):
                group["lr"] = rate * factor
            if scaler is not None:
                scaler.unscale_(optimizer.optimizer)
            norm = gradient_norm(parameters, arguments.grad_clip)
            guard.watch(norm if scaler is None else None, index)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                average.update_parameters(model.module)
            sums.add_norm(norm)
        watch.lap("backward")
        sums.add(loss, density.detach().float().sum((1, 2, 3)), batch.truths, len(batch.skipped))
        for reason in batch.skipped:
            tqdm.write(f"skipped: {reason}", file=sys.stderr)
        if time.monotonic() - shown > SHOW_SECONDS:
            progress.set_postfix(sums.read(), refresh=False)
            shown = time.monotonic()
        progress.update(len(images) * fabric.world_size)
        if (index + 1) % CHECK_EVERY == 0 or index == len(loader) - 1:
            stop_if_broken(fabric, guard, arguments.accumulate, index + 1)
            if budget:
                arguments.epochs = budget.epochs(epoch + (index + 1) / len(loader), fabric.broadcast(budget.elapsed()))
                progress.total = arguments.epochs * len(loader) * arguments.batch_size * fabric.world_size
        watch.lap("other")
    progress.set_postfix(sums.read(), refresh=False)
    totals = torch.tensor(sums.all(), dtype=torch.float64, device=fabric.device)
    totals = fabric.all_reduce(totals, reduce_op="sum").tolist()
    loss, absolute, squared, norms, batches, images, steps, skipped = totals
    times = watch.seconds()
    return {
        "loss": loss / batches,
        "mae": absolute / images,
        "mse": math.sqrt(squared / images),
        "lr": optimizer.param_groups[0]["lr"],
        "gradient_norm": norms / max(steps, 1),  # float16's scaler may have skipped all
        "skipped": int(skipped),
        "seconds": sum(times.values()),
        "images_per_second": images / sum(times.values()),
        "time": times,
    }


def stop_if_broken(fabric: Fabric, guard: Guard, accumulate: int, end: int) -> None:
    """Raise ``NonFinite`` on every process if one has met a loss or gradient that is not finite before batch ``end``."""
    found = guard.found(end)
    anywhere = fabric.all_reduce(torch.tensor(float(found is not None), device=fabric.device), reduce_op="max")
    if not anywhere:
        return
    what, index = found or ("gradient of another process", -1)
    first = index if what == "loss" else index // accumulate * accumulate
    raise NonFinite(what, range(first, index + 1))


def say(fabric: Fabric, text: str) -> None:
    """Print on one process of the run (``Fabric.print`` would on one of each machine)."""
    if fabric.is_global_zero:
        print(text)


def validate(fabric: Fabric, model: nn.Module, val: Crowd, arguments: argparse.Namespace) -> tuple[float, float]:
    """(MAE, MSE) over the validation images, of which each process counts its share."""
    share = range(fabric.global_rank, len(val), fabric.world_size)
    samples = in_threads(val.__getitem__, share, max(arguments.num_workers, 1))
    torch.backends.cudnn.benchmark = False  # images differ in size: each would be measured anew
    with fabric.autocast():
        results = evaluate(model, samples, fabric.device, arguments.window)
    errors = torch.tensor([result.predicted - result.truth for result in results], dtype=torch.float64)
    sums = torch.stack([errors.abs().sum(), errors.square().sum()]).to(fabric.device)
    absolute, squared = (fabric.all_reduce(sums, reduce_op="sum") / len(val)).tolist()
    return absolute, math.sqrt(squared)


@torch.no_grad()
def show_densities(fabric: Fabric, model: nn.Module, val: Crowd, window: int, log: RunLog, epoch: int) -> None:
    """Log the densities of the first, the middle and the last validation image."""
    model.eval()
    for index in sorted({0, len(val) // 2, len(val) - 1}):
        sample = val[index]
        with fabric.autocast():
            parts = predict(model, normalise(sample.image.to(fabric.device)), window)
        log.add_density(epoch, sample.name, load_image(val.images[index]), density_map(parts).numpy())
    model.train()


def restore(
    path: Path,
    state: dict[str, Any],
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    settings: dict[str, Any],
) -> tuple[int, float]:
    """Load ``state``, which ``path`` holds: a checkpoint or bare weights -> the epoch to begin with, the best score so far."""
    load_weights(model, path)
    if average:
        average.load_state_dict(state.get("average") or AveragedModel(model).state_dict())
    if "optimizer_state_dict" not in state:
        say(fabric, f"{path}: weights without a training state; training begins with them at epoch 0")
        return 0, math.inf
    try:
        saved = state["optimizer_state_dict"]
        # Rate, decay and form of the step are this run's: the file's would silently win.
        groups = [{**g, **settings, "lr": own["lr"]} for g, own in zip(saved["param_groups"], optimizer.param_groups)]
        optimizer.load_state_dict({**saved, "param_groups": groups})
        if state.get("scaler"):  # absent in files of other precisions
            fabric.strategy.precision.load_state_dict(state["scaler"])
        first_epoch, best = int(state["epoch"]) + 1, float(state.get("best", math.inf))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: its training state does not fit this run ({error}); start from a .pth file"
        ) from None
    say(fabric, f"{path}: going on with epoch {first_epoch}")
    return first_epoch, best


class Run(NamedTuple):
    """What a training run is made of."""

    train: Crowd
    val: Crowd
    loader: DataLoader
    sampler: EpochSampler
    network: nn.Module  # bare, for its weights
    model: nn.Module  # compiled and spread over processes, as asked
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    guard: Guard
    first_epoch: int
    best: float


def set_up_run(fabric: Fabric, arguments: argparse.Namespace) -> Run:
    """Data, network, optimizer and, where the folder holds a checkpoint, the state to go on from."""
    train = Crowd(
        arguments.data_dir,
        arguments.crop_size,
        "train",
        seed=arguments.seed,
        use_gaussians=arguments.loss in NEEDS_GAUSSIANS,
        kernel=chosen_kernel(arguments),
        kernel_parameters=kernel_options(arguments) if arguments.kernels == "h5" else None,
        skip_bad=arguments.skip_bad_samples,
    )
    val = Crowd(arguments.data_dir, arguments.crop_size, "val")
    sizes = train.read_once()
    resume = find_start(arguments.resume, arguments.save_dir, option_values(arguments), CHANGEABLE_OPTIONS)

    network = build_model(arguments.model_name, topk=arguments.topk, usenum=arguments.usenum)
    if resume is None:
        load_backbone(network, arguments.backbone_weights)
    network = fabric.to_device(network.to(memory_format=torch.channels_last) if arguments.channels_last else network)
    guard = Guard(fabric.device, max(CHECK_EVERY, 1))
    average = AveragedModel(network, multi_avg_fn=guarded_average(arguments.ema, guard)) if arguments.ema else None
    # One pass over weights and moments, on a CPU several times as fast; it also takes the guard's flag.
    settings = {"lr": arguments.lr, "weight_decay": arguments.weight_decay, "fused": True, "foreach": None}
    optimizer = torch.optim.Adam(rate_groups(network, arguments.head_lr), **settings)
    held = read_checkpoint(resume) if resume else {}
    first_epoch, best = restore(resume, held, fabric, network, optimizer, average, settings) if held else (0, math.inf)
    if arguments.minutes:
        arguments.epochs = epochs_to_begin_with(arguments.minutes, arguments.epochs, first_epoch, held)
    if first_epoch >= arguments.epochs:
        say(fabric, f"{resume}: {first_epoch} epochs are done, of {arguments.epochs}; nothing to do")
    model, optimizer = fabric.setup(torch.compile(network) if arguments.compile else network, optimizer)

    sampler = EpochSampler(len(train), arguments.seed, fabric.global_rank, fabric.world_size)
    load = arguments.batch_size, arguments.num_workers, arguments.prefetch
    on_gpu, processes = fabric.device.type == "cuda", fabric.world_size // arguments.num_nodes
    loader = crop_loader(train, sampler, *load, pin_memory=on_gpu, processes=processes)
    if arguments.pixels == "decoded":
        say(fabric, keep_pixels(train, sizes, arguments.pixels_dir))
    loader = fabric.setup_dataloaders(loader, use_distributed_sampler=False)
    return Run(train, val, loader, sampler, network, model, optimizer, average, guard, first_epoch, best)


def describe_trouble(run: Run, error: NonFinite, batch_size: int) -> tuple[str, dict[str, Any]]:
    """Names and contents of the crops of the batches in which a run broke, read again: they follow from seed and epoch."""
    order = list(run.sampler)[error.batches.start * batch_size : error.batches.stop * batch_size]
    samples = [run.train[index] for index in order]
    keys = ("image", "points", "scales", "rotations", "targets", "name")
    return ", ".join(sample.name for sample in samples), {
        f"{key}s".replace("ss", "s"): [getattr(sample, key) for sample in samples] for key in keys
    }


def train(fabric: Fabric, arguments: argparse.Namespace) -> None:
    """Train, validate, keep the best model by 2 MSE + MAE."""
    run, folder, options = set_up_run(fabric, arguments), arguments.save_dir, option_values(arguments)
    network, average, best = run.network, run.average, run.best
    evaluated = average.module if average else network
    description = {key: getattr(arguments, key) for key in ("model_name", "topk", "usenum", "dataset", "crop_size")}
    if run.first_epoch >= arguments.epochs:
        if arguments.resume == "auto" and fabric.is_global_zero:
            prune_checkpoints(folder, arguments.max_model_num)  # one too many where a kill came between two files
        return
    log = None
    if fabric.is_global_zero:
        remove_stale_partials(folder / "trouble")
        save_arguments(arguments, folder / "config.yml")
        log = RunLog(folder, run.first_epoch)
        print("options: " + ", ".join(f"{key} {value}" for key, value in options.items()))
    images = f"{len(run.train)} training and {len(run.val)} validation images"
    size = f"{sum(p.numel() for p in network.parameters()):,} parameters, {fabric.world_size} x {fabric.device.type}"
    say(fabric, f"{arguments.model_name} on {arguments.dataset}: {images}, {size}")

    def state() -> dict[str, Any]:
        return {
            "model_state_dict": network.state_dict(),
            "optimizer_state_dict": run.optimizer.state_dict(),
            "scaler": fabric.strategy.precision.state_dict(),
            "average": average.state_dict() if average else None,
            "best": best,
            "arguments": description,
            "config": options,
            "epochs": arguments.epochs,
        }

    count = len(run.train)
    shown = {"total": arguments.epochs * count, "initial": run.first_epoch * count, "desc": "train", "unit": "img"}
    progress = tqdm(**shown, disable=not fabric.is_global_zero, **progress_options())
    parts = fabric, run.model, run.optimizer, average, run.loader
    budget = TimeBudget(arguments.minutes, run.first_epoch) if arguments.minutes else None
    epoch = run.first_epoch - 1
    while (epoch := epoch + 1) < arguments.epochs:
        # Order, augmentation and dropout of an epoch follow from seed and epoch alone: a resumed run continues exactly.
        run.train.set_epoch(epoch)
        run.sampler.epoch = epoch
        torch.manual_seed(arguments.seed + epoch * fabric.world_size + fabric.global_rank)
        metrics, scaler = {"epoch": epoch}, fabric.strategy.precision.state_dict()
        try:
            metrics |= train_epoch(*parts, epoch, arguments, progress, run.guard, budget)
        except NonFinite as error:
            names, contents = describe_trouble(run, error, arguments.batch_size)
            where, saved, last = error.what, "", error.batches.stop - 1
            if names:
                where = f"epoch {epoch}, batch {last}: the {error.what} of {names}"
                aside = set_aside(folder, epoch, last, contents, **state() | {"scaler": scaler})
                saved = f" (these crops and the state before them are in {aside})"
            fabric.barrier()  # a launcher ends all processes when the first one ends
            raise ValueError(f"{where} is not finite; lower --lr{saved}") from None
        validations, waiting = divmod(epoch - arguments.val_start, arguments.val_every)
        if (epoch >= arguments.val_start and not waiting) or epoch == arguments.epochs - 1:
            begin = time.monotonic()
            metrics["val_mae"], metrics["val_mse"] = validate(fabric, evaluated, run.val, arguments)
            metrics["val_seconds"] = time.monotonic() - begin
            score = 2 * metrics["val_mse"] + metrics["val_mae"]
            if score < best and fabric.is_global_zero:
                for name in ("best_model.pth", *([f"best_model_{epoch}.pth"] if arguments.save_all else [])):
                    save_weights(folder / name, evaluated.state_dict(), {**description, "epoch": epoch})
            best = min(best, score)
            if log:
                tqdm.write("epoch {epoch}: loss {loss:.3f}, val MAE {val_mae:.3f}, MSE {val_mse:.3f}".format(**metrics))
            if log and validations % SHOWN_EVERY == 0:
                show_densities(fabric, evaluated, run.val, arguments.window, log, epoch)
        if log:
            log.add_epoch(metrics)
            if "val_mae" in metrics:
                write_card(folder)
            save_checkpoint(folder, epoch, arguments.max_model_num, step=(epoch + 1) * len(run.loader), **state())
    progress.close()
    if log:
        log.close()
    fabric.barrier()  # nobody leaves while others still need it
    say(fabric, f"best 2 MSE + MAE on val: {best:.3f}; {folder / 'best_model.pth'}")


def main() -> None:
    """Train as the command line says."""
    arguments = parse_train_options(tuple(MODELS), tuple(LOSSES), KERNEL_OPTIONS)
    fabric = start_fabric(arguments)
    size = f"--batch-size {arguments.batch_size} and --crop-size {arguments.crop_size}"
    remedy = f"lower one of {size} (--accumulate makes up for it), --num-workers, or take --precision bf16-mixed"
    folder = make_folder(arguments.save_dir)
    loading = shared_memory_errors(arguments.num_workers, arguments.batch_size)
    with network_errors(remedy), loading, hold(folder) if fabric.is_global_zero else contextlib.nullcontext():
        try:
            train(fabric, arguments)
        except KeyboardInterrupt:
            other = f"--resume auto goes on with the newest checkpoint in {folder}"
            raise KeyboardInterrupt("" if arguments.resume == "auto" else other) from None


if __name__ == "__main__":
    run_script(main)
