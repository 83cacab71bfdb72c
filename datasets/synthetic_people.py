"""Drawn people and the things that stand among them: small pictures with transparency for ``datasets.synthetic_scene``.

Every function draws from an iterator of uniform numbers in [0, 1), so that a figure is a function of those numbers alone.
Lengths are in heights of a head unless said otherwise, the origin is the centre of the head, y points down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

Color = Sequence[float]
Draw = Callable[[], float]

SKIN = ((226, 184, 154), (218, 168, 132), (208, 150, 112), (172, 117, 80), (124, 80, 53), (80, 52, 38), (214, 168, 140))
HAIR = (
    (22, 18, 17),
    (34, 26, 22),
    (52, 36, 26),
    (28, 24, 24),
    (40, 32, 28),
    (66, 46, 32),
    (84, 58, 38),
    (134, 98, 58),
    (186, 150, 96),
    (150, 147, 144),
)
NEUTRAL = (
    (26, 27, 31),
    (38, 42, 56),
    (54, 55, 60),
    (92, 94, 98),
    (214, 214, 212),
    (232, 230, 224),
    (50, 62, 88),
    (34, 34, 36),
) + ((82, 98, 124), (142, 124, 104), (98, 82, 68), (172, 158, 142), (70, 76, 58), (120, 122, 126))
CLOTHES = NEUTRAL + (
    ((118, 38, 42), (180, 52, 54), (50, 86, 148), (46, 104, 84), (206, 166, 70), (194, 116, 62))
    + ((188, 130, 146), (108, 80, 122), (98, 144, 170), (150, 62, 90), (84, 132, 98), (220, 196, 170))
)
TROUSERS = ((28, 30, 36), (44, 52, 74), (66, 82, 112), (88, 86, 84), (120, 108, 90), (36, 36, 38), (150, 148, 142))

_SHIFT = 4  # OpenCV's fixed-point coordinates: sixteenths of a pixel


class Figure(NamedTuple):
    """A picture to put into a scene: RGB times alpha and alpha, float32 [4, h, w] in [0, 1], and its corner in the scene."""

    patch: np.ndarray
    left: int
    top: int


class _Pen:
    """Draws shapes, given in heads, into an RGBA canvas of several samples a pixel."""

    def __init__(self, x: float, y: float, size: float, extent: tuple[float, ...], lean: float = 0) -> None:
        left, top, right, bottom = extent
        self.left, self.top = math.floor(x + left * size), math.floor(y + top * size)
        width = max(1, math.ceil(x + right * size) - self.left)
        height = max(1, math.ceil(y + bottom * size) - self.top)
        self.samples = 4 if size < 6 else 3 if size < 14 else 2
        self.canvas = np.zeros((height * self.samples, width * self.samples, 4), np.uint8)
        self.unit = size * self.samples
        # Coordinates are truncated to sixteenths of a sample, so half of one is added.
        self.fixed_unit = 16 * self.unit
        self.x, self.y = 16 * (x - self.left) * self.samples + 0.5, 16 * (y - self.top) * self.samples + 0.5
        self.lean = lean

    def _fixed(self, points: Sequence[tuple[float, float]]) -> np.ndarray:
        unit, left, top, lean = self.fixed_unit, self.x, self.y, self.lean
        return np.array([(left + (x + lean * y) * unit, top + y * unit) for x, y in points]).astype(np.int32)

    def oval(self, x: float, y: float, rx: float, ry: float, color: Color, arc: tuple[int, int] = (0, 360)) -> None:
        unit = self.fixed_unit
        center = int(self.x + (x + self.lean * y) * unit), int(self.y + y * unit)
        axes = max(8, int(rx * unit)), max(8, int(ry * unit))
        cv2.ellipse(self.canvas, center, axes, 0, *arc, (*color, 255), -1, cv2.LINE_8, _SHIFT)

    def polygon(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        cv2.fillPoly(self.canvas, [self._fixed(points)], (*color, 255), cv2.LINE_8, _SHIFT)

    def line(self, start: tuple[float, float], end: tuple[float, float], width: float, color: Color) -> None:
        unit, left, top, lean = self.fixed_unit, self.x, self.y, self.lean
        first = int(left + (start[0] + lean * start[1]) * unit), int(top + start[1] * unit)
        last = int(left + (end[0] + lean * end[1]) * unit), int(top + end[1] * unit)
        cv2.line(self.canvas, first, last, (*color, 255), max(1, int(width * self.unit + 0.5)), cv2.LINE_8, _SHIFT)

    def figure(self, shade: Callable[[np.ndarray], None] | None = None) -> Figure:
        size = self.canvas.shape[1] // self.samples, self.canvas.shape[0] // self.samples
        # Where nothing was drawn colour and alpha are 0, so the mean over the samples is colour times alpha.
        pixels = cv2.resize(self.canvas, size, interpolation=cv2.INTER_AREA)
        # Planes, since arithmetic on rows of pixels is several times as fast as on triples of channels.
        patch = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
        patch *= np.float32(1 / 255)
        if shade:
            shade(patch)
        return Figure(patch, self.left, self.top)


def _pick(draw: Draw, colors: Sequence[Color], spread: float = 0.12) -> Color:
    """One of ``colors``, a little lighter or darker."""
    gain = 1 + spread * (2 * draw() - 1)
    return _dim(colors[int(draw() * len(colors))], gain)


def _dim(color: Color, gain: float) -> Color:
    red, green, blue = color  # written out: this runs a dozen times a person
    return min(255.0, red * gain), min(255.0, green * gain), min(255.0, blue * gain)


def person(
    draw: Draw,
    x: float,
    y: float,
    size: float,
    tilt: float,
    light: float,
    grain: np.ndarray,
    wardrobe: Sequence[Color],
    reach: float = 9.0,
) -> Figure:
    """A standing person whose head, ``size`` pixels high, has its centre at (x, y).

    tilt: how steeply the camera looks down there, 0 (level) to 1; it shortens bodies and shows the tops of heads. light:
    where the light comes from, -1 (left) to 1. grain [h, w] around 1: texture. wardrobe: the colours of tops. What is
    more than ``reach`` below the centre of the head is left out, for somebody of whom nothing else can be seen.
    """
    upright = math.sqrt(1 - 0.75 * tilt * tilt)

    def at(height: float) -> float:  # y of a height below the chin of an upright person
        return 0.42 + (height - 0.42) * upright

    facing, pose, dress = draw(), draw(), draw()
    back, turn = facing < 0.42, (facing - 0.71) * 0.85 if facing >= 0.42 else (facing - 0.21) * 0.4
    build = (0.86 + 0.3 * draw()) * (1 - 0.9 * abs(turn))
    skin, hair = _pick(draw, SKIN), _pick(draw, HAIR, 0.3)
    top, bottom = _pick(draw, wardrobe, 0.25), _pick(draw, TROUSERS, 0.25)
    raised = pose > 0.95
    wide, high, low = 1.9 if raised else 1.6, 1.75 if raised else 0.75, min(reach, 0.2 + 6.8 * upright)
    pen = _Pen(x, y, size, (-wide, -high, wide, low), 0.14 * (draw() - 0.5))
    whole = low > at(2.6)
    sway, long_hair, bag = 0.2 * (draw() - 0.5), draw() < 0.4, draw()
    if whole:
        _legs(pen, draw, at, build, sway, dress, top, bottom, skin)
    if long_hair and not back:
        pen.oval(0.2 * turn, 0.3, 0.46, 0.68, _dim(hair, 0.9))
    _torso(pen, draw, at, build, sway, top, size)
    for side in (-1, 1) if whole or size >= 7 else ():
        _arm(pen, draw, at, side, 0.92 * build, raised and side > 0, pose, top, skin)
    if back and bag < 0.3:
        pack = _dim(_pick(draw, wardrobe, 0.4), 0.75)
        pen.polygon([(-0.52, at(0.95)), (0.52, at(0.95)), (0.6, at(2.4)), (-0.6, at(2.4))], pack)
        pen.oval(0, at(1.9), 0.4, 0.35 * upright, _dim(pack, 1.25))
    elif bag > 0.88 and size > 8:
        pen.line((-0.5 * build, at(0.85)), (0.6 * build, at(2.6)), 0.1, _dim(top, 0.45))
    _head(pen, draw, size, turn, back, tilt, long_hair, skin, hair, top)

    def shade(patch: np.ndarray) -> None:
        height, width = patch.shape[1:]
        fall = (np.arange(height, dtype=np.float32) + (pen.top - y - 0.4 * size)) * (-0.5 / (size * 3.2 * upright)) + 1
        side = np.arange(width, dtype=np.float32) * (0.5 * light / width) + (1 - 0.25 * light)
        row, column = int(draw() * (grain.shape[0] - height)), int(draw() * (grain.shape[1] - width))
        shading = grain[row : row + height, column : column + width] * side
        shading *= np.minimum(np.maximum(fall, 0.5), 1)[:, None]
        patch[:3] *= shading
        if size >= 5:
            _round_head(patch, x - pen.left, y - pen.top, size, light)

    return pen.figure(shade)


def _round_head(patch: np.ndarray, x: float, y: float, size: float, light: float) -> None:
    """Darken a head towards its rim and below the chin, as light from above and from one side does."""
    top, left = max(0, round(y - 0.6 * size)), max(0, round(x - 0.75 * size))
    box = patch[:3, top : round(y + 0.75 * size), left : round(x + 0.75 * size)]
    v = ((np.arange(box.shape[1]) + top + 0.5 - y) / size + 0.18)[:, None]
    u = (np.arange(box.shape[2]) + left + 0.5 - x) / size - 0.18 * light
    distance = 1.3 * u * u + v * v
    # Beyond the rim the shadow ends gradually, on neck and chest.
    box *= np.maximum(1.16 - 1.15 * distance, np.minimum(0.25 + 0.9 * distance, 1)).astype(np.float32)


def _legs(pen, draw: Draw, at, build: float, sway: float, dress: float, top: Color, bottom: Color, skin: Color) -> None:
    stride, bare = 0.5 * (draw() - 0.5), draw() < 0.25
    for side in (-1, 1):
        hip, foot = (0.3 * build * side, at(3.0)), (0.33 * side + stride * side + sway, at(6.3))
        knee = (0.5 * (hip[0] + foot[0]) + 0.05 * side, at(4.6))
        color = _dim(bottom, 0.92 if side < 0 else 1.04)
        pen.line(hip, knee, 0.5 * build, color)
        pen.line(knee, foot, 0.34 * build, skin if bare else color)
        pen.oval(foot[0], at(6.45), 0.24, 0.14, (40, 36, 34) if draw() < 0.7 else (205, 205, 205))
    if dress < 0.22:  # a skirt or a long coat
        hem = at(4.4 + 1.2 * draw())
        pen.polygon([(-0.5, at(2.6)), (0.5, at(2.6)), (0.9, hem), (-0.85, hem)], top if dress < 0.12 else bottom)


def _torso(pen, draw: Draw, at, build: float, sway: float, top: Color, size: float) -> None:
    shoulder = 0.92 * build
    half = [(0.2, 0.5), (0.62 * build, at(0.72)), (shoulder, at(0.98)), (shoulder * 0.97, at(1.5))]
    half += [(0.68 * build, at(2.2)), (0.72 * build, at(3.25))]
    pen.polygon(half + [(-px, py) for px, py in reversed(half)], top)
    style = draw() if size >= 6 else 1
    if style < 0.08:  # stripes
        other = _pick(draw, CLOTHES)
        for height in (1.25, 1.75, 2.25, 2.75):
            pen.line((-0.68 * build, at(height)), (0.68 * build, at(height)), 0.16, other)
    elif style < 0.3:  # an open jacket
        inner = _pick(draw, CLOTHES)
        pen.polygon([(-0.2, 0.55), (0.2, 0.55), (0.14, at(3.2)), (-0.1, at(3.2))], inner)
    elif style < 0.36:  # a print
        pen.oval(0, at(1.6), 0.3, 0.26, _pick(draw, CLOTHES))
    if size >= 8:  # folds
        for _ in range(3):
            start, end = (
                (1.2 * build * (draw() - 0.5), at(1.2 + draw())),
                (1.3 * build * (draw() - 0.5), at(2.2 + draw())),
            )
            pen.line(start, end, 0.07, _dim(top, 0.75 + 0.4 * draw()))


def _arm(pen, draw: Draw, at, side: int, shoulder: float, raised: bool, pose: float, top: Color, skin: Color) -> None:
    joint, sleeve = (side * (shoulder - 0.14), at(1.05)), _dim(top, 0.86 if side < 0 else 0.94)
    if raised:
        elbow, hand = (side * (shoulder + 0.3), 0.1 - 0.5 * draw()), (side * (shoulder + 0.1), -0.9 - 0.5 * draw())
    elif pose < 0.12:  # holds something in front of the chest
        elbow, hand = (side * (shoulder + 0.12), at(2.1)), (side * 0.15, at(1.7))
    else:
        bend = 0.25 * draw()
        elbow, hand = (side * (shoulder + bend), at(2.05)), (side * (shoulder + bend - 0.3 * draw()), at(3.05))
    pen.line(joint, elbow, 0.33, sleeve)
    pen.line(elbow, hand, 0.26, sleeve if draw() < 0.6 else skin)
    if pen.unit > 16:
        pen.oval(*hand, 0.15, 0.17, skin)
    if pose < 0.06 and side > 0:
        pen.polygon([(-0.2, at(1.4)), (0.2, at(1.4)), (0.2, at(1.75)), (-0.2, at(1.75))], (30, 30, 36))


def _head(pen, draw: Draw, size: float, turn: float, back: bool, tilt: float, long_hair: bool, skin, hair, top) -> None:
    """Neck, hair, face and what is worn on the head; the head's outline is an oval of 0.8 x 1 heads."""
    cover, bald = draw(), draw() < 0.06
    if size >= 6:
        pen.line((0, 0.3), (0, 0.66), 0.34, _dim(skin, 0.62))
        pen.oval(0, 0.58, 0.34, 0.12, _dim(top, 0.6))
    full = back or long_hair or tilt > 0.75
    pen.oval(0, 0, 0.39, 0.5, hair if full and not bald else skin)
    if not full and not bald:
        pen.oval(-0.3 * turn, 0.02 + 0.25 * tilt, 0.41, 0.54, hair, arc=(180, 360))
    if back:
        if long_hair and not bald:
            pen.polygon([(-0.39, 0), (0.39, 0), (0.42, 0.9), (-0.42, 0.9)], _dim(hair, 0.9))
            pen.oval(0, 0.9, 0.42, 0.15, _dim(hair, 0.9))
        elif not bald:
            pen.oval(0, 0.42, 0.2, 0.1, _dim(skin, 0.85))
        pen.oval(turn - 0.04, -0.2, 0.2, 0.16, _dim(skin if bald else hair, 1.3))
    else:
        low = 0.09 + 0.22 * tilt  # seen from above, the face moves down and the crown shows
        pen.oval(turn, low, 0.33 - 0.25 * abs(turn), 0.4 - 0.18 * tilt, skin)
        if size >= 6:
            _face(pen, draw, size, 1.5 * turn, low, skin, hair)
    if cover < 0.07:  # a cap
        color = _pick(draw, CLOTHES)
        pen.oval(0, -0.1, 0.42, 0.42, color, arc=(180, 360))
        if not back:
            pen.oval(turn * 1.5, -0.1, 0.4, 0.1, _dim(color, 0.7))
    elif cover < 0.1:  # a hat with a brim
        color = _pick(draw, ((208, 184, 138), (236, 228, 208), (52, 44, 40), (120, 96, 70)))
        pen.oval(0, -0.14, 0.66, 0.16 + 0.2 * tilt, _dim(color, 0.85))
        pen.oval(0, -0.24, 0.38, 0.26, color)
    elif cover < 0.15:  # a hood or a head scarf
        color = _pick(draw, CLOTHES)
        pen.oval(0, 0.05, 0.46, 0.56, color)
        if not back:
            pen.oval(turn, 0.1 + 0.15 * tilt, 0.26, 0.33, skin)
    elif cover < 0.18:  # a helmet or a woollen cap
        pen.oval(
            0,
            -0.06,
            0.42,
            0.46,
            _pick(draw, ((240, 240, 236), (232, 190, 44), (200, 40, 40), (40, 46, 60))),
            arc=(180, 360),
        )


