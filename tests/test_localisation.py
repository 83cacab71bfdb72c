"""Heads from densities, their matching with annotations and the scores that follow."""

from __future__ import annotations

import json
import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.optimize import linear_sum_assignment
from scipy.special import erf

from models import build_model
from utils.evaluation import Window, localisation
from utils.evaluation.localisation import MASS_THRESHOLD, localisation_scores, locate_windows, matches

NONE = np.zeros((0, 2))


def blob(cells, center, sigma):
    """One person as a Gaussian, cell by cell; lengths in cells."""
    edges = np.arange(cells + 1)
    x, y = (np.diff(erf((edges - c) / sigma / math.sqrt(2)) / 2) for c in center)
    return np.outer(y, x)


def locate(density):
    """The heads of one window of 8-pixel cells."""
    height, width = (16 * side for side in density.shape)  # at twice the size: any number of cells fits
    return locate_windows([Window(0, 0, height, width, torch.tensor(density))]) * (0.5, 0.5, 1)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_moments_find_the_place_between_cells(sigma):
    generator = np.random.default_rng(0)
    errors, coarse = [], []
    for center in generator.uniform(5, 6, (50, 2)):
        ((x, y, mass),) = locate(blob(11, center, sigma) + 0.01)
        errors.append(np.hypot(x / 8 - center[0], y / 8 - center[1]) * 8)
        coarse.append(np.hypot(5.5 - center[0], 5.5 - center[1]) * 8)
        assert 0.3 < mass <= 1 + 9 * 0.01
    assert np.mean(errors) < 0.8 and np.mean(coarse) > 2.5


def test_equal_cells_that_touch_are_one_head_and_what_is_too_light_is_none():
    density = np.zeros((5, 9))
    density[2, 3] = density[2, 4] = 0.5
    assert locate(density).tolist() == [[8 * 4, 8 * 2 + 4, 1]]  # on the edge between the two
    density[2, 3:5] = MASS_THRESHOLD - 0.01, 0
    density[2, 6] = MASS_THRESHOLD
    assert locate(density).tolist() == [[8 * 6 + 4, 8 * 2 + 4, MASS_THRESHOLD]]
    assert locate(np.zeros((3, 9))).shape == (0, 3)


def locate_by_loops(density, threshold):
    """The readable twin: each group of highest cells by flood fill."""
    h, w = density.shape

    def around(i, j):
        return [(a, b) for a in range(max(i - 1, 0), min(i + 2, h)) for b in range(max(j - 1, 0), min(j + 2, w))]

    cells = [(i, j) for i in range(h) for j in range(w)]
    highest = [c for c in cells if density[c] > 0 and density[c] == max(density[other] for other in around(*c))]
    heads = []
    while highest:
        chosen = highest.pop(0)
        group = [chosen]
        for cell in group:
            for other in around(*cell):
                if other in highest:
                    highest.remove(other)
                    group.append(other)
        cells = around(*chosen)
        mass = sum(density[c] for c in cells)
        if mass >= threshold:
            floor = min(density[c] for c in cells)
            excess = sum(density[c] - floor for c in cells)
            weights = [(density[c] - floor) / excess if excess else c == chosen for c in cells]
            y, x = (sum(w * (c[axis] * 8 + 4) for w, c in zip(weights, cells)) for axis in (0, 1))
            heads.append([x, y, mass])
    return np.reshape(heads, (-1, 3))


densities = arrays.arrays(np.float64, st.tuples(*[st.integers(1, 7)] * 2), elements=st.integers(0, 3))


@settings(max_examples=150, deadline=None)
@given(densities, st.sampled_from([0, 2.5]))
def test_locating_equals_its_readable_twin(density, threshold):
    expected = locate_by_loops(density, threshold)
    with mock.patch.object(localisation, "MASS_THRESHOLD", threshold):
        found = locate(density)
    assert found.shape == expected.shape and np.abs(found - expected).max(initial=0) < 1e-9


def window(top, left, height, width, *full):
    """A window like the networks': 8-pixel cells up to a multiple of 16; ``full`` cells (i, j) hold a person."""
    density = torch.zeros(height // 16 * 2, width // 16 * 2)
    for i, j, mass in full:
        density[i, j] = mass
    return Window(top, left, height, width, density)


def test_heads_of_windows_are_those_of_the_image():
    parts = [
        window(0, 0, 47, 61, (1, 0, 1), (3, 4, 0.6)),
        window(0, 61, 47, 61, (0, 5, 1)),
        window(47, 0, 48, 61, (3, 5, 0.5)),
        window(47, 61, 48, 61, (3, 0, 0.5), (5, 5, 1)),
    ]
    seam = (44 + 61 + 4) / 2, 47 + 28, 1  # one person, half in either window
    heads = {tuple(head) for head in locate_windows(parts[::-1]).round(4)}
    assert heads == {(4, 12, 1), (36, 28, 0.6), (61 + 44, 4, 1), seam, (61 + 44, 47 + 44, 1)}


def test_cells_lie_where_the_network_looks():
    """In a window of 15 pixels more than a multiple of 16: the center of a column's gradient is the column's place."""
    torch.manual_seed(1)
    model = build_model("vgg").eval()
    image = torch.randn(1, 3, 32, 255, requires_grad=True)
    density = model(image).density[0, 0]
    cell = density.shape[1] * 3 // 4
    (gradient,) = torch.autograd.grad(density[:, cell].sum(), image)
    energy = gradient.square().sum(dim=(0, 1, 2))
    looked_at = float((energy * (torch.arange(255) + 0.5)).sum() / energy.sum())
    person = torch.zeros(density.shape)
    person[1, cell] = 1
    placed = locate_windows([Window(0, 0, 32, 255, person)])[0, 0]
    stretched = (cell + 0.5) * 255 / density.shape[1]
    assert abs(placed - looked_at) < 6 < abs(stretched - looked_at)


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5).map(lambda p: np.reshape(p, (-1, 2)))


@settings(max_examples=150, deadline=None)
@given(points, points, st.integers(0, 8))
def test_matching_equals_scipys(predicted, truth, radius):
    distance = np.hypot(*(predicted[:, None] - truth[None]).transpose(2, 0, 1).astype(float))
    best = linear_sum_assignment(distance <= radius, maximize=True)
    assert matches(predicted, truth, radius) == (distance[best] <= radius).sum()


def test_thousands_of_points():
    generator = np.random.default_rng(0)
    truth = generator.uniform(0, 1500, (5000, 2))
    predicted = truth[generator.permutation(5000)] + generator.normal(0, 3, (5000, 2))
    assert 4700 < matches(predicted, truth, 8) < 5000 == matches(predicted, truth, 100)


def test_scores_by_hand():
    truth = [np.array([[10, 10], [50, 50], [90, 10]]), NONE, np.array([[5, 5]])]
    predicted = [np.array([[13, 10, 0.9], [50, 56, 0.8]]), np.array([[7, 7, 0.7]]), NONE]
    scores = localisation_scores(predicted, truth)
    assert scores == {
        "4": {"precision": 1 / 3, "recall": 1 / 4, "f1": 2 / 7},
        "8": {"precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7},
    }
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_empty_images_are_defined():
    one = [[1, 1]]
    for predicted, truth, *expected in (
        (NONE, NONE, None, None, None),
        (NONE, one, None, 0, 0),
        (one, NONE, 0, None, 0),
        (one, one, 1, 1, 1),
    ):
        assert list(localisation_scores([predicted], [truth])["8"].values()) == expected
