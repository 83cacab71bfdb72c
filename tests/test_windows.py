"""Windows of an image: as published, mirrored, in batches; the map of a density."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import avg_pool2d

from utils.evaluation import Window, count, density_map, predict, tile
from utils.evaluation.windows import WINDOWS_AT_ONCE, in_threads


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


def test_each_part_is_predicted_as_it_is():
    image, model = random_image(75, 150), Local(0.1)
    parts = predict(model, image, 64)
    assert [part[:4] for part in parts] == tile(75, 150, 64) and len(parts) == 6
    for top, left, height, width, density in parts:
        alone = model(image[None, :, top : top + height, left : left + width]).density[0, 0]
        assert torch.equal(density, alone)


def test_flip_is_the_mean_with_the_mirrored_image():
    """Whose cells fall on their own where the width is no multiple of a cell, too."""
    image = random_image(48, 64)
    both = count(Local(0.3), image), count(Local(0.3), image.flip(-1))
    assert abs(both[0] - both[1]) > 1
    assert count(Local(0.3), image, flip=True) == pytest.approx(sum(both) / 2, rel=1e-5)
    image = random_image(70, 171)
    for a, b in zip(predict(Local(), image, 64), predict(Local(), image, 64, flip=True), strict=True):
        assert a[:4] == b[:4] and torch.allclose(a.density, b.density, rtol=1e-5)


def test_no_more_windows_at_once_than_allowed():
    model = Local()
    predict(model, random_image(160, 160), 32)
    assert max(model.batches) == WINDOWS_AT_ONCE and sum(model.batches) == 25


def test_a_window_that_could_cut_too_small_parts_is_refused():
    with pytest.raises(ValueError, match="^window: 31, must be at least 32 pixels.*$"):
        predict(Local(), torch.zeros(3, 40, 40), 31)


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


def test_threads_change_neither_order_nor_errors():
    def work(item):
        if item == 20:
            raise OSError("gone")
        return 2 * item

    made = in_threads(work, range(30), 3)
    assert [next(made) for _ in range(20)] == list(range(0, 40, 2)) and list(in_threads(work, [], 3)) == []
    with pytest.raises(OSError, match="gone"):
        next(made)
