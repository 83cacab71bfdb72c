"""The CPU engine: drawing and fitting 2D Gaussians on one core, in C++.

It computes what ``GS2D.rasterize.rasterize_reference`` and ``GS2D.fitting.loss_terms`` define, in float32. Every call
uses one core and releases the GIL; threads and processes may call at once. ``build.py`` compiles it on first use.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from GS2D.native.build import NativeUnavailable, build_library, unavailable

_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_int64, "f": ctypes.c_float, "d": ctypes.c_double}
_ARGUMENTS = {  # of the functions in engine.cpp
    "gst_render": "ipppiip",
    "gst_render_backward": "ipppiipppp",
    "gst_fit": "ppiiipidiffdipp",
    "gst_kernel_nearest": "ipiiffpp",
    "gst_kernel_rows": "ipiifpppfp",
    "gst_kernel_shares": "ipp",
    "gst_resize": "pliippp",
}


@functools.cache
def load() -> ctypes.CDLL:
    """The engine's library. Raises ``NativeUnavailable`` where it can be neither found nor built."""
    try:
        library = ctypes.CDLL(str(build_library()))
    except OSError as error:
        raise unavailable(str(error)) from None
    for name, codes in _ARGUMENTS.items():
        getattr(library, name).argtypes = [_TYPES[code] for code in codes]
    return library


@functools.cache
def problem() -> str | None:
    """Why the engine cannot be had on this machine, or None; the first call may build it."""
    try:
        load()
    except NativeUnavailable as error:
        return str(error)
    return None


def works() -> bool:
    """Whether the engine can be had on this machine."""
    return problem() is None


def render(means, conics, colors, width: int, height: int) -> np.ndarray:
    """Draw opaque Gaussians given by means [N, 2], conics [N, 3], colors [N, 3] -> float32 [height, width, 3].

    Raises ``ValueError`` for other shapes and numbers that are not finite.
    """
    arrays = _gaussians(means, conics, colors)
    image = np.empty((height, width, 3), np.float32)
    _call("gst_render", len(arrays[0]), *arrays, width, height, image)
    return image


def render_backward(means, conics, colors, width: int, height: int, grad_image) -> tuple[np.ndarray, ...]:
    """Gradients by means, conics, colors of a function of the drawing whose gradient is ``grad_image``."""
    arrays = _gaussians(means, conics, colors)
    grad_image = _floats("grad_image", grad_image, height, width, 3)
    gradients = tuple(map(np.empty_like, arrays))
    _call("gst_render_backward", len(arrays[0]), *arrays, width, height, grad_image, *gradients)
    return gradients


def fit(
    image: np.ndarray,
    foreground: np.ndarray,
    params: np.ndarray,
    *,
    iterations: int,
    learning_rate: float = 0.01,
    fixed_means: int = 0,
    shape_weight: float = 0.2,
    max_ratio: float = 1.5,
    tolerance: float = 0.0,
    check_every: int = 50,
) -> tuple[np.ndarray, float, float, int]:
    """Run Adam (betas 0.9 and 0.999, eps 1e-8) on the loss of ``GS2D.fitting.loss_terms``.

    image uint8 [H, W, 3]; foreground [H, W], bool or uint8; params [N, 8]: x, y, u1, u2, v, c1, c2, c3, of which the first
    ``fixed_means`` means stay where they are. With a ``tolerance`` above 0 the fit ends where ``GS2D.fitting.has_stalled``
    says so, which is asked every ``check_every`` iterations.

    Returns the new params, the render loss and the shape loss that the last iteration started from (as the released code
    reports them; NaN for 0 iterations), and the iterations done. Raises ``ValueError`` for other shapes or numbers that are
    not finite.
    """
    image, foreground = np.asarray(image), np.asarray(foreground)
    if image.dtype != np.uint8 or image.shape != (*foreground.shape, 3) or foreground.dtype not in (bool, np.uint8):
        given = f"{image.dtype} {list(image.shape)}, {foreground.dtype} {list(foreground.shape)}"
        raise ValueError(f"image, foreground: {given}; expected uint8 [H, W, 3], bool or uint8 [H, W]")
    target = np.ascontiguousarray(image), np.ascontiguousarray(foreground).view(np.uint8), *foreground.shape[::-1]
    params = _floats("params", params, len(params), 8).copy()
    losses, done = np.full(2, np.nan), np.zeros(1, np.int32)
    options = iterations, learning_rate, fixed_means, shape_weight, max_ratio, tolerance, check_every
    _call("gst_fit", *target, len(params), params, *options, losses, done)
    return (params, *losses.tolist(), int(done[0]))


def kernel_nearest(
    table: np.ndarray, grid: tuple[int, int], stride: float, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of n Gaussians for each of h x w cells: float32 [h * w], its -z, and int32 [h * w], which it is.

    table float32 [n, 7]: x, y, the four numbers of W (z = -|W d|^2) and half the log of the determinant. Where no Gaussian
    has -z <= ``reach`` (infinity: looks everywhere) it is infinity and -1. Equally near: the first.
    """
    table = _floats("table", table, len(table), 7)
    nearest, index = np.empty(grid[0] * grid[1], np.float32), np.empty(grid[0] * grid[1], np.int32)
    _call("gst_kernel_nearest", len(table), table, *grid, stride, reach, nearest, index)
    return nearest, index


def kernel_rows(
    table: np.ndarray,
    grid: tuple[int, int],
    stride: float,
    nearest: np.ndarray,
    index: np.ndarray,
    log_odds: np.ndarray,
    smallest: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """indptr int32, indices int32 and data float32 of the softmax over n Gaussians and the background, whose row is the last.

    table, nearest, index: as in and of ``kernel_nearest``. log_odds float32 [h * w]: of the background against the nearest
    Gaussian. Shares up to ``smallest`` are not stored.
    """
    table, indptr = _floats("table", table, len(table), 7), np.empty(len(table) + 2, np.int32)
    _call("gst_kernel_rows", len(table), table, *grid, stride, nearest, index, log_odds, smallest, indptr)
    indices, data = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    _call("gst_kernel_shares", len(data), indices, data)
    return indptr, indices, data


def resize(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """uint8 [len(rows), len(columns), 3], made of uint8 [H, W, 3] as ``datasets.transforms.taps`` say, which lie inside it."""
    image, *axes = (
        np.ascontiguousarray(array, kind) for array, kind in ((image, np.uint8), (rows, np.int32), (columns, np.int32))
    )
    out = np.empty((len(rows), len(columns), 3), np.uint8)
    _call("gst_resize", image, image.strides[0], len(rows), len(columns), *axes, out)
    return out


def _call(function: str, *arguments) -> None:
    pointers = (a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments)
    if getattr(load(), function)(*pointers):
        raise MemoryError("native engine: not enough memory for these Gaussians and this image")


def _gaussians(means, conics, colors) -> list[np.ndarray]:
    columns = ("means", means, 2), ("conics", conics, 3), ("colors", colors, 3)
    return [_floats(name, array, len(means), width) for name, array, width in columns]


def _floats(name: str, array, *shape: int) -> np.ndarray:
    array = np.ascontiguousarray(array, dtype=np.float32)
    array = array.reshape(shape) if array.size == 0 == np.prod(shape) else array
    if array.shape != shape:
        raise ValueError(f"{name}: shape {list(array.shape)}, expected {list(shape)}")
    bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1)) if array.size else array
    if bad.size:
        raise ValueError(f"{name}: row {bad[0]} is {array[bad[0]].tolist()}; expected finite numbers")
    return array
