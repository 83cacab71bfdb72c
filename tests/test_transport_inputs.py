"""What the transport kernel and the loss refuse."""

import math

import numpy as np
import pytest
import torch
from loss_batches import random_crop

from GS2D import native
from losses.transport import TransportedMassLoss, dense_transport_kernel, transport_kernel


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -3])
@pytest.mark.parametrize("name", ["means", "scales", "rotations"])
def test_values_that_are_not_finite_or_negative_scales(name, value):
    inputs = dict(zip(("means", "scales", "rotations"), random_crop(5)[:3]))
    inputs[name][3, 0] = value
    for build in (transport_kernel, dense_transport_kernel):
        if value == -3 and name != "scales":
            build(**inputs, crop_size=128)
            continue
        with pytest.raises(ValueError, match=f"^{name}: {value} in row 3[^\n]*$"):
            build(**inputs, crop_size=128)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("scales", ((5, 2), (4, 2), (5, 1))),
        ("scales", ((5, 2), (0, 2), (0, 1))),
        ("rotations", ((5, 2), (5, 2), (5,))),
        ("means", ((5, 3), (5, 2), (5, 1))),
        ("scales", ((0, 2), (5, 2), (5, 1))),
    ],
)
def test_shapes_that_do_not_fit(name, shapes):
    with pytest.raises(ValueError, match=f"^{name}: shape"):
        transport_kernel(*(torch.ones(shape) for shape in shapes), 128)


@pytest.mark.parametrize(
    "parameter",
    [{"crop_size": 7}, {"post_min": 0}, {"post_max": math.nan}, {"scale_ratio": -1}, {"background_ratio": -0.1}]
    + [{"cut_off": math.inf}, {"cut_off": 1e39}, {"backend": "cuda"}],
)
def test_impossible_parameters(parameter):
    with pytest.raises(ValueError, match=next(iter(parameter))):
        transport_kernel(*random_crop(3)[:3], **{"crop_size": 64, **parameter})


@pytest.mark.skipif(not native.works(), reason="no C++ compiler here")
def test_more_shares_than_int32_counts_are_refused():
    table, cells = np.zeros((70_000, 7), np.float32), np.zeros(40_000, np.float32)
    table[:, [2, 5]] = 1e-3  # each reaches all of 200 x 200 cells
    with pytest.raises(MemoryError, match="^native engine: not enough memory for these Gaussians and this image$"):
        native.kernel_rows(table, (200, 200), 8, cells, cells.astype(np.int32), cells, smallest=1e-7)


def test_samples_that_do_not_fit_together():
    kernel, target, loss = transport_kernel(*random_crop(3)[:3], 64), torch.ones(3), TransportedMassLoss()
    for density, kernels, targets, message in (
        (torch.ones(()), [], [], "density: shape"),
        (torch.ones(1, 8, 8), [kernel], [target], "density"),
        (torch.ones(2, 1, 8, 8), [kernel], [target], "samples"),
        (torch.ones(1, 1, 8, 8), [kernel], [], "samples"),
        (torch.ones(1, 1, 8, 16), [kernel], [target], r"density\[0\]"),
        (torch.ones(1, 1, 8, 8), [kernel], [torch.ones(5)], r"density\[0\].* 5 targets"),
        (torch.ones(1, 1, 8, 8), [kernel], [torch.ones(2)], r"density\[0\].* 2 targets"),
    ):
        with pytest.raises(ValueError, match=f"{message}[^\n]*$"):
            loss(density, kernels, targets)


def test_targets_of_any_type_and_orientation():
    kernel, loss = transport_kernel(*random_crop(3)[:3], 64), TransportedMassLoss()
    for kernel in (kernel, torch.eye(64)[:3].to_sparse_csr()):  # with a row of background and without
        density = torch.rand(1, 1, 8, 8)
        expected = loss(density, [kernel], [torch.tensor([1.0, 0, 2])])
        for target in ([1, 0, 2], torch.tensor([[1], [0], [2]]), torch.tensor([1, 0, 2]).double()):
            found = loss(density, [kernel], [target])
            assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_without_a_compiler_the_dense_twin_computes_it(monkeypatch):
    def missing():
        raise native.NativeUnavailable("native engine: no C++ compiler found")

    inputs = torch.full((1, 2), 20.0), torch.full((1, 2), 9.0), torch.zeros(1, 1)
    expected = transport_kernel(*inputs, 64, backend="reference")
    monkeypatch.setattr(native, "load", missing)
    native.problem.cache_clear()
    found = transport_kernel(*inputs, 64)
    with pytest.raises(native.NativeUnavailable, match="no C\\+\\+ compiler"):
        transport_kernel(*inputs, 64, backend="native")
    native.problem.cache_clear()
    assert torch.equal(found.to_dense(), expected.to_dense())
