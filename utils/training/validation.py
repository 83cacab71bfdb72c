"""Counts of whole images during training, of which each process takes its share."""

from __future__ import annotations

import argparse
import math
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from utils.evaluation import evaluate, in_threads
from utils.training.processes import agreed

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def count(fabric: Fabric, model: nn.Module, images: Dataset, arguments: argparse.Namespace) -> Tensor:
    """Predicted and annotated counts [I, 2] of ``images`` (``EvalSample``s), float64, the same on all processes."""
    share = range(fabric.global_rank, len(images), fabric.world_size)
    torch.backends.cudnn.benchmark = False  # images differ in size: each would be measured anew
    with agreed(fabric), fabric.autocast():
        samples = in_threads(images.__getitem__, share, max(arguments.num_workers, 1))
        results = evaluate(model, samples, fabric.device, arguments.window)
    counts = torch.zeros(len(images), 2, dtype=torch.float64, device=fabric.device)
    if results:
        own = torch.tensor([[result.predicted, result.truth] for result in results], dtype=torch.float64)
        counts[fabric.global_rank :: fabric.world_size] = own.to(fabric.device)
    return fabric.all_reduce(counts, reduce_op="sum")


def validate(fabric: Fabric, model: nn.Module, val: Dataset, arguments: argparse.Namespace) -> dict[str, float]:
    """MAE, MSE and seconds over the validation images."""
    begin = time.monotonic()
    errors = count(fabric, model, val, arguments).diff(dim=1)
    absolute, squared = errors.abs().mean(), errors.square().mean()
    return {"val_mae": float(absolute), "val_mse": math.sqrt(float(squared)), "val_seconds": time.monotonic() - begin}


def calibrate(fabric: Fabric, model: nn.Module, photographs: Dataset, arguments: argparse.Namespace) -> float:
    """Scale the densities of ``model`` until they sum up to the people of all ``photographs`` -> the factor of that.

    The last layer of the networks is linear, and the absolute value behind it keeps factors. Without anything to predict, or
    anything predicted, the factor is 1.
    """
    model.__dict__.pop("forward", None)  # a copy's CUDA graphs replay the weights of the other
    predicted, annotated = count(fabric, model, photographs, arguments).sum(dim=0).tolist()
    factor = annotated / predicted if predicted > 0 and annotated > 0 else 1.0
    *_, last = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        last.weight *= factor
        last.bias *= factor
    return factor
