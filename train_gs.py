"""Train a density network with the transported-mass loss of GST, or with a loss that it is measured against.

python train_gs.py --model-name vgg_trans --dataset qnrf --data-dir data/UCF-Train-Val-Test --device 0
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from datasets.crowd import Batch, Crowd, collate
from datasets.images import load_image
from datasets.sampler import EpochSampler
from losses import LOSSES, NEEDS_GAUSSIANS, build_loss
from models import MODELS, attention_variance, build_model, load_backbone, load_weights, read_checkpoint
from utils.checkpoint import find_start, prune_checkpoints, save_checkpoint, save_weights, set_aside
from utils.cli import progress_options, run_script
from utils.config import option_values, save_arguments
from utils.device import fabric_devices, memory_errors
from utils.evaluation import density_map, evaluate, predict
from utils.files import make_folder, remove_stale_partials
from utils.kernel_options import kernel_options
from utils.lock import hold
from utils.run_log import RunLog
from utils.stopwatch import Stopwatch
from utils.train_options import FREE_OPTIONS, parse_train_options

WARM_UP = 0.05  # of the run
ATTENTION_WEIGHT = 0.1  # of the attention variance of vgg_trans
SHOWN_EVERY = 5  # validations from one picture of the three densities to the next


class NonFinite(ValueError):
    """A loss or gradient that is not finite, and the batch that it came from."""

    def __init__(self, what: str, value: float, epoch: int, index: int, batch: Batch) -> None:
        super().__init__(f"epoch {epoch}, batch {index}: the {what} of {', '.join(batch.names)} is {value}; lower --lr")
        self.index, self.batch = index, batch


def chosen_loss(arguments: argparse.Namespace) -> Callable[[Tensor, Batch], Tensor]:
    """The loss that ``--loss`` names, with its options."""
    if arguments.loss == "gst":
        return build_loss("gst", **kernel_options(arguments))
    if arguments.loss == "mse":
        adaptive = arguments.sigma == "adaptive"
        return build_loss("mse", adaptive=True) if adaptive else build_loss("mse", sigma=arguments.sigma)
    return build_loss(arguments.loss)


def rate_factor(schedule: str, progress: float, warm_up: float = 0.0) -> float:
    """Factor on the learning rate when ``progress`` (0 to 1) of the run is done, of which ``warm_up`` is a linear rise.

    It has no state, so that a resumed run agrees.
    """
    warm_up = warm_up or (WARM_UP if schedule == "warmup-cosine" else 0.0)
    rise = min(1.0, progress / warm_up) if warm_up else 1.0
    return rise * (1.0 if schedule == "constant" else (1 + math.cos(math.pi * progress)) / 2)


def gradient_norm(fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> float:
    """The norm of the gradient before it is clipped to ``clip`` (0: as it is)."""
    if clip or fabric.strategy.precision.precision == "16-mixed":  # where clipping also takes off the loss's scale
        norm = fabric.clip_gradients(model, optimizer, max_norm=clip or math.inf, error_if_nonfinite=False)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return float(norm)


def train_epoch(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    loader: DataLoader,
    epoch: int,
    arguments: argparse.Namespace,
    progress: tqdm,
) -> dict[str, Any]:
    """One pass over the training crops -> means of loss, MAE, MSE and gradient norm, and where the time went."""
    loss_of, watch = chosen_loss(arguments), Stopwatch(fabric.device)
    losses, errors, norms, skipped = [], [], [], 0
    for index, batch in enumerate(loader):
        group = min(arguments.accumulate, len(loader) - index // arguments.accumulate * arguments.accumulate)
        is_last = index % arguments.accumulate == group - 1
        images = batch.images
        if arguments.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        watch.lap("data")
        with fabric.no_backward_sync(model, enabled=not is_last):
            density, attention = model(images)
            watch.lap("forward")
            loss = loss_of(density, batch)
            if attention:
                loss = loss + ATTENTION_WEIGHT * attention_variance(attention).sum()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise NonFinite("loss", losses[-1], epoch, index, batch)
            watch.lap("loss")
            fabric.backward(loss / group)
        if is_last:
            done = (epoch + index / len(loader)) / arguments.epochs
            optimizer.param_groups[0]["lr"] = arguments.lr * rate_factor(
                arguments.lr_schedule, done, arguments.warm_up_epochs / arguments.epochs
            )
            norms.append(gradient_norm(fabric, model, optimizer, arguments.grad_clip))
            if not math.isfinite(norms[-1]) and arguments.precision != "16-mixed":  # whose scaler skips such a step
                raise NonFinite("gradient", norms[-1], epoch, index, batch)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                average.update_parameters(model.module)
        watch.lap("backward")
        counts = density.detach().float().sum((1, 2, 3)).tolist()
        errors += [count - float(target.sum()) for count, target in zip(counts, batch.targets)]
        for reason in batch.skipped:
            skipped += 1
            tqdm.write(f"skipped: {reason}", file=sys.stderr)
        means = {"loss": f"{sum(losses) / len(losses):.2f}", "MAE": f"{sum(map(abs, errors)) / len(errors):.2f}"}
        progress.set_postfix(means, refresh=False)
        progress.update(len(images) * fabric.world_size)
        watch.lap("other")
    sums = [len(losses), sum(losses), len(errors), sum(map(abs, errors)), sum(e * e for e in errors), skipped]
    sums = fabric.all_reduce(torch.tensor(sums, dtype=torch.float64, device=fabric.device), reduce_op="sum").tolist()
    times = watch.seconds()
    return {
        "loss": sums[1] / sums[0],
        "mae": sums[3] / sums[2],
        "mse": math.sqrt(sums[4] / sums[2]),
        "lr": optimizer.param_groups[0]["lr"],
        "gradient_norm": sum(norms) / len(norms),
        "skipped": int(sums[5]),
        "seconds": sum(times.values()),
        "images_per_second": sums[2] / sum(times.values()),
        "time": times,
    }


def say(fabric: Fabric, text: str) -> None:
    """Print on one process of the run (``Fabric.print`` would on one of each machine)."""
    if fabric.is_global_zero:
        print(text)


def validate(fabric: Fabric, model: nn.Module, val: Crowd, arguments: argparse.Namespace) -> tuple[float, float]:
    """(MAE, MSE) over the validation images, of which each process counts its share."""
    share = Subset(val, range(fabric.global_rank, len(val), fabric.world_size))
    samples = DataLoader(share, batch_size=None, num_workers=arguments.num_workers, generator=torch.Generator())
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
            parts = predict(model, sample.image.to(fabric.device), window)
        log.add_density(epoch, sample.name, load_image(val.images[index]), density_map(parts).numpy())
    model.train()


def restore(
    path: Path, fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None
) -> tuple[int, float]:
    """Load a checkpoint, or bare weights, also of the released code -> the epoch to begin with, the best score so far."""
    load_weights(model, path)
    state = read_checkpoint(path)
    if average:
        average.load_state_dict(state.get("average") or AveragedModel(model).state_dict())
    if "optimizer_state_dict" not in state:
        say(fabric, f"{path}: weights without a training state; training begins with them at epoch 0")
        return 0, math.inf
    try:
        optimizer.load_state_dict(state["optimizer_state_dict"])
        fabric.strategy.precision.load_state_dict(state.get("scaler") or {})
        first_epoch, best = int(state["epoch"]) + 1, float(state.get("best", math.inf))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: its training state does not fit this run ({error}); start from a .pth file"
        ) from None
    say(fabric, f"{path}: going on with epoch {first_epoch}")
    return first_epoch, best


def set_up(arguments: argparse.Namespace) -> Fabric:
    """Devices, precision, processes, seed."""
    devices = fabric_devices(arguments.device)
    if arguments.precision == "16-mixed" and devices["accelerator"] == "cpu":
        raise ValueError("--precision 16-mixed: needs a GPU; take bf16-mixed or 32 on the CPU")
    if arguments.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in another order
        torch.use_deterministic_algorithms(True)
    try:
        fabric = Fabric(**devices, num_nodes=arguments.num_nodes, precision=arguments.precision)
    except RuntimeError as error:  # how the job was started: SLURM's tasks are not given by node, for one
        raise ValueError(str(error)) from None
    fabric.launch()
    seed_everything(arguments.seed, verbose=False)
    return fabric


def train(fabric: Fabric, arguments: argparse.Namespace) -> None:
    """Train, validate, keep the best model by 2 MSE + MAE."""
    stored = kernel_options(arguments) if arguments.kernels == "h5" else None
    train = Crowd(
        arguments.data_dir,
        arguments.crop_size,
        "train",
        seed=arguments.seed,
        use_gaussians=arguments.loss in NEEDS_GAUSSIANS,
        kernel_parameters=stored,
        skip_bad=arguments.skip_bad_samples,
    )
    val = Crowd(arguments.data_dir, arguments.crop_size, "val")
    folder, options = arguments.save_dir, option_values(arguments)
    resume = find_start(arguments.resume, folder, options, FREE_OPTIONS)

    network = build_model(arguments.model_name, topk=arguments.topk, usenum=arguments.usenum)
    description = {key: getattr(arguments, key) for key in ("model_name", "topk", "usenum", "dataset", "crop_size")}
    if resume is None:
        load_backbone(network, arguments.backbone_weights)
    network = fabric.to_device(network.to(memory_format=torch.channels_last) if arguments.channels_last else network)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(arguments.ema)) if arguments.ema else None
    evaluated = average.module if average else network
    # One pass over weights and moments, on a CPU several times as fast; on GPUs 16-mixed could not clip gradients then.
    fused = fabric.device.type == "cpu"
    settings = {"lr": arguments.lr, "weight_decay": arguments.weight_decay, "fused": fused}
    optimizer = torch.optim.Adam(network.parameters(), **settings)
    first_epoch, best = restore(resume, fabric, network, optimizer, average) if resume else (0, math.inf)
    if first_epoch >= arguments.epochs:
        if arguments.resume == "auto" and fabric.is_global_zero:
            prune_checkpoints(folder, arguments.max_model_num)  # one too many where a kill came between two files
        say(fabric, f"{resume}: {first_epoch} epochs are done, of {arguments.epochs}; nothing to do")
        return
    model, optimizer = fabric.setup(torch.compile(network) if arguments.compile else network, optimizer)

    sampler = EpochSampler(len(train), arguments.seed, fabric.global_rank, fabric.world_size)
    loader = DataLoader(
        train,
        arguments.batch_size,
        sampler=sampler,
        num_workers=arguments.num_workers,
        collate_fn=collate,
        pin_memory=fabric.device.type == "cuda",
        persistent_workers=arguments.num_workers > 0,
        generator=torch.Generator(),  # of its own, so that workers do not draw from the numbers of dropout
    )
    loader = fabric.setup_dataloaders(loader, use_distributed_sampler=False)
    log = None
    if fabric.is_global_zero:
        remove_stale_partials(folder / "trouble")
        save_arguments(arguments, folder / "config.yml")
        log = RunLog(folder, first_epoch)
        print("options: " + ", ".join(f"{key} {value}" for key, value in options.items()))
    say(
        fabric,
        f"{arguments.model_name} on {arguments.dataset}: {len(train)} training and {len(val)} validation images, "
        f"{sum(p.numel() for p in network.parameters()):,} parameters, {fabric.world_size} x {fabric.device.type}",
    )

    def state() -> dict[str, Any]:
        return {
            "model_state_dict": network.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "scaler": fabric.strategy.precision.state_dict(),
            "average": average.state_dict() if average else None,
            "best": best,
            "arguments": description,
            "config": options,
        }

    images = arguments.epochs * len(train)
    shown = {"total": images, "initial": first_epoch * len(train), "desc": "train", "unit": "img"}
    progress = tqdm(**shown, disable=not fabric.is_global_zero, **progress_options())
    for epoch in range(first_epoch, arguments.epochs):
        # Order, augmentation and dropout of an epoch follow from seed and epoch alone: a resumed run continues exactly.
        train.set_epoch(epoch)
        sampler.epoch = epoch
        torch.manual_seed(arguments.seed + epoch * fabric.world_size + fabric.global_rank)
        metrics = {"epoch": epoch}
        try:
            metrics |= train_epoch(fabric, model, optimizer, average, loader, epoch, arguments, progress)
        except NonFinite as error:
            batch = {
                key: getattr(error.batch, key)
                for key in ("images", "points", "scales", "rotations", "targets", "names")
            }
            aside = set_aside(folder, epoch, error.index, batch, **state())
            raise ValueError(f"{error} (this batch and the state before it are in {aside})") from None
        validations, waiting = divmod(epoch - arguments.val_start, arguments.val_every)
        if (epoch >= arguments.val_start and not waiting) or epoch == arguments.epochs - 1:
            metrics["val_mae"], metrics["val_mse"] = validate(fabric, evaluated, val, arguments)
            score = 2 * metrics["val_mse"] + metrics["val_mae"]
            if score < best and fabric.is_global_zero:
                for name in ("best_model.pth", *([f"best_model_{epoch}.pth"] if arguments.save_all else [])):
                    save_weights(folder / name, evaluated.state_dict(), {**description, "epoch": epoch})
            best = min(best, score)
            if log:
                tqdm.write("epoch {epoch}: loss {loss:.3f}, val MAE {val_mae:.3f}, MSE {val_mse:.3f}".format(**metrics))
            if log and validations % SHOWN_EVERY == 0:
                show_densities(fabric, evaluated, val, arguments.window, log, epoch)
        if log:
            log.add_epoch(metrics)
            save_checkpoint(folder, epoch, arguments.max_model_num, step=(epoch + 1) * len(loader), **state())
    progress.close()
    if log:
        log.close()
    say(fabric, f"best 2 MSE + MAE on val: {best:.3f}; {folder / 'best_model.pth'}")


def main() -> None:
    """Train as the command line says."""
    arguments = parse_train_options(tuple(MODELS), tuple(LOSSES))
    fabric = set_up(arguments)
    size = f"--batch-size {arguments.batch_size} and --crop-size {arguments.crop_size}"
    remedy = f"lower one of {size} (--accumulate makes up for it), --num-workers, or take --precision bf16-mixed"
    folder = make_folder(arguments.save_dir)
    with memory_errors(remedy), hold(folder) if fabric.is_global_zero else contextlib.nullcontext():
        train(fabric, arguments)


if __name__ == "__main__":
    run_script(main)
