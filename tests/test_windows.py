"""Blended windows, mirrored windows and batches of windows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d

from utils.evaluation import Window, count, density_map, predict, tile
from utils.evaluation import windows as evaluation
from utils.evaluation.localisation import locate_windows
from utils.evaluation.windows import predict_together
from utils.pixels import normalise


class Local(torch.nn.Module):
    """Each cell sees its own 8 x 8 pixels; sides as those of vgg. ``slope`` makes it differ from left to right."""

    def __init__(self, slope=0.0):
        super().__init__()
        self.slope, self.batches = slope, []

    def forward(self, images):
        self.batches.append(len(images))
        h, w = (side // 16 * 16 for side in images.shape[2:])
        cells = 64 * avg_pool2d(images[:, :1, :h, :w], 8).abs()
        return SimpleNamespace(density=cells * (1 + self.slope * torch.arange(w // 8)))


def random_image(height, width, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def test_without_overlap_each_part_is_predicted_as_it_is():
    image, model = random_image(75, 150), Local(0.1)
    parts = predict(model, image, 64)
    assert [part[:4] for part in parts] == tile(75, 150, 64) and len(parts) == 6
    for top, left, height, width, density in parts:
        alone = model(image[None, :, top : top + height, left : left + width]).density[0, 0]
        assert torch.equal(density, alone)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(16, 150),
    width=st.integers(16, 150),
    window=st.integers(1, 6).map(lambda n: 16 * n),
    overlap=st.integers(1, 11).map(lambda n: 8 * n),
)
def test_weights_sum_to_one_whatever_the_sizes(height, width, window, overlap):
    """A network that looks at single cells gives the same density through any windows."""
    image = random_image(height, width)
    if overlap >= window:
        with pytest.raises(ValueError, match="overlap"):
            predict(Local(), image, window, overlap)
        return
    (part,) = predict(Local(), image, window, overlap)
    whole = torch.zeros(-(-height // 8) * 8, -(-width // 8) * 8)
    whole[:height, :width] = image[0]
    expected = 64 * avg_pool2d(whole[None], 8)[0]
    assert part[:4] == (0, 0, height, width) and part.density.shape == expected.shape
    assert torch.allclose(part.density, expected, rtol=1e-5, atol=1e-6)
    assert count(Local(), image, window, overlap) == pytest.approx(float(image[0].sum()), rel=1e-5)


def test_ramps_are_linear():
    starts, weights = evaluation._ramps(64, 32, 16)
    assert starts == [0, 16, 32]
    assert weights.tolist() == [[1, 1, 0.75, 0.25], [0.25, 0.75, 0.75, 0.25], [0.25, 0.75, 1, 1]]


def test_blended_densities_are_drawn_and_counted_alike():
    image = random_image(75, 150)
    parts = predict(Local(), image, 64, 16)
    canvas = density_map(parts)
    assert canvas.shape == (75, 150) and float(canvas.sum()) == pytest.approx(count(Local(), image, 64, 16), rel=1e-5)
    assert float(canvas[72:, :8].sum()) == pytest.approx(float(parts[0].density[9, 0]), rel=1e-5)
    dot = torch.zeros(3, 75, 150)
    dot[0, 74, 149] = dot[0, 20, 61] = 1
    heads = locate_windows(predict(Local(), dot, 64, 16))
    assert heads.tolist() == [[60, 20, 1], [148, 75, 1]]
    assert float(density_map(predict(Local(), dot, 64, 16))[72:, 144:].sum()) == pytest.approx(1)


def test_flip_is_the_mean_with_the_mirrored_image():
    image = random_image(48, 64)
    both = count(Local(0.3), image), count(Local(0.3), image.flip(-1))
    assert abs(both[0] - both[1]) > 1
    assert count(Local(0.3), image, flip=True) == pytest.approx(sum(both) / 2, rel=1e-5)
    assert count(Local(0.3), image, 64, 16, flip=True) == pytest.approx(sum(both) / 2, rel=1e-5)


@pytest.mark.parametrize("overlap", [0, 16])
def test_mirrored_cells_fall_on_their_own(overlap):
    """Also where the width is no multiple of a cell."""
    image = random_image(70, 171)
    plain, mirrored = predict(Local(), image, 64, overlap), predict(Local(), image, 64, overlap, flip=True)
    for a, b in zip(plain, mirrored, strict=True):
        assert a[:4] == b[:4] and torch.allclose(a.density, b.density, rtol=1e-5)


@pytest.mark.parametrize("overlap", [0, 8])
def test_no_more_windows_at_once_than_allowed(overlap):
    model = Local()
    predict(model, random_image(160, 160), 32, overlap)
    assert max(model.batches) == evaluation.WINDOWS_AT_ONCE and sum(model.batches) == (25 if overlap == 0 else 49)


@pytest.mark.parametrize(("overlap", "flip"), [(0, True), (16, False)])
def test_images_together_are_predicted_as_each_alone(overlap, flip):
    """Of several sizes, some of which share batches; as bytes or normalised."""
    model, sizes = Local(0.1), ((64, 96), (32, 50), (64, 96), (49, 64))
    images = [(255 * random_image(*size, seed)).byte() for seed, size in enumerate(sizes)]
    found = predict_together(model, images, 48, overlap, flip)
    assert max(model.batches) > 2
    for image, parts in zip(images, found, strict=True):
        for part, alone in zip(parts, predict(model, normalise(image), 48, overlap, flip), strict=True):
            assert part[:4] == alone[:4]
            torch.testing.assert_close(part.density, alone.density, rtol=1e-5, atol=1e-7)


def test_a_window_as_large_as_the_image_blends_nothing():
    image = random_image(48, 80) - 0.5
    assert torch.equal(predict(Local(0.3), image, 80, 16)[0].density, predict(Local(0.3), image)[0].density)


@pytest.mark.parametrize(
    ("size", "window", "overlap", "message"),
    [
        ((12, 40), 64, 0, "at least 16 x 16 pixels, got 12 x 40: enlarge or pad"),
        ((33, 40), 16, 0, "window: 16 cuts an image of 33 x 40 pixels into parts of 11 x 13, .* at least 32"),
        ((40, 40), 15, 0, "window: 15, must be at least 16"),
        ((40, 40), 40, 8, "window: 40, must be a multiple of 16"),
        ((40, 40), 64, 12, "overlap: 12, must be a multiple of 8"),
        ((40, 40), 64, -8, "overlap: -8"),
    ],
)
def test_what_does_not_fit_is_one_line(size, window, overlap, message):
    with pytest.raises(ValueError, match=message) as error:
        predict(Local(), torch.zeros(3, *size), window, overlap)
    assert "\n" not in str(error.value)


def test_the_outermost_cells_of_a_density_map_reach_to_the_border():
    density = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    canvas = density_map([Window(0, 0, 17, 19, density)])
    pixels = density.repeat_interleave(torch.tensor([8, 9]), dim=0).repeat_interleave(torch.tensor([8, 11]), dim=1)
    torch.testing.assert_close(canvas, pixels * (10 / pixels.sum()))


def test_a_density_map_has_no_seams_and_sums_to_the_published_count():
    """Two windows of 24 x 40 pixels, of which the networks see 16 x 32."""
    image = torch.full((3, 24, 80), 0.5)
    parts = predict(Local(), image, 40)
    assert [part[:4] for part in parts] == [(0, 0, 24, 40), (0, 40, 24, 40)]
    canvas = density_map(parts)
    torch.testing.assert_close(canvas, torch.full((24, 80), float(canvas.mean())))
    assert float(canvas.sum()) == pytest.approx(count(Local(), image, 40), rel=1e-6) == 2 * 16 * 32 * 0.5