def _face(pen, draw: Draw, size: float, x: float, y: float, skin: Color, hair: Color) -> None:
    shadow, eyes, extra = _dim(skin, 0.66), y - 0.06, draw()
    pen.oval(x, eyes - 0.015, 0.22, 0.055, shadow)  # the sockets, one shadow from afar
    pen.polygon([(x, eyes), (1.1 * x + 0.06, y + 0.12), (1.1 * x - 0.05, y + 0.12)], _dim(skin, 1.1))
    pen.line((x - 0.08, y + 0.2), (x + 0.08, y + 0.2), 0.045, _dim(skin, 0.7))
    if size >= 18:
        for side in (-0.13, 0.13):
            pen.oval(x + side, eyes, 0.045, 0.028, _dim(skin, 0.3))
            pen.line((x + side - 0.07, eyes - 0.09), (x + side + 0.07, eyes - 0.09), 0.03, hair)
    if extra < 0.12:  # glasses
        pen.line((x - 0.22, eyes), (x + 0.22, eyes), 0.08, (34, 34, 36))
    elif extra < 0.26:  # a beard
        pen.oval(x, y + 0.27, 0.2, 0.13, _dim(hair, 1.15))
    elif extra < 0.3:  # a mask
        pen.oval(x, y + 0.2, 0.2, 0.15, (206, 216, 222))


