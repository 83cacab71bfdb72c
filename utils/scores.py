"""Errors of counts, their confidence intervals and the comparison of two models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from utils.evaluation import Result

RESAMPLES = 2000
CONFIDENCE = 0.95
# Upper ends of the density levels of NWPU-Crowd (Wang et al., TPAMI 2020), people in an image; the last has none.
BIN_ENDS = (0, 100, 500, 5000)


def mae(errors: np.ndarray) -> np.ndarray:
    """Mean absolute error over the last axis."""
    return np.abs(errors).mean(axis=-1)


def mse(errors: np.ndarray) -> np.ndarray:
    """Crowd counting's "MSE" over the last axis: the root of the mean squared error."""
    return np.sqrt(np.square(errors).mean(axis=-1))


def bootstrap(
    values: np.ndarray, statistic: Callable, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % interval of ``statistic`` (over the last axis) of ``values`` [n >= 1], between percentiles of its resamples.

    Images are drawn with replacement, n at a time (Efron and Tibshirani 1993, section 13.3); the same seed gives the same interval.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, 2**22 // len(values))  # a block of indices stays below 32 MiB
    blocks = [
        statistic(values[generator.integers(0, len(values), (min(rows, resamples - first), len(values)))])
        for first in range(0, resamples, rows)
    ]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(blocks), (tail, 100 - tail))
    return float(low), float(high)


def summarise(results: Sequence[Result], seed: int = 0) -> dict:
    """MAE, MSE and NAE with their 95 % intervals, and MAE and MSE by count.

    Returns ``images`` (all), ``scored`` (those with truth), ``mae``, ``mse`` and ``nae``: each ``value``, ``low``, ``high``;
    ``bins``: ``from``, ``to`` (None: no end), ``images``, ``mae``, ``mse`` (None without images). NAE is the mean of
    |error| / truth over images with people in them, None without any. Where nothing was scored, value, low and high are
    None. Raises ``ValueError`` for a predicted count or truth that is no number.
    """
    scored = _scored(results)
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
        "mae": _interval(errors, mae, seed),
        "mse": _interval(errors, mse, seed),
        "nae": _interval(errors[crowded] / truth[crowded], mae, seed) if crowded.any() else None,
        "bins": bins,
    }


def compare(first: Sequence[Result], second: Sequence[Result], seed: int = 0) -> dict:
    """Paired comparison of two models on the images that both scored, found by name.

    Returns ``images`` (in both), ``only_first``, ``only_second`` (left out) and ``difference``: the MAE of the first minus that
    of the second (negative: the first is better), ``value``, ``low``, ``high``. The images are resampled, not the two errors
    apart: what makes an image hard for both cancels. Raises ``ValueError`` for a name that occurs twice, for a
    truth that differs between the two and where no image is in both.
    """
    by_name = [_by_name(first, "first"), _by_name(second, "second")]
    names = [name for name in by_name[0] if name in by_name[1]]
    if not names:
        raise ValueError("results: no scored image is in both; compare two evaluations of the same images")
    pairs = [(by_name[0][name], by_name[1][name]) for name in names]
    for a, b in pairs:
        if a.truth != b.truth:
            raise ValueError(f"{a.name}: truth {a.truth:g} and {b.truth:g}; compare two evaluations of the same images")
    errors = np.array([[result.predicted - result.truth for result in pair] for pair in pairs], np.float64)
    difference = np.abs(errors[:, 0]) - np.abs(errors[:, 1])
    return {
        "images": len(names),
        "only_first": len(by_name[0]) - len(names),
        "only_second": len(by_name[1]) - len(names),
        "difference": _interval(difference, lambda values: values.mean(axis=-1), seed),
    }


def _interval(values: np.ndarray, statistic: Callable, seed: int) -> dict:
    if not len(values):
        return {"value": None, "low": None, "high": None}
    low, high = bootstrap(values, statistic, seed)
    return {"value": float(statistic(values)), "low": low, "high": high}


def _scored(results: Sequence[Result]) -> list[Result]:
    """The results with truth."""
    for name, truth, predicted in results:
        if not np.isfinite(predicted):
            raise ValueError(f"{name}: predicted count {predicted}; check the weights and the precision")
        if np.isinf(truth) or truth < 0:
            raise ValueError(f"{name}: truth {truth}, must be a count >= 0, or NaN where nobody annotated the image")
    return [result for result in results if not np.isnan(result.truth)]


def _by_name(results: Sequence[Result], which: str) -> dict[str, Result]:
    scored = _scored(results)
    found = {result.name: result for result in scored}
    if len(found) < len(scored):
        names = [result.name for result in scored]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice}: occurs more than once in the {which} results; names must be unique")
    return found
