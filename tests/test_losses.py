"""What holds for every loss, by name: one ladder from shapes to bad input."""

import math

import pytest
import torch
from loss_batches import Crop, batch_of, crop_at, loss_and_gradient, loss_on_crops, random_crop, random_density

from GS2D.kernel import transport_kernel
from losses import KERNELS, build_kernel, build_loss
from losses.transport import TransportedMassLoss

VARIANTS = [
    ("gst", {}),
    ("bl", {}),
    ("bl+", {}),
    ("bl+", {"background": "code"}),
    ("dm-count", {}),
    ("gloss", {}),
    ("gloss", {"cost": "perspective"}),
    ("gloss", {"offset": 8.0}),
    ("mse", {}),
    ("mse", {"adaptive": True}),
]
every_loss = pytest.mark.parametrize(
    "name, options", VARIANTS, ids=["-".join([name, *map(str, options.values())]) for name, options in VARIANTS]
)


@every_loss
@pytest.mark.parametrize("count", [0, 1, 3, 60, 3000])
def test_scalar_and_gradient_are_finite(name, options, count):
    density = random_density(1, 1, 8, 10, total=50)
    value, gradient = loss_and_gradient(loss_on_crops(name, **options), density, [random_crop(count, 80)])
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
    assert gradient.shape == (1, 1, 8, 10) and gradient.isfinite().all() and gradient.any()
    nothing, slope = loss_and_gradient(
        loss_on_crops(name, **options), torch.zeros(1, 1, 8, 10), [random_crop(count, 80)]
    )
    assert (nothing > 0 if count else nothing == 0) and nothing.isfinite() and slope.isfinite().all()
    one_cell = loss_and_gradient(loss_on_crops(name, **options), torch.full((1, 1, 1, 1), 2.0), [random_crop(count, 8)])
    assert all(part.isfinite().all() for part in one_cell)


@every_loss
def test_same_bits_twice_and_inputs_unchanged(name, options):
    density = random_density(2, 1, 12, 20)
    batch = batch_of([random_crop(40), random_crop(7, seed=1)], (96, 160), build_kernel(name, **options))
    tensors = [density, batch.points, batch.targets, batch.counts, *(batch.kernel or ()), batch.received]
    before = [tensor.clone() for tensor in tensors if tensor is not None]
    loss = build_loss(name, **({} if name in KERNELS else options))
    first, second = (loss_and_gradient(loss, density, batch) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    for old, new in zip(before, [tensor for tensor in tensors if tensor is not None], strict=True):
        assert torch.equal(old, new)


@every_loss
@pytest.mark.parametrize("change", ["order", "flip"])
def test_neither_the_order_of_the_points_nor_left_and_right_matter(name, options, change):
    if options.get("offset") and change == "flip":
        pytest.skip("the released grid is no mirror image of itself")
    crop, density = random_crop(40), random_density(1, 1, 16, 16, total=30)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    mirrored = crop.points * torch.tensor([-1.0, 1]) + torch.tensor([128.0, 0])
    if change == "order":
        other, turn = Crop(*(column[order] for column in crop)), torch.clone
    else:
        other, turn = crop._replace(points=mirrored, rotations=-crop.rotations), lambda cells: cells.flip(3)
    loss = loss_on_crops(name, **options)
    expected = loss_and_gradient(loss, density, [crop])
    value, gradient = loss_and_gradient(loss, turn(density), [other])
    torch.testing.assert_close(value, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turn(gradient), expected[1], rtol=1e-3, atol=1e-4)


@every_loss
def test_moved_by_whole_cells(name, options):
    """Annotations and mass far from the border: only their places relative to each other count."""
    if options.get("cost") == "perspective":
        pytest.skip("its cost depends on the height in the image")
    crop = random_crop(20, 256, low=0.4, high=0.6)
    density = torch.zeros(1, 1, 32, 32)
    density[..., 12:20, 12:20] = random_density(8, 8, total=20)
    loss = loss_on_crops(name, **options)
    expected = loss(density, [crop])
    value = loss(density.roll((-1, 2), dims=(2, 3)), [crop._replace(points=crop.points + torch.tensor([16.0, -8]))])
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


@every_loss
@pytest.mark.parametrize("parts", [(1, 1, 1, 1), (3, 1)], ids=str)
def test_a_step_does_not_depend_on_how_its_crops_are_divided(name, options, parts):
    """Among accumulated batches or processes: the mean of the parts, weighed by their sizes, is the whole."""
    crops = [random_crop(count, 96, seed) for seed, count in enumerate([30, 0, 1, 12])]
    density = random_density(4, 1, 12, 12, total=60)
    loss = loss_on_crops(name, **options)
    value, gradient = loss_and_gradient(loss, density, crops)
    _, weighed = loss_and_gradient(lambda *given: loss(*given) * 0.25, density, crops)  # as float16's scale does
    torch.testing.assert_close(weighed, gradient / 4, rtol=1e-6, atol=0)
    values, gradients, first = [], [], 0
    for size in parts:
        part = slice(first, first := first + size)
        one, slope = loss_and_gradient(loss, density[part], crops[part], 4)
        values.append(one * size / 4)
        gradients.append(slope * size / 4)
    largest = float(gradient.abs().max())
    assert all(slope.abs().max() > 1e-3 * largest for slope in gradients)
    torch.testing.assert_close(torch.cat(gradients), gradient, rtol=0, atol=1e-5 * largest)
    torch.testing.assert_close(sum(values), value, rtol=1e-5, atol=1e-5)


@every_loss
def test_without_annotations_the_sum_counts_whatever_its_sign(name, options):
    density = random_density(1, 1, 8, 8) - 0.8
    loss = loss_on_crops(name, **options)
    value, gradient = loss_and_gradient(loss, density, [crop_at([])])
    factor = {"gloss": 1.2, "mse": None}.get(name, 1)
    expected = density.square().sum() / 2 if factor is None else -density.sum() * factor
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, density if factor is None else torch.full_like(density, -factor))


