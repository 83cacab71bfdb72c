"""Errors of counts by hand, their intervals against a plain bootstrap, and the comparison of two models."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from utils.evaluation import Result, mae_mse
from utils.evaluation.scores import bootstrap, count_scores, mae, mse, paired_difference

NAN = math.nan
BY_HAND = [Result("a", 0, 2), Result("b", 100, 90), Result("c", 101, 121)]
BY_HAND += [Result("d", NAN, 7), Result("e", 5001, 5001), Result("f", 50, 56)]


def random_results(n):
    generator = np.random.default_rng(0)
    truth, errors = generator.integers(0, 1000, n), generator.normal(0, 10, n)
    return [Result(f"{i}", float(t), float(t + e)) for i, (t, e) in enumerate(zip(truth, errors))]


def test_summary_by_hand():
    summary = count_scores(BY_HAND)
    assert (summary["images"], summary["scored"]) == (6, 5)
    assert summary["mae"]["value"] == pytest.approx((2 + 10 + 20 + 0 + 6) / 5)
    assert summary["mse"]["value"] == pytest.approx(math.sqrt((4 + 100 + 400 + 36) / 5))
    assert (summary["mae"]["value"], summary["mse"]["value"]) == pytest.approx(mae_mse(BY_HAND))
    assert summary["nae"]["value"] == pytest.approx((0.1 + 20 / 101 + 0 + 0.12) / 4)  # not of the empty image
    assert [tuple(level.values()) for level in summary["bins"]] == [
        (0, 0, 1, 2, 2),
        (1, 100, 2, 8, pytest.approx(math.sqrt(68))),
        (101, 500, 1, 20, 20),
        (501, 5000, 0, None, None),
        (5001, None, 1, 0, 0),
    ]
    assert list(summary["bins"][0]) == ["from", "to", "images", "mae", "mse"]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_nothing_scored_nobody_there_and_a_count_that_is_no_number():
    for results in ([], [Result("a", NAN, 3)]):
        summary = count_scores(results)
        assert summary["scored"] == 0 and summary["images"] == len(results) and summary["nae"] is None
        assert summary["mae"] == summary["mse"] == {"value": None, "low": None, "high": None}
        assert [level["images"] for level in summary["bins"]] == [0] * 5
    assert count_scores([Result("a", 0, 3)])["nae"] is None
    with pytest.raises(ValueError, match="b: predicted count nan; check the weights"):
        count_scores([Result("a", 1, 1), Result("b", 1, NAN)])


def test_the_interval_is_seeded_and_around_the_value():
    results = random_results(300)
    summary = count_scores(results, seed=4)
    assert summary == count_scores(results, seed=4) and summary != count_scores(results, seed=5)
    for name in ("mae", "mse", "nae"):
        assert summary[name]["low"] < summary[name]["value"] < summary[name]["high"]
    same = count_scores([Result(str(i), 10, 13) for i in range(9)])["mae"]
    assert same == {"value": 3, "low": 3, "high": 3}


def test_the_bootstrap_equals_its_readable_twin():
    errors = np.random.default_rng(2).normal(3, 5, 2500)  # drawn in two blocks
    generator = np.random.default_rng(9)
    resampled = [mse(errors[generator.integers(0, 2500, 2500)]) for _ in range(2000)]
    found = bootstrap(errors, mse, seed=9)
    assert found["value"] == mse(errors)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(resampled, (2.5, 97.5))), rel=0.02)


def test_pairs_are_compared_not_groups():
    results = random_results(200)
    first = np.array([result.predicted - result.truth for result in results])
    pairs = np.stack([first, 1.1 * first], axis=1)
    found = paired_difference(pairs)
    for name, measure in (("mae", mae), ("mse", mse)):
        difference = found[name]
        assert difference["value"] == pytest.approx(0.1 * measure(first))
        assert 0 < difference["low"] < difference["value"] < difference["high"]  # though the two intervals overlap
        assert bootstrap(first, measure)["high"] > bootstrap(1.1 * first, measure)["low"]
        assert paired_difference(pairs[:, ::-1])[name]["value"] == -difference["value"]
        assert paired_difference(pairs[:, [0, 0]])[name] == {"value": 0, "low": 0, "high": 0}
    assert paired_difference(pairs, seed=3) == paired_difference(pairs, seed=3) != found
