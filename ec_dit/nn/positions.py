"""Where a token lies: places on a grid of patches, as sines and cosines that are added to it, or as turns of queries and keys."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ec_dit.core.errors import UserError

PositionKind = Literal["sincos", "rope"]
PositionFit = Literal["area", "sides", "crop", "centred"]
_BASE = 10000  # of wavelengths


def places(
    rows: int, columns: int, base: int, scale: float = 1.0, fit: PositionFit = "area", grid: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Gives the place of every row and of every column, for a grid of any size.

    Args:
        base: patches per side of the square grid that area and sides stretch others to.
        scale: divides places: PixArt-alpha's interpolation scale.
        fit: 'area': both directions stretch equally, to the same area, so that a square model meets no place beyond those it was
            trained on when the resolution rises, and the long side of a wide picture reaches beyond `base`; 'sides': each side is
            stretched to `base`, as in PixArt-alpha, which squeezes wide pictures; 'crop': places of the middle of a grid of
            `grid` patches a side, counted from its corner (SD3); 'centred': counted from the middle of the image (Nucleus-Image).
        grid: see 'crop'.

    Raises:
        UserError: for an image larger than the grid that it is cut from.
    """
    if fit == "crop" and max(rows, columns) > grid:
        raise UserError(
            f"an image of {rows} x {columns} patches is larger than the grid of {grid} that positions are cut from (config key "
            "model.position_grid)."
        )
    sides = (rows, columns)
    if fit in ("centred", "crop"):
        first = [n // 2 - n if fit == "centred" else (grid - n) // 2 for n in sides]
        y, x = ((start + np.arange(n)) / scale for start, n in zip(first, sides, strict=True))
        return y, x
    area = math.sqrt(rows * columns)
    stretch_y, stretch_x = (base / (n if fit == "sides" else area) / scale for n in sides)
    return np.arange(rows) * stretch_y, np.arange(columns) * stretch_x


def sincos_2d(
    rows: int,
    columns: int,
    width: int,
    base: int,
    scale: float = 1.0,
    fit: PositionFit = "area",
    grid: int = 0,
) -> np.ndarray:
    """Computes fixed sine-cosine positions (S, D) of a rows x columns grid; arguments as `places` has them.

    Half of the width encodes the column, half the row, as in PixArt-alpha.
    """
    y, x = np.meshgrid(*places(rows, columns, base, scale, fit, grid), indexing="ij")
    return np.concatenate([_sincos_1d(x, width // 2), _sincos_1d(y, width // 2)], axis=1).astype(np.float32)


def _sincos_1d(positions: np.ndarray, width: int) -> np.ndarray:
    angles = np.outer(positions.reshape(-1), 1 / _BASE ** (np.arange(width // 2) / (width / 2)))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class Turn(NamedTuple):
    """By how much queries and keys turn: cosines and sines of the angles of pairs of numbers, float32.

    Attributes:
        cos, sin: (S, K / 2), or (B, S, K / 2) where images differ.
    """

    cos: jax.Array
    sin: jax.Array

    def __call__(self, x_BSHK: jax.Array) -> jax.Array:
        """Turns number k of every head together with number k + K / 2; computed in float32."""
        first, second = jnp.split(x_BSHK.astype(jnp.float32), 2, axis=-1)
        cos, sin = (a[..., None, :] for a in self)
        turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return turned.astype(x_BSHK.dtype)


def turn(places_SJ: Sequence[np.ndarray], axes: Sequence[int], base: float = _BASE) -> Turn:
    """Gives the turns of tokens at places (S,) on several axes (RoFormer, 2104.09864, for each axis by itself).

    Args:
        places_SJ: of all tokens, for each axis.
        axes: even numbers of a head that turn with each.
    """
    angles = [
        np.outer(place_S, base ** -(np.arange(0, numbers, 2) / numbers))
        for place_S, numbers in zip(places_SJ, axes, strict=True)
        if numbers
    ]
    angles_SK = np.concatenate(angles, axis=1)
    return Turn(jnp.asarray(np.cos(angles_SK), jnp.float32), jnp.asarray(np.sin(angles_SK), jnp.float32))


def image_and_text_turns(y: np.ndarray, x: np.ndarray, text_length: int, axes: Sequence[int]) -> tuple[Turn, Turn]:
    """Gives the turns of image tokens and of text tokens, as Qwen-Image and Nucleus-Image have them.

    The image is at 0 on the first axis, at its rows and columns on the others; token i of the text is on all three at the first
    place beyond the image, plus i.

    Args:
        y, x: places of rows and columns, as `places` gives them.
    """
    rows_S, columns_S = (place.reshape(-1) for place in np.meshgrid(y, x, indexing="ij"))
    after = max(y.max(), x.max()) + 1 + np.arange(text_length)
    return turn([np.zeros_like(rows_S), rows_S, columns_S], axes), turn([after] * 3, axes)