@every_loss
def test_mass_on_the_annotations_is_best(name, options):
    if name == "mse":
        pytest.skip("wants a blurred map")
    cells = torch.tensor([[3, 3], [3, 12], [8, 7], [13, 3], [12, 12]])
    crops = [crop_at((cells * 8 + options.get("offset", 4.0)).flip(1))]
    density = torch.zeros(1, 1, 16, 16)
    density[0, 0, cells[:, 0], cells[:, 1]] = 1
    loss = loss_on_crops(name, **options)
    best = loss(density, crops)
    assert best < min(loss(density * factor, crops) for factor in (0.7, 1.3))
    assert best < loss(density.roll(3, dims=2), crops)
    if name in ("gst", "bl", "dm-count"):
        assert best < 1e-3


@every_loss
def test_half_precision_is_computed_in_float32(name, options):
    loss, crops = loss_on_crops(name, **options), [random_crop(20)]
    for dtype in (torch.float16, torch.bfloat16):
        density = random_density(1, 1, 16, 16).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=name in KERNELS):
            value, gradient = loss_and_gradient(loss, density, crops)
        expected = loss_and_gradient(loss, density.float(), crops)
        assert value.dtype == torch.float32 and torch.equal(value, expected[0])
        assert gradient.dtype == dtype and torch.equal(gradient, expected[1].to(dtype))


@every_loss
@pytest.mark.parametrize("count", [0, 5])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_density_that_is_not_finite_makes_the_loss_not_finite(name, options, count, bad, everywhere):
    density = random_density(1, 1, 16, 16)
    density[0, 0, slice(None) if everywhere else 5, slice(None) if everywhere else 9] = bad
    value = loss_on_crops(name, **options)(density, [random_crop(count)])
    assert not value.isfinite() and (value.isnan() or math.isinf(bad))


