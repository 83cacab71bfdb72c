"""Errors of counts, their confidence intervals and the comparison of two models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from utils.evaluation.windows import Result

RESAMPLES = 2000
# Upper ends of the density levels of NWPU-Crowd (Wang et al., TPAMI 2020), people in an image; the last has none.
BIN_ENDS = (0, 100, 500, 5000)


def mae(errors: np.ndarray) -> np.ndarray:
    """Mean absolute error over the last axis."""
    return np.abs(errors).mean(axis=-1)


def mse(errors: np.ndarray) -> np.ndarray:
    """Crowd counting's "MSE" over the last axis: the root of the mean squared error."""
    return np.sqrt(np.square(errors).mean(axis=-1))


def mae_mse(results: Sequence[Result]) -> tuple[float, float]:
    """(MAE, MSE) over annotated images. Raises ``ValueError`` where there is none."""
    errors = np.array([result.predicted - result.truth for result in results if not np.isnan(result.truth)])
    if not errors.size:
        raise ValueError("no annotated image was evaluated; check the data path and the split")
    return float(mae(errors)), float(mse(errors))


def bootstrap(values: np.ndarray, statistic: Callable, seed: int = 0) -> dict:
    """The ``value`` of a statistic, and the ``low`` and ``high`` end of its 95 % interval, of ``values`` [n] or [n, k].

    ``statistic`` takes [..., n] or [..., n, k] -> [...]. The interval lies between percentiles of resamples: images are drawn
    with replacement, n at a time (Efron and Tibshirani 1993, section 13.3); the same seed gives the same interval. Without
    values all three are None.
    """
    if not len(values):
        return {"value": None, "low": None, "high": None}
    generator = np.random.default_rng(seed)
    rows = max(1, 2**22 // len(values))  # a block of indices stays below 32 MiB
    blocks = [
        statistic(values[generator.integers(0, len(values), (min(rows, RESAMPLES - first), len(values)))])
        for first in range(0, RESAMPLES, rows)
    ]
    low, high = np.percentile(np.concatenate(blocks), (2.5, 97.5))
    return {"value": float(statistic(values)), "low": float(low), "high": float(high)}


def count_scores(results: Sequence[Result], seed: int = 0) -> dict:
    """MAE, MSE and NAE with their 95 % intervals, and MAE and MSE by count.

    Returns ``images`` (all), ``scored`` (those with truth), ``mae``, ``mse`` and ``nae``: each ``value``, ``low``, ``high``;
    ``bins``: ``from``, ``to`` (None: no end), ``images``, ``mae``, ``mse`` (None without images). NAE is the mean of
    |error| / truth over images with people in them, None without any. Where nothing was scored, value, low and high are
    None. Raises ``ValueError`` for a predicted count that is no number.
    """
    for name, _, predicted in results:
        if not np.isfinite(predicted):
            raise ValueError(f"{name}: predicted count {predicted}; check the weights and the precision")
    scored = [result for result in results if not np.isnan(result.truth)]
    truth = np.array([result.truth for result in scored], np.float64)
    errors = np.array([result.predicted for result in scored], np.float64) - truth
    crowded = truth > 0
    level = np.searchsorted(BIN_ENDS, truth)
    bins = []
    for i, (start, end) in enumerate(zip((0, *(end + 1 for end in BIN_ENDS)), (*BIN_ENDS, None))):
        inside = errors[level == i]
        figures = {"mae": float(mae(inside)), "mse": float(mse(inside))} if inside.size else {"mae": None, "mse": None}
        bins.append({"from": start, "to": end, "images": len(inside), **figures})
    return {
        "images": len(results),
        "scored": len(scored),
        "mae": bootstrap(errors, mae, seed),
        "mse": bootstrap(errors, mse, seed),
        "nae": bootstrap(errors[crowded] / truth[crowded], mae, seed) if crowded.any() else None,
        "bins": bins,
    }


def paired_difference(errors: np.ndarray, seed: int = 0) -> dict:
    """How much larger the errors of a second model are than those of a first on the same images, [n >= 1, 2].

    Returns the differences, second minus first, of ``mae`` and ``mse``, each ``value``, ``low``, ``high``. Both models see the
    same resample of the images: what makes an image hard for both cancels.
    """
    return {
        name: bootstrap(errors, lambda drawn: measure(drawn[..., 1]) - measure(drawn[..., 0]), seed)
        for name, measure in (("mae", mae), ("mse", mse))
    }
