"""A rectangle of a rescaled image equals the same rectangle of the whole image, rescaled by OpenCV."""

import cv2
import numpy as np
import pytest

from datasets import transforms
from datasets.transforms import rescaled_rectangle, taps
from GS2D import native


def random_case(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*rng.integers(60, 260, 2), 3), dtype=np.uint8)
    size = tuple(int(round(side * rng.uniform(0.6, 1.6))) for side in image.shape[:2])
    height, width = (int(rng.integers(1, side + 1)) for side in size)
    place = [int(rng.integers(0, room + 1)) for room in (size[0] - height, size[1] - width)]
    return image, size, *place, height, width


@pytest.mark.parametrize("engine", ["native", "OpenCV"])
def test_every_pixel_is_that_of_the_whole_image_rescaled(engine, monkeypatch):
    if engine == "native" and not native.works():
        pytest.skip("no compiler")
    monkeypatch.setattr(transforms.native, "works", lambda: engine == "native")
    for seed in range(150):
        image, size, top, left, height, width = random_case(seed)
        if seed % 3 == 0:
            top = left = 0  # the borders, where one pixel stands for two
        elif seed % 3 == 1:
            top, left = size[0] - height, size[1] - width
        whole = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        found = rescaled_rectangle(image, size, top, left, height, width)
        np.testing.assert_array_equal(found, whole[top : top + height, left : left + width], err_msg=str(seed))


def test_nothing_but_what_lies_under_the_rectangle_is_read():
    image, size, (top, left, height, width) = np.zeros((100, 120, 3), np.uint8), (140, 150), (40, 60, 20, 30)
    rows, columns = taps(100, 140, top, height), taps(120, 150, left, width)
    image[rows[:, :2].min() : rows[:, :2].max() + 1, columns[:, :2].min() : columns[:, :2].max() + 1] = 200
    assert (rescaled_rectangle(image, size, top, left, height, width) == 200).all()
    assert rows[:, :2].max() - rows[:, :2].min() < 18 and columns[:, :2].max() - columns[:, :2].min() < 26
    assert (rows[:, 2] + rows[:, 3] == 2048).all()


def test_an_image_whose_rows_lie_apart():
    image, size, top, left, height, width = random_case(3)
    wide = np.full((image.shape[0], image.shape[1] + 7, 3), 9, np.uint8)
    wide[:, 2:-5] = image
    found = rescaled_rectangle(wide[:, 2:-5], size, top, left, height, width)
    np.testing.assert_array_equal(found, rescaled_rectangle(image, size, top, left, height, width))


@pytest.mark.skipif(not native.works(), reason="no compiler")
def test_what_the_engine_refuses():
    image, rows, columns = np.zeros((20, 30, 3), np.uint8), taps(20, 10, 0, 10), taps(30, 40, 0, 40)
    assert native.resize(image, rows, columns).shape == (10, 40, 3)
    with pytest.raises(ValueError, match="columns: of 29 pixels, expected .* from 0 to 28"):
        native.resize(image[:, 1:], rows, columns)
    with pytest.raises(ValueError, match="image: float64"):
        native.resize(image / 2, rows, columns)
    with pytest.raises(ValueError, match="contiguous rows"):
        native.resize(image[:, ::-1], rows, columns)
