"""The CPU engine: drawing and fitting 2D Gaussians on one core, in C++.

It computes what ``GS2D.rasterize.rasterize_reference`` and ``GS2D.fitting.loss_terms`` define, in float32. Every call
uses one core and releases the GIL; threads and processes may call at once. ``build.py`` compiles it on first use.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from dataclasses import dataclass

import numpy as np

from GS2D.native.build import NativeUnavailable, build_library, unavailable

__all__ = [
    "FitState",
    "NativeUnavailable",
    "fit",
    "kernel_nearest",
    "kernel_rows",
    "load",
    "loss_and_gradients",
    "render",
    "render_backward",
    "resize",
    "works",
]

MAX_SIDE = 1 << 20  # pixels; coordinates beyond lose the half pixel in float32


@functools.cache
def load() -> ctypes.CDLL:
    """The engine's library. Raises ``NativeUnavailable`` where it can be neither found nor built."""
    try:
        library = ctypes.CDLL(str(build_library()))
    except OSError as error:
        raise unavailable(str(error)) from None
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    scene = [integer, pointer, pointer, pointer, pointer, integer, integer]
    library.gst_render.argtypes = [*scene, pointer]
    library.gst_render_backward.argtypes = [*scene, *[pointer] * 5]
    library.gst_target_new.argtypes = [pointer, pointer, integer, integer, pointer]
    library.gst_target_free.argtypes, library.gst_target_free.restype = [pointer], None
    library.gst_loss_and_gradients.argtypes = [pointer, integer, pointer, real, real, pointer, pointer]
    library.gst_fit.argtypes = [
        *[pointer, integer, pointer, pointer, ctypes.c_int64, integer, ctypes.c_double, integer, real, real, pointer]
    ]
    cells = [integer, pointer, integer, integer, real]
    library.gst_kernel_nearest.argtypes = [*cells, real, pointer, pointer]
    library.gst_kernel_visit.argtypes = [*cells, *[pointer] * 4]
    library.gst_kernel_fill.argtypes = [*cells, *[pointer] * 5, real, integer, *[pointer] * 3]
    library.gst_resize.argtypes = [pointer, ctypes.c_int64, integer, integer, *[pointer] * 3]
    return library


@functools.cache
def works() -> bool:
    """Whether the engine can be had on this machine; the first call may build it."""
    try:
        return load() is not None
    except NativeUnavailable:
        return False


def render(means, conics, colors, opacities, width: int, height: int) -> np.ndarray:
    """Draw Gaussians given by means [N, 2], conics [N, 3], colors [N, 3], opacities [N] -> float32 [height, width, 3].

    Raises ``ValueError`` for other shapes, numbers that are not finite, conics that are not positive definite.
    """
    arrays = _gaussians(means, conics, colors, opacities, width, height)
    image = np.empty((height, width, 3), np.float32)
    _call(load().gst_render, len(arrays[0]), *arrays, width, height, image)
    return image


def render_backward(means, conics, colors, opacities, width: int, height: int, grad_image) -> tuple[np.ndarray, ...]:
    """Gradients by means, conics, colors, opacities of a function of the drawing whose gradient is ``grad_image``."""
    arrays = _gaussians(means, conics, colors, opacities, width, height)
    grad_image = _floats("grad_image", grad_image, height, width, 3)
    gradients = tuple(map(np.empty_like, arrays))
    _call(load().gst_render_backward, len(arrays[0]), *arrays, width, height, grad_image, *gradients)
    return gradients


class _Target:
    """The engine's own copy of an image and its mask."""

    def __init__(self, image: np.ndarray, foreground: np.ndarray) -> None:
        image, foreground = np.asarray(image), np.asarray(foreground)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(
                f"image: {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]; convert it to 8-bit RGB"
            )
        self.height, self.width, _ = image.shape
        _check_size(self.width, self.height)
        if foreground.shape != image.shape[:2] or foreground.dtype not in (np.bool_, np.uint8):
            expected = f"bool or uint8 {list(image.shape[:2])}"
            raise ValueError(
                f"foreground: {foreground.dtype} {list(foreground.shape)}, expected {expected} as the image has"
            )
        image, foreground = np.ascontiguousarray(image), np.ascontiguousarray(foreground).view(np.uint8)
        library, handle = load(), ctypes.c_void_p()
        _call(library.gst_target_new, image, foreground, self.width, self.height, ctypes.addressof(handle))
        self.handle = handle.value
        weakref.finalize(self, library.gst_target_free, self.handle)


@dataclass
class FitState:
    """What ``fit`` carries between calls: the image in the engine's layout, Adam's moments [2, N, 8] and its step."""

    target: _Target | None = None
    moments: np.ndarray | None = None
    step: int = 0


