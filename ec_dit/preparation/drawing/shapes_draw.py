"""How a scene of the `shapes` data set becomes pixels: outlines, palette, grounds and an anti-aliased painter.

Image coordinates are pixels with y downwards; a pixel covers [x, x + 1) x [y, y + 1). An outline lies in [-1, 1]^2 and
is scaled by half the object's size. Colours are saturated and grounds are pale greys, so that each can be told apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (224, 49, 49),
    "yellow": (250, 200, 20),
    "green": (47, 158, 68),
    "blue": (28, 100, 216),
    "purple": (140, 60, 200),
    "orange": (247, 120, 20),
    "pink": (240, 101, 170),
}
GROUNDS = ("plain", "textured")
_PLAIN = (243.0, 241.0, 236.0)
_SUPERSAMPLE = 8


def _ring(radii: Sequence[float], start: float = -90.0) -> np.ndarray:
    """Points (x, y) at equal angles from `start` degrees (up), with the given radii."""
    angle = np.radians(start + 360.0 * np.arange(len(radii)) / len(radii))
    return np.asarray(radii, np.float64)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    angle = np.linspace(0.0, 2.0 * math.pi, 64, endpoint=False)
    x = 16.0 * np.sin(angle) ** 3
    y = -(13.0 * np.cos(angle) - 5.0 * np.cos(2 * angle) - 2.0 * np.cos(3 * angle) - np.cos(4 * angle))
    return np.stack([x / 17.0, (y - 2.5) / 17.0], axis=1)


def _cross(arm: float) -> np.ndarray:
    """A plus sign whose arms are `arm` wide to each side: three corners of one arm, turned four times."""
    corners = np.array([[-arm, -1.0], [arm, -1.0], [arm, -arm]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([corners @ np.linalg.matrix_power(turn, quarter) for quarter in range(4)])


OUTLINES: dict[str, np.ndarray] = {
    "circle": 0.98 * _ring([1.0] * 64),
    "square": 0.88 * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]),
    "triangle": np.array([[0.0, -0.92], [1.0, 0.86], [-1.0, 0.86]]),
    "star": _ring([1.0, 0.42] * 5) + np.array([0.0, 0.08]),
    "diamond": np.array([[0.0, -1.0], [0.78, 0.0], [0.0, 1.0], [-0.78, 0.0]]),
    "heart": _heart(),
    "cross": _cross(0.36),
}


@dataclass(frozen=True)
class Thing:
    """One object to draw: shape and colour by name, its centre (x, y) and its size, all in pixels."""

    shape: str
    color: str
    x: float
    y: float
    size: float

    def box(self) -> tuple[float, float, float, float]:
        """Gives (left, top, right, bottom) of the outline, in pixels."""
        low = OUTLINES[self.shape].min(axis=0) * self.size / 2.0
        high = OUTLINES[self.shape].max(axis=0) * self.size / 2.0
        return (self.x + float(low[0]), self.y + float(low[1]), self.x + float(high[0]), self.y + float(high[1]))


def coverage(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Computes the share of each pixel that a polygon covers, [height, width] in [0, 1]; `points` are (x, y) in pixels."""
    canvas = Image.new("L", (width * _SUPERSAMPLE, height * _SUPERSAMPLE), 0)
    # Pillow paints every sample that the outline touches; half a sample back puts its centres on the grid.
    corners = [(float(x) * _SUPERSAMPLE - 0.5, float(y) * _SUPERSAMPLE - 0.5) for x, y in points]
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    # Summed as small integers, rows first: several times as fast as the mean over both at once, to the same bits.
    rows = np.asarray(canvas).reshape(height, _SUPERSAMPLE, -1).sum(axis=1, dtype=np.uint16)
    samples = rows.reshape(height, width, _SUPERSAMPLE).sum(axis=2, dtype=np.uint16)
    return samples.astype(np.float32) / _SUPERSAMPLE**2 / 255.0


def draw_ground(image_size: int, ground: str, rng: np.random.Generator) -> np.ndarray:
    """Draws a ground as float RGB [Y, X, 3] in 0..255: one warm white, or a random pale pattern."""
    if ground == "plain":
        return np.broadcast_to(np.array(_PLAIN), (image_size, image_size, 3)).copy()
    first, second = rng.uniform(205.0, 250.0, 2)
    tint = rng.uniform(-8.0, 8.0, 3)
    rows, columns = np.mgrid[0:image_size, 0:image_size] / image_size
    angle = rng.uniform(0.0, math.pi)
    along = rows * math.sin(angle) + columns * math.cos(angle)
    across = rows * math.cos(angle) - columns * math.sin(angle)
    waves = 2.0 * math.pi * rng.uniform(2.0, 6.0)
    pattern = int(rng.integers(4))
    if pattern == 0:
        mix = (along - along.min()) / (along.max() - along.min())
    elif pattern == 1:
        mix = (np.sin(waves * along) > 0.0).astype(np.float64)
    elif pattern == 2:
        mix = (np.sin(waves * along) * np.sin(waves * across) > 0.0).astype(np.float64)
    else:
        coarse = Image.fromarray(rng.uniform(0.0, 1.0, (8, 8)).astype(np.float32))
        mix = np.asarray(coarse.resize((image_size, image_size), Image.Resampling.BICUBIC), np.float64).clip(0.0, 1.0)
    grey = first + (second - first) * mix + rng.normal(0.0, 3.0, mix.shape)
    return grey[:, :, None] + tint


def draw_scene(image_size: int, things: Sequence[Thing], ground: str, rng: np.random.Generator) -> np.ndarray:
    """Paints `things` in order on the ground: uint8 RGB [Y, X, 3]. `rng` serves the texture alone."""
    image = draw_ground(image_size, ground, rng)
    for thing in things:
        points = OUTLINES[thing.shape] * thing.size / 2.0 + np.array([thing.x, thing.y])
        alpha = coverage(points, image_size, image_size)[:, :, None]
        image = (1.0 - alpha) * image + alpha * np.array(PALETTE[thing.color], np.float64)
    return np.rint(image.clip(0.0, 255.0)).astype(np.uint8)
