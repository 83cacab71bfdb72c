"""DM-Count and the generalized loss: the released code's numbers, and the problems that they say they solve."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from loss_batches import batch_of, crop_at, loss_and_gradient, loss_on_crops

from GS2D.kernel import centres
from losses.dm_count import dm_count_terms, dot_map, separable_dual
from losses.generalized import generalized_terms

GOLDEN = np.load(Path(__file__).parent / "data" / "baselines.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN})
GRIDS = {"gl_aligned": {}, "gl_released": {"offset": 8.0}}


def random_case(count, grid=(8, 8), seed=0, dtype=torch.float64):
    """Points [n, 2], which float32 holds, and a density [1, 1, h, w] of about as many."""
    random = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, 2, generator=random, dtype=torch.float64) * 8 * torch.tensor(grid).flip(0)).float()
    density = torch.rand(1, 1, *grid, generator=random, dtype=torch.float64) * (2 * count / math.prod(grid))
    return points.to(dtype), density.to(dtype)


def dual(masses, points, iterations=100, tolerance=1e-9, stride=8):
    """The dual variables of the masses [B, h, w] against the points of each crop, padded as in a batch."""
    batch = batch_of([crop_at(each) for each in points])
    padded, number = batch.points.to(masses), batch.counts.to(masses)
    dx2 = (centres(masses.shape[2], stride, masses) - padded[..., :1]).square()
    dy2 = (centres(masses.shape[1], stride, masses) - padded[..., 1:]).square()
    present = torch.arange(padded.shape[1]) < number[:, None]
    return separable_dual(masses, dx2, dy2, present, number, iterations, tolerance)


def without_transport(density, crops):
    """DM-Count's loss but for its transport."""
    _, count, variation = dm_count_terms(density, batch_of(crops)).unbind(dim=1)
    return (count + 0.01 * variation).mean()


