"""What holds for every loss, by name: one ladder from shapes to bad input."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from GS2D.kernel_file import StoredKernel
from losses import LOSSES, NEEDS_GAUSSIANS, build_loss
from losses.transport import TransportedMassLoss, transport_kernel

VARIANTS = [
    ("gst", {}),
    ("bl", {}),
    ("bl+", {}),
    ("bl+", {"background": "code"}),
    ("dm-count", {}),
    ("dm-count", {"solver": "dense"}),
    ("dm-count", {"solver": "log"}),
    ("gloss", {}),
    ("gloss", {"cost": "perspective"}),
    ("gloss", {"offset": 8.0}),
    ("mse", {}),
    ("mse", {"adaptive": True}),
    ("mse", {"renormalise": False}),
]
every_loss = pytest.mark.parametrize(
    "name, options", VARIANTS, ids=["-".join([name, *map(str, options.values())]) for name, options in VARIANTS]
)
KEYS = ("scales", "rotations", "targets")
BAD = pytest.mark.parametrize("count", [0, 1, 5, 60])


def annotations(count, size=128, seed=0, low=-0.1, high=1.1, dtype=torch.float32):
    """One crop's points (some outside, where low and high allow it), scales, rotations, targets."""
    random = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, 2, generator=random, dtype=torch.float64) * (high - low) + low) * size
    scales = torch.exp(torch.randn(count, 2, generator=random, dtype=torch.float64) * 0.6 + 2)
    rotations = torch.rand(count, 1, generator=random, dtype=torch.float64) * math.pi
    targets = 0.3 + 0.7 * torch.rand(count, generator=random, dtype=torch.float64)
    return batch([(points, scales, rotations, targets)], dtype)


def batch(rows, dtype=torch.float32):
    columns = [[value.to(dtype) for value in column] for column in zip(*rows)]
    names = ("points", "scales", "rotations", "targets")
    return SimpleNamespace(**dict(zip(names, columns)), kernels=[None] * len(rows))


def random_density(*shape, seed=0, total=None, dtype=torch.float32):
    density = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (density if total is None else density * (total / density.sum())).to(dtype)


def loss_and_gradient(loss, density, sample):
    density = density.clone().requires_grad_()
    value = loss(density, sample)
    value.backward()
    return value.detach(), density.grad


@every_loss
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 60, 3000])
def test_scalar_and_gradient_are_finite(name, options, count):
    sample = annotations(count, 80)
    value, gradient = loss_and_gradient(build_loss(name, **options), random_density(1, 1, 8, 10, total=50), sample)
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
    assert gradient.shape == (1, 1, 8, 10) and gradient.isfinite().all() and gradient.any()


