"""A network whose training passes are replayed as CUDA graphs: one launch instead of one for each operation."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


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
