"""Image, points and Gaussians move together; a rectangle of a rescaled image is that of the whole one, rescaled by OpenCV."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import transforms
from datasets.transforms import (
    Augmentation,
    Sample,
    augment,
    box_fraction,
    crop,
    cut_out,
    draw_augmentation,
    expose,
    grey,
    taps,
)
from GS2D import native


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


def draw(generator, height, width, size, count=1):
    return [draw_augmentation(generator, height, width, size, "a") for _ in range(count)]


def test_drawing_follows_the_documented_order():
    for seed in range(50):
        u = np.random.default_rng(seed).random(5)
        factor = 0.75 + 0.5 * u[1]
        top, left = int(u[2] * (round(300 * factor) - 199)), int(u[3] * (round(400 * factor) - 199))
        (drawn,) = draw(np.random.default_rng(seed), 300, 400, 200)
        assert drawn == Augmentation(u[0] < 0.12, factor, top, left, u[4] < 0.5)


def test_a_factor_that_makes_the_image_too_small_is_not_used():
    drawn = draw(np.random.default_rng(4), 512, 640, 512, 500)
    factors = [d.scale for d in drawn]
    assert min(factors) == 1 and 0.4 < np.mean([f == 1 for f in factors]) < 0.6
    assert all(d.top == 0 for d in drawn if d.scale == 1)


@given(st.integers(0, 10**9), st.integers(40, 120), st.integers(40, 120), st.integers(8, 40))
@settings(deadline=None, max_examples=50)
def test_the_crop_always_lies_in_the_image(seed, height, width, size):
    (drawn,) = draw(np.random.default_rng(seed), height, width, size)
    sample, targets, _ = augment(make_sample(height, width, seed=1), drawn, size)
    assert sample.image.shape == (size, size, 3) and sample.image.dtype == np.uint8
    assert len(targets) == len(sample.points) == len(sample.distance) == len(sample.scales) == len(sample.rotations)
    assert all(array.dtype == np.float32 for array in (*sample[1:], targets))
    assert ((targets >= 0.3) & (targets <= 1)).all()


def test_an_image_smaller_than_the_crop_is_named():
    with pytest.raises(ValueError, match="data/IMG_0007.jpg: 900 x 400.*--crop-size to 400.*--min-size 512"):
        draw_augmentation(np.random.default_rng(0), 400, 900, 512, "data/IMG_0007.jpg")
    assert draw_augmentation(np.random.default_rng(0), 512, 512, 512, "a").top == 0


def test_rescaling_multiplies_all_lengths_and_nothing_is_changed_in_place():
    sample, same = make_sample(), make_sample()
    half, _, stays = crop(sample, Augmentation(True, 0.5, 0, 0, False), 64)
    assert_same(half, Sample(sample.image, *(array[stays] / 2 for array in sample[1:4]), sample.rotations[stays]))
    augment(sample, Augmentation(True, 1.2, 3, 5, True), 64)
    assert_same(sample, same)


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


def test_crop_keeps_points_with_enough_of_their_box_inside():
    sample = make_sample(200, 200, 300, seed=2)
    left, top, size = 30, 50, 100
    drawn = Augmentation(False, 1.0, top, left, False)
    out, targets, _ = crop(sample, drawn, size)
    fraction = box_fraction(sample.points, sample.distance, left, top, size)
    stay = fraction >= 0.3
    assert 0 < stay.sum() < 300
    np.testing.assert_array_equal(targets, fraction[stay])
    expected = sample._replace(image=sample.image[50:150, 30:130], points=sample.points - np.float32([30, 50]))
    assert_same(out._replace(image=0), Sample(0, *(array[stay] for array in expected[1:])))
    np.testing.assert_array_equal(augment(sample, drawn, size)[0].image, expected.image)
    assert ((out.points < 0) | (out.points > size)).any(), "points just outside belong to the crop as well"
    points = np.array([[-4.0, 50], [-4.25, 50]], np.float32)  # thirty percent is enough
    sample = make_sample(count=2)._replace(points=points, distance=np.full(2, 20, np.float32))
    assert crop(sample, Augmentation(False, 1.0, 0, 0, False), 80)[1] == pytest.approx([0.3])


def test_a_flipped_covariance_is_the_mirrored_one():
    sample = make_sample()

    def covariances(s):
        c, n = np.cos(s.rotations[:, 0]), np.sin(s.rotations[:, 0])
        r = np.stack([np.stack([c, -n], -1), np.stack([n, c], -1)], -2)  # [N, 2, 2]
        return r @ (s.scales[:, :, None] ** 2 * np.eye(2)) @ r.swapaxes(1, 2)

    mirror = np.diag([-1.0, 1.0])
    plain, mirrored = (crop(sample, Augmentation(False, 1.0, 0, 0, flip), 80)[0] for flip in (False, True))
    np.testing.assert_allclose(covariances(mirrored), mirror @ covariances(plain) @ mirror, rtol=1e-4, atol=1e-3)


def test_grey_has_the_luma_in_every_channel():
    image = make_sample().image
    luma = np.asarray(Image.fromarray(image).convert("L"))
    assert (grey(image) == luma[..., None]).all()
    np.testing.assert_allclose(luma, image @ [0.299, 0.587, 0.114], atol=0.51)
    out, *_ = augment(make_sample(), Augmentation(True, 1.0, 2, 3, True), 64)
    np.testing.assert_array_equal(out.image[..., 0], luma[2:66, 3:67][:, ::-1])


@pytest.mark.parametrize("whole", [0.05, 1.0])
def test_whole_targets_in_closed_form(whole):
    """The target of a point is 1 where its box lies inside by that share, and else it is not of the crop."""
    sample = make_sample(count=400)
    share = box_fraction(sample.points, sample.distance, 30, 20, 48)
    inside, targets, stays = crop(sample, Augmentation(False, 1.0, 20, 30, False), 48, whole)
    assert (stays == (share >= whole)).all() and (targets == 1).all() and 0 < len(targets) == len(inside.points) < 400


def test_jitter_leaves_the_other_draws_as_they_are():
    for seed in range(50):
        plain = draw_augmentation(np.random.default_rng(seed), 300, 400, 200, "a")
        drawn = draw_augmentation(np.random.default_rng(seed), 300, 400, 200, "a", jitter=0.4)
        assert drawn._replace(brightness=1.0, contrast=1.0) == plain
        factors = 0.6 + 0.8 * np.random.default_rng(seed).random(7)[5:]
        np.testing.assert_allclose([drawn.brightness, drawn.contrast], factors, rtol=1e-12)


@pytest.mark.parametrize("brightness, contrast", [(0.7, 0.6), (1.4, 1.3)])
def test_exposure_in_closed_form(brightness, contrast):
    image = make_sample().image
    values = brightness * (image.mean() + contrast * (image - image.mean()))
    exposed = expose(image, brightness, contrast)
    assert exposed.dtype == np.uint8 and abs(exposed - np.clip(values, 0, 255)).max() <= 0.5 + 1e-9
    drawn = Augmentation(False, 1.0, 2, 3, True)
    plain, out = (augment(make_sample(), d, 64)[0].image for d in (drawn, drawn._replace(brightness=0.7, contrast=0.6)))
    np.testing.assert_array_equal(out, expose(plain, 0.7, 0.6))


@pytest.mark.parametrize("engine", ["native", "OpenCV"])
def test_every_pixel_is_that_of_the_whole_image_rescaled(engine, monkeypatch):
    if engine == "native" and not native.works():
        pytest.skip("no compiler")
    monkeypatch.setattr(transforms.native, "works", lambda: engine == "native")
    for seed in range(60):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (*rng.integers(60, 260, 2), 3), dtype=np.uint8)
        scale = rng.uniform(0.6, 1.6)
        rows, columns = (round(side * scale) for side in image.shape[:2])
        size = int(rng.integers(1, min(rows, columns) + 1))
        top, left = rng.integers(0, rows - size + 1), rng.integers(0, columns - size + 1)
        if seed % 3 == 0:
            top = left = 0  # the borders, where one pixel stands for two
        elif seed % 3 == 1:
            top, left = rows - size, columns - size
        whole = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
        image = np.pad(image, ((0, 0), (2, 5), (0, 0)))[:, 2:-5]  # whose rows lie apart
        found = cut_out(image, Augmentation(False, scale, int(top), int(left), False), size)
        np.testing.assert_array_equal(found, whole[top : top + size, left : left + size], err_msg=str(seed))


def test_nothing_but_what_lies_under_the_crop_is_read():
    image, drawn, size = np.zeros((100, 120, 3), np.uint8), Augmentation(False, 1.25, 40, 60, False), 20
    rows, columns = taps(100, 125, 40, size), taps(120, 150, 60, size)
    image[rows[:, :2].min() : rows[:, :2].max() + 1, columns[:, :2].min() : columns[:, :2].max() + 1] = 200
    assert (cut_out(image, drawn, size) == 200).all()
    assert all(np.ptp(axis[:, :2]) < 18 and (axis[:, 2] + axis[:, 3] == 2048).all() for axis in (rows, columns))
