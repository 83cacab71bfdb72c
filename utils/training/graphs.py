"""A network whose training passes are replayed as CUDA graphs: one launch instead of one for each operation."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# The gradients are added up on the stream of the capture, and training's waits for it: 1.03 times the network's time a step.
warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")

_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def set_up_graphs(fabric: Fabric, network: nn.Module, arguments: argparse.Namespace) -> None:
    """Replay the training passes of ``network`` as the options say, where that can be done; one line where it was asked for."""
    reason = "needs a GPU" if fabric.device.type != "cuda" else "not with --compile" if arguments.compile else None
    if arguments.graphs is False or (reason and not arguments.graphs):
        return
    if not reason:
        torch.backends.cudnn.benchmark = not arguments.deterministic  # what is captured is what was measured
        layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
        shape = arguments.batch_size, 3, arguments.crop_size, arguments.crop_size
        images = torch.zeros(shape, device=fabric.device).to(memory_format=layout)
        reason = replay_training(network, images, arguments.precision)
        if reason is None and arguments.accumulate > 1:
            own_gradients(network)
    if reason:
        print(f"--graphs: {reason}; each operation is launched by itself", file=sys.stderr)


def replay_training(network: nn.Module, images: Tensor, precision: str) -> str | None:
    """Capture the forward and backward pass of ``network`` in training mode -> why that failed, in words, or None.

    From then on a batch of the shape of ``images`` is replayed; one of another shape, and every batch in evaluation mode,
    goes through the network as before, which it also does where the capture failed. Dropout draws other masks in each
    replay, from the same random numbers as without. The gradients of a replay lie in the memory of the one before: what
    is accumulated must have memory of its own (``own_gradients``).
    """
    dtype = _DTYPES.get(precision)
    # The casts of weights belong to the pass: kept from an earlier one they would be those of old weights.
    casts = torch.autocast("cuda", dtype, cache_enabled=False) if dtype else contextlib.nullcontext()
    plain, shape, was_training = network.forward, images.shape, network.training
    try:
        with casts:
            replayed = torch.cuda.make_graphed_callables(network.train(), (images,)).forward
    except Exception as error:
        network.forward = plain
        torch.cuda.empty_cache()
        return " ".join(str(error).split()).partition(". ")[0]
    finally:
        network.train(was_training)
        for parameter in network.parameters():
            parameter.grad = None

    def forward(batch: Tensor) -> object:
        return (replayed if network.training and batch.shape == shape else plain)(batch)

    network.forward = forward
    return None


def own_gradients(network: nn.Module) -> None:
    """Zero gradients in memory of their own, to which a backward pass adds instead of putting its own memory in place."""
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
