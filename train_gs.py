"""Train a density network with the transported-mass loss of GST.

python train_gs.py --model-name vgg_trans --dataset qnrf --data-dir data/UCF-Train-Val-Test --device 0
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric, seed_everything
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.crowd import Batch, Crowd, collate
from datasets.sampler import EpochSampler
from losses.transport import TransportedMassLoss, TransportKernel, transport_kernels
from models import MODELS, attention_variance, build_model, load_backbone, load_weights, read_checkpoint
from utils.checkpoint import find_start, save_checkpoint, save_weights
from utils.cli import progress_options, run_script
from utils.config import make_parser, number, option_values, parse_arguments, save_arguments
from utils.device import fabric_devices
from utils.evaluation import evaluate, mae_mse
from utils.files import make_folder, remove_stale_partials
from utils.kernel_options import STRIDE, add_kernel_options, check_kernel_options, kernel_options

PRESETS = Path(__file__).with_name("configs")
# Options that do not change what a step computes: a run may go on with other values.
FREE_OPTIONS = (
    "data_dir",
    "device",
    "epochs",
    "num_workers",
    "resume",
    "save_dir",
    "backbone_weights",
    "window",
    "max_model_num",
    "val_start",
    "val_every",
)
SCHEDULES = ("constant", "cosine", "warmup-cosine")
WARM_UP = 0.05  # of the run
ATTENTION_WEIGHT = 0.1  # of the attention variance of vgg_trans


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; the defaults are the published recipe, the crop sizes those of ``configs/<dataset>.yml``."""
    parser = make_parser("Train a density network with GST's transported-mass loss.")
    add = parser.add_argument
    add("--model-name", choices=tuple(MODELS), default="vgg", help="network")
    add("--dataset", choices=("qnrf", "jhu", "nwpu", "sha", "shb"), default="qnrf", help="whose preset applies")
    add("--data-dir", type=Path, required=True, help="prepared data set with train/ (and gs_params/) and val/")
    add("--save-dir", type=Path, help="folder of the run (default: runs/<dataset>_<model-name>)")
    add("--num-nodes", type=number(int, 1), default=1, help="machines that train together")
    add(
        "--precision",
        choices=("32", "16-mixed", "bf16-mixed"),
        default="32",
        help="of the network; the loss is in float32",
    )
    add("--device", default="auto", help="GPU id, several (0,1), or cpu; auto: the first GPU if there is one")
    add("--backbone-weights", default="imagenet", help="imagenet, none, or a file with VGG19 or VGG16 weights")
    add(
        "--resume",
        default="auto",
        help="go on from the newest checkpoint in the run's folder, a .tar or .pth file, or none",
    )
    add("--lr", type=number(float, 0, above=True), default=5e-6, help="Adam's learning rate")
    add(
        "--lr-schedule",
        choices=SCHEDULES,
        default="constant",
        help="learning rate over the run; warm-up: its first 5 %%",
    )
    add("--weight-decay", type=number(float, 0), default=1e-5, help="Adam's weight decay")
    add("--batch-size", type=number(int, 1), default=1, help="crops in a step, on each device")
    add("--accumulate", type=number(int, 1), default=1, help="batches whose gradients are averaged for one step")
    add("--grad-clip", type=number(float, 0), default=0, help="largest norm of a step's gradient (0: as it is)")
    add(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="memory layout of images and weights",
    )
    add("--epochs", type=number(int, 1), default=1200, help="passes over the training images")
    add("--val-start", type=number(int, 0), default=600, help="first epoch that is validated")
    add("--val-every", type=number(int, 1), default=5, help="epochs between validations")
    add("--max-model-num", type=number(int, 1), default=1, help="checkpoints to keep")
    add("--crop-size", type=number(int, 16), default=512, help="side of the training crops, pixels")
    add("--window", type=number(int, 16), default=512, help="side of the evaluation windows, pixels")
    add("--num-workers", type=number(int, 0), default=2, help="processes that load images")
    add("--seed", type=number(int, 0, 2**32 - 1), default=4073, help="of weights, order, augmentation and dropout")
    add(
        "--topk",
        type=number(float, 0, 1, above=True),
        default=0.3,
        help="vgg_trans: share of tokens that are neighbours",
    )
    add("--usenum", type=number(int, 1), default=18, help="vgg_trans: number of in-degree embeddings")
    add(
        "--downsample-ratio",
        type=int,
        choices=(STRIDE,),
        default=STRIDE,
        help="pixels in a density cell (fixed by the networks)",
    )
    add(
        "--kernels",
        choices=("online", "h5"),
        default="online",
        help="kernels: computed after each augmentation, or stored ones",
    )
    add_kernel_options(add)
    arguments = parse_arguments(parser, argv, presets=("dataset", PRESETS))
    if arguments.crop_size % 16:
        parser.error(f"--crop-size {arguments.crop_size}: must be a multiple of 16, the networks' coarsest stride")
    check_kernel_options(parser, arguments)
    arguments.save_dir = arguments.save_dir or Path("runs") / f"{arguments.dataset}_{arguments.model_name}"
    return arguments