def fit(
    image: np.ndarray,
    foreground: np.ndarray,
    means,
    u,
    v,
    c,
    *,
    iterations: int,
    learning_rate: float = 0.01,
    fixed_means: int | None = None,
    shape_weight: float = 0.2,
    max_ratio: float = 1.5,
    state: FitState | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float, float, int]:
    """Run Adam (betas 0.9 and 0.999, eps 1e-8) on the loss of ``loss_and_gradients``; every Gaussian has opacity 1.

    The first ``fixed_means`` means stay where they are (default: all). With a ``state``, empty at the first call, a fit
    may be cut into several calls on the same image; the parameters come out the same, bit for bit.

    Returns means, u, v, c, the render loss and the shape loss that the last iteration started from (as the released
    code reports them; NaN for 0 iterations), and the iterations done. Raises ``ValueError`` for other shapes or numbers
    that are not finite.
    """
    state = state or FitState()
    target = state.target = state.target or _Target(image, foreground)
    params = _parameters(means, u, v, c, finite=state.step == 0)
    n = len(params)
    if state.moments is None:
        state.moments = np.zeros((2, n, 8), np.float32)
    if (target.height, target.width, state.moments.shape[1]) != (*np.shape(image)[:2], n):
        raise ValueError(
            f"state: is of a fit of {state.moments.shape[1]} Gaussians on {target.width} x {target.height} pixels"
        )
    fixed_means = n if fixed_means is None else fixed_means
    if not (iterations >= 0 and 0 <= fixed_means <= n):
        raise ValueError(f"iterations: {iterations}, fixed_means: {fixed_means}; expected >= 0, and 0 to {n}")
    losses = np.full(2, np.nan)
    adam = state.moments, state.step, iterations, learning_rate
    _call(load().gst_fit, target.handle, n, params, *adam, fixed_means, shape_weight, max_ratio, losses)
    state.step += iterations
    return (*_columns(params), *losses.tolist(), iterations)


