"""Decoding a large latent in tiles, so that memory does not grow with the image.

Neighbours overlap by a quarter of a tile, where one fades into the other. All tiles have one size, so that one compiled program
decodes them. What a decoder computes from a whole image (normalisation, attention) it computes from a tile here: the outcome is
not that of the whole, only near it.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ec_dit.core.errors import UserError
from ec_dit.core.padding import padded

_OVERLAPS = 4  # the part of a tile that is one overlap


class Side(NamedTuple):
    """How one side of a latent is cut.

    Attributes:
        size: of every tile.
        starts: where the tiles begin.
        weights: (tiles, decoded pixels of a tile), what each contributes; every pixel of the whole side gets 1 in all.
    """

    size: int
    starts: list[int]
    weights: np.ndarray


def cut(length: int, tile: int, factor: int) -> Side:
    """Tiles for a side of `length` latent pixels, of `factor` decoded pixels each.

    Tiles begin three quarters of a tile apart. The last is moved inwards where it would not end with the side; it still
    contributes only where it would have stood.
    """
    size, overlap = min(length, tile), tile // _OVERLAPS
    step = tile - overlap
    meant = step * np.arange(1 + max(0, -(-(length - tile) // step)))
    starts = np.minimum(meant, length - size)
    # Decoded pixels of each tile, counted from where it was meant to begin.
    pixel = np.arange(size * factor) + factor * (starts - meant)[:, None]
    rise = np.clip(pixel / (overlap * factor), 0, 1)
    fall = 1 - np.clip((pixel - step * factor) / (overlap * factor), 0, 1)
    rise[0], fall[-1] = 1, 1
    return Side(size, starts.tolist(), (rise * fall).astype(np.float32))


def decode_tiled(
    decode: Callable[[np.ndarray], np.ndarray], latent_BYXZ: np.ndarray, tile: int, factor: int, at_once: int = 1
) -> np.ndarray:
    """The decoded image (B, Y * factor, X * factor, channels), float32, put together from tiles.

    Args:
        decode: (tiles, y, x, Z) -> (tiles, y * factor, x * factor, channels), of one shape in every call.
        tile: side of a tile in latent pixels; along a shorter side of the latent, that side.
        at_once: how many tiles a call gets at most, of the same or of several images.

    Raises:
        UserError: for tiles too small to overlap.
    """
    if tile < _OVERLAPS:
        raise UserError(f"tiles of {tile} latent pixels are too small to overlap: use {_OVERLAPS} or more.")
    images, y, x, _ = latent_BYXZ.shape
    rows, columns = cut(y, tile, factor), cut(x, tile, factor)
    places = list(itertools.product(range(images), range(len(rows.starts)), range(len(columns.starts))))
    whole_BYXZ = None
    for part, full in padded(places, min(at_once, len(places)), places[-1]):
        tiles_BYXZ = np.stack(
            [latent_BYXZ[n, rows.starts[i] :, columns.starts[j] :][: rows.size, : columns.size] for n, i, j in full]
        )
        decoded_BYXZ = decode(tiles_BYXZ)
        if whole_BYXZ is None:
            whole_BYXZ = np.zeros((images, y * factor, x * factor, decoded_BYXZ.shape[-1]), np.float32)
        for (n, i, j), part_YXZ in zip(places[part], decoded_BYXZ, strict=False):  # beyond them is filling
            top, left = rows.starts[i] * factor, columns.starts[j] * factor
            weight_YX = rows.weights[i][:, None] * columns.weights[j]
            target_YXZ = whole_BYXZ[n, top:, left:][: part_YXZ.shape[0], : part_YXZ.shape[1]]
            target_YXZ += weight_YX[..., None] * part_YXZ
    assert whole_BYXZ is not None, "a batch without images"
    return whole_BYXZ
