"""Train a density network with the transported-mass loss of GST, or with a loss that it is measured against.

python train_gs.py --model-name vgg_trans --dataset qnrf --data-dir data/UCF-Train-Val-Test --device 0
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import nn

from datasets.crowd import Crowd
from datasets.loading import CropLoader, EpochSampler
from GS2D.options import KERNEL_OPTIONS, kernel_options
from losses import KERNELS, LOSSES, NEEDS_GAUSSIANS, build_kernel, build_loss
from models import MODELS, attention_variance, build_model, load_backbone, load_state, rate_groups, read_checkpoint
from utils.cli import run_script
from utils.device import start_fabric
from utils.evaluation.model_card import write_card
from utils.files import REPORT, data_name, make_folder, read_report
from utils.training.graphs import set_up_graphs
from utils.training.processes import agreed, crops_of_a_step, print_once, training_process
from utils.training.record import Record
from utils.training.run_folder import RunFolder, description, restore_training, run_options
from utils.training.schedule import TimeBudget, epochs_to_begin_with, set_rates
from utils.training.steps import Steps, WeightAverage
from utils.training.train_options import parse_train_options
from utils.training.validation import calibrate, validate

ATTENTION_WEIGHT = 0.1  # of the attention variance of vgg_trans


class Run(NamedTuple):
    """What a training run is made of."""

    train: Crowd
    val: Crowd
    photographs: Crowd  # those of ``train``, whole
    loader: CropLoader
    sampler: EpochSampler
    network: nn.Module  # bare, for its weights
    model: nn.Module  # compiled and spread over processes, as asked
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    steps: Steps
    start: str | None  # the file that it goes on from
    first_epoch: int

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and chosen: of averaged weights, if there are."""
        return self.average.module if self.average else self.network

    def state(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """What a checkpoint holds besides its epoch."""
        budget = self.steps.budget
        return {
            "model_state_dict": self.network.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scaler": self.steps.fabric.strategy.precision.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "arguments": description(arguments),
            "config": run_options(arguments),
            "epochs": arguments.epochs,
            **({"seconds": budget.elapsed()} if budget else {}),
        }


def set_up_run(fabric: Fabric, folder: RunFolder, arguments: argparse.Namespace) -> Run:
    """Data, network, optimizer and, where the folder holds a checkpoint, the state to go on from."""
    where = arguments.resume, arguments.overwrite, run_options(arguments), crops_of_a_step(fabric, arguments)
    with agreed(fabric):
        start = folder.find_start(*where) if fabric.is_global_zero else None
    start = fabric.broadcast(start)
    with agreed(fabric):
        parameters = kernel_options(arguments)
        train = Crowd(
            arguments.data_dir,
            arguments.crop_size,
            "train",
            seed=arguments.seed,
            use_gaussians=arguments.loss in NEEDS_GAUSSIANS,
            kernel=build_kernel(arguments.loss, **(parameters if arguments.loss in NEEDS_GAUSSIANS else {})),
            kernel_parameters=parameters if arguments.kernels == "h5" else None,
            whole_targets=arguments.whole_targets,
            jitter=arguments.jitter,
            skip_bad=arguments.skip_bad_samples,
        )
        val = Crowd(arguments.data_dir, arguments.crop_size, "val")
        skip = {"training": False, "skip_bad": arguments.skip_bad_samples}
        photographs = Crowd(arguments.data_dir, arguments.crop_size, "train", **skip)
        train.read_once()
        sampler = EpochSampler(len(train), arguments.seed, fabric.global_rank, fabric.world_size)
        load = arguments.batch_size, arguments.num_workers, arguments.prefetch
        loader = CropLoader(train, sampler, *load, fabric.device)

        network = build_model(arguments.model_name, topk=arguments.topk, usenum=arguments.usenum)
        if start is None:
            load_backbone(network, arguments.backbone_weights)
        network = network.to(memory_format=torch.channels_last) if arguments.channels_last else network
        network = fabric.to_device(network)
        if start is None and arguments.calibrate:
            calibrate(fabric, network, photographs, arguments)
        average = WeightAverage(network, arguments.ema) if arguments.ema else None
        # One pass over weights and moments, on a CPU several times as fast.
        settings = {"lr": arguments.lr, "weight_decay": arguments.weight_decay, "fused": True, "foreach": None}
        optimizer = torch.optim.Adam(rate_groups(network, arguments.head_lr), **settings)

        checkpoint, first_epoch, budget = read_checkpoint(start) if start else {}, 0, None
        if checkpoint:
            load_state(network, checkpoint.get("trained_state_dict", checkpoint["model_state_dict"]), start)
            first_epoch = restore_training(start, checkpoint, fabric, optimizer, average, settings)
            is_bare = "optimizer_state_dict" not in checkpoint
            way = "weights without a training state; training begins with them at" if is_bare else "going on with"
            print_once(fabric, f"{start}: {way} epoch {first_epoch}")
        if arguments.minutes:
            arguments.epochs = epochs_to_begin_with(arguments.minutes, arguments.epochs, first_epoch, checkpoint)
            spent = float(checkpoint.get("seconds", 0)) if start in folder.checkpoints() else 0.0
            budget = TimeBudget(arguments.minutes, first_epoch, spent)
        set_up_graphs(fabric, network, arguments)
    model, optimizer = fabric.setup(torch.compile(network) if arguments.compile else network, optimizer)
    steps = Steps(fabric, arguments, budget)
    return Run(train, val, photographs, loader, sampler, network, model, optimizer, average, steps, start, first_epoch)


def train_epoch(fabric: Fabric, run: Run, arguments: argparse.Namespace, epoch: int) -> dict[str, Any]:
    """One pass over the training crops -> means of loss, MAE, MSE and gradient norm, and where the time went.

    A step's gradient is that of the mean over its crops, however they are divided into batches and processes. No step waits
    for the device. What is not finite or could not be read raises an error some batches later, on all processes together.
    """
    steps, optimizer = run.steps, run.optimizer
    sigma = {"adaptive": True} if arguments.sigma == "adaptive" else {"sigma": arguments.sigma}
    transported = {"background_weight": arguments.background_weight, "count_weight": arguments.count_weight}
    own = sigma if arguments.loss == "mse" else transported if arguments.loss in KERNELS else {}
    loss_of = build_loss(arguments.loss, **own)
    for images, batch, crops, is_last in steps.batches(run.loader, epoch):
        with fabric.no_backward_sync(run.model, enabled=not is_last):
            density, attention = run.model(images)
            steps.lap("forward")
            loss = loss_of(density, batch, crops) if batch else density.sum() * math.nan
            if attention:
                loss = loss + ATTENTION_WEIGHT * attention_variance(attention).sum()
            fabric.backward(steps.share(loss, density))
        if is_last:
            set_rates(optimizer, arguments, steps.done)
            steps.gradient_norm(optimizer)
            optimizer.step()
            # What is accumulated keeps memory of its own (see utils/training/graphs.py).
            optimizer.zero_grad(set_to_none=arguments.accumulate == 1)
            if run.average:
                run.average.update(run.network)
    return steps.metrics() | {"lr": optimizer.param_groups[0]["lr"]}


def train(fabric: Fabric, folder: RunFolder, arguments: argparse.Namespace) -> None:
    """Train, validate, keep the best model by 2 MSE + MAE."""
    options = run_options(arguments)
    run = set_up_run(fabric, folder, arguments)
    is_done, record = run.first_epoch >= arguments.epochs, None
    with agreed(fabric):
        if fabric.is_global_zero and (not is_done or run.start in folder.checkpoints()):
            folder.begin(options, run.start, arguments.epochs, crops_of_a_step(fabric, arguments))
        folder.is_begun = True
        if is_done and fabric.is_global_zero:
            folder.prune(arguments.max_model_num)  # one too many where a kill came between two files
            print(f"{run.start}: {run.first_epoch} epochs are done, of {arguments.epochs}; nothing to do")
        elif fabric.is_global_zero:
            record = Record(folder, run.first_epoch, arguments, description(arguments), write_card)
    if is_done:
        return
    name = data_name(arguments.dataset, arguments.data_dir)
    images = f"{len(run.train)} training and {len(run.val)} validation images"
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    size = f"{parameters:,} parameters, {fabric.world_size} x {fabric.device.type}"
    print_once(fabric, "options: " + ", ".join(f"{key} {value}" for key, value in options.items()))
    if not read_report(arguments.data_dir):
        print_once(fabric, f"{arguments.data_dir}: no {REPORT} says what the data are; taken for {name} (--dataset)")
    print_once(fabric, f"{arguments.model_name} on {name}: {images}, {size}")

    with record or contextlib.nullcontext(), contextlib.closing(run.loader):
        epoch = run.first_epoch
        while epoch < arguments.epochs:  # which --minutes may change
            # Order, augmentation and dropout of an epoch follow from seed and epoch alone: a resumed run continues exactly.
            run.train.set_epoch(epoch)
            run.sampler.epoch = epoch
            torch.manual_seed(arguments.seed + epoch * fabric.world_size + fabric.global_rank)
            metrics = {"epoch": epoch, **train_epoch(fabric, run, arguments, epoch)}
            evaluated = run.evaluated
            is_due = epoch >= arguments.val_start and (epoch - arguments.val_start) % arguments.val_every == 0
            if is_due or epoch == arguments.epochs - 1:
                if arguments.calibrate:
                    evaluated = copy.deepcopy(evaluated)
                    metrics["calibration"] = calibrate(fabric, evaluated, run.photographs, arguments)
                metrics |= validate(fabric, evaluated, run.val, arguments)
            with agreed(fabric):
                if record:
                    state = {"step": (epoch + 1) * len(run.loader), **run.state(arguments)}
                    record.add_epoch(metrics, evaluated, state)
            epoch += 1
        run.steps.close()
        with agreed(fabric):
            if record:
                record.finish()


def main() -> None:
    """Train as the command line says."""
    arguments = parse_train_options(tuple(MODELS), tuple(LOSSES), KERNEL_OPTIONS)
    fabric = start_fabric(arguments)
    folder = RunFolder(make_folder(arguments.save_dir))
    with training_process(fabric, folder, arguments):
        train(fabric, folder, arguments)


if __name__ == "__main__":
    run_script(main)