def loss_and_gradients(
    image: np.ndarray, foreground: np.ndarray, means, u, v, c, *, shape_weight: float = 0.2, max_ratio: float = 1.5
) -> tuple[float, float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Render loss, shape loss, and the gradients of their sum by means [N, 2], u [N, 2], v [N, 1] and c [N, 3].

    image uint8 [H, W, 3], foreground bool or uint8 [H, W]; scales relu(u) + 1, rotation pi sigmoid(v), rgb sigmoid(c).
    Render loss: sum |drawing - image| over the foreground plus sum |drawing| over the background, divided by the number
    of foreground values; 0 without foreground. Shape loss: shape_weight max relu(max(u1 / u2, u2 / u1) - max_ratio).
    """
    target, params = _Target(image, foreground), _parameters(means, u, v, c, finite=True)
    losses, gradients = np.empty(2), np.empty_like(params)
    weights = shape_weight, max_ratio
    _call(load().gst_loss_and_gradients, target.handle, len(params), params, *weights, losses, gradients)
    return (*losses.tolist(), *_columns(gradients))


def kernel_nearest(
    table: np.ndarray, grid: tuple[int, int], stride: float, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of n Gaussians for each of h x w cells: float32 [h * w], its -z, and int32 [h * w], which it is.

    table float32 [n, 7]: x, y, the four numbers of W (z = -|W d|^2) and half the log of the determinant. Where no Gaussian
    has -z <= ``reach`` (infinity: looks everywhere) it is infinity and -1. Equally near: the first.
    """
    table = _floats("table", table, len(table), 7)
    nearest, index = np.empty(grid[0] * grid[1], np.float32), np.empty(grid[0] * grid[1], np.int32)
    _call(load().gst_kernel_nearest, len(table), table, *grid, stride, reach, nearest, index)
    return nearest, index


def kernel_rows(
    table: np.ndarray,
    grid: tuple[int, int],
    stride: float,
    limit: np.ndarray,
    nearest: np.ndarray,
    log_det: np.ndarray,
    log_odds: np.ndarray,
    smallest: float,
    background: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """indptr int32, indices int32 and data float32 of the softmax over the Gaussians (and the background, last row).

    table: as in ``kernel_nearest``, whose ``nearest`` [h * w] comes with half the log of the determinant of that Gaussian.
    limit [h]: cells of a row are visited where -z <= limit - half log det. log_odds [h * w]: of the background against the
    nearest Gaussian. Shares up to ``smallest`` are not stored.
    """
    cells = grid[0] * grid[1]
    table, limit = _floats("table", table, len(table), 7), _floats("limit", limit, grid[0], finite=False)
    values = [
        _floats(name, value, cells, finite=False)
        for name, value in (("nearest", nearest), ("log_det", log_det), ("log_odds", log_odds))
    ]
    spans = _scratch("spans", 3 * (len(table) * grid[0] + 1), np.int32)
    ends = np.empty(len(table), np.int64)
    total, shape = np.empty(1, np.int64), (len(table), table, *grid, stride)
    _call(load().gst_kernel_visit, *shape, limit, spans, ends, total)
    room = int(total[0]) + background * cells + 1  # one more: a share is written before it is known to be too small
    if room > np.iinfo(np.int32).max:
        raise ValueError(f"kernel: {room:,} shares of {len(table):,} Gaussians are too many; use smaller images")
    indptr = np.empty(len(table) + 1 + background, np.int32)
    indices, data = _scratch("indices", room, np.int32), _scratch("data", room, np.float32)
    _call(load().gst_kernel_fill, *shape, spans, ends, *values, smallest, int(background), indptr, indices, data)
    return indptr, indices[: indptr[-1]].copy(), data[: indptr[-1]].copy()


_kept = threading.local()


def _scratch(name: str, room: int, dtype: type) -> np.ndarray:
    """[room or more] of this thread: asking the system for the memory anew would cost a third of a kernel's time."""
    array = getattr(_kept, name, None)
    if array is None or len(array) < room:
        array = np.empty(room * 5 // 4, dtype)
        setattr(_kept, name, array)
    return array


def resize(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """uint8 [len(rows), len(columns), 3], made of uint8 [H, W, 3] as ``datasets.transforms.taps`` say; the rest is not read."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.strides[1:] != (3, 1):
        raise ValueError(f"image: {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3] with contiguous rows")
    axes = []
    for name, taps, side in (("rows", rows, image.shape[0]), ("columns", columns, image.shape[1])):
        axes.append(np.ascontiguousarray(taps, np.int32))
        sources = taps[:, :2]
        if taps.shape[1:] != (4,) or (len(taps) and (sources.min() < 0 or sources.max() >= side)):
            raise ValueError(f"{name}: of {side} pixels, expected [n, 4] with sources from 0 to {side - 1}")
    out = np.empty((len(rows), len(columns), 3), np.uint8)
    _call(load().gst_resize, image, image.strides[0], len(rows), len(columns), *axes, out)
    return out


def _call(function, *arguments) -> None:
    status = function(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))
    if status:
        raise MemoryError("native engine: not enough memory for these Gaussians and this image")


def _parameters(means, u, v, c, finite: bool) -> np.ndarray:
    n = len(means)
    arrays = [
        _floats(name, array, n, columns, finite=finite)
        for name, array, columns in (("means", means, 2), ("u", u, 2), ("v", v, 1), ("c", c, 3))
    ]
    return np.concatenate(arrays, axis=1)


def _columns(params: np.ndarray) -> list[np.ndarray]:
    """The opposite of ``_parameters``: means, u, v, c."""
    return [np.ascontiguousarray(part) for part in np.split(params, (2, 4, 5), axis=1)]


def _gaussians(means, conics, colors, opacities, width: int, height: int) -> list[np.ndarray]:
    _check_size(width, height)
    n = len(means)
    shapes = (
        ("means", means, (n, 2)),
        ("conics", conics, (n, 3)),
        ("colors", colors, (n, 3)),
        ("opacities", opacities, (n,)),
    )
    arrays = [_floats(name, array, *shape) for name, array, shape in shapes]
    a, b, c = arrays[1].astype(np.float64).T
    bad = np.flatnonzero(~((a > 0) & (c > 0) & (a * c > b * b)))
    if bad.size:
        row = bad[0]
        raise ValueError(f"conics: row {row} is {arrays[1][row].tolist()}; not positive definite (a > 0, a c > b^2)")
    return arrays


def _floats(name: str, array, *shape: int, finite: bool = True) -> np.ndarray:
    array = np.ascontiguousarray(array, dtype=np.float32)
    array = array.reshape(shape) if array.size == 0 == np.prod(shape) else array
    if array.shape != shape:
        raise ValueError(f"{name}: shape {list(array.shape)}, expected {list(shape)}")
    if not finite or array.size == 0:
        return array
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if bad.size:
        raise ValueError(f"{name}: row {bad[0]} is {array[bad[0]].tolist()}; expected finite numbers")
    return array


def _check_size(width: int, height: int) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise ValueError(f"width x height: {width} x {height}, expected 1 to {MAX_SIDE} pixels a side")
