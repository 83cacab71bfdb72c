"""Image, points and Gaussians must move together."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.transforms import (
    Augmentation,
    Sample,
    augment,
    box_fraction,
    crop,
    draw_augmentation,
    expose,
    grey,
    hflip,
    rescale,
)
from utils.pixels import normalise, to_planes


def make_sample(height=90, width=120, count=25, seed=0):
    rng = np.random.default_rng(seed)
    return Sample(
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        (rng.random((count, 2)) * (width, height)).astype(np.float32),
        rng.uniform(2, 150, count).astype(np.float32),
        rng.uniform(1, 20, (count, 2)).astype(np.float32),
        rng.uniform(0, np.pi, (count, 1)).astype(np.float32),
    )


def assert_same(one, other):
    for name, a, b in zip(Sample._fields, one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_drawing_follows_the_documented_order():
    for seed in range(50):
        u = np.random.default_rng(seed).random(5)
        drawn = draw_augmentation(np.random.default_rng(seed), 300, 400, 200, "a")
        factor = 0.75 + 0.5 * u[1]
        height, width = round(300 * factor), round(400 * factor)
        assert drawn == Augmentation(
            u[0] < 0.12, factor, int(u[2] * (height - 199)), int(u[3] * (width - 199)), u[4] < 0.5
        )


def test_frequencies_and_ranges():
    generator = np.random.default_rng(3)
    drawn = [draw_augmentation(generator, 700, 900, 512, "a") for _ in range(20_000)]
    factors = np.array([d.scale for d in drawn])
    assert abs(np.mean([d.grey for d in drawn]) - 0.12) < 0.01
    assert abs(np.mean([d.flip for d in drawn]) - 0.5) < 0.015
    # 700 * 0.7314 is the first short side that still holds the crop, so every factor of [0.75, 1.25] is used.
    assert 0.75 <= factors.min() < 0.751 and 1.249 < factors.max() <= 1.25 and abs(factors.mean() - 1) < 0.004
    tops = np.array([d.top for d in drawn if d.scale == pytest.approx(1, abs=0.01)])
    assert tops.min() >= 0 and tops.max() <= 700 * 1.01 - 512 and abs(tops.mean() - 94) < 6


def test_a_factor_that_makes_the_image_too_small_is_not_used():
    generator = np.random.default_rng(4)
    drawn = [draw_augmentation(generator, 512, 640, 512, "a") for _ in range(500)]
    factors = [d.scale for d in drawn]
    assert min(factors) == 1 and 0.4 < np.mean([f == 1 for f in factors]) < 0.6
    assert all(d.top == 0 for d in drawn if d.scale == 1)


@given(st.integers(0, 10**9), st.integers(40, 120), st.integers(40, 120), st.integers(8, 40))
@settings(deadline=None, max_examples=50)
def test_the_crop_always_lies_in_the_image(seed, height, width, size):
    drawn = draw_augmentation(np.random.default_rng(seed), height, width, size, "a")
    sample, targets, _ = augment(make_sample(height, width, seed=1), drawn, size)
    assert sample.image.shape == (size, size, 3) and sample.image.dtype == np.uint8
    assert len(targets) == len(sample.points) == len(sample.distance) == len(sample.scales) == len(sample.rotations)
    assert all(array.dtype == np.float32 for array in (*sample[1:], targets))
    assert ((targets >= 0.3) & (targets <= 1)).all()


def test_an_image_smaller_than_the_crop_is_named():
    with pytest.raises(ValueError) as caught:
        draw_augmentation(np.random.default_rng(0), 400, 900, 512, "data/IMG_0007.jpg")
    message = str(caught.value)
    assert "data/IMG_0007.jpg: 900 x 400" in message and "--crop-size to 400" in message and "--min-size 512" in message
    assert draw_augmentation(np.random.default_rng(0), 512, 512, 512, "a").top == 0


def test_the_same_generator_gives_the_same_sample():
    sample = make_sample()
    made = [
        augment(sample, draw_augmentation(np.random.default_rng([7, 1, 2]), 90, 120, 48, "a"), 48) for _ in range(2)
    ]
    assert_same(made[0][0], made[1][0])
    np.testing.assert_array_equal(made[0][1], made[1][1])


def test_nothing_is_changed_in_place():
    sample = make_sample()
    copy = Sample(*(array.copy() for array in sample))
    augment(sample, Augmentation(True, 1.2, 3, 5, True), 64)
    assert_same(sample, copy)


def test_rescale_multiplies_all_lengths():
    sample = make_sample()
    half = rescale(sample, 0.5)
    for name in ("points", "distance", "scales"):
        np.testing.assert_array_equal(getattr(half, name), getattr(sample, name) / 2)
    np.testing.assert_array_equal(half.rotations, sample.rotations)
    assert half.image is sample.image


def test_a_mark_in_the_image_stays_under_its_point():
    """A white dot on black is found at its point after any augmentation."""
    rng = np.random.default_rng(5)
    for _ in range(40):
        x, y = (int(v) for v in rng.integers(40, 160, 2))
        image = np.zeros((200, 220, 3), np.uint8)
        image[y - 1 : y + 2, x - 1 : x + 2] = 255
        point = np.array([[x + 0.5, y + 0.5]], np.float32)
        sample = Sample(
            image, point, np.full(1, 8, np.float32), np.ones((1, 2), np.float32), np.ones((1, 1), np.float32)
        )
        drawn = draw_augmentation(rng, 200, 220, 150, "a")
        out, targets, _ = augment(sample, drawn, 150)
        weights = out.image[..., 0].astype(float)
        if not len(out.points) or targets[0] < 1:
            continue
        rows, columns = np.mgrid[:150, :150] + 0.5
        centre = (weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum()
        np.testing.assert_allclose(out.points[0], centre, atol=0.4)


@pytest.mark.parametrize(
    "point, distance, expected",
    [
        ((50, 50), 20, 1),
        ((0, 50), 20, 0.5),  # on the border: half of the box
        ((0, 0), 20, 0.25),
        ((-4, 50), 20, 0.3),  # 6 of 20 columns
        ((104, 50), 20, 0.3),
        ((-10, 50), 20, 0),
        ((-40, -40), 20, 0),
        ((99, 50), 1, 0.75),  # side raised to 4: 3 of 4 columns
        ((50, 50), 1000, (100 / 128) ** 2),  # side lowered to 128: larger than the crop
        ((50, 50), 0, 1),
    ],
)
def test_box_fraction(point, distance, expected):
    for left, top in ((0, 0), (300, 17)):
        moved = np.array([point], np.float32) + (left, top)
        found = box_fraction(moved.astype(np.float32), np.array([distance], np.float32), left, top, 100)
        np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_box_fraction_counts_pixels():
    """With even sides and whole points a box is a set of pixels, which can be counted."""
    rng = np.random.default_rng(6)
    points, sides = rng.integers(-20, 120, (100, 2)), 2 * rng.integers(2, 30, 100)
    found = box_fraction(points.astype(np.float32), sides.astype(np.float32), 0, 0, 100)
    for (x, y), side, fraction in zip(points, sides, found, strict=True):
        box = [(i, j) for i in range(y - side // 2, y + side // 2) for j in range(x - side // 2, x + side // 2)]
        assert fraction == pytest.approx(sum(0 <= i < 100 and 0 <= j < 100 for i, j in box) / side**2, abs=1e-6)


def test_crop_keeps_points_with_enough_of_their_box_inside():
    sample = make_sample(200, 200, 300, seed=2)
    left, top, size = 30, 50, 100
    out, targets, _ = crop(sample, left, top, size)
    fraction = box_fraction(sample.points, sample.distance, left, top, size)
    kept = fraction >= 0.3
    assert 0 < kept.sum() < 300
    np.testing.assert_array_equal(targets, fraction[kept])
    np.testing.assert_array_equal(out.points, sample.points[kept] - (30, 50))
    for name in ("distance", "scales", "rotations"):
        np.testing.assert_array_equal(getattr(out, name), getattr(sample, name)[kept])
    drawn = Augmentation(False, 1.0, top, left, False)
    np.testing.assert_array_equal(augment(sample, drawn, size)[0].image, sample.image[50:150, 30:130])
    assert ((out.points < 0) | (out.points > size)).any(), "points just outside belong to the crop as well"


def test_thirty_percent_is_enough():
    points = np.array([[-4.0, 50], [-4.25, 50]], np.float32)
    sample = make_sample(count=2)._replace(points=points, distance=np.full(2, 20, np.float32))
    assert crop(sample, 0, 0, 80)[1] == pytest.approx([0.3])


def test_flip_mirrors_image_points_and_angles():
    sample = make_sample()
    flipped = hflip(sample)
    np.testing.assert_array_equal(flipped.image, sample.image[:, ::-1])
    np.testing.assert_array_equal(flipped.points[:, 0], 120 - sample.points[:, 0])
    np.testing.assert_array_equal(flipped.points[:, 1], sample.points[:, 1])
    np.testing.assert_array_equal(flipped.rotations, -sample.rotations)
    np.testing.assert_allclose(hflip(flipped).points, sample.points, atol=1e-5)


def test_a_flipped_covariance_is_the_mirrored_one():
    sample = make_sample()

    def covariances(s):
        c, n = np.cos(s.rotations[:, 0]), np.sin(s.rotations[:, 0])
        r = np.stack([np.stack([c, -n], -1), np.stack([n, c], -1)], -2)  # [N, 2, 2]
        return r @ (s.scales[:, :, None] ** 2 * np.eye(2)) @ r.swapaxes(1, 2)

    mirror = np.diag([-1.0, 1.0])
    np.testing.assert_allclose(covariances(hflip(sample)), mirror @ covariances(sample) @ mirror, rtol=1e-4, atol=1e-3)


def test_grey_has_the_luma_in_every_channel():
    image = make_sample().image
    luma = np.asarray(Image.fromarray(image).convert("L"))
    assert (grey(image) == luma[..., None]).all()
    np.testing.assert_allclose(luma, image @ [0.299, 0.587, 0.114], atol=0.51)
    out, *_ = augment(make_sample(), Augmentation(True, 1.0, 2, 3, True), 64)
    np.testing.assert_array_equal(out.image[..., 0], luma[2:66, 3:67][:, ::-1])


def test_jitter_leaves_the_other_draws_as_they_are():
    for seed in range(50):
        plain = draw_augmentation(np.random.default_rng(seed), 300, 400, 200, "a")
        drawn = draw_augmentation(np.random.default_rng(seed), 300, 400, 200, "a", jitter=0.4)
        assert drawn._replace(brightness=1.0, contrast=1.0) == plain
        factors = 0.6 + 0.8 * np.random.default_rng(seed).random(7)[5:]
        np.testing.assert_allclose([drawn.brightness, drawn.contrast], factors, rtol=1e-12)


@pytest.mark.parametrize("brightness, contrast", [(0.7, 1.0), (1.0, 0.6), (1.4, 1.3), (0.8, 0.0)])
def test_exposure_in_closed_form(brightness, contrast):
    image = make_sample().image
    values = brightness * (image.mean() + contrast * (image - image.mean()))
    exposed = expose(image, brightness, contrast)
    assert exposed.dtype == np.uint8 and abs(exposed - np.clip(values, 0, 255)).max() <= 0.5 + 1e-9
    drawn = Augmentation(False, 1.0, 2, 3, True)
    plain, out = (augment(make_sample(), d, 64)[0].image for d in (drawn, drawn._replace(brightness=0.7, contrast=0.6)))
    np.testing.assert_array_equal(out, expose(plain, 0.7, 0.6))


def test_no_points():
    sample, targets, _ = augment(make_sample(count=0), Augmentation(True, 1.1, 2, 3, True), 64)
    assert targets.shape == (0,) and sample.points.shape == (0, 2)
    assert sample.scales.shape == (0, 2) and sample.rotations.shape == (0, 1)


def test_normalise():
    image = make_sample().image
    tensor = normalise(to_planes(image[:, ::-1]))
    assert tensor.shape == (3, 90, 120) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    expected = (image[:, ::-1] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(tensor.permute(1, 2, 0).numpy(), expected, atol=1e-5)
