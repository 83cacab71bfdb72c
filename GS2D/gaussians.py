"""2D Gaussians and the file they are kept in (``*_gs_params.h5``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.h5file import add_array, read_array, read_h5, write_h5

COLUMNS = 8  # x, y, s1, s2, theta, r, g, b


@dataclass
class Gaussians2D:
    """N Gaussians in the image plane, drawn in the order of their index.

    means [N, 2]: (x, y), pixels, the image's top-left corner being (0, 0); scales [N, 2]: standard deviations, pixels;
    rotations [N, 1]: angle of the first axis, radians; colors [N, 3]: RGB in [0, 1]. Arrays or tensors; kept as float32.

    Raises ``ValueError`` where the shapes do not fit together.
    """

    means: Tensor
    scales: Tensor
    rotations: Tensor
    colors: Tensor

    def __post_init__(self) -> None:
        for name, width in (("means", 2), ("scales", 2), ("rotations", 1), ("colors", 3)):
            value = torch.as_tensor(getattr(self, name)).to(torch.float32)
            if value.numel() == 0:
                value = value.reshape(0, width)
            if value.ndim != 2 or value.shape[1] != width or len(value) != len(self.means):
                expected = f"[{len(self.means)}, {width}]"
                raise ValueError(f"{name}: shape {list(value.shape)}, expected {expected}, one row for each mean")
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.means)

    @property
    def params(self) -> Tensor:
        """[N, 8] = x, y, s1, s2, theta, r, g, b: the columns of the file."""
        return torch.cat([self.means, self.scales, self.rotations, self.colors], dim=1)

    @classmethod
    def from_params(cls, params: np.ndarray | Tensor) -> Gaussians2D:
        """The inverse of ``params``; an empty array of any shape gives no Gaussians."""
        params = torch.as_tensor(params)
        if params.numel() == 0:
            params = params.new_zeros(0, COLUMNS)
        if params.ndim != 2 or params.shape[1] != COLUMNS:
            raise ValueError(f"params: shape {list(params.shape)}, expected [N, {COLUMNS}]")
        return cls(params[:, :2], params[:, 2:4], params[:, 4:5], params[:, 5:])

    def save(self, path: Path | str, *, fitted: Gaussians2D | None = None, attributes: Mapping | None = None) -> None:
        """Write dataset ``params`` (float32 [N, 8], gzip); ``path`` appears only once whole.

        ``fitted`` keeps what ``params`` was before it was cleaned, in a dataset of that name; ``attributes`` describe the fit.
        """
        with write_h5(Path(path)) as file:
            # In the order in which they are read, so that what is read and saved again is the same file.
            described = dict(sorted((attributes or {}).items()))
            add_array(file, "params", self.params.detach().cpu().numpy()).attrs.update(described)
            if fitted is not None:
                add_array(file, "fitted", fitted.params.detach().cpu().numpy())

    @classmethod
    def load(cls, path: Path | str) -> Gaussians2D:
        """Read ``params`` of a file of this project or of the authors, which holds nothing else.

        Scales may be NaN, as in some released files: the sampling step replaces them. Raises ``FileNotFoundError`` or
        ``ValueError``, naming the file.
        """
        return read_file(path)[0]


def read_file(path: Path | str) -> tuple[Gaussians2D, Gaussians2D | None, dict]:
    """(Gaussians, the fitted ones if they were cleaned since, attributes of the fit) of a ``*_gs_params.h5``."""
    with read_h5(Path(path), "file of fitted Gaussians", "fit the image with 2dgs_counting_1gs_gsplat.py") as file:
        gaussians = Gaussians2D.from_params(read_array(file, "params", "fiu"))
        fitted = Gaussians2D.from_params(read_array(file, "fitted", "fiu")) if "fitted" in file else None
        if fitted is not None and len(fitted) != len(gaussians):
            raise ValueError(f"'fitted' has {len(fitted)} rows, 'params' {len(gaussians)}")
        return gaussians, fitted, dict(file["params"].attrs)