def prop(draw: Draw, x: float, y: float, size: float, grain: np.ndarray) -> Figure:
    """Something that stands among people, of the size that a head at (x, y) would have, and often as round as one."""
    kind = int(draw() * 7)
    ground = 6.2
    if kind == 0:  # a lamp post with round lamps
        pen, metal = _Pen(x, y, size, (-2.2, -8, 2.2, ground)), _dim((70, 74, 76), 0.6 + 0.7 * draw())
        pen.line((0, ground - 0.1), (0, -6.6), 0.3, metal)
        pen.line((-1.4, -6.4), (1.4, -6.4), 0.16, metal)
        for side in (-1.4, 0, 1.4):
            pen.oval(side, -6.9, 0.5, 0.55, (236, 230, 205))
    elif kind == 1:  # a tree
        pen = _Pen(x, y, size, (-4.5, -10, 4.5, ground))
        pen.line((0, ground - 0.1), (0.1, -4), 0.6, (84, 68, 54))
        green = _pick(draw, ((64, 92, 46), (86, 108, 52), (48, 74, 44), (122, 104, 50)))
        for i in range(130):
            angle, radius = 2 * math.pi * draw(), 3.7 * math.sqrt(draw()) * (1 - 0.3 * i / 130)
            center = radius * math.cos(angle), -5.4 + 0.95 * radius * math.sin(angle)
            gain = 0.5 + 0.5 * i / 130 - 0.12 * (center[1] + 5.4) + 0.4 * (draw() - 0.5)
            reach = 0.95 - 0.7 * i / 130
            pen.oval(*center, reach, 0.8 * reach, _dim(green, max(0.25, gain)))
    elif kind == 2:  # a bunch of balloons
        pen = _Pen(x, y, size, (-2.4, -4.5, 2.4, 1.5))
        for _ in range(3 + int(6 * draw())):
            center, color = (3.2 * (draw() - 0.5), -1.4 - 2 * draw()), _pick(draw, CLOTHES[14:])
            pen.line(center, (0, 1.4), 0.04, (150, 150, 150))
            pen.oval(*center, 0.48, 0.58, color)
            pen.oval(center[0] - 0.14, center[1] - 0.2, 0.12, 0.14, _dim(color, 1.6))
    elif kind == 3:  # bollards with round tops
        pen, stone = _Pen(x, y, size, (-5, 2.4, 5, ground + 0.2)), _dim((150, 146, 140), 0.5 + 0.6 * draw())
        for i in range(-2, 3):
            pen.line((2 * i, ground), (2 * i, 3.6), 0.6, stone)
            pen.oval(2 * i, 3.2, 0.45, 0.48, _dim(stone, 1.15))
    elif kind == 4:  # a road sign
        pen = _Pen(x, y, size, (-1.2, -4, 1.2, ground))
        pen.line((0, ground), (0, -3), 0.18, (130, 132, 134))
        pen.oval(0, -2.8, 0.95, 0.95, (200, 40, 42))
        pen.oval(0, -2.8, 0.7, 0.7, (235, 235, 232))
    elif kind == 5:  # a stall with an awning and fruit
        pen, color = _Pen(x, y, size, (-5, -3.6, 5, ground)), _pick(draw, CLOTHES[14:])
        for side in (-4.4, 4.4):
            pen.line((side, ground), (side, -2), 0.2, (120, 116, 110))
        pen.polygon([(-4.5, 3), (4.5, 3), (4.5, ground), (-4.5, ground)], (120, 92, 66))
        for i in range(40):
            pen.oval(
                8.6 * (draw() - 0.5),
                2.9 - 0.8 * draw(),
                0.35,
                0.35,
                _pick(draw, ((206, 60, 40), (226, 150, 40), (120, 150, 60))),
            )
        for i in range(9):
            stripe = color if i % 2 else (236, 234, 228)
            pen.polygon([(i - 4.5, -3.4), (i - 3.5, -3.4), (i * 1.08 - 3.78, -1.2), (i * 1.08 - 4.86, -1.2)], stripe)
    else:  # a potted bush
        pen = _Pen(x, y, size, (-1.6, 1.4, 1.6, ground))
        pen.polygon([(-0.8, 4.4), (0.8, 4.4), (0.6, ground - 0.1), (-0.6, ground - 0.1)], (140, 90, 66))
        for _ in range(26):
            angle, radius = 2 * math.pi * draw(), 1.05 * math.sqrt(draw())
            pen.oval(
                radius * math.cos(angle),
                3.3 + radius * math.sin(angle),
                0.3,
                0.3,
                _dim((70, 104, 52), 0.6 + 0.7 * draw()),
            )

    def shade(patch: np.ndarray) -> None:
        height, width = (min(a, b) for a, b in zip(patch.shape[1:], grain.shape, strict=True))
        patch[:3, :height, :width] *= grain[:height, :width]

    return pen.figure(shade)
