"""Train a density network with the transported-mass loss of GST, or with a loss that it is measured against.

python train_gs.py --model-name vgg_trans --dataset qnrf --data-dir data/UCF-Train-Val-Test --device 0
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from datasets.crowd import Batch, Crowd
from datasets.loading import CropLoader, crop_loader
from datasets.sampler import EpochSampler
from GS2D.options import KERNEL_OPTIONS, kernel_options
from losses import LOSSES, NEEDS_GAUSSIANS, build_kernel, build_loss
from models import MODELS, attention_variance, build_model, load_backbone, load_state, rate_groups, read_checkpoint
from utils.cli import ProgressBar, interrupted_by_sigterm, run_script
from utils.dataset_report import REPORT, data_name, read_report
from utils.device import network_errors, start_fabric
from utils.evaluation import density_map, evaluate, in_threads, predict
from utils.evaluation.model_card import write_card
from utils.files import make_folder, remove_stale_partials, split_hashes
from utils.images import load_image
from utils.lock import hold
from utils.pixels import normalise
from utils.training.graphs import set_up_graphs
from utils.training.run_folder import RunFolder, run_options
from utils.training.run_log import RunLog
from utils.training.schedule import TimeBudget, epochs_to_begin_with, rate_factor
from utils.training.shared_memory import shared_memory_errors
from utils.training.steps import (
    Batches,
    EpochSums,
    Guard,
    NonFinite,
    Stopped,
    Stopwatch,
    WeightAverage,
    agreed,
    gradient_norm,
    stop_together,
)
from utils.training.train_options import parse_train_options
from utils.training.writer import Writer

ATTENTION_WEIGHT = 0.1  # of the attention variance of vgg_trans
CHECK_EVERY = 32  # batches from one look at the guard to the next: the device is waited for
SHOW_SECONDS = 0.5  # from one look at loss and MAE to the next
SHOWN_EVERY = 5  # validations from one picture of the three densities to the next


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
    average: WeightAverage | None,
    loader: CropLoader,
    epoch: int,
    arguments: argparse.Namespace,
    progress: tqdm,
    guard: Guard,
    budget: TimeBudget | None = None,
) -> dict[str, Any]:
    """One pass over the training crops -> means of loss, MAE, MSE and gradient norm, and where the time went.

    A step's gradient is that of the mean over its crops, however they are divided into batches and processes. No step waits
    for the device. Raises ``Stopped``, on all processes together, up to ``CHECK_EVERY`` batches after what was not finite or
    could not be read; weights and the optimizer's state are those before it.
    """
    loss_of, parameters = chosen_loss(arguments), list(model.parameters())
    scaler = getattr(fabric.strategy.precision, "scaler", None)  # of 16-mixed, which skips steps that overflow
    if scaler is None:
        optimizer.optimizer.found_inf = guard.broken
    guard.start_epoch()
    torch.backends.cudnn.benchmark = not arguments.deterministic  # all crops are of one size
    sums, watch, shown = EpochSums(), Stopwatch(fabric.device), time.monotonic()
    batches = Batches(fabric, loader, arguments.accumulate)
    unread = torch.zeros(1, 3, arguments.crop_size, arguments.crop_size, device=fabric.device)
    for index, batch, crops, is_last in batches:
        images = normalise(batch.images if batch else unread)
        if arguments.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        watch.lap("data")
        with fabric.no_backward_sync(model, enabled=not is_last):
            density, attention = model(images)
            watch.lap("forward")
            loss = loss_of(density, batch, crops * fabric.world_size) if batch else density.sum() * math.nan
            if attention:
                loss = loss + ATTENTION_WEIGHT * attention_variance(attention).sum()
            gated = guard.gate(loss, index)
            watch.lap("loss")
            fabric.backward(gated if len(images) == crops else gated * (len(images) / crops))
        if is_last:
            done = (epoch + index / len(loader)) / arguments.epochs
            factor = rate_factor(arguments.lr_schedule, done, arguments.warm_up_epochs / arguments.epochs)
            for group, rate in zip(optimizer.param_groups, (arguments.lr, arguments.head_lr)):
                group["lr"] = rate * factor
            if scaler is not None:
                scaler.unscale_(optimizer.optimizer)
            norm = gradient_norm(parameters, arguments.grad_clip)
            guard.watch(norm, index)
            optimizer.step()
            # What is accumulated keeps memory of its own (see utils/training/graphs.py).
            optimizer.zero_grad(set_to_none=arguments.accumulate == 1)
            if average:
                average.update(model.module)
            sums.add_norm(norm)
        watch.lap("backward")
        if batch:
            sums.add(loss, density.detach().float().sum((1, 2, 3)), batch.truths, len(batch.skipped))
            for reason in batch.skipped:
                tqdm.write(f"skipped: {reason}", file=sys.stderr)
        if time.monotonic() - shown > SHOW_SECONDS:
            progress.set_postfix(sums.read(), refresh=False)
            shown = time.monotonic()
        progress.update(len(images) * fabric.world_size)
        if (index + 1) % CHECK_EVERY == 0 or index == len(loader) - 1:
            stop_together(fabric, batches.error, guard.found(index + 1, arguments.accumulate))
            if budget:
                arguments.epochs = budget.epochs(epoch + (index + 1) / len(loader), fabric.broadcast(budget.elapsed()))
                progress.total = arguments.epochs * len(loader) * arguments.batch_size * fabric.world_size
        watch.lap("other")
    progress.set_postfix(sums.read(), refresh=False)
    return sums.metrics(fabric, watch) | {"lr": optimizer.param_groups[0]["lr"]}


def say(fabric: Fabric, text: str) -> None:
    """Print on one process of the run (``Fabric.print`` would on one of each machine)."""
    if fabric.is_global_zero:
        print(text)


def validate(fabric: Fabric, model: nn.Module, val: Crowd, arguments: argparse.Namespace) -> tuple[float, float]:
    """(MAE, MSE) over the validation images, of which each process counts its share."""
    share = range(fabric.global_rank, len(val), fabric.world_size)
    samples = in_threads(val.__getitem__, share, max(arguments.num_workers, 1))
    torch.backends.cudnn.benchmark = False  # images differ in size: each would be measured anew
    with agreed(fabric), fabric.autocast():
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
    average: WeightAverage | None,
    settings: dict[str, Any],
) -> int:
    """Load ``state``, which ``path`` holds: a checkpoint or bare weights -> the epoch to begin with."""
    load_state(model, state.get("trained_state_dict", state["model_state_dict"]), path)
    if average and state.get("average"):
        average.load_state_dict(state["average"])
    if "optimizer_state_dict" not in state:
        say(fabric, f"{path}: weights without a training state; training begins with them at epoch 0")
        return 0
    try:
        saved = state["optimizer_state_dict"]
        # Rate, decay and form of the step are this run's: the file's would silently win.
        groups = [{**g, **settings, "lr": own["lr"]} for g, own in zip(saved["param_groups"], optimizer.param_groups)]
        optimizer.load_state_dict({**saved, "param_groups": groups})
        if state.get("scaler"):  # absent in files of other precisions
            fabric.strategy.precision.load_state_dict(state["scaler"])
        first_epoch = int(state["epoch"]) + 1
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: its training state does not fit this run ({error}); start from a .pth file"
        ) from None
    say(fabric, f"{path}: going on with epoch {first_epoch}")
    return first_epoch


class Run(NamedTuple):
    """What a training run is made of."""

    train: Crowd
    val: Crowd
    loader: CropLoader
    sampler: EpochSampler
    network: nn.Module  # bare, for its weights
    model: nn.Module  # compiled and spread over processes, as asked
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    guard: Guard
    start: Path | None  # the file that it goes on from
    first_epoch: int
    budget: TimeBudget | None  # of --minutes


def set_up_run(fabric: Fabric, folder: RunFolder, arguments: argparse.Namespace) -> Run:
    """Data, network, optimizer and, where the folder holds a checkpoint, the state to go on from."""
    crops = fabric.world_size * arguments.batch_size * arguments.accumulate
    start = None
    with agreed(fabric):
        if fabric.is_global_zero:
            start = folder.find_start(arguments.resume, arguments.overwrite, run_options(arguments), crops)
    start = fabric.broadcast(start)
    with agreed(fabric):
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
        train.read_once()

        network = build_model(arguments.model_name, topk=arguments.topk, usenum=arguments.usenum)
        if start is None:
            load_backbone(network, arguments.backbone_weights)
        network = network.to(memory_format=torch.channels_last) if arguments.channels_last else network
        network = fabric.to_device(network)
        scaler = getattr(fabric.strategy.precision, "scaler", None)
        guard = Guard(fabric.device, max(CHECK_EVERY, 1), scaler)
        average = WeightAverage(network, arguments.ema, guard) if arguments.ema else None
        # One pass over weights and moments, on a CPU several times as fast; it also takes the guard's flag.
        settings = {"lr": arguments.lr, "weight_decay": arguments.weight_decay, "fused": True, "foreach": None}
        optimizer = torch.optim.Adam(rate_groups(network, arguments.head_lr), **settings)
        held = read_checkpoint(start) if start else {}
        first_epoch = restore(start, held, fabric, network, optimizer, average, settings) if held else 0
        budget = None
        if arguments.minutes:
            arguments.epochs = epochs_to_begin_with(arguments.minutes, arguments.epochs, first_epoch, held)
            spent = float(held.get("seconds", 0)) if start in folder.checkpoints() else 0.0
            budget = TimeBudget(arguments.minutes, first_epoch, spent)
        if first_epoch >= arguments.epochs:
            say(fabric, f"{start}: {first_epoch} epochs are done, of {arguments.epochs}; nothing to do")
        set_up_graphs(fabric, network, arguments)
    model, optimizer = fabric.setup(torch.compile(network) if arguments.compile else network, optimizer)

    sampler = EpochSampler(len(train), arguments.seed, fabric.global_rank, fabric.world_size)
    load = arguments.batch_size, arguments.num_workers, arguments.prefetch, fabric.device
    processes = fabric.world_size // arguments.num_nodes
    with agreed(fabric):
        loader = crop_loader(train, sampler, *load, timeout=arguments.loading_timeout, processes=processes)
    return Run(train, val, loader, sampler, network, model, optimizer, average, guard, start, first_epoch, budget)


def train(fabric: Fabric, folder: RunFolder, arguments: argparse.Namespace) -> None:
    """Train, validate, keep the best model by 2 MSE + MAE."""
    options = run_options(arguments)
    run = set_up_run(fabric, folder, arguments)
    network, average, crops = run.network, run.average, fabric.world_size * arguments.batch_size * arguments.accumulate
    evaluated = average.module if average else network
    whose = data_name(arguments.dataset, arguments.data_dir)
    chosen = ("model_name", "topk", "usenum", "crop_size")
    description = {"dataset": whose, **{key: getattr(arguments, key) for key in chosen}}
    log, best, val_hash = None, math.inf, ""
    is_done = run.first_epoch >= arguments.epochs
    with agreed(fabric):
        if fabric.is_global_zero and (not is_done or run.start in folder.checkpoints()):
            folder.begin(options, run.start, arguments.epochs, crops)
        folder.is_begun = True
        if fabric.is_global_zero and not is_done:
            remove_stale_partials(folder.path / "trouble")
            log = RunLog(folder, run.first_epoch)
            val_hash = split_hashes(str(arguments.data_dir))["val"][1]
            best = folder.best_score(val_hash, arguments.window)
            print("options: " + ", ".join(f"{key} {value}" for key, value in options.items()))
    if is_done:
        if fabric.is_global_zero:
            folder.prune(arguments.max_model_num)  # one too many where a kill came between two files
        return
    images = f"{len(run.train)} training and {len(run.val)} validation images"
    size = f"{sum(p.numel() for p in network.parameters()):,} parameters, {fabric.world_size} x {fabric.device.type}"
    if not read_report(arguments.data_dir):
        say(fabric, f"{arguments.data_dir}: no {REPORT} says what the data are; taken for {whose} (--dataset)")
    say(fabric, f"{arguments.model_name} on {whose}: {images}, {size}")

    def state() -> dict[str, Any]:
        return {
            "model_state_dict": network.state_dict(),
            "optimizer_state_dict": run.optimizer.state_dict(),
            "scaler": fabric.strategy.precision.state_dict(),
            "average": average.state_dict() if average else None,
            "arguments": description,
            "config": options,
            "epochs": arguments.epochs,
            **({"seconds": run.budget.elapsed()} if run.budget else {}),
        }

    count = len(run.train)
    shown = {"total": arguments.epochs * count, "initial": run.first_epoch * count, "desc": "train", "unit": "img"}
    progress = ProgressBar(**shown, disable=not fabric.is_global_zero)
    writing = arguments.max_model_num, arguments.checkpoint_minutes, functools.partial(write_card, folder.path)
    writer = Writer(folder, *writing) if fabric.is_global_zero else None
    with writer or contextlib.nullcontext():
        parts = fabric, run.model, run.optimizer, average, run.loader
        epoch = run.first_epoch - 1
        while (epoch := epoch + 1) < arguments.epochs:
            # Order, augmentation and dropout of an epoch follow from seed and epoch alone: a resumed run continues exactly.
            run.train.set_epoch(epoch)
            run.sampler.epoch = epoch
            torch.manual_seed(arguments.seed + epoch * fabric.world_size + fabric.global_rank)
            metrics, scaler = {"epoch": epoch}, fabric.strategy.precision.state_dict()
            try:
                metrics |= train_epoch(*parts, epoch, arguments, progress, run.guard, run.budget)
            except Stopped as stopped:
                with agreed(fabric):
                    if isinstance(stopped.error, NonFinite):
                        # Their crops are read again: they follow from seed and epoch.
                        places = stopped.error.places(arguments.batch_size)
                        samples = [run.train[index] for index in list(run.sampler)[places]]
                        raise folder.set_aside(epoch, stopped.error, samples, **state() | {"scaler": scaler}) from None
                    if stopped.error:
                        raise stopped.error from None
            validations, waiting = divmod(epoch - arguments.val_start, arguments.val_every)
            if (epoch >= arguments.val_start and not waiting) or epoch == arguments.epochs - 1:
                begin = time.monotonic()
                metrics["val_mae"], metrics["val_mse"] = validate(fabric, evaluated, run.val, arguments)
                metrics["val_seconds"] = time.monotonic() - begin
            with agreed(fabric):
                if log and "val_mae" in metrics:
                    score = 2 * metrics["val_mse"] + metrics["val_mae"]
                    if score < best:
                        errors = {key: metrics[key] for key in ("epoch", "val_mae", "val_mse")}
                        about = description | errors | {"val_hash": val_hash, "window": arguments.window}
                        writer.save_best(evaluated.state_dict(), about, keep_each=arguments.save_all)
                    best = min(best, score)
                    tqdm.write(
                        "epoch {epoch}: loss {loss:.3f}, val MAE {val_mae:.3f}, MSE {val_mse:.3f}".format(**metrics)
                    )
                    if validations % SHOWN_EVERY == 0:
                        show_densities(fabric, evaluated, run.val, arguments.window, log, epoch)
                if log:
                    log.add_epoch(metrics)
                    writer.save_checkpoint(epoch, {"step": (epoch + 1) * len(run.loader), **state()})
        with agreed(fabric):
            if writer:
                writer.close()
                write_card(folder.path)
    progress.close()
    if log:
        log.close()
        found = folder.best()
        print(
            f"best 2 MSE + MAE on val: {best:.3f}; {folder.best_path}" if found else "no validation gave a finite error"
        )


def main() -> None:
    """Train as the command line says."""
    arguments = parse_train_options(tuple(MODELS), tuple(LOSSES), KERNEL_OPTIONS)
    fabric = start_fabric(arguments)
    size = f"--batch-size {arguments.batch_size} and --crop-size {arguments.crop_size}"
    remedy = f"lower one of {size} (--accumulate makes up for it), --num-workers, or take --precision bf16-mixed"
    remedy += ", or --no-graphs" if fabric.device.type == "cuda" and arguments.graphs is not False else ""
    folder = RunFolder(make_folder(arguments.save_dir))
    loading = shared_memory_errors(arguments.num_workers, arguments.batch_size, arguments.loading_timeout)
    alone = hold(folder.path) if fabric.is_global_zero else contextlib.nullcontext()
    with network_errors(remedy), loading, alone, interrupted_by_sigterm():
        try:
            train(fabric, folder, arguments)
        except KeyboardInterrupt:
            command = f"python train_gs.py --config {shlex.quote(str(folder.path / 'config.yml'))}"
            anew = folder.is_begun and (arguments.resume == "none" or arguments.overwrite)
            raise KeyboardInterrupt(f"{command} goes on where this one stopped" if anew else "") from None
        fabric.barrier()  # nobody leaves while others still need it
        if torch.distributed.is_initialized():  # a connection that ends with the interpreter may abort it
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_script(main)
