"""Patches, positions and times: by hand, by formula, and against diffusers."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.nn.embeddings import PatchEmbed, TimeEmbed, patchify, sinusoid, unpatchify
from ec_dit.nn.positions import sincos_2d


def test_patchify_by_hand():
    # Two channels: the number of the pixel, and a hundred more.
    pixels = np.arange(8).reshape(1, 2, 4, 1)
    image = np.concatenate([pixels, pixels + 100], axis=-1)
    left = [0, 100, 1, 101, 4, 104, 5, 105]
    right = [2, 102, 3, 103, 6, 106, 7, 107]
    np.testing.assert_array_equal(patchify(image, 2), [[left, right]])


@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 8, 8, 3), 2), ((1, 4, 12, 4), 4), ((3, 6, 4, 1), 1), ((1, 6, 9, 2), 3)]
)
def test_unpatchify_inverts_patchify(shape, patch):
    image = np.random.default_rng(0).normal(size=shape)
    patches = patchify(image, patch)
    assert patches.shape == (shape[0], shape[1] * shape[2] // patch**2, patch**2 * shape[3])
    np.testing.assert_array_equal(unpatchify(patches, patch, shape[1] // patch, shape[2] // patch), image)


def test_patchify_refuses_a_patch_that_does_not_divide():
    with pytest.raises(ValueError, match=r"6 x 8 .* 4 x 4"):
        patchify(np.zeros((1, 6, 8, 3)), 4)


def test_patch_embed_is_one_linear_map():
    embed = PatchEmbed(3, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    embed.w_PD[...] = jnp.array([[1.0, 0.0], [0.0, 1.0], [10.0, 100.0]])
    embed.b_D[...] = jnp.array([0.5, 0.25])
    np.testing.assert_array_equal(embed(jnp.array([[[1.0, 2.0, 3.0]]])), [[[31.5, 302.25]]])


@pytest.mark.parametrize(
    ("rows", "columns", "width", "base", "scale"), [(4, 4, 16, 4, 1.0), (8, 8, 24, 4, 2.0), (2, 8, 8, 4, 1.0)]
)
def test_sincos_equals_its_formula(rows, columns, width, base, scale):
    stretch = base / math.sqrt(rows * columns) / scale
    out = sincos_2d(rows, columns, width, base, scale)
    assert out.shape == (rows * columns, width)
    assert out.dtype == np.float32
    quarter = width // 4
    for row in range(rows):
        for column in range(columns):
            for i in range(quarter):
                rate = 10000 ** (-i / quarter)
                expected = [
                    math.sin(column * stretch * rate),
                    math.cos(column * stretch * rate),
                    math.sin(row * stretch * rate),
                    math.cos(row * stretch * rate),
                ]
                np.testing.assert_allclose(out[row * columns + column, i::quarter], expected, atol=1e-6)


def test_a_finer_grid_keeps_the_positions_of_the_coarse_one():
    coarse = sincos_2d(4, 4, 16, 4).reshape(4, 4, 16)
    fine = sincos_2d(8, 8, 16, 4).reshape(8, 8, 16)
    np.testing.assert_array_equal(fine[::2, ::2], coarse)


@pytest.mark.parametrize(("grid", "width", "base", "scale"), [(8, 32, 8, 1.0), (16, 48, 16, 2.0), (12, 64, 8, 1.0)])
@pytest.mark.extra("conformance")
def test_sincos_equals_diffusers(grid, width, base, scale):
    from diffusers.models import embeddings

    theirs = embeddings.get_2d_sincos_pos_embed(
        width, grid, base_size=base, interpolation_scale=scale, output_type="pt"
    )
    np.testing.assert_allclose(sincos_2d(grid, grid, width, base, scale), theirs.numpy(), atol=1e-5)


def test_sinusoid_equals_its_formula():
    out = np.asarray(sinusoid(jnp.array([0.0, 0.25, 1.0]), 8))
    for row, t in enumerate((0.0, 0.25, 1.0)):
        angles = [1000 * t * 10000 ** (-i / 4) for i in range(4)]
        np.testing.assert_allclose(out[row], [*map(math.cos, angles), *map(math.sin, angles)], atol=1e-4)


def test_time_embed_is_computed_from_float32_angles():
    # 0.5 and 0.501 differ by one timestep of a thousand: in bfloat16 they would be the same number.
    embed = TimeEmbed(16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    out = embed(jnp.array([0.5, 0.501]))
    assert out.shape == (2, 16)
    assert out.dtype == jnp.bfloat16
    assert jnp.abs(out[0] - out[1]).max() > 0.01