def training_loss(
    model: torch.nn.Module, batch: Batch, crop_size: int, kernel: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 6 on one batch, plus the attention term of vgg_trans; and the predicted counts [B]."""
    density, attention = model(batch.images)
    if batch.kernels[0] is None:
        kernels = transport_kernels(batch.points, batch.scales, batch.rotations, crop_size, **kernel)
    else:
        kernels = [TransportKernel.from_csr(*stored[:4]).to(density.device) for stored in batch.kernels]
    loss = TransportedMassLoss()(density, kernels, batch.targets)
    if attention:
        loss = loss + ATTENTION_WEIGHT * attention_variance(attention).sum()
    return loss, density.detach().float().sum(dim=(1, 2, 3))


def rate_factor(schedule: str, progress: float) -> float:
    """Factor on the learning rate when ``progress`` (0 to 1) of the run is done; no state, so that a resumed run agrees."""
    warm_up = min(1.0, progress / WARM_UP) if schedule == "warmup-cosine" else 1.0
    return warm_up * (1.0 if schedule == "constant" else (1 + math.cos(math.pi * progress)) / 2)


def train_epoch(
    fabric: Fabric,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    epoch: int,
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """One pass over the training crops -> mean loss, MAE and MSE of the crops, seconds."""
    begin, losses, errors = time.perf_counter(), [], []
    kernel = kernel_options(arguments)
    for index, batch in enumerate(loader):
        group = min(arguments.accumulate, len(loader) - index // arguments.accumulate * arguments.accumulate)
        is_last = index % arguments.accumulate == group - 1
        if arguments.channels_last:
            batch = batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
        with fabric.no_backward_sync(model, enabled=not is_last):
            loss, counts = training_loss(model, batch, arguments.crop_size, kernel)
            if not torch.isfinite(loss):
                raise ValueError(f"epoch {epoch}: the loss of {', '.join(batch.names)} is {loss.item()}; lower --lr")
            fabric.backward(loss / group)
        if is_last:
            progress = (epoch + index / len(loader)) / arguments.epochs
            optimizer.param_groups[0]["lr"] = arguments.lr * rate_factor(arguments.lr_schedule, progress)
            if arguments.grad_clip:
                fabric.clip_gradients(model, optimizer, max_norm=arguments.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        errors += [float(count - target.sum()) for count, target in zip(counts, batch.targets)]
    mse = math.sqrt(sum(e * e for e in errors) / len(errors))
    seconds = time.perf_counter() - begin
    return {
        "loss": sum(losses) / len(losses),
        "mae": sum(map(abs, errors)) / len(errors),
        "mse": mse,
        "seconds": seconds,
    }


def main() -> None:
    """Train, validate, keep the best model by 2 MSE + MAE."""
    arguments = parse()
    devices = fabric_devices(arguments.device)
    if arguments.precision == "16-mixed" and devices["accelerator"] == "cpu":
        raise ValueError("--precision 16-mixed: needs a GPU; take bf16-mixed or 32 on the CPU")
    fabric = Fabric(**devices, num_nodes=arguments.num_nodes, precision=arguments.precision)
    fabric.launch()
    seed_everything(arguments.seed, verbose=False)

    stored = kernel_options(arguments) if arguments.kernels == "h5" else None
    train = Crowd(arguments.data_dir, arguments.crop_size, "train", seed=arguments.seed, kernel_parameters=stored)
    val = Crowd(arguments.data_dir, arguments.crop_size, "val")
    folder = make_folder(arguments.save_dir)
    resume = find_start(arguments.resume, folder, option_values(arguments), FREE_OPTIONS)
    if fabric.is_global_zero:
        remove_stale_partials(folder)
        save_arguments(arguments, folder / "config.yml")
        print("options: " + ", ".join(f"{key} {value}" for key, value in option_values(arguments).items()))

    model = build_model(arguments.model_name, topk=arguments.topk, usenum=arguments.usenum)
    description = {key: getattr(arguments, key) for key in ("model_name", "topk", "usenum", "dataset", "crop_size")}
    first_epoch, best, state = 0, math.inf, None
    if resume is None:
        load_backbone(model, arguments.backbone_weights)
    else:
        state = read_checkpoint(resume)
        load_weights(model, resume)
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.lr, weight_decay=arguments.weight_decay)
    if state is not None and "optimizer_state_dict" in state:
        optimizer.load_state_dict(state["optimizer_state_dict"])
        first_epoch, best = state["epoch"] + 1, state.get("best", math.inf)
        if first_epoch >= arguments.epochs:
            fabric.print(f"{resume}: {first_epoch} epochs are done, of {arguments.epochs}; nothing to do")
            return
        fabric.print(f"{resume}: going on after epoch {first_epoch - 1}")
    if arguments.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model, optimizer = fabric.setup(model, optimizer)
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
    fabric.print(
        f"{arguments.model_name} on {arguments.dataset}: {len(train)} training and {len(val)} validation images, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {fabric.world_size} x {fabric.device.type}"
    )

    epochs = range(first_epoch, arguments.epochs)
    progress = tqdm(epochs, desc="train", unit="epoch", disable=not fabric.is_global_zero, **progress_options())
    for epoch in progress:
        # Order, augmentation and dropout of an epoch follow from seed and epoch alone: a resumed run continues exactly.
        train.set_epoch(epoch)
        sampler.epoch = epoch
        torch.manual_seed(arguments.seed + epoch * fabric.world_size + fabric.global_rank)
        metrics = {"epoch": epoch, **train_epoch(fabric, model, optimizer, loader, epoch, arguments)}
        if (
            epoch >= arguments.val_start
            and (epoch - arguments.val_start) % arguments.val_every == 0
            or epoch == arguments.epochs - 1
        ):
            results = evaluate(model, (val[i] for i in range(len(val))), fabric.device, arguments.window)
            metrics["val_mae"], metrics["val_mse"] = mae_mse(results)
            score = 2 * metrics["val_mse"] + metrics["val_mae"]
            if score < best and fabric.is_global_zero:
                save_weights(folder / "best_model.pth", model.module.state_dict(), {**description, "epoch": epoch})
            best = min(best, score)
        if fabric.is_global_zero:
            save_checkpoint(
                folder,
                epoch,
                arguments.max_model_num,
                model_state_dict=model.module.state_dict(),
                optimizer_state_dict=optimizer.state_dict(),
                best=best,
                arguments=description,
            )
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(metrics) + "\n")
        progress.set_postfix({key: f"{value:.2f}" for key, value in metrics.items() if key not in ("epoch", "seconds")})
    fabric.print(f"best 2 MSE + MAE on val: {best:.3f}; {folder / 'best_model.pth'}")


if __name__ == "__main__":
    run_script(main)
