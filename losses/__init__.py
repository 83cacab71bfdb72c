"""Losses between a predicted density and point annotations.

``build_loss`` gives each by its name: a function (density [B, 1, h, w], sample) -> scalar, where ``sample`` has the
attributes of ``losses.inputs.Annotations``. Nothing else knows which losses there are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from losses.bayesian import bayesian_loss
from losses.dm_count import dm_count_loss
from losses.generalized import generalized_loss
from losses.gst import gst_loss
from losses.inputs import Annotations
from losses.regression import regression_loss

LOSSES: dict[str, Callable[..., Tensor]] = {
    "gst": gst_loss,
    "bl": bayesian_loss,
    "bl+": partial(bayesian_loss, background="paper"),
    "dm-count": dm_count_loss,
    "gloss": generalized_loss,
    "mse": regression_loss,
}
NEEDS_GAUSSIANS = frozenset({"gst"})  # the others read no scales and rotations


def build_loss(name: str, **options: Any) -> Callable[[Tensor, Annotations], Tensor]:
    """The loss of that name, with the keyword arguments of its function as options. ValueError for another name."""
    if name not in LOSSES:
        raise ValueError(f"loss: {name!r}, must be one of {', '.join(LOSSES)}")
    return partial(LOSSES[name], **options)