def assert_gradient(gradient, expected):
    """Within 1e-3 of each entry; entries that nearly cancel carry the rounding of the largest."""
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_released_dm_count(case):
    points, density, crop, terms, expected = (
        GOLDEN[f"{case}/{key}"] for key in ("points", "density", "crop", "dm_terms", "dm_grad")
    )
    assert density.shape == (1, 1, crop // 8, crop // 8)
    found = dm_count_terms(torch.as_tensor(density), batch_of([crop_at(points)]))[0].numpy() * [0.1, 1, 0.01]
    np.testing.assert_allclose(found[1:], terms[1:], rtol=1e-3)
    # <D, g> is 0 in exact arithmetic: what is left is rounding, in the released code too.
    assert abs(found[0]) < 1e-5 and abs(terms[0]) < 1e-5
    value, gradient = loss_and_gradient(loss_on_crops("dm-count"), density, [crop_at(points)])
    np.testing.assert_allclose(value, terms.sum(), rtol=1e-3)
    assert_gradient(gradient, expected)


def test_released_dm_count_in_one_batch():
    """Crops of one size together, each with its own number of points: OT is summed, the rest averaged."""
    cases = [case for case in CASES if GOLDEN[f"{case}/density"].shape == GOLDEN[f"{CASES[-1]}/density"].shape]
    assert len(cases) > 1
    density = torch.cat([torch.as_tensor(GOLDEN[f"{case}/density"]) for case in cases])
    crops = [crop_at(GOLDEN[f"{case}/points"]) for case in cases]
    found = dm_count_terms(density, batch_of(crops)).numpy()[:, 1:] * [1, 0.01]
    np.testing.assert_allclose(found, [GOLDEN[f"{case}/dm_terms"][1:] for case in cases], rtol=1e-3)
    _, gradient = loss_and_gradient(loss_on_crops("dm-count"), density, crops)
    for b, case in enumerate(cases):
        rest = loss_and_gradient(without_transport, density[b : b + 1], crops[b : b + 1])[1][0].numpy()
        transport = GOLDEN[f"{case}/dm_grad"][0] - rest
        assert np.abs(transport).max() > 0.1 or not len(crops[b].points)
        assert_gradient(gradient[b], rest / len(cases) + transport)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("grid", GRIDS)
def test_released_generalized_loss(case, grid):
    points, density = GOLDEN[f"{case}/points"], GOLDEN[f"{case}/density"]
    value, gradient = loss_and_gradient(loss_on_crops("gloss", **GRIDS[grid]), density, [crop_at(points)])
    np.testing.assert_allclose(value, GOLDEN[f"{case}/{grid}_loss"], rtol=1e-3)
    assert_gradient(gradient, GOLDEN[f"{case}/{grid}_grad"])
    if len(points):
        terms = generalized_terms(torch.as_tensor(density), batch_of([crop_at(points)]), **GRIDS[grid])[0]
        np.testing.assert_allclose(terms, GOLDEN[f"{case}/{grid}_terms"], rtol=1e-3)


def plain_dual(mass, points, iterations, tolerance):
    """The released recursion with its dense kernel, written out in the type of ``mass``; and how many iterations it took."""
    points = points.astype(mass.dtype)
    count, cells, tiny = len(points), mass.size, mass.dtype.type(1e-16)
    y, x = (part.astype(mass.dtype) for part in np.divmod(np.arange(cells), mass.shape[1]))
    cost = (8 * x + 4 - points[:, :1]) ** 2 + (8 * y + 4 - points[:, 1:]) ** 2
    kernel, target = np.exp(-cost / 10), mass.ravel()
    u = np.full(count, 1 / count, mass.dtype)
    for iteration in range(1, iterations + 1):
        v = target / (u @ kernel + tiny)
        u = mass.dtype.type(1 / count) / (kernel @ v + tiny)
        if iteration % 10 == 0 and (((u @ kernel) * v - target) ** 2).sum() <= tolerance:
            break
    return (10 * np.log(v + tiny)).reshape(mass.shape), iteration


def test_each_crop_of_a_batch_stops_by_itself():
    """After 10, 30, 50 and 100 iterations or so, with as many points as they like; an empty crop between them."""
    cases = [random_case(count, (8, 8), seed) for count, seed in ((40, 0), (3, 1), (25, 2), (90, 3))]
    cases.insert(2, (torch.zeros(0, 2), torch.rand(1, 1, 8, 8, dtype=torch.float64)))
    masses = torch.cat([density[0] / density.sum() for _, density in cases])
    found, stopped_at = dual(masses, [points for points, _ in cases], tolerance=2.5e-4), set()
    for b, (points, _) in enumerate(cases):
        if len(points):
            expected, iterations = plain_dual(masses[b].numpy(), points.numpy(), 100, 2.5e-4)
            np.testing.assert_allclose(found[b], expected, rtol=0, atol=1e-6)
            stopped_at.add(iterations)
    assert len(stopped_at) >= 3, stopped_at


@pytest.mark.parametrize(
    "case, power, iterations, tolerance, done",
    [
        ((40, (8, 8), 1), 1, 100, 1e-9, 100),
        ((40, (8, 8), 1), 1, 100, 1e-2, 10),
        ((40, (8, 8), 0), 1, 100, 2.5e-4, 30),
        ((40, (8, 8), 1), 1, 27, 1e-9, 27),
        ((5, (4, 6), 41), 4, 100, 0.011, None),
        ((50, (12, 20), 0, torch.float32), 1, 100, 1e-9, 100),
    ],
    ids=["all", "stops at 10", "stops at 30", "27 iterations", "error rises again", "float32"],
)
def test_the_dual_is_the_dense_one_as_published(case, power, iterations, tolerance, done):
    """The last iterate, where the rule applies, looked at every tenth, or at the end; with its constant, which u = 1 / N fixes."""
    points, density = random_case(*case)
    mass = density[0] ** power / (density**power).sum()
    expected, stopped = plain_dual(mass[0].numpy(), points.numpy(), iterations, tolerance)
    assert stopped == done if done else stopped < iterations
    close = 1e-6 if mass.dtype == torch.float64 else 2e-2
    np.testing.assert_allclose(dual(mass, [points], iterations, tolerance)[0], expected, rtol=0, atol=close)


def test_where_nothing_underflows_the_dual_is_that_of_pot():
    import ot

    points, density = random_case(30, (10, 14))
    points, mass, share = points / 8, density[0] / density.sum(), torch.full((30,), 1 / 30, dtype=torch.float64)
    cells = torch.cartesian_prod(*(centres(count, 1, points) for count in (10, 14))).flip(1)
    cost = (cells - points[:, None]).square().sum(2)  # [n, M]
    _, log = ot.sinkhorn(
        share, mass.flatten(), cost, 10.0, "sinkhorn_log", numItermax=100, stopThr=0, log=True, warn=False
    )
    more = random_case(7, seed=5)[0] / 8, torch.zeros(0, 2)  # other crops of the batch change nothing
    found = dual(mass.expand(3, 10, 14), [more[0], points, more[1]], tolerance=0.0, stride=1)[1]
    expected = 10 * log["log_v"].view(10, 14)  # up to a constant, which the loss does not see
    torch.testing.assert_close(found - found.mean(), expected - expected.mean(), rtol=0, atol=1e-8)


def test_points_outside_count_in_the_nearest_cell():
    points = torch.tensor([[[-3.0, 5], [16, 16], [7.9, 8], [40, -2]], [[9.0, 9], [9, 9], [0, 0], [0, 0]]])
    present = torch.tensor([[True] * 4, [True, True, False, False]])
    expected = torch.tensor([[[1.0, 1], [1, 1]], [[0, 0], [0, 2]]])
    assert torch.equal(dot_map(points, present, (2, 2), 8), expected)


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
@pytest.mark.parametrize("count", [1, 40])
def test_generalized_loss_against_its_formulas(cost, offset, count):
    points, density = random_case(count, (9, 13), seed=count)
    expected, expected_gradient = plain_generalized(points.numpy(), density.numpy(), cost, offset)
    terms = generalized_terms(density, batch_of([crop_at(points)]), cost=cost, offset=offset)[0]
    np.testing.assert_allclose(terms, expected, rtol=1e-6)
    value, gradient = loss_and_gradient(loss_on_crops("gloss", cost=cost, offset=offset), density, [crop_at(points)])
    np.testing.assert_allclose(value, expected @ np.array([1, 0.1, 0.1, 0.01]), rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6, atol=1e-9)
