"""What the transport kernel checks before it is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor


def cell_grid(crop_size: int | tuple[int, int], stride: int) -> tuple[int, int]:
    """(h, w) cells of a crop."""
    height, width = crop_size if isinstance(crop_size, Sequence) else (crop_size, crop_size)
    if stride < 1 or min(height, width) < stride:
        raise ValueError(f"crop_size: {crop_size} pixels hold no cell of stride {stride}; make it at least one stride")
    return int(height) // stride, int(width) // stride


def clamp_bounds(stride: int, background_ratio: float, cut_off: float, *positive: float) -> tuple[float, float]:
    """Smallest and largest standard deviation, pixels, after checking the parameters."""
    names = ("background_ratio", "cut_off", "post_min", "post_max", "scale_ratio")
    for name, value in zip(names, (background_ratio, cut_off, *positive)):
        if not 0 <= value < math.inf or (value == 0 and name in names[2:]):
            raise ValueError(f"{name}: {value}, must be finite and {'positive' if name in names[2:] else 'at least 0'}")
    post_min, post_max, _ = positive
    return min(stride / post_min, post_max), post_max


def check_lengths(names: str, *values: Sequence) -> None:
    """Raise ``ValueError`` unless there is at least one sample, and as many of each."""
    lengths = [len(value) for value in values]
    if min(lengths) != max(lengths) or not lengths[0]:
        raise ValueError(f"{names}: {lengths} samples; there must be at least one, and as many of each")


def checked_gaussians(means: Array, scales: Array, rotations: Array) -> Tensor:
    """Checked columns x, y, s1, s2, theta: [N, 5]; float64 where one of them is, else float32."""
    columns = []
    for name, value, width in (("means", means, 2), ("scales", scales, 2), ("rotations", rotations, 1)):
        value = torch.as_tensor(value).detach()
        if len(means) == 0 and value.numel() == 0:
            value = value.reshape(0, width)
        if value.shape != (len(means), width):
            expected = f"[{len(means)}, {width}], one row for each mean"
            raise ValueError(f"{name}: shape {tuple(value.shape)}, expected {expected}")
        columns.append(value)
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in columns) else torch.float32
    values = torch.cat([value.to(columns[0].device, dtype) for value in columns], dim=1)
    if not (values.isfinite().all() and (columns[1] >= 0).all()):
        good = values.isfinite() & (values >= values.new_tensor([-math.inf, -math.inf, 0, 0, -math.inf]))
        row, column = (~good).nonzero()[0].tolist()
        name, wanted = (("means", ""), ("scales", " and not negative"), ("rotations", ""))[column // 2]
        value = f"{name}: {values[row, column]:g} in row {row}"
        raise ValueError(f"{value}, must be finite{wanted}; fit the image again or drop the point")
    return values
