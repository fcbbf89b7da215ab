"""Tiled decoding, with decoders simple enough to know what must come out."""

import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.encoders.tiling import cut, decode_tiled

FACTOR = 2


def enlarge(latent_BYXZ):
    """A decoder that looks at single pixels only: tiles cannot show."""
    return latent_BYXZ.repeat(FACTOR, 1).repeat(FACTOR, 2)


def centred(latent_BYXZ):
    """A decoder that depends on the whole tile."""
    return enlarge(latent_BYXZ - latent_BYXZ.mean((1, 2), keepdims=True))


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("length", [1, 4, 7, 8, 9, 13, 14, 15, 20, 61])
@pytest.mark.parametrize("tile", [4, 5, 8])
def test_weights_add_up_to_one_and_tiles_lie_inside(length, tile):
    side = cut(length, tile, FACTOR)
    total = np.zeros(length * FACTOR)
    for start, weights in zip(side.starts, side.weights, strict=True):
        assert 0 <= start <= length - side.size
        assert (weights >= 0).all()
        total[start * FACTOR :][: len(weights)] += weights
    assert side.size == min(length, tile)
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_ramps_are_linear_and_the_last_tile_moves_inwards():
    side = cut(12, 8, 1)
    assert side.starts == [0, 4]  # meant to begin at 6
    np.testing.assert_array_equal(side.weights[0], [1, 1, 1, 1, 1, 1, 1, 0.5])
    np.testing.assert_array_equal(side.weights[1], [0, 0, 0, 0.5, 1, 1, 1, 1])


@pytest.mark.parametrize("size", [(8, 20), (20, 8), (13, 31), (5, 9), (9, 9)])
def test_constant_linear_and_any_images_of_a_pixelwise_decoder_are_exact(size):
    y, x = size
    row, column = np.meshgrid(np.arange(y), np.arange(x), indexing="ij")
    latent_BYXZ = np.stack([np.full(size, 0.7), 0.3 * row - 0.1 * column, random(y, x)], -1)[None].astype(np.float32)
    out_BYXZ = decode_tiled(enlarge, latent_BYXZ, 8, FACTOR)
    assert out_BYXZ.dtype == np.float32
    np.testing.assert_allclose(out_BYXZ, enlarge(latent_BYXZ), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 20), (13, 31), (26, 26)])
def test_equals_a_loop_over_pixels(size):
    """Every pixel on its own: which tiles were meant to cover it, and how far into their fading it lies."""
    tile, overlap, step = 8, 2, 6
    y, x = size
    latent_BYXZ = random(2, y, x, 3)

    def covers(pixel, length):
        """(where the tile begins, its share of the pixel)."""
        number = 0
        found = []
        while True:
            meant = number * step
            into = pixel / FACTOR - meant  # latent pixels into the tile
            share = 1.0
            if number:
                share *= min(max(into / overlap, 0), 1)
            last = meant + tile >= length
            if not last:
                share *= 1 - min(max((into - step) / overlap, 0), 1)
            if share:
                found.append((min(meant, max(length - tile, 0)), share))
            if last:
                return found
            number += 1

    expected = np.zeros((2, y * FACTOR, x * FACTOR, 3))
    for row in range(y * FACTOR):
        for column in range(x * FACTOR):
            for top, down in covers(row, y):
                for left, across in covers(column, x):
                    tile_BYXZ = centred(latent_BYXZ[:, top : top + tile, left : left + tile])
                    value_BZ = tile_BYXZ[:, row - top * FACTOR, column - left * FACTOR]
                    expected[:, row, column] += down * across * value_BZ
    for at_once in (1, 4, 100):
        out_BYXZ = decode_tiled(centred, latent_BYXZ, tile, FACTOR, at_once)
        np.testing.assert_allclose(out_BYXZ, expected, rtol=0, atol=2e-6)


def test_a_tile_larger_than_the_image_is_the_whole():
    latent_BYXZ = random(2, 6, 5, 3)
    np.testing.assert_array_equal(decode_tiled(centred, latent_BYXZ, 16, FACTOR, 2), centred(latent_BYXZ))


def test_every_call_has_the_same_shape():
    shapes = []

    def decode(latent_BYXZ):
        shapes.append(latent_BYXZ.shape)
        return enlarge(latent_BYXZ)

    decode_tiled(decode, random(3, 21, 6, 4), 8, FACTOR, 4)
    assert shapes == [(4, 8, 6, 4)] * 3  # 3 images of 4 x 1 tiles


def test_tiles_too_small_to_overlap_are_refused():
    with pytest.raises(UserError, match=r"tiles of 3 latent pixels are too small to overlap: use 4 or more"):
        decode_tiled(enlarge, random(1, 8, 8, 3), 3, FACTOR)
