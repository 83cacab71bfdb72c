"""The transport kernel K (Eqs. 5 and 7 of Shang and Hong, AAAI 2026): how it is computed, kept in a file and cut to a crop.

Column m of K [N + 1, M] is the distribution over the N annotations and, in the last row, the background of the mass that a
network puts on cell m. It is a ``torch.sparse_csr_tensor``, float32 with int32 indices, shares up to 1e-7 left out.
``dense_transport_kernel`` states the equations; the native engine computes the same numbers near the Gaussians only.

``*_kernel.h5``: datasets ``indptr``, ``indices``, ``data`` of K and ``shape`` = (N + 1, M). Attributes: ``grid`` = (h, w) cells with
M = h * w in row-major order, ``params_hash`` of the Gaussians it was computed from, and the kernel's parameters by name.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from GS2D import native
from utils.files import kernel_path
from utils.h5file import add_array, read_array, read_h5, write_h5

Array = np.ndarray | Tensor
LARGEST_PARAMETER = 1e9  # of the kernel's parameters: squares and products of them stay finite in float32
SMALLEST_SHARE = 1e-7  # of a cell's mass: float32's resolution; less is not stored
_REMEDY = "run python GS2D/build_kernels.py"


class Parameters(NamedTuple):
    """What K depends on besides the Gaussians and the crop; see ``transport_kernel``."""

    stride: int = 8
    background_ratio: float = 0.015
    cut_off: float = 3.0
    post_min: float = 1.0
    post_max: float = 20.0
    scale_ratio: float = 1.0
    round_shapes: bool = False


# Said once in every process by the first such tensor; what is used here, the product with a vector, works.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")  # by PyTorch 2.11


def transport_kernel(
    means: Array,
    scales: Array,
    rotations: Array,
    crop_size: int | tuple[int, int],
    *,
    stride: int = 8,
    background_ratio: float = 0.015,
    cut_off: float = 3.0,
    post_min: float = 1.0,
    post_max: float = 20.0,
    scale_ratio: float = 1.0,
    round_shapes: bool = False,
    backend: str = "auto",
) -> Tensor:
    """K (Eqs. 5 and 7) of one sample, sparse [N + 1, M]; without annotations it is a background row of ones.

    means [N, 2]: (x, y), pixels of the crop, also outside it; scales [N, 2]: standard deviations, pixels; rotations
    [N, 1]: radians. crop_size: pixels, one number or (height, width); cells are (height // stride) x (width // stride).
    Scales become clamp(scale_ratio * scales, stride / post_min, post_max); round_shapes: both of a Gaussian are first
    replaced by their geometric mean, which keeps its area. background_ratio = 0: no background.
    backend: "reference", the dense twin made sparse; "native", the engine in C++; "auto": the engine where there is one.

    Raises ValueError for shapes that do not fit together, for NaN, infinite or negative values (naming the row) and for
    impossible parameters.
    """
    parameters = Parameters(stride, background_ratio, cut_off, post_min, post_max, scale_ratio, round_shapes)
    if not takes_native(backend):
        return compress(dense_transport_kernel(means, scales, rotations, crop_size, **parameters._asdict()).float())
    grid = cell_grid(crop_size, stride)
    device = means.device if isinstance(means, Tensor) else "cpu"
    points, sigma, angles = (part.float().cpu() for part in _clamped(means, scales, rotations, parameters))
    if not len(points):
        return compress(torch.ones(1, math.prod(grid))).to(device)
    half_log_det = sigma.prod(dim=1).log()
    log_odds = math.log(background_ratio) - cut_off**2 / 2 if background_ratio else -math.inf
    # Beyond it the background has all but 1e-7 of a cell: N annotations have at most N exp(l[n*] - l_bg) times what the
    # determinants of the nearest and of another may differ by, and l[n*] - l_bg = half log det - 2 reach - log_odds.
    low, high = half_log_det.aminmax()
    reach = float(math.log(len(points) / SMALLEST_SHARE) + 2 * high - low - log_odds) / 2
    table = torch.cat([points, _whitening(sigma, angles), half_log_det[:, None]], dim=1)

    def background(nearest: Tensor, log_det: Tensor) -> Tensor:
        return log_odds + 2 * nearest - log_det

    return softmax_rows(table, grid, stride, background, max(reach, 0.0)).to(device)


def gst_kernel(
    points: Array, scales: Array, rotations: Array, crop_size: int, short_side: float, **parameters: float
) -> Tensor:
    """GST's K [N + 1, M] of one crop (Eqs. 5 and 7); ``parameters``: those of ``transport_kernel``."""
    return transport_kernel(points, scales, rotations, crop_size, **parameters)


def dense_transport_kernel(
    means: Array, scales: Array, rotations: Array, crop_size: int | tuple[int, int], **parameters: float
) -> Tensor:
    """K [N + 1, M] of ``transport_kernel`` with these ``Parameters``, computed for every cell: the equations, to be read.

    float64 where an input is, else float32.
    """
    values = Parameters(**parameters)
    height, width = cell_grid(crop_size, values.stride)
    points, sigma, angles = _clamped(means, scales, rotations, values)
    if not len(points):
        return points.new_ones(1, height * width)
    y, x = centres(height, values.stride, points), centres(width, values.stride, points)
    dx, dy = (torch.cartesian_prod(y, x).flip(1) - points[:, None]).unbind(2)  # [N, M]
    a, b, c, d = _whitening(sigma, angles).split(1, dim=1)  # [N, 1]
    # Each product and sum rounded by itself, as the engine does it: where two Gaussians are equally near, both must find
    # the same nearest one.
    z = -((a * dx + b * dy).square() + (dx * c + dy * d).square())
    log_det = 2 * sigma.prod(dim=1, keepdim=True).log()  # of Sigma, [N, 1]
    z_max, nearest = z.max(dim=0)
    likelihood = z - log_det / 2
    log_ratio = math.log(values.background_ratio) if values.background_ratio else -math.inf
    background = -(values.cut_off**2) / 2 - z_max - log_det[nearest, 0] + log_ratio
    return torch.cat([likelihood, background[None]]).softmax(dim=0)


def softmax_rows(
    table: Tensor,
    grid: tuple[int, int],
    stride: int,
    background: Callable[[Tensor, Tensor], Tensor],
    reach: float = math.inf,
) -> Tensor:
    """softmax over N Gaussians, l[n, m] = -|W_n (x_m - p_n)|^2 - half log det_n, and a background: sparse [N + 1, M], by the engine.

    table float32 [N, 7]: x, y, W row by row, half log det. ``background``(-z[n*], half log det_n*) [M]: what its log-likelihood
    exceeds that of the cell's nearest Gaussian n* by. Cells where -z[n*] is above ``reach`` go to it as a whole.
    """
    nearest, index = native.kernel_nearest(table.numpy(), grid, stride, reach)
    distance, owner = torch.from_numpy(nearest), torch.from_numpy(index)
    log_odds = background(distance, table[:, 6].index_select(0, owner.clamp(min=0)))
    log_odds = torch.where(owner >= 0, log_odds, math.inf).numpy()
    rows = native.kernel_rows(table.numpy(), grid, stride, nearest, index, log_odds, SMALLEST_SHARE)
    return csr(*rows, grid[0] * grid[1])


def compress(dense: Tensor) -> Tensor:
    """A matrix of shares as the sparse tensor that the engine would give."""
    kept = torch.where(dense > SMALLEST_SHARE, dense, 0).to_sparse_csr()
    return csr(kept.crow_indices(), kept.col_indices(), kept.values(), dense.shape[1])


def csr(indptr: Array, indices: Array, data: Array, columns: int) -> Tensor:
    """A sparse tensor of ``columns`` columns from compressed rows, which it does not check: int32 indices, float32 data."""
    indptr, indices = (torch.as_tensor(array).to(torch.int32) for array in (indptr, indices))
    size = (len(indptr) - 1, columns)
    return torch.sparse_csr_tensor(indptr, indices, torch.as_tensor(data).float(), size, check_invariants=False)


def rows_of(kernel: Tensor) -> scipy.sparse.csr_array:
    """A sparse tensor as SciPy's matrix, over the same memory."""
    arrays = (array.numpy() for array in (kernel.values(), kernel.col_indices(), kernel.crow_indices()))
    return scipy.sparse.csr_array(tuple(arrays), shape=tuple(kernel.shape))


class BlockKernel(NamedTuple):
    """Kernels of B crops as one block-diagonal matrix [R, B M] in compressed rows, and the same of its transpose.

    Plain int32 and float32 tensors, which loading processes can send, pin and copy like any others.
    """

    indptr: Tensor  # [R + 1]
    indices: Tensor  # [E]
    data: Tensor  # [E]
    column_indptr: Tensor  # [B M + 1]
    column_indices: Tensor  # [E]
    column_data: Tensor  # [E]


def block_diagonal(kernels: Sequence[Tensor]) -> BlockKernel:
    """Sparse kernels [R_b, M_b], one after another along the diagonal."""
    rows = scipy.sparse.block_diag([rows_of(kernel) for kernel in kernels], format="csr")
    columns = rows.tocsc()
    arrays = rows.indptr, rows.indices, rows.data, columns.indptr, columns.indices, columns.data
    return BlockKernel(*map(torch.from_numpy, arrays))


def takes_native(backend: str) -> bool:
    """Whether the engine computes; ValueError for an unknown backend, ``NativeUnavailable`` where it must and cannot."""
    if backend not in ("auto", "reference", "native"):
        raise ValueError(f"backend: {backend!r}, must be auto, reference or native")
    return native.works() if backend == "auto" else backend == "native"


def cell_grid(crop_size: int | Sequence[int], stride: int) -> tuple[int, int]:
    """(h, w) cells of a crop."""
    height, width = crop_size if isinstance(crop_size, Sequence) else (crop_size, crop_size)
    if stride < 1 or min(height, width) < stride:
        raise ValueError(f"crop_size: {crop_size} pixels hold no cell of stride {stride}; make it at least one stride")
    return int(height) // stride, int(width) // stride


def centres(count: int, stride: int, like: Tensor) -> Tensor:
    """Centres of ``count`` cells along one axis, pixels: [count]."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * stride


def checked_columns(columns: dict[str, tuple[Array, int]], positive: Sequence[str] = ()) -> Tensor:
    """Columns side by side as one tensor [N, sum of widths], given as name -> (array [N, width], width).

    float64 where one of them is, else float32. Raises ValueError, naming the array and its row, for another shape, for values
    that are not finite, and for negative ones of those in ``positive``.
    """
    arrays, rows = [], len(next(iter(columns.values()))[0])
    for name, (value, width) in columns.items():
        value = torch.as_tensor(value).detach()
        value = value.reshape(0, width) if rows == value.numel() == 0 else value
        if value.shape != (rows, width):
            raise ValueError(f"{name}: shape {tuple(value.shape)}, expected [{rows}, {width}], one row for each mean")
        bad = ~value.isfinite() | (value < 0 if name in positive else False)
        if bad.any():
            row, column = bad.nonzero()[0].tolist()
            wanted = f"finite{' and not negative' if name in positive else ''}; fit the image again or drop the point"
            raise ValueError(f"{name}: {value[row, column]:g} in row {row}, must be {wanted}")
        arrays.append(value)
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in arrays) else torch.float32
    return torch.cat([value.to(arrays[0].device, dtype) for value in arrays], dim=1)


def _clamped(means: Array, scales: Array, rotations: Array, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
    """Means [N, 2], clamped standard deviations [N, 2], angles [N, 1]; ValueError for impossible parameters and values."""
    for name, value in parameters._asdict().items():
        may_be_0 = name in ("background_ratio", "cut_off", "round_shapes")
        if not 0 <= value <= LARGEST_PARAMETER or (value == 0 and not may_be_0):
            bound = f"{'at least' if may_be_0 else 'above'} 0 and at most {LARGEST_PARAMETER:g}"
            raise ValueError(f"{name}: {value}, must be {bound}")
    columns = {"means": (means, 2), "scales": (scales, 2), "rotations": (rotations, 1)}
    points, sigma, angles = checked_columns(columns, positive=["scales"]).split([2, 2, 1], dim=1)
    if parameters.round_shapes:
        sigma = sigma.prod(dim=1, keepdim=True).sqrt().expand_as(sigma)
    smallest, largest = parameters.stride / parameters.post_min, parameters.post_max
    return points, (parameters.scale_ratio * sigma).clamp(min(smallest, largest), largest), angles


def _whitening(sigma: Tensor, angles: Tensor) -> Tensor:
    """W = S^-1 R^T / sqrt(2) with Sigma = R S^2 R^T, so that z = -|W d|^2, row by row: [N, 4]."""
    first, second = (math.sqrt(0.5) / sigma).split(1, dim=1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos * first, sin * first, -sin * second, cos * second], dim=1)


class StoredKernel(NamedTuple):
    """K of a whole image of (h, w) cells; ``attributes`` say what it was computed from and how."""

    kernel: Tensor
    grid: tuple[int, int]
    attributes: dict[str, Any]


def params_hash(*arrays: np.ndarray) -> str:
    """SHA-256 of float32 arrays: tells whether a kernel still belongs to its Gaussians."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
    return digest.hexdigest()


def save_kernel(path: Path, stored: StoredKernel) -> None:
    """Write a kernel; ``path`` appears only once whole."""
    kernel = stored.kernel
    with write_h5(path) as file:
        add_array(file, "indptr", kernel.crow_indices().numpy())
        add_array(file, "indices", kernel.col_indices().numpy())
        add_array(file, "data", kernel.values().numpy())
        add_array(file, "shape", np.array(kernel.shape))
        file.attrs.update({**stored.attributes, "grid": stored.grid})


def load_kernel(path: Path) -> StoredKernel:
    """Read a kernel. Raises ``FileNotFoundError`` or ``ValueError``, naming the file."""
    with read_h5(path, "kernel", _REMEDY) as file:
        indptr, indices, shape = (read_array(file, name, "iu") for name in ("indptr", "indices", "shape"))
        data, attributes = read_array(file, "data", "f"), dict(file.attrs)
        height, width = (int(side) for side in attributes.pop("grid"))
        if shape.tolist() != [len(indptr) - 1, height * width] or min(height, width, len(indptr) - 1) < 1:
            raise ValueError(f"{len(indptr)} row starts and {height} x {width} cells do not fit shape {shape.tolist()}")
        scipy.sparse.csr_array((data, indices, indptr), shape=shape).check_format(full_check=True)
        if not len(indices) == len(data) == indptr[-1] or not np.isfinite(data).all():
            raise ValueError("its row starts do not fit its values, or these are not finite")
    return StoredKernel(csr(indptr, indices, data, height * width), (height, width), attributes)


def read_attributes(path: Path) -> dict[str, Any] | None:
    """The attributes of a kernel file, or None where it is missing or unreadable (and must be built)."""
    try:
        with read_h5(path, "kernel", _REMEDY) as file:
            return dict(file.attrs)
    except (OSError, ValueError):
        return None


def stored_kernel(
    image: Path,
    size: tuple[int, int],
    annotations: Sequence[np.ndarray],
    parameters: Mapping[str, float],
    stays: np.ndarray,
    crop: tuple[int, int, int],
    flip: bool,
) -> Tensor:
    """K of a crop, sparse, cut out of the kernel that ``GS2D/build_kernels.py`` stored for the whole image.

    image: a prepared image of ``size`` (height, width) pixels; annotations: points, scales and rotations of all of it;
    parameters: those of ``transport_kernel``; stays bool [N]: which annotations the crop keeps; crop: (left, top, side) in
    pixels, multiples of the stride; flip: mirror left and right, after the cut.

    Raises ``FileNotFoundError`` or ``ValueError``, naming the file, for a kernel that is missing or damaged, was built for
    another size, from other annotations or with other parameters.
    """
    path, stride = kernel_path(image), int(parameters["stride"])
    stored = load_kernel(path)
    found = {**stored.attributes, "grid": stored.grid, "annotations": stored.kernel.shape[0] - 1}
    wanted = {"grid": cell_grid(size, stride), "annotations": len(stays), "params_hash": params_hash(*annotations)}
    for name, value in {**wanted, **parameters}.items():
        if found.get(name) != value:
            other = "other Gaussians" if name == "params_hash" else f"{name} {found.get(name)} instead of {value}"
            command = f"{kernel_command(image.parent)} with the same options"
            raise ValueError(f"{path}: was built with {other}; run {command}")
    left, top, side = (length // stride for length in crop)
    return restrict(stored, stays, top, left, (side, side), flip)


def kernel_command(split: Path) -> str:
    """The command that builds the kernels that are missing or stale in a split."""
    return f"python GS2D/build_kernels.py --root-path {split.parent}"


def restrict(stored: StoredKernel, stays: np.ndarray, top: int, left: int, grid: tuple[int, int], flip: bool) -> Tensor:
    """The part of a whole image's kernel that belongs to a crop of ``grid`` cells whose first one is (top, left).

    ``stays`` bool [N] says which annotations stay as rows; each column is divided by the sum of its shares that stay, and a
    cell of which nothing stays goes to the background. ``flip`` mirrors left and right.
    """
    cells = np.arange(math.prod(stored.grid)).reshape(stored.grid)[top : top + grid[0], left : left + grid[1]]
    part = rows_of(stored.kernel)[np.append(stays, True)][:, (cells[:, ::-1] if flip else cells).ravel()].tocoo()
    total = np.bincount(part.col, part.data.astype(np.float64), minlength=cells.size)
    orphans = np.flatnonzero(total == 0)
    row = np.append(part.row, np.full(len(orphans), stays.sum()))
    data = np.append(part.data / total[part.col], np.ones(len(orphans)))
    shape = stays.sum() + 1, cells.size
    whole = scipy.sparse.csr_array((data, (row, np.append(part.col, orphans))), shape=shape)
    return csr(whole.indptr, whole.indices, whole.data, cells.size)