@every_loss
def test_sizes_that_do_not_fit(name, options):
    loss, density = build_loss(name, **({} if name in KERNELS else options)), random_density(1, 1, 16, 16)
    batch = batch_of([random_crop(5)], (128, 128), build_kernel(name, **options))
    for given in (density[0], density.expand(1, 3, 16, 16), density[:, :, :0], density.expand(2, 1, 16, 16)):
        with pytest.raises(ValueError, match="^density") as caught:
            loss(given, batch)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_that_do_not_fit(name):
    density, make = random_density(1, 1, 16, 16), build_kernel(name)
    crop = random_crop(5)
    batch = batch_of([crop], (128, 128), make)
    cases = [
        (batch._replace(kernel=None), "batch: has no transport kernels; give Crowd the kernel of this loss"),
        (batch._replace(received=batch.received[:-1]), f"{len(batch.received) - 1} targets"),
        (batch_of([crop], (128, 136), make), "256 cells.* 272 columns"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            build_loss(name)(density, given)
        assert "\n" not in str(caught.value)
    for points, message in ((torch.zeros(5, 3), "shape"), (torch.full((5, 2), math.inf), "inf in row 0")):
        with pytest.raises(ValueError, match=f"^(points|means): {message}"):
            batch_of([crop._replace(points=points)], (128, 128), make)


def test_the_product_does_not_depend_on_the_library(monkeypatch):
    """MKL's and the one of other machines and GPUs, which add in another order."""
    crops, density = [random_crop(40), random_crop(0), random_crop(7, seed=1)], random_density(3, 1, 16, 16, total=60)
    expected = loss_and_gradient(loss_on_crops("gst"), density, crops)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    value, gradient = loss_and_gradient(loss_on_crops("gst"), density, crops)
    torch.testing.assert_close(value, expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, expected[1], rtol=0, atol=1e-5 * float(expected[1].abs().max()))


@pytest.mark.parametrize("name", ["gst", "bl+", "bl"])
def test_the_weight_of_the_background_in_closed_form(name):
    crops = [random_crop(5), random_crop(0), random_crop(9, seed=1)]
    density, kernel = random_density(3, 1, 16, 16, total=20), build_kernel(name)
    batch = batch_of(crops, (128, 128), kernel, 128)
    value, gradient = loss_and_gradient(build_loss(name, background_weight=0.4), density, batch)
    expected = 0.0
    for b, crop in enumerate(crops):
        k = kernel(crop.points, crop.scales, crop.rotations, (128, 128), 128).to_dense()
        rows = len(k) - len(crop.targets)  # of the background
        residual = k @ density[b].flatten() - torch.nn.functional.pad(crop.targets, (0, rows)).float()
        weights = torch.tensor([1.0] * len(crop.targets) + [0.4] * rows)
        expected += float((weights * residual.abs()).sum()) / 3
        slope = (weights * residual.sign()) @ k / 3
        torch.testing.assert_close(gradient[b].flatten(), slope, rtol=1e-4, atol=1e-6)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(*(build_loss(name, **o)(density, batch) for o in ({}, {"background_weight": 1.0})))


@pytest.mark.parametrize("name", ["gst", "bl+", "bl"])
def test_the_count_beside_the_loss_in_closed_form(name):
    """One crop with too much density, one with too little, one that is empty."""
    crops = [random_crop(5), random_crop(0), random_crop(30, seed=1)]
    density = random_density(3, 1, 16, 16, total=20)
    batch = batch_of(crops, (128, 128), build_kernel(name), 128)
    plain, with_count = (loss_and_gradient(build_loss(name, count_weight=w), density, batch) for w in (0, 0.5))
    surplus = [float(density[b].sum() - crop.targets.sum()) for b, crop in enumerate(crops)]
    assert surplus[0] > 0 > surplus[2]
    assert float(with_count[0] - plain[0]) == pytest.approx(0.5 * sum(map(abs, surplus)) / 3, rel=1e-5)
    slope = torch.tensor(surplus).sign()[:, None, None, None].expand_as(density) * 0.5 / 3
    torch.testing.assert_close(with_count[1] - plain[1], slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name, option, message",
    [
        ("l1", {}, "loss: 'l1', must be one of gst, bl, bl\\+, dm-count, gloss, mse"),
        ("bl", {"background": "x"}, "'x', must be"),
        ("gloss", {"cost": "x"}, "'x', must be"),
    ],
)
def test_what_there_is_not(name, option, message):
    with pytest.raises(ValueError, match=message):
        loss_on_crops(name, **option)(random_density(1, 1, 8, 8), [random_crop(3)])


def test_gst_is_the_loss_of_its_kernels():
    crop, density = random_crop(30), random_density(1, 1, 16, 20, total=15)
    kernel = transport_kernel(*crop[:3], (128, 160), cut_off=2.5, post_max=16.0)
    expected = TransportedMassLoss()(density, [kernel], [crop.targets])
    assert torch.equal(loss_on_crops("gst", cut_off=2.5, post_max=16.0)(density, [crop]), expected)
    assert (loss_on_crops("gst")(density, [crop]) - expected).abs() > 1e-3
