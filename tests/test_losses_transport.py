"""DM-Count and the generalized loss: the released code's numbers, and the problems that they say they solve."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from losses import build_loss
from losses.dm_count import _sinkhorn, dense_dual, dm_count_terms, dots, log_dual, separable_dual
from losses.generalized import exponential_cost, generalized_terms
from losses.inputs import offsets

GOLDEN = np.load(Path(__file__).parent / "data" / "baselines.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN})
GRIDS = {"gl_aligned": {}, "gl_released": {"offset": 8.0}}


def sample_of(points):
    points = torch.as_tensor(points)
    return SimpleNamespace(points=[points], targets=[points.new_ones(len(points))])


def random_case(count, grid=(8, 8), seed=0, dtype=torch.float64):
    """Points [n, 2] and a density [1, 1, h, w] of about as many."""
    random = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 2, generator=random, dtype=torch.float64) * 8 * torch.tensor(grid).flip(0)
    density = torch.rand(1, 1, *grid, generator=random, dtype=torch.float64) * (2 * count / math.prod(grid))
    return points.to(dtype), density.to(dtype)


def loss_and_gradient(loss, density, sample):
    density = torch.as_tensor(density).clone().requires_grad_()
    value = loss(density, sample)
    value.backward()
    return value.item(), density.grad


def assert_gradient(gradient, expected):
    """Within 1e-3 of each entry; entries that nearly cancel carry the rounding of the largest."""
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("solver", ["separable", "dense"])
def test_released_dm_count(case, solver):
    points, density, crop, terms, expected = (
        GOLDEN[f"{case}/{key}"] for key in ("points", "density", "crop", "dm_terms", "dm_grad")
    )
    assert density.shape == (1, 1, crop // 8, crop // 8)
    found = dm_count_terms(torch.as_tensor(density), sample_of(points), solver=solver)[0].numpy() * [0.1, 1, 0.01]
    np.testing.assert_allclose(found[1:], terms[1:], rtol=1e-3)
    # <D, g> is 0 in exact arithmetic: what is left is rounding, in the released code too.
    assert abs(found[0]) < 1e-5 and abs(terms[0]) < 1e-5
    value, gradient = loss_and_gradient(build_loss("dm-count", solver=solver), density, sample_of(points))
    np.testing.assert_allclose(value, terms.sum(), rtol=1e-3)
    assert_gradient(gradient, expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("grid", GRIDS)
def test_released_generalized_loss(case, grid):
    points, density = GOLDEN[f"{case}/points"], GOLDEN[f"{case}/density"]
    value, gradient = loss_and_gradient(build_loss("gloss", **GRIDS[grid]), density, sample_of(points))
    np.testing.assert_allclose(value, GOLDEN[f"{case}/{grid}_loss"], rtol=1e-3)
    assert_gradient(gradient, GOLDEN[f"{case}/{grid}_grad"])
    if len(points):
        terms = generalized_terms(torch.as_tensor(density), sample_of(points), **GRIDS[grid])[0]
        np.testing.assert_allclose(terms, GOLDEN[f"{case}/{grid}_terms"], rtol=1e-3)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 2e-2)])
def test_separable_dual_is_the_dense_one(dtype, tolerance):
    points, density = random_case(50, (12, 20), dtype=dtype)
    squared = [offset.square() for offset in offsets(points, (12, 20), 8)]
    mass = density[0, 0] / density.sum()
    expected = dense_dual(mass, *squared, 10.0, 100, 1e-9)
    torch.testing.assert_close(separable_dual(mass, *squared, 10.0, 100, 1e-9), expected, rtol=0, atol=tolerance)


def plain_dual(mass, points, iterations, tolerance):
    """The released recursion, written out in float64; and the number of iterations it took."""
    count, cells = len(points), mass.size
    y, x = np.divmod(np.arange(cells), mass.shape[1])
    cost = (8 * x + 4 - points[:, :1]) ** 2 + (8 * y + 4 - points[:, 1:]) ** 2
    kernel, target = np.exp(-cost / 10), mass.ravel()
    u = np.full(count, 1 / count)
    for iteration in range(1, iterations + 1):
        v = target / (u @ kernel + 1e-16)
        u = (1 / count) / (kernel @ v + 1e-16)
        if iteration % 10 == 0 and (((u @ kernel) * v - target) ** 2).sum() <= tolerance:
            break
    return (10 * np.log(v + 1e-16)).reshape(mass.shape), iteration


@pytest.mark.parametrize("tolerance, expected_iterations", [(1e-9, 100), (1e-2, 10), (2.5e-4, 30)])
def test_dm_count_looks_at_its_stopping_rule_every_tenth_iteration(tolerance, expected_iterations):
    points, density = random_case(40, (8, 8))
    mass = density[0, 0] / (density.sum() + 1e-6)
    expected, iterations = plain_dual(mass.numpy(), points.numpy(), 100, tolerance)
    assert iterations == expected_iterations
    squared = [offset.square() for offset in offsets(points, (8, 8), 8)]
    for solver in (separable_dual, dense_dual):
        np.testing.assert_allclose(solver(mass, *squared, 10.0, 100, tolerance), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("received", [math.nan, -1e-16])
def test_dm_count_goes_back_one_iterate_from_what_is_not_finite(received):
    """The second iterate's v would be twice D', but its u contains 1 / 3 / (received + 1e-16)."""
    mass, answers = torch.tensor([[0.25, 0.75]]), iter([torch.full((3,), 2.0), torch.tensor([2.0, received, 2.0])])
    log_v = _sinkhorn(mass, 3, lambda u: u.sum().expand(1, 2), lambda v: next(answers), 100, 0.0)
    torch.testing.assert_close(log_v.exp(), mass)


def test_log_dual_is_that_of_pot():
    import ot

    points, density = random_case(30, (10, 14))
    mass = density[0, 0] / density.sum()
    squared = [offset.square() for offset in offsets(points, (10, 14), 8)]
    cost = (squared[1][:, :, None] + squared[0][:, None]).flatten(1)
    share = torch.full((30,), 1 / 30, dtype=torch.float64)
    _, log = ot.sinkhorn(
        share, mass.flatten(), cost, 10.0, "sinkhorn_log", numItermax=100, stopThr=0, log=True, warn=False
    )
    found = log_dual(mass, *squared, 10.0, 100, 0.0)
    expected = 10 * log["log_v"].view(10, 14)  # up to a constant, which the loss does not see
    torch.testing.assert_close(found - found.mean(), expected - expected.mean(), rtol=0, atol=1e-8)


def test_gradient_of_dm_count_is_that_of_the_transport_cost():
    """Central differences of the converged entropic cost of D / sum D, against <D, g>."""
    points, density = random_case(6, (4, 5))
    squared = [offset.square() for offset in offsets(points, (4, 5), 8)]
    cost = (squared[1][:, :, None] + squared[0][:, None]).flatten(1)

    def transport_cost(density):
        mass = density[0, 0] / density.sum()
        log_v = log_dual(mass, *squared, 10.0, 500, 0.0).flatten() / 10
        plan = torch.softmax(log_v - cost / 10, dim=1) / 6
        return ((plan * cost).sum() + 10 * (plan * (plan.log() - 1)).sum()).item()

    loss = build_loss("dm-count", solver="log", iterations=500, tolerance=0.0)
    without = build_loss("dm-count", ot_weight=0)
    gradients = [loss_and_gradient(each, density, sample_of(points))[1] for each in (loss, without)]
    found = (gradients[0] - gradients[1]).flatten() / 0.1
    for cell in range(0, 20, 3):
        step = torch.zeros_like(density)
        step.view(-1)[cell] = 1e-5
        expected = (transport_cost(density + step) - transport_cost(density - step)) / 2e-5
        np.testing.assert_allclose(found[cell], expected, rtol=1e-4, atol=1e-5)


def test_gradient_of_count_and_total_variation():
    points, density = random_case(10)
    loss = build_loss("dm-count", ot_weight=0, tv_weight=0.3)
    assert torch.autograd.gradcheck(lambda given: loss(given, sample_of(points)), density.requires_grad_())


def test_points_outside_count_in_the_nearest_cell():
    points = torch.tensor([[-3.0, 5], [16, 16], [7.9, 8], [40, -2]])
    assert torch.equal(dots(points, (2, 2), 8), torch.tensor([[1.0, 1], [1, 1]]))


def plain_generalized(points, density, cost, offset=4.0):
    """Terms and gradient of the generalized loss, written out from the formulas in float64."""
    cells, mass, epsilon, rho = density.shape[2:], density.ravel(), 0.01, 0.5
    y, x = np.divmod(np.arange(mass.size), cells[1])
    places, points = (np.stack([x, y], axis=1) * 8 + offset) / 512, points / 512
    distance = np.sqrt(((places[:, None] - points) ** 2).sum(2))
    scale = 0.6 if cost == "exp" else 0.5 + 0.2 * (places[:, None, 1] + points[:, 1]) / 2
    matrix = np.exp(distance / scale) - 1

    def softmin(eps, values, axis):
        values = values - matrix / eps
        top = values.max(axis=axis, keepdims=True)
        return -eps * (np.log(np.exp(values - top).sum(axis=axis)) + top.squeeze(axis)) / (1 + eps / rho)

    box = np.concatenate([places, points])
    diameter = np.linalg.norm(box.max(0) - box.min(0))
    schedule = [diameter] + [diameter / 2**k for k in range(64) if diameter / 2**k > epsilon] + [epsilon]
    f, g = softmin(diameter, np.zeros((1, len(points))), 1), softmin(diameter, np.log(mass)[:, None], 0)
    for eps in schedule:
        new_f, new_g = softmin(eps, g[None] / eps, 1), softmin(eps, (np.log(mass) + f / eps)[:, None], 0)
        f, g = (f + new_f) / 2, (g + new_g) / 2
    f, g = softmin(epsilon, g[None] / epsilon, 1), softmin(epsilon, (np.log(mass) + f / epsilon)[:, None], 0)
    ratio = np.exp((f[:, None] + g - matrix) / epsilon)
    plan = ratio * mass[:, None]
    on_cells = 1 - np.exp(-f / rho)
    value = (rho + epsilon / 2) * (mass @ on_cells + (1 - np.exp(-g / rho)).sum())
    pixel, point = ((plan.sum(1) - mass) ** 2).sum(), np.abs(plan.sum(0) - 1).sum()
    terms = [value, pixel, point, ((plan + 1e-20) * np.log(plan + 1e-20)).mean()]
    gradient = (
        (rho + epsilon / 2) * on_cells
        + 0.1 * (ratio @ np.sign(plan.sum(0) - 1) - 2 * (plan.sum(1) - mass))
        + 0.01 * (ratio * (np.log(plan + 1e-20) + 1)).sum(1) / plan.size
    )
    return terms, gradient.reshape(density.shape)


@pytest.mark.parametrize("cost", ["exp", "perspective"])
@pytest.mark.parametrize("offset", [4.0, 8.0])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_generalized_loss_against_its_formulas(cost, offset, count):
    points, density = random_case(count, (9, 13), seed=count)
    expected, expected_gradient = plain_generalized(points.numpy(), density.numpy(), cost, offset)
    terms = generalized_terms(density, sample_of(points), cost=cost, offset=offset)[0]
    np.testing.assert_allclose(terms, expected, rtol=1e-6)
    value, gradient = loss_and_gradient(build_loss("gloss", cost=cost, offset=offset), density, sample_of(points))
    np.testing.assert_allclose(value, expected @ np.array([1, 0.1, 0.1, 0.01]), rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6, atol=1e-9)


def test_cost_is_symmetric_and_vanishes_at_zero_distance():
    points = random_case(7)[0] / 512
    for cost in ("exp", "perspective"):
        matrix = exponential_cost(points, points, cost)
        torch.testing.assert_close(matrix, matrix.T)
        assert torch.equal(matrix.diagonal(), torch.zeros(7, dtype=torch.float64)) and (matrix >= 0).all()
    expected = math.expm1(math.hypot(0.3, 0.4) / 0.6)
    found = exponential_cost(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.3, 0.4]]), "exp")
    np.testing.assert_allclose(found, expected, rtol=1e-6)