@every_loss
def test_same_bits_twice_and_inputs_unchanged(name, options):
    sample, density = annotations(40), random_density(1, 1, 12, 20)
    before = [sample.points[0].clone(), sample.targets[0].clone(), density.clone()]
    first, second = (loss_and_gradient(build_loss(name, **options), density, sample) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    for old, new in zip(before, [sample.points[0], sample.targets[0], density]):
        assert torch.equal(old, new)


@every_loss
def test_order_of_the_points_does_not_matter(name, options):
    sample, density = annotations(40), random_density(1, 1, 16, 16, total=30)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = batch([[getattr(sample, key)[0][order] for key in ("points", "scales", "rotations", "targets")]])
    expected = loss_and_gradient(build_loss(name, **options), density, sample)
    value, gradient = loss_and_gradient(build_loss(name, **options), density, shuffled)
    torch.testing.assert_close(value, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-3, atol=1e-4)


@every_loss
def test_flipped_left_to_right(name, options):
    if options.get("offset"):
        pytest.skip("the released grid is no mirror image of itself")
    sample, density = annotations(40), random_density(1, 1, 16, 16, total=30)
    points = sample.points[0] * torch.tensor([-1.0, 1]) + torch.tensor([128.0, 0])
    mirrored = batch([(points, sample.scales[0], -sample.rotations[0], sample.targets[0])])
    expected = loss_and_gradient(build_loss(name, **options), density, sample)
    value, gradient = loss_and_gradient(build_loss(name, **options), density.flip(3), mirrored)
    torch.testing.assert_close(value, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient.flip(3), expected[1], rtol=1e-3, atol=1e-4)


@every_loss
def test_moved_by_whole_cells(name, options):
    """Annotations and mass far from the border: only their places relative to each other count."""
    if options.get("cost") == "perspective":
        pytest.skip("its cost depends on the height in the image")
    sample = annotations(20, 256, low=0.4, high=0.6)
    density = torch.zeros(1, 1, 32, 32)
    density[..., 12:20, 12:20] = random_density(8, 8, total=20)
    moved = batch([(sample.points[0] + torch.tensor([16.0, -8]), *[getattr(sample, key)[0] for key in KEYS])])
    expected = build_loss(name, **options)(density, sample)
    value = build_loss(name, **options)(density.roll((-1, 2), dims=(2, 3)), moved)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


@every_loss
def test_batch_is_the_mean_of_its_samples(name, options):
    singles = [annotations(count, 96, seed) for seed, count in enumerate([30, 0, 1, 12])]
    density = random_density(4, 1, 12, 12, total=60)
    together = batch([[getattr(one, key)[0] for key in ("points", *KEYS)] for one in singles])
    value, gradient = loss_and_gradient(build_loss(name, **options), density, together)
    alone = [loss_and_gradient(build_loss(name, **options), density[b : b + 1], singles[b]) for b in range(4)]
    torch.testing.assert_close(value, torch.stack([one[0] for one in alone]).mean(), rtol=1e-4, atol=1e-5)
    expected = torch.cat([one[1] for one in alone]) / 4
    if name == "dm-count":  # its transport is summed: three quarters of each sample's are missing in the mean
        rest = build_loss(name, **options, ot_weight=0)
        counts = torch.cat([loss_and_gradient(rest, density[b : b + 1], singles[b])[1] for b in range(4)]) / 4
        expected = 4 * (expected - counts) + counts
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@every_loss
def test_mass_on_the_annotations_is_best(name, options):
    if name == "mse":
        pytest.skip("wants a blurred map")
    cells = torch.tensor([[3, 3], [3, 12], [8, 7], [13, 3], [12, 12]])
    points = (cells * 8 + options.get("offset", 4.0)).flip(1)
    sample = batch([(points, torch.full((5, 2), 8.0), torch.zeros(5, 1), torch.ones(5))])
    density = torch.zeros(1, 1, 16, 16)
    density[0, 0, cells[:, 0], cells[:, 1]] = 1
    loss = build_loss(name, **options)
    best = loss(density, sample)
    assert best < min(loss(density * factor, sample) for factor in (0.7, 1.3))
    assert best < loss(density.roll(3, dims=2), sample)
    if name in ("gst", "bl", "dm-count"):
        assert best < 1e-3


@every_loss
def test_half_precision_is_computed_in_float32(name, options):
    sample = annotations(20)
    for dtype in (torch.float16, torch.bfloat16):
        density = random_density(1, 1, 16, 16).to(dtype)
        value, gradient = loss_and_gradient(build_loss(name, **options), density, sample)
        expected = loss_and_gradient(build_loss(name, **options), density.float(), sample)
        assert value.dtype == torch.float32 and torch.equal(value, expected[0])
        assert gradient.dtype == dtype and torch.equal(gradient, expected[1].to(dtype))


@every_loss
@BAD
def test_zero_density(name, options, count):
    value, gradient = loss_and_gradient(
        build_loss(name, **options), torch.zeros(1, 1, 16, 16), annotations(count, low=0.1, high=0.9)
    )
    assert value.isfinite() and gradient.isfinite().all()
    assert value > 0 if count else value == 0


@every_loss
@BAD
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_density_that_is_not_finite_makes_the_loss_not_finite(name, options, count, bad, everywhere):
    density = random_density(1, 1, 16, 16)
    density[0, 0, slice(None) if everywhere else 5, slice(None) if everywhere else 9] = bad
    value = build_loss(name, **options)(density, annotations(count))
    assert not value.isfinite() and (value.isnan() or math.isinf(bad))


@every_loss
def test_sizes_that_do_not_fit(name, options):
    loss, density, sample = build_loss(name, **options), random_density(1, 1, 16, 16), annotations(5)
    without_last = SimpleNamespace(**{**vars(sample), "targets": [sample.targets[0][:-1]]})
    wide = SimpleNamespace(**{**vars(sample), "points": [torch.zeros(5, 3)]})
    infinite = SimpleNamespace(**{**vars(sample), "points": [torch.full((5, 2), math.inf)]})
    cases = [
        (density[0], sample, "density"),
        (density[0, 0, 0], sample, "density"),
        (density.expand(1, 3, 16, 16), sample, "density"),
        (density[:, :, :0], sample, "density"),
        (density.expand(2, 1, 16, 16), sample, "2"),
        (density, without_last, "targets"),
        (density, wide, "points|means"),
        (density, infinite, "points|means"),
    ]
    for given, annotated, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            loss(given, annotated)
        assert "\n" not in str(caught.value)


@every_loss
def test_gradients_stay_switched_off(name, options):
    with torch.no_grad():
        value = build_loss(name, **options)(random_density(1, 1, 8, 8), annotations(5, 64))
        assert not torch.is_grad_enabled() and not value.requires_grad


@every_loss
def test_one_cell(name, options):
    sample = batch([(torch.full((1, 2), 4.0), torch.full((1, 2), 8.0), torch.zeros(1, 1), torch.ones(1))])
    value, gradient = loss_and_gradient(build_loss(name, **options), torch.full((1, 1, 1, 1), 2.0), sample)
    assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("name", sorted(set(LOSSES) - NEEDS_GAUSSIANS))
def test_reads_no_gaussians(name):
    sample = annotations(5)
    bare = SimpleNamespace(points=sample.points, targets=sample.targets)
    density = random_density(1, 1, 16, 16)
    assert torch.equal(build_loss(name)(density, bare), build_loss(name)(density, sample))


@pytest.mark.parametrize("name", ["bl", "bl+", "gst", "mse"])
@pytest.mark.parametrize("count", [1, 25])
def test_gradient_is_that_of_the_value(name, count):
    sample = annotations(count, 64, dtype=torch.float64)
    density = random_density(1, 1, 8, 8, total=count / 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda given: build_loss(name)(given, sample), density)


def test_unknown_name():
    with pytest.raises(ValueError, match="loss: 'l1', must be one of gst, bl, bl\\+, dm-count, gloss, mse"):
        build_loss("l1")


@pytest.mark.parametrize(
    "name, option", [("bl", {"background": "x"}), ("dm-count", {"solver": "x"}), ("gloss", {"cost": "x"})]
)
def test_unknown_choice(name, option):
    with pytest.raises(ValueError, match="'x', must be"):
        build_loss(name, **option)(random_density(1, 1, 8, 8), annotations(3))


def test_gst_is_the_loss_of_its_kernels():
    sample, density = annotations(30), random_density(1, 1, 16, 20, total=15)
    arguments = sample.points[0], sample.scales[0], sample.rotations[0], (128, 160)
    kernel = transport_kernel(*arguments, cut_off=2.5, post_max=16.0)
    expected = TransportedMassLoss()(density, [kernel], sample.targets)
    assert torch.equal(build_loss("gst", cut_off=2.5, post_max=16.0)(density, sample), expected)
    assert (build_loss("gst")(density, sample) - expected).abs() > 1e-3
    indptr, indices, data = (value.numpy() for value in kernel.csr())
    sample.kernels = [StoredKernel(indptr, indices.astype(np.int32), data, (16, 20), {})]
    torch.testing.assert_close(build_loss("gst")(density, sample), expected, rtol=1e-5, atol=1e-5)


RECIPES = [
    path
    for path in sorted((Path(__file__).parents[1] / "configs").glob("*_*.yml"))
    if path.stem.split("_")[0] in LOSSES
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_that_of_its_name(path):
    loss, dataset = path.stem.split("_")
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (recipe["loss"], recipe["dataset"]) == (loss, dataset)
    assert float(recipe["lr"]) == 1e-5 and recipe.get("val_start", 600) < recipe["epochs"]
    crop = recipe.get("crop_size", {"nwpu": 384, "sha": 256}.get(dataset, 512))
    assert crop == (384 if dataset == "nwpu" else 256 if dataset == "sha" and loss != "bl" else 512)
