"""The transport kernel (Eqs. 5, 7) and the transported-mass loss (Eq. 6)."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_batches import loss_and_gradient, random_crop, random_density

from GS2D import native
from GS2D.kernel import block_diagonal, csr, dense_transport_kernel, rows_of, transport_kernel
from losses.transport import TransportedMassLoss

GOLDEN = np.load(Path(__file__).parent / "data" / "transport.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN})


@pytest.fixture(scope="module", params=["native", "reference"], autouse=True)
def backend(request):
    """What "auto" means: the engine, or the dense twin made sparse."""
    if request.param == "native" and not native.works():
        pytest.skip("no C++ compiler here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "works", lambda: request.param == "native")
        yield request.param


def golden(case):
    return {key.split("/")[1]: GOLDEN[key] for key in GOLDEN if key.startswith(f"{case}/")}


def gaussians(count, size=128, seed=0):
    """Random means (some outside), scales and rotations."""
    return random_crop(count, size, seed)[:3]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("make", [torch.as_tensor, np.asarray])
def test_released_code(case, make):
    data = golden(case)
    inputs = [make(data[key]) for key in ("points", "scales", "rotations")]
    kernel = transport_kernel(*inputs, int(data["crop"]), stride=int(data["stride"]))
    # Without points the released kernel has no row at all.
    expected = data["kernel"] if len(data["points"]) else np.ones((1, kernel.shape[1]))
    np.testing.assert_allclose(kernel.to_dense().numpy(), expected, rtol=0, atol=1e-5)
    twin = dense_transport_kernel(*inputs, int(data["crop"]))
    np.testing.assert_allclose(twin.numpy(), expected, rtol=0, atol=1e-5)
    loss, gradient = loss_and_gradient(TransportedMassLoss(), data["density"][None], [kernel], [make(data["targets"])])
    np.testing.assert_allclose(loss.numpy(), data["loss"], rtol=1e-4)
    np.testing.assert_allclose(gradient[0].numpy(), data["grad"], rtol=1e-4, atol=1e-6)


coordinates = st.one_of(
    st.integers(-20, 70).map(lambda k: 4.0 * k), st.floats(-1e3, 1e3, width=32), st.sampled_from([-1e6, 1e6])
)
deviations = st.one_of(st.sampled_from([8.0, 16.0, 20.0]), st.floats(-2, 3).map(lambda k: 10.0**k))
angles = st.one_of(st.integers(-4, 4).map(lambda k: k * math.pi / 4), st.floats(-math.pi, math.pi))
rows = st.tuples(coordinates, coordinates, deviations, deviations, angles)
# Rows written twice, and means written twice with other scales: equal z, where the first one is the nearest.
duplicated = st.lists(rows, min_size=1, max_size=8).flatmap(
    lambda found: st.lists(
        st.sampled_from(found + [(*row[:2], 9.0, 13.0, 0.5) for row in found]), min_size=1, max_size=16
    )
)
sizes = st.sampled_from([(128, 128), (96, 168), (250, 70), (16, 2100)])


others = st.fixed_dictionaries(
    {
        "background_ratio": st.sampled_from([0.0, 1e-12, 0.015, 1.0, 1e6]),
        "cut_off": st.sampled_from([0.0, 3.0, 12.0]),
        "post_max": st.sampled_from([2.0, 20.0, 1000.0]),
        "post_min": st.sampled_from([0.5, 1.0, 4.0]),
        "scale_ratio": st.just(0.7),
    }
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(duplicated, sizes, st.sampled_from([5, 8, 16]), st.one_of(st.just({}), others))
def test_sparse_equals_dense(found, size, stride, parameters):
    """Far from all Gaussians as exactly as float32 holds -z of the nearest; without a background that decides the shares."""
    columns, parameters = (
        torch.tensor(found, dtype=torch.float32).split([2, 2, 1], dim=1),
        {"stride": stride} | parameters,
    )
    kernel, twin = (make(*columns, size, **parameters) for make in (transport_kernel, dense_transport_kernel))
    kernel, allowed = kernel.to_dense(), 1e-6
    if len(parameters) > 1:
        points, sigma, angles = (column.double() for column in columns)
        y, x = ((torch.arange(side // stride) + 0.5) * stride for side in size)
        dx, dy = (torch.cartesian_prod(y, x).flip(1).double() - points[:, None]).unbind(2)
        largest = parameters["post_max"]
        sigma = (0.7 * sigma).clamp(min(stride / parameters["post_min"], largest), largest)
        along, across = angles.cos() * dx + angles.sin() * dy, angles.cos() * dy - angles.sin() * dx
        nearest = ((along / sigma[:, :1]).square() + (across / sigma[:, 1:]).square()).amin(dim=0) / 2  # -z, [M]
        allowed = allowed + 2**-22 * (nearest.clamp(max=200) if parameters["background_ratio"] else nearest)
    else:
        torch.testing.assert_close(kernel.sum(0), torch.ones(kernel.shape[1]), rtol=0, atol=1e-6)
    assert ((kernel - twin).abs() <= allowed).all()


def test_what_all_skipped_gaussians_had_together_is_small():
    """Many equal Gaussians just out of reach of the cell at x = 92, where a near one is as likely as the background."""
    means = torch.full((20001, 2), 4.0, dtype=torch.float64)
    means[-1, 0] = 92 - 20 * math.sqrt(9 / 2 + math.log(20**2 / 0.015))
    scales = torch.full_like(means, 8.0)
    scales[-1] = 20.0  # the last: to its likelihood, float32 would add none of the others'
    for distance in range(60, 80, 2):
        means[:-1, 0] = 92 + distance
        background = transport_kernel(means, scales, torch.zeros(len(means), 1), (8, 128)).to_dense()[-1, 11]
        twin = dense_transport_kernel(means, scales, torch.zeros(len(means), 1), (8, 128))[-1, 11]
        torch.testing.assert_close(background, twin.float(), rtol=0, atol=1e-6)


def test_few_shares_are_stored_and_none_too_small():
    kernel = transport_kernel(*gaussians(1000, 512), 512)
    assert kernel.layout == torch.sparse_csr and kernel.shape == (1001, 4096) and kernel.dtype == torch.float32
    assert kernel.crow_indices().dtype == kernel.col_indices().dtype == torch.int32
    assert 4096 < kernel.values().numel() < 1000 * 4096 / 10
    assert kernel.values().amin() > 1e-7


def test_columns_of_thousands_of_identical_gaussians_are_whole():
    """They reach whole vectors of cells, of which some have no Gaussian near enough to be their nearest."""
    kernel = transport_kernel(np.full((10_000, 2), 33.3), np.full((10_000, 2), 9.0), np.zeros((10_000, 1)), 128)
    np.testing.assert_allclose(rows_of(kernel).sum(axis=0, dtype=np.float64), 1, atol=2e-3)  # 1e-7 of each is left out


def test_one_point_in_closed_form():
    mean, sigma, theta = np.array([37.0, 50.0]), np.array([9.0, 17.0]), 0.7
    arguments = mean[None], sigma[None], np.array([[theta]]), 128
    rotation = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    covariance = rotation @ np.diag(sigma**2) @ rotation.T
    offset, determinant = np.array([8 * 5 + 4, 8 * 7 + 4]) - mean, np.linalg.det(covariance)  # cell (row 7, column 5)
    z = -offset @ np.linalg.solve(covariance, offset) / 2
    odds = math.exp(-4.5 - z - math.log(determinant / 0.015) - (z - math.log(determinant) / 2))
    twin, kernel = dense_transport_kernel(*arguments), transport_kernel(*arguments)
    assert twin[0, 7 * 16 + 5].item() == pytest.approx(1 / (1 + odds), abs=1e-9) and twin.dtype == torch.float64
    assert kernel.to_dense()[0, 7 * 16 + 5].item() == pytest.approx(1 / (1 + odds), abs=1e-6)
    assert twin.shape == kernel.shape == (2, 256) and kernel.dtype == torch.float32


@pytest.mark.parametrize("shape", [(0,), (0, 2), (0, 3)])
def test_no_points(shape):
    kernel = transport_kernel(np.zeros(shape), np.zeros((0, 2)), np.zeros((0, 1)), 64, background_ratio=0)
    assert torch.equal(kernel.to_dense(), torch.ones(1, 64))
    loss, gradient = loss_and_gradient(TransportedMassLoss(), torch.full((1, 1, 8, 8), 0.5), [kernel], [np.zeros(0)])
    assert loss == 32 and (gradient == 1).all()


def test_first_of_two_equally_near_gaussians_sets_the_background():
    """exp(l_bg) = ratio / det of the first; exp(l) = exp(-4.5) / sqrt(det) of each."""
    means = torch.tensor([[60.0 - 24, 60.0], [60.0 + 48, 60.0]])  # three standard deviations from the cell at 60, 60
    scales, weights = torch.tensor([[8.0, 8.0], [16.0, 16.0]]), math.exp(-4.5) / 8**2 + math.exp(-4.5) / 16**2
    for order, first in (([0, 1], 8), ([1, 0], 16)):
        kernel = transport_kernel(means[order], scales[order], torch.zeros(2, 1), 128).to_dense()
        assert kernel[-1, 7 * 16 + 7].item() == pytest.approx(1 / (1 + weights * first**4 / 0.015), rel=1e-4)


def test_same_bytes_twice_and_with_any_number_of_threads():
    def run():
        kernel = transport_kernel(*gaussians(400, 256), 256)
        loss, gradient = loss_and_gradient(
            TransportedMassLoss(), random_density(1, 1, 32, 32), [kernel], [torch.ones(400)]
        )
        return b"".join(value.numpy().tobytes() for value in (*block_diagonal([kernel]), loss, gradient))

    threads, first = torch.get_num_threads(), run()
    assert run() == first
    try:
        torch.set_num_threads(3 - min(threads, 2))  # 2 instead of 1, 1 instead of more
        assert run() == first
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("counts", [(0,), (80,), (7, 0, 1, 40)])
def test_block_diagonal_holds_the_kernels_and_their_transpose(counts):
    kernels = [transport_kernel(*gaussians(count, seed=count), (128, 100)) for count in counts]
    blocks = block_diagonal(kernels)
    assert [part.dtype for part in blocks] == 2 * [torch.int32, torch.int32, torch.float32]
    expected, size = (
        torch.block_diag(*(kernel.to_dense() for kernel in kernels)),
        (sum(counts) + len(counts), len(counts) * 192),
    )
    assert torch.equal(csr(*blocks[:3], size[1]).to_dense(), expected)
    assert torch.equal(csr(*blocks[3:], size[0]).to_dense(), expected.T)
