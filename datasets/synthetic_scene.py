"""Crowd-like scenes with exact annotations: ``scene`` draws a photograph's worth of people in perspective.

A pinhole camera looks at a ground plane: the size of a head grows linearly with the distance of its row from the horizon.
Figures are put in from the nearest to the farthest, each under what is there already. The light that still passes at a
place says exactly how much of a head would be seen there.
"""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

import cv2
import numpy as np

from datasets.synthetic_people import CLOTHES, NEUTRAL, Draw, Figure, person, prop

MIN_HEAD, MAX_HEAD = 3.0, 60.0
MIN_VISIBLE = 0.45  # share of a head's box that must be free of what is nearer, for the head to count
_HEAD_ASPECT = 0.8  # width over height
_HIDDEN = 0.02
_TRIES = 12
_ROWS, _COLUMNS = 48, 96  # of the map that says where people gather

cv2.setNumThreads(0)


class Scene(NamedTuple):
    """A picture and the N heads in it, in pixels of the picture."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    points: np.ndarray  # float64 [N, 2], (x, y), centres of the heads
    sizes: np.ndarray  # float64 [N], heights of the heads, 3 to 60
    boxes: np.ndarray  # float64 [N, 4], (x, y, width, height) of the heads, x, y being the top left corner


class Camera(NamedTuple):
    """Rows of a view of the ground: heads in row y are ``bottom * (y - horizon) / (height - horizon)`` pixels high."""

    height: int
    width: int
    horizon: float
    bottom: float  # head size in the last row
    far: float  # the row of the farthest heads
    focal: float

    def size(self, y: float) -> float:
        """Height in pixels of a head whose centre lies in row y."""
        return min(max(self.bottom * (y - self.horizon) / (self.height - self.horizon), MIN_HEAD), MAX_HEAD)

    def tilt(self, y: float) -> float:
        """Sine of the angle at which the line of sight through row y meets the ground."""
        down = y - self.horizon
        return down / math.hypot(down, self.focal)


class _Canvas:
    """A picture that is filled from front to back; ``light`` [H, W] is the share that nothing nearer covers."""

    def __init__(self, height: int, width: int) -> None:
        self.color, self.light = np.zeros((3, height, width), np.float32), np.ones((height, width), np.float32)

    def visible(self, x: float, y: float, size: float) -> float:
        """How much of a head's box is free, of what lies in the picture."""
        half = 0.5 * _HEAD_ASPECT * size
        top, left = max(0, int(y - 0.5 * size + 0.5)), max(0, int(x - half + 0.5))
        box = self.light[top : max(int(y + 0.5 * size + 0.5), top + 1), left : max(int(x + half + 0.5), left + 1)]
        return cv2.mean(box)[0] if box.size else 0.0

    def put(self, figure: Figure, haze: float, haze_color: np.ndarray) -> None:
        """Add a figure behind everything that is there."""
        patch, left, top = figure
        height, width = self.light.shape
        rows = slice(max(0, top), min(height, top + patch.shape[1]))
        columns = slice(max(0, left), min(width, left + patch.shape[2]))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        light = self.light[rows, columns]
        patch = patch[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] * light
        if haze > 0.01:
            patch[:3] *= np.float32(1 - haze)
            patch[:3] += (haze * haze_color).astype(np.float32)[:, None, None] * patch[3]
        self.color[:, rows, columns] += patch[:3]
        light -= patch[3]


def scene(seed: int, height: int, width: int, people: int) -> Scene:
    """Draw a scene in which ``people`` heads are seen; a function of the arguments alone.

    A head counts if its centre lies in the picture and at least ``MIN_VISIBLE`` of its box is free of nearer figures; the
    scene also holds people whose heads are outside or hidden, which do not count. Raises ``ValueError`` for more people than
    the picture can hold.
    """
    if min(height, width) < 32 or people < 0:
        raise ValueError(
            f"scene of {width} x {height} pixels with {people} people; give 32 pixels and 0 people or more"
        )
    for attempt in range(6):
        rng = np.random.default_rng([seed, height, width, people, attempt])
        camera = _camera(rng, height, width, people, 0.8**attempt)
        if camera and (drawn := _draw(rng, camera, people)):
            return drawn
    raise ValueError(f"{people} people do not fit into {width} x {height} pixels; lower their number")


