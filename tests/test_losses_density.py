"""BL, BL+ and direct regression against closed forms."""

import math

import numpy as np
import pytest
import torch
from loss_batches import crop_at, loss_and_gradient, loss_on_crops

from GS2D.kernel import compress
from losses.bayesian import bayesian_kernel, posterior
from losses.regression import clipped_neighbour_distance, target_density

GRID = (12, 16)


def random_case(count, seed=0):
    """Points [n, 2], targets [n] and a density [12, 16], float64 numbers that float32 holds too."""
    random = np.random.default_rng(seed)
    points = random.uniform(-10, 8 * np.array(GRID[::-1]) + 10, (count, 2))
    arrays = points, random.uniform(0.3, 1, count), random.uniform(0, 2 * count / math.prod(GRID), GRID)
    return tuple(array.astype(np.float32).astype(np.float64) for array in arrays)


def plain_bayesian(points, targets, density, sigma=8.0, squared_background=None):
    """Loss and gradient cell by cell: the weights of each cell are exp(-d^2 / (2 sigma^2)), divided by their sum."""
    received, weights_of = np.zeros(len(points) + 1), np.zeros((len(points) + 1, *GRID))
    for i, j in np.ndindex(GRID):
        squared = [(8 * j + 4 - x) ** 2 + (8 * i + 4 - y) ** 2 for x, y in points]
        squared.append(squared_background(math.sqrt(min(squared))) if squared_background else math.inf)
        weights = np.exp(-(np.array(squared) - min(squared)) / (2 * sigma**2))
        weights_of[:, i, j] = weights / weights.sum()
        received += weights_of[:, i, j] * density[i, j]
    rest = np.append(targets, 0) - received
    return np.abs(rest).sum(), -(np.sign(rest)[:, None, None] * weights_of).sum(0)


FORMS = {
    "bl": ({}, None),
    "bl+": ({}, lambda d: (0.15 * 96 - d) ** 2),
    "bl+ of the released code": ({"background": "code"}, lambda d: 96.0**2 / (d**2 + 1e-5)),
    "bl+ of a larger image": ({"short_side": 300.0, "sigma": 5.0}, lambda d: (0.15 * 300 - d) ** 2),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 30])
def test_bayesian_loss_against_its_closed_form(form, count, backend):
    options, background = FORMS[form]
    points, targets, density = random_case(count, seed=count)
    expected, expected_gradient = plain_bayesian(points, targets, density, options.get("sigma", 8.0), background)
    loss = loss_on_crops(form.split()[0], **options, backend=backend)
    value, gradient = loss_and_gradient(loss, density[None, None], [crop_at(points, targets)])
    np.testing.assert_allclose(value.item(), expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 0], expected_gradient, rtol=0, atol=1e-5)


@pytest.mark.parametrize("background", [None, "paper", "code"])
@pytest.mark.parametrize("count", [0, 2, 300])
def test_bayesian_kernel_is_the_posterior_made_sparse(background, count, backend):
    """Of points that occur twice too, and of one far away."""
    points = torch.as_tensor(random_case(count, seed=count)[0])
    points = torch.cat([points, points[: count // 3], torch.tensor([[-4000.0, 20.0]])]).float()
    nothing = torch.empty(0)
    found, of_float64 = (
        bayesian_kernel(given, nothing, nothing, (96, 128), 96.0, background=background, backend=backend)
        for given in (points, points.double())
    )
    assert torch.equal(found.to_dense(), of_float64.to_dense())
    reach = 96 * {"paper": 0.15, "code": 1.0, None: 0}[background]
    expected = posterior(points.double(), GRID, 8, 8.0, background, reach)
    assert found.shape == expected.shape and found.layout == torch.sparse_csr and found.dtype == torch.float32
    torch.testing.assert_close(found.to_dense(), compress(expected).to_dense(), rtol=0, atol=1e-5)


def quadrature(x, y, sigma, i, j, count=400):
    """Integral of a Gaussian over cell (j, i), by the midpoint rule."""
    steps = (np.arange(count) + 0.5) * 8 / count
    along_x = np.exp(-((8 * j + steps - x) ** 2) / (2 * sigma**2)).sum()
    along_y = np.exp(-((8 * i + steps - y) ** 2) / (2 * sigma**2)).sum()
    return along_x * along_y * (8 / count) ** 2 / (2 * math.pi * sigma**2)


def test_density_map_is_the_integral_over_each_cell():
    points, widths = torch.tensor([[30.0, 50.0], [77.3, 2.1]]).double(), torch.tensor([15.0, 4.0]).double()
    cells = np.array(
        [
            [quadrature(*point, width, *cell) for cell in np.ndindex(GRID)]
            for point, width in zip(points.tolist(), widths.tolist())
        ]
    )
    shares = cells.sum(axis=1)
    assert shares[1] < 0.8 < shares[0] < 1  # the second Gaussian reaches beyond the crop
    found = target_density(points, widths, torch.as_tensor(shares), GRID, 8)
    np.testing.assert_allclose(found.flatten(), cells.sum(axis=0), rtol=1e-4, atol=1e-12)
    outside = target_density(torch.tensor([[-5000.0, 40.0]]), torch.tensor([15.0]), torch.ones(1), GRID, 8)
    assert torch.equal(outside, torch.zeros(GRID))


def test_neighbour_distance():
    random = np.random.default_rng(0)
    points = random.uniform(0, 200, (20, 2))
    distances = np.sort(np.sqrt(((points[:, None] - points) ** 2).sum(2)), axis=1)[:, 1:4].mean(axis=1)
    np.testing.assert_allclose(clipped_neighbour_distance(torch.as_tensor(points)), distances.clip(4, 128))
    assert clipped_neighbour_distance(torch.zeros(1, 2)).tolist() == [128.0]
    assert clipped_neighbour_distance(torch.tensor([[0.0, 0.0], [30, 40]])).tolist() == [50.0, 50.0]
    assert clipped_neighbour_distance(torch.tensor([[0.0, 0.0], [0, 10], [0, 30]])).tolist() == [20.0, 15.0, 25.0]
    assert clipped_neighbour_distance(torch.zeros(5, 2)).tolist() == [4.0] * 5
    points = torch.as_tensor(random.uniform(1900, 2000, (40, 2))).float()  # many, and far from the origin
    exact = clipped_neighbour_distance(points.double())
    np.testing.assert_allclose(clipped_neighbour_distance(points), exact, rtol=1e-5)
    assert exact.min() < exact.max() < 128


@pytest.mark.parametrize("adaptive", [False, True])
def test_regression_loss(adaptive):
    points, targets, density = random_case(10)
    tensors = torch.as_tensor(points), torch.as_tensor(targets)
    widths = 0.3 * clipped_neighbour_distance(tensors[0]) if adaptive else torch.full((10,), 11.0).double()
    truth = target_density(tensors[0], widths, tensors[1], GRID, 8)
    loss = loss_on_crops("mse", sigma=11.0, adaptive=adaptive)
    crops = [crop_at(points, targets)]
    value, gradient = loss_and_gradient(loss, density[None, None], crops)
    np.testing.assert_allclose(value.item(), ((density - truth.numpy()) ** 2).sum() / 2, rtol=1e-10)
    np.testing.assert_allclose(gradient[0, 0], density - truth.numpy(), rtol=1e-10)
    assert loss(truth[None, None], crops) == 0
