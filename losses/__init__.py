"""Losses between a predicted density and point annotations.

``build_loss`` gives each by its name: a function (density [B, 1, h, w], batch, crops=None) -> scalar, where ``batch`` has the
attributes of ``losses.inputs.Annotations``. ``build_kernel`` gives what ``datasets.crowd.Crowd`` needs to make the transport kernels for it.
Nothing else knows which losses there are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from losses.bayesian import bayesian_kernel
from losses.dm_count import dm_count_loss
from losses.generalized import generalized_loss
from losses.inputs import Annotations
from losses.regression import regression_loss
from losses.transport import gst_kernel, transported_mass_loss

# One loss, three kernels: what tells GST from BL is what K is made from.
KERNELS: dict[str, Callable[..., Tensor]] = {
    "gst": gst_kernel,
    "bl": bayesian_kernel,
    "bl+": partial(bayesian_kernel, background="paper"),
}
LOSSES: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(KERNELS, transported_mass_loss),
    "dm-count": dm_count_loss,
    "gloss": generalized_loss,
    "mse": regression_loss,
}
NEEDS_GAUSSIANS = frozenset({"gst"})  # the others read no scales and rotations
SUMMED = frozenset({"dm-count"})  # the others have no term that the step's crops do not average


def build_loss(name: str, **options: Any) -> Callable[..., Tensor]:
    """The loss of that name: (density [B, 1, h, w], batch, crops=None) -> scalar.

    It is the mean over the batch of a loss of each crop, which depends on that crop and on ``crops`` alone: how many crops
    an optimizer's step averages over, in all its batches on all processes (default: those of this batch). The mean of its
    values for the parts of a batch, weighed by their sizes, is its value for the batch, however that is divided. Options:
    the keyword arguments of its function. ValueError for another name.
    """
    if name not in LOSSES:
        raise ValueError(f"loss: {name!r}, must be one of {', '.join(LOSSES)}")

    def loss(density: Tensor, batch: Annotations, crops: int | None = None) -> Tensor:
        return LOSSES[name](density, batch, **options, **({"crops": crops} if name in SUMMED else {}))

    return loss


def build_kernel(name: str, **options: Any) -> Callable[..., Tensor] | None:
    """(points, scales, rotations, crop_size, short_side) of a crop -> the kernel that the loss of that name transports with.

    None for losses that transport nothing. Options: keyword arguments of the kernel's function.
    """
    return partial(KERNELS[name], **options) if name in KERNELS else None