def _camera(rng: np.random.Generator, height: int, width: int, people: int, shrink: float) -> Camera | None:
    """A view in which ``people`` heads find room, or None."""
    low = rng.random() < 0.5
    horizon = height * (rng.uniform(-0.02, 0.22) if low else rng.uniform(-1.2, 0))
    largest = min(MAX_HEAD / 1.1, 0.22 * min(height, width))
    bottom = max(MIN_HEAD, shrink * math.exp(rng.uniform(math.log(min(12, largest)), math.log(largest))))
    depth, focal = rng.uniform(0.01, 0.12), width * rng.uniform(0.8, 1.6)
    while bottom >= MIN_HEAD:
        far = max(horizon + MIN_HEAD / bottom * (height - horizon), horizon + depth * (height - horizon), 0)
        camera = Camera(height, width, horizon, bottom, min(far, 0.8 * height), focal)
        if _capacity(camera).sum() >= 1.5 * people:
            return camera
        bottom *= 0.92
    return None


def _capacity(camera: Camera) -> np.ndarray:
    """How many heads have room in each row, from ``far`` to the last."""
    size = [camera.size(row + 0.5) for row in range(math.ceil(camera.far), camera.height)]
    return 0.75 * camera.width / np.square(size)


def _head_rows(rng: np.random.Generator, camera: Camera, people: int) -> np.ndarray:
    """y of every head: a density that grows with the distance, cut where a row would overflow."""
    capacity = _capacity(camera)
    weights = capacity ** rng.uniform(0.3, 1)
    expected = weights * people / weights.sum()
    for _ in range(8):
        expected = np.minimum(expected * people / expected.sum(), capacity) if people else expected
    row = rng.choice(len(expected), people, p=expected / expected.sum()) if people else np.zeros(0)
    return row + math.ceil(camera.far) + rng.random(people)


