"""From one raw image to a prepared one."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from PIL import Image
from raw_data import save_noise

from datasets.raw.annotations import read_ucf
from datasets.raw.preprocess import Job, Settings, prepare_image, resized_size
from GS2D.points import mean_neighbour_distance
from utils.files import points_path
from utils.images import load_image, save_jpeg

GOLDEN = np.load(Path(__file__).parent / "data" / "misc.npz")
GOLDEN_CASES = [key[8:-3] for key in GOLDEN.files if key[:8] == "pre/out/" and key[-3:] == "/hw"]
NOBODY = np.zeros((0, 2))


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden(case, tmp_path):
    split, name = case.split("/")
    raw = f"pre/{'Test' if split == 'test' else 'Train'}/{name}"
    height, width = GOLDEN[f"{raw}/raw_hw"]
    image, annotation, output = tmp_path / f"{name}.jpg", tmp_path / f"{name}_ann.mat", tmp_path / "IMG.jpg"
    save_jpeg(np.full((height, width, 3), 99, np.uint8), image, 75)
    scipy.io.savemat(annotation, {"annPoints": GOLDEN[f"{raw}/raw_points"]})
    counts = prepare_image(Job(image, annotation, read_ucf, output, split == "train", Settings()))
    expected = GOLDEN[f"pre/out/{case}/points"]
    found = np.load(points_path(output))
    assert Image.open(output).size == tuple(GOLDEN[f"pre/out/{case}/hw"][::-1])
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert counts[:2] == (len(expected), len(GOLDEN[f"{raw}/raw_points"]) - len(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "raw, expected",
    [
        ((300, 400), (512, 683)),
        ((400, 300), (683, 512)),
        ((512, 512), (512, 512)),
        ((2048, 9000), (2048, 9000)),
        ((2049, 3000), (2048, 2999)),
        ((1, 2), (512, 1024)),
    ],
)
def test_resized_size(raw, expected):
    height, width, ratio = resized_size(*raw, 512, 2048)
    assert (height, width) == expected and ratio == min(expected) / min(raw)


@pytest.mark.parametrize("count", [60, 1500])  # 1024 are reckoned at once
def test_neighbour_distance_is_the_mean_of_the_three_nearest(count):
    points = np.random.default_rng(1).uniform(0, 500, (count, 2))
    points[7] = points[8]
    points[20:25] = points[19]
    distances = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)
    found = mean_neighbour_distance(points)
    # float32 squares of up to 500^2 + 500^2 are good to 0.03: distances of more than a pixel to 0.02, others to 0.2.
    np.testing.assert_allclose(found, distances[:, 1:4].mean(axis=1), rtol=0, atol=0.2)
    far = distances[:, 1] > 1
    np.testing.assert_allclose(found[far], distances[far, 1:4].mean(axis=1), rtol=0, atol=0.02)


def test_neighbour_distance_of_few_points():
    assert mean_neighbour_distance(np.zeros((0, 2))).shape == (0,)
    assert mean_neighbour_distance(np.array([[7.0, 8.0]])).tolist() == [128]
    assert mean_neighbour_distance(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist() == [5, 5]
    assert mean_neighbour_distance(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])).tolist() == pytest.approx(
        [3, (5 + 18**0.5) / 2, (1 + 18**0.5) / 2]
    )


@pytest.mark.parametrize(
    "settings, flag",
    [
        (Settings(96, 512, "bilinear", 80), cv2.INTER_LINEAR),
        (Settings(96, 512, "bicubic", 80), cv2.INTER_CUBIC),
        (Settings(32, 48, "bilinear", 75), None),  # the size stays
    ],
)
def test_images_are_resampled_and_encoded_as_the_settings_say(tmp_path, settings, flag):
    image = save_noise(tmp_path / "a.jpg")
    pixels = load_image(image)
    pixels = pixels if flag is None else cv2.resize(pixels, (128, 96), interpolation=flag)
    Image.fromarray(pixels).save(tmp_path / "expected.jpg", quality=settings.quality)
    prepare_image(Job(image, NOBODY, None, tmp_path / "out.jpg", True, settings))
    with Image.open(tmp_path / "out.jpg") as a, Image.open(tmp_path / "expected.jpg") as b:
        assert (a.format, a.layer, a.quantization) == ("JPEG", b.layer, b.quantization)
        np.testing.assert_array_equal(
            np.array(a), np.array(b)
        )  # the same coefficients; restart markers may lie between
