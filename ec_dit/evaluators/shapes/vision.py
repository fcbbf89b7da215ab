"""Finds the objects in an image of the `shapes` world by classical vision; it knows the palette and the outlines only.

Ground colour from the pale pixels; each pixel is a mix of ground and one palette colour; connected pixels that are
mostly object make a component; every outline is laid over it, with its centroid and area, and the best overlap wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from ec_dit.preparation.drawing.shapes_draw import OUTLINES, PALETTE, coverage

_MARGIN = 3  # pixels kept around an object when outlines are laid over it
_GROUND_CHROMA = 50.0  # largest max(RGB) - min(RGB) of a ground pixel; palette colours have more than 100
_SOLID = 0.5  # a pixel with more of an object in it is its own
_MIN_SHARE = 0.001  # components smaller than this share of the image are specks
_MIN_PIXELS = 8
_MAX_RESIDUAL = 60.0  # a mean RGB distance from every mix of ground and palette above this is no known colour
_MIN_OVERLAP = 0.65  # a silhouette less like every outline has no shape
_SPLIT_SHARE = 0.75  # a component with less than this share in one colour is several objects that touch


@dataclass(frozen=True)
class Found:
    """An object in an image: shape and colour (None if like none known), box (left, top, right, bottom) in pixels."""

    shape: str | None
    color: str | None
    box: tuple[int, int, int, int]

    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle of the box, in pixels."""
        left, top, right, bottom = self.box
        return ((left + right) / 2.0, (top + bottom) / 2.0)


@cache
def _template(shape: str) -> np.ndarray:
    """Outline of a shape moved and scaled to have its centroid at 0 and an area of 1: points (x, y)."""
    x, y = OUTLINES[shape].T
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    area = cross.sum() / 2.0
    centroid = np.array([((x + np.roll(x, -1)) * cross).sum(), ((y + np.roll(y, -1)) * cross).sum()]) / (6.0 * area)
    return (OUTLINES[shape] - centroid) / np.sqrt(abs(area))


def _unmix(image_YXC: np.ndarray, colors: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best palette colour of each pixel [Y, X], how much of it is mixed into the ground, and what that leaves over."""
    chroma = image_YXC.max(axis=-1) - image_YXC.min(axis=-1)
    pale = image_YXC[chroma < _GROUND_CHROMA]
    ground = np.median(pale, axis=0) if len(pale) >= 0.02 * chroma.size else np.full(3, 240.0)
    away = image_YXC - ground
    amounts, residuals = [], []
    for color in colors:
        direction = np.array(PALETTE[color], np.float64) - ground
        amount = away @ direction / (direction @ direction)
        amounts.append(amount)
        residuals.append(np.linalg.norm(away - amount.clip(0.0, 1.0)[..., None] * direction, axis=-1))
    best = np.argmin(np.stack(residuals), axis=0)
    amount, residual = (np.take_along_axis(np.stack(maps), best[None], axis=0)[0] for maps in (amounts, residuals))
    return best, amount, residual


def _components(mask_YX: np.ndarray) -> list[np.ndarray]:
    """Connected parts of a mask, each as a bool mask of the same size."""
    labels = np.zeros(mask_YX.shape, np.int32)
    number = int(ndimage.label(mask_YX, output=labels))  # pyright: ignore[reportArgumentType]
    return [labels == label for label in range(1, number + 1)]


def _classify(soft_YX: np.ndarray, shapes: Sequence[str]) -> str | None:
    """Shape of one object from its soft mask, by best overlap. Blur keeps centroid and area: they place it."""
    height, width = soft_YX.shape
    area = float(soft_YX.sum())
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    centroid = np.array([(columns * soft_YX).sum(), (rows * soft_YX).sum()]) / area
    overlaps = {}
    for shape in shapes:
        drawn = coverage(_template(shape) * np.sqrt(area) + centroid, height, width)
        overlaps[shape] = float(np.minimum(drawn, soft_YX).sum() / np.maximum(drawn, soft_YX).sum())
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= _MIN_OVERLAP else None


def object_mask(image: np.ndarray) -> np.ndarray:
    """Tells which pixels of an RGB image, uint8 [Y, X, 3], are more object than ground; bool [Y, X]."""
    _, amount, _ = _unmix(image.astype(np.float64), tuple(PALETTE))
    return amount > _SOLID


def find_objects(
    image: np.ndarray, shapes: Sequence[str] = tuple(OUTLINES), colors: Sequence[str] = tuple(PALETTE)
) -> list[Found]:
    """Objects in an RGB image, uint8 [Y, X, 3], from the top down; `shapes` and `colors` are the candidates."""
    best, amount, residual = _unmix(image.astype(np.float64), colors)
    solid = amount > _SOLID
    least = max(_MIN_PIXELS, _MIN_SHARE * solid.size)
    regions: list[tuple[np.ndarray, int]] = []
    for region in _components(solid):
        votes = np.bincount(best[region], minlength=len(colors))
        if votes.max() >= _SPLIT_SHARE * votes.sum():
            regions.append((region, int(votes.argmax())))
            continue
        for number in np.flatnonzero(votes):
            regions.extend((part, int(number)) for part in _components(region & (best == number)))
    found = []
    for region, color in regions:
        if region.sum() < least:
            continue
        rim = np.asarray(ndimage.maximum_filter(region, size=3), bool) & ~solid
        soft = np.pad(np.where(region | rim, amount, 0.0).clip(0.0, 1.0), _MARGIN)
        ys, xs = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
        box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
        shape = _classify(soft[box[1] : box[3] + 2 * _MARGIN, box[0] : box[2] + 2 * _MARGIN], shapes)
        known = residual[region].mean() <= _MAX_RESIDUAL
        found.append(Found(shape, colors[color] if known else None, box))
    return sorted(found, key=lambda item: (item.box[1], item.box[0]))