def _head_columns(rng: np.random.Generator, camera: Camera, y: np.ndarray) -> np.ndarray:
    """``_TRIES`` places x for every head [N, _TRIES], where the crowd gathers; the last third anywhere."""
    noise = cv2.resize(rng.standard_normal((5, 9)), (_COLUMNS, _ROWS), interpolation=cv2.INTER_CUBIC)
    noise += 0.6 * cv2.resize(rng.standard_normal((16, 28)), (_COLUMNS, _ROWS), interpolation=cv2.INTER_CUBIC)
    sums = np.cumsum(np.exp(rng.uniform(0.2, 1.8) * noise), axis=1)
    row = np.minimum(y / camera.height * _ROWS, _ROWS - 1).astype(int)
    draws = rng.random((len(y), _TRIES))
    column = (
        np.stack([np.searchsorted(sums[r], d * sums[r, -1]) for r, d in zip(row, draws, strict=True)])
        if len(y)
        else draws
    )
    x = (np.minimum(column, _COLUMNS - 1) + rng.random((len(y), _TRIES))) / _COLUMNS * camera.width
    x[:, 2 * _TRIES // 3 :] = draws[:, 2 * _TRIES // 3 :] * camera.width
    return x


def _draw(rng: np.random.Generator, camera: Camera, people: int) -> Scene | None:
    """The scene of one camera, or None where some of the people found no place."""
    height, width = camera.height, camera.width
    canvas, heads = _Canvas(height, width), []
    # People of the scene, then a few who are not to be seen: beyond the sides, or behind others.
    others = 2 + people // 12 if people else 0
    y = np.concatenate([_head_rows(rng, camera, people), rng.uniform(camera.far, height + 2 * camera.bottom, others)])
    x = _head_columns(rng, camera, y)
    stature, numbers = rng.uniform(0.91, 1.09, len(y)), rng.random((len(y), 64))
    light, haze, haze_color = (
        rng.uniform(-1, 1),
        rng.uniform(0, 0.45),
        rng.uniform(0.6, 0.85) + rng.uniform(-0.06, 0.06, 3),
    )
    grain = _smooth_noise(rng, 640, 640, 0.06, (2, 8, 40)) + 1
    theme = CLOTHES[rng.integers(0, len(CLOTHES))]  # of fans, marchers, schoolchildren
    wardrobe = NEUTRAL * 2 + CLOTHES + (theme,) * (int(rng.integers(0, 40)) if rng.random() < 0.3 else 0)
    props = rng.integers(0, 9)
    prop_y, prop_x = rng.uniform(camera.far, height, props), rng.uniform(0, width, props)
    prop_numbers = rng.random((props, 400))
    queue = [(-float(row), i) for i, row in enumerate(y)] + [(-float(row), ~i) for i, row in enumerate(prop_y)]
    heapq.heapify(queue)  # the nearest first
    while queue:
        row, i = heapq.heappop(queue)
        row = -row
        size = camera.size(row)
        fog = haze * max(0.0, 1 - size / 24)
        if i < 0:
            canvas.put(prop(_draws(prop_numbers[~i]), float(prop_x[~i]), row, size, grain), fog, haze_color)
            continue
        size = min(max(size * stature[i], MIN_HEAD), MAX_HEAD)
        if i < people:
            column = next((c for c in x[i].tolist() if canvas.visible(c, row, size) >= MIN_VISIBLE), None)
            if column is None:  # somewhat farther there may be room
                if row - 0.5 * size <= camera.far:
                    return None
                heapq.heappush(queue, (-(row - (0.1 + 0.4 * numbers[i, 0]) * size), i))
                continue
            heads.append((column, row, size))
        else:
            column = _unseen(canvas, x[i], row, size, width)
            if column is None:
                continue
        reach = max((height - row) / size, 0.5) if canvas.visible(column, row + 4.2 * size, 5 * size) > 0.03 else 2
        figure = person(_draws(numbers[i]), column, row, size, camera.tilt(row), light, grain, wardrobe, reach)
        canvas.put(figure, fog, haze_color)
    picture = canvas.color + canvas.light * _background(rng, camera, heads, light, haze, haze_color)
    found = np.array(heads[::-1]).reshape(-1, 3)
    points, sizes = found[:, :2], found[:, 2]
    extent = np.stack([_HEAD_ASPECT * sizes, sizes], axis=1)
    return Scene(_photograph(rng, picture), points, sizes, np.hstack([points - extent / 2, extent]))


def _draws(numbers: np.ndarray) -> Draw:
    return iter(numbers.tolist()).__next__


def _unseen(canvas: _Canvas, tries: np.ndarray, y: float, size: float, width: int) -> float | None:
    """A column in which a head is beyond the picture's sides or hidden."""
    edge = (tries[0] / width - 0.5) * 0.8 * size
    if y >= canvas.light.shape[0] + size:
        return float(tries[0])
    if tries[1] < 0.5 * width:
        return float(-0.85 * size + edge * 0.5 if edge < 0 else width + 0.85 * size - edge * 0.5)
    return next((c for c in tries.tolist() if canvas.visible(c, y, 1.2 * size) <= _HIDDEN), None)


def _smooth_noise(rng: np.random.Generator, height: int, width: int, amplitude: float, scales) -> np.ndarray:
    """Noise with structures of several sizes in pixels, float32 [height, width] around 0."""
    noise = np.zeros((height, width), np.float32)
    for scale in scales:
        coarse = rng.standard_normal((max(2, height // scale), max(2, width // scale)), np.float32)
        noise += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return noise * np.float32(amplitude)


def _ground_tile(rng: np.random.Generator) -> np.ndarray:
    """A piece of ground that repeats, float32 [512, 512, 3]: asphalt, paving, cobbles, grass or rows of seats."""
    kind, side = rng.integers(0, 5), 512
    palette = ((96, 96, 98), (164, 156, 146), (140, 134, 128), (94, 118, 62), (120, 122, 126))
    tile = np.empty((side, side, 3), np.float32)
    tile[:] = np.array(palette[kind]) * rng.uniform(0.75, 1.25)
    step = int(rng.choice((32, 64)))
    tone = rng.uniform(0.55, 0.9)
    if kind == 1:
        for i in range(0, side, step):
            tile[i : i + 3] *= tone
            tile[:, i : i + 3] *= tone
    elif kind in (2, 4):
        color = tile[0, 0] * (1 / tone) if kind == 2 else np.array(CLOTHES[rng.integers(14, len(CLOTHES))])
        for i in range(0, side, step):
            for j in range((i // step % 2) * step // 2, side + step, step):
                center, axes = (j % side, i + step // 2), (int(0.4 * step), int(0.42 * step))
                gain = rng.uniform(0.75, 1.15)
                cv2.ellipse(tile, center, axes, 0, 0, 360, tuple(float(c) * gain for c in color), -1)
    tile *= 1 + _smooth_noise(rng, side, side, 0.14 if kind == 3 else 0.06, (1, 3, 12, 60))[:, :, None]
    return tile / 255


def _background(rng, camera: Camera, heads, light: float, haze: float, haze_color: np.ndarray) -> np.ndarray:
    """Ground, buildings, trees and sky behind the people, float32 [3, H, W]."""
    height, width = camera.height, camera.width
    picture = np.empty((3, height, width), np.float32)
    base = math.floor(camera.far - 0.5 * camera.size(camera.far))  # where the ground ends
    if base > 0:
        picture[:, :base] = _skyline(rng, base, width, camera.size(camera.far)).transpose(2, 0, 1)
    base = max(base, 0)
    # Bodies stand on the ground 6.2 heads below the head: the plane of the ground has the horizon of the heads' plane.
    rows = np.arange(base, height) + 0.5
    head = camera.bottom * (rows - camera.horizon) / (height - camera.horizon) / 1.15
    scale = rng.uniform(30, 90)  # texels a head
    u = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) / head[:, None] * scale).astype(np.float32)
    # d(depth) / d(row): rows far away cover more ground.
    v = (camera.focal * (height - camera.horizon) / camera.bottom * 1.15 / (rows - camera.horizon) * scale).astype(
        np.float32
    )[:, None]
    tile = _ground_tile(rng)
    turn = rng.uniform(0, math.pi)
    across, along = u * math.cos(turn) - v * math.sin(turn), u * math.sin(turn) + v * math.cos(turn)
    near = cv2.remap(tile, across, along, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    # Fine texture fades where one pixel covers several texels.
    fade = np.clip(1.6 - scale / head / 5, 0, 1).astype(np.float32)[:, None]
    ground = near.transpose(2, 0, 1) * fade
    ground += tile.mean(axis=(0, 1))[:, None, None] * (1 - fade)
    ground *= 1 + _smooth_noise(rng, height - base, width, 0.05, (25, 90))
    fog = (haze * np.clip(1 - head / 24, 0, 1)).astype(np.float32)[:, None]
    ground *= 1 - fog
    ground += haze_color.astype(np.float32)[:, None, None] * fog
    picture[:, base:] = ground
    shadows = np.ones((height, width), np.float32)
    length, strength = rng.uniform(0.6, 3), rng.uniform(0.3, 0.75)
    for x, y, size in heads:
        upright = math.sqrt(1 - 0.75 * camera.tilt(y) ** 2)
        foot = y + 6.2 * upright * size
        if foot < height + 2 * size:
            center = round((x - light * length * size) * 8), round(foot * 8)
            axes = round((0.8 + length * abs(light)) * size * 8), max(4, round(0.5 * size * 8))
            cv2.ellipse(shadows, center, axes, 0, 0, 360, strength, -1, cv2.LINE_8, 3)
    picture[:, base:] *= cv2.GaussianBlur(shadows, (0, 0), max(0.6, camera.bottom / 10))[base:]
    return picture


def _skyline(rng: np.random.Generator, base: int, width: int, unit: float) -> np.ndarray:
    """Sky, buildings with windows and trees down to row ``base``, float32 [base, width, 3]; ``unit``: a head's size there."""
    sky = np.array(((0.55, 0.7, 0.9), (0.82, 0.84, 0.87), (0.9, 0.78, 0.66), (0.3, 0.36, 0.46))[rng.integers(0, 4)])
    clouds = _smooth_noise(rng, base, width, rng.uniform(0, 0.03), (20, 60, 160))
    picture = (sky * np.linspace(0.85, 1.1, base)[:, None, None] + clouds[:, :, None]).astype(np.float32)
    left = int(-rng.uniform(0, 0.1) * width)
    while left < width:
        right = left + max(8, int(rng.uniform(0.08, 0.3) * width))
        top = int(base * rng.uniform(-0.3, 0.75))
        tone = np.array(
            ((0.6, 0.52, 0.45), (0.7, 0.68, 0.64), (0.45, 0.46, 0.5), (0.55, 0.36, 0.3))[rng.integers(0, 4)]
        )
        box = picture[max(top, 0) : base, max(left, 0) : right]
        box[:] = tone * rng.uniform(0.7, 1.2)
        floor, gap = max(6, int(unit * rng.uniform(6, 14))), max(5, int(unit * rng.uniform(3, 9)))
        glass = tone * rng.uniform(0.25, 0.75)
        for y in range(top + floor // 3, base - floor // 2, floor):
            for x in range(left + gap // 3, right - gap // 2, gap):
                rows, columns = slice(max(y, 0), max(y + floor // 2, 0)), slice(max(x, 0), max(x + gap // 2, 0))
                picture[rows, columns] = glass * rng.uniform(0.7, 1.5)
        left = right + (int(rng.uniform(0, 0.1) * width) if rng.random() < 0.4 else 0)
    if rng.random() < 0.6:
        green = np.array((0.25, 0.34, 0.17)) * rng.uniform(0.7, 1.3)
        for x, y, r, gain in zip(*rng.random((4, 260)), strict=True):
            center = int(x * width), int(base - (0.1 + 5 * y * y) * unit)
            color = tuple(float(c) for c in green * (0.6 + 0.8 * gain))
            cv2.circle(picture, center, max(1, int((0.4 + 1.6 * r) * unit)), color, -1)
    return picture * (1 + _smooth_noise(rng, base, width, 0.04, (2, 9, 40))[:, :, None])


def _photograph(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """What light, lens, sensor and compression make of a picture [3, H, W] in [0, 1] -> uint8 [H, W, 3]."""
    height, width = picture.shape[1:]
    if rng.random() < 0.35:  # the shadow of something large
        mask = np.ones((height, width), np.float32)
        corners = rng.uniform((-0.3, 0.3), (1.3, 1.4), (4, 2)) * (width, height)
        cv2.fillPoly(mask, [cv2.convexHull(corners.astype(np.int32))], rng.uniform(0.45, 0.75))
        picture *= cv2.GaussianBlur(mask, (0, 0), 0.004 * width + 1)
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    night = rng.random() < 0.1
    gain = (rng.uniform(0.35, 0.6) if night else rng.uniform(0.75, 1.25)) * rng.uniform(0.92, 1.08, 3)
    picture *= 1 - np.float32(rng.uniform(0, 0.15)) * (x * x + y * y)  # vignetting
    picture *= gain.astype(np.float32)[:, None, None]
    # Cheaper than a power of each value, and as smooth.
    curve = np.linspace(0, 1, 4096, dtype=np.float32) ** np.float32(rng.uniform(0.75, 1.25))
    picture = curve[np.clip(picture * 4095 + 0.5, 0, 4095).astype(np.int16)]
    blur, noise = rng.uniform(0.3, 0.8), np.float32(rng.uniform(0.004, 0.022) * (1.8 if night else 1))
    picture = np.stack([cv2.GaussianBlur(plane, (0, 0), blur) for plane in picture])
    picture += rng.standard_normal(picture.shape, np.float32) * noise
    if rng.random() < 0.05:
        picture[:] = picture.mean(axis=0)
    planes = np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(55, 96))]
    encoded = cv2.imencode(".jpg", cv2.merge(planes[::-1]), quality)[1]  # OpenCV's order is blue, green, red
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
