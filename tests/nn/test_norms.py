"""Normalisation against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.nn.norms import LayerNorm, RMSNorm, layer_norm


def test_layer_norm_equals_its_formula():
    x = (100 + 3 * np.random.default_rng(0).normal(size=(2, 5, 16))).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer_norm(jnp.asarray(x)), expected, rtol=0, atol=2e-5)


def test_layer_norm_of_a_constant_is_zero():
    np.testing.assert_array_equal(layer_norm(jnp.full((1, 8), 7.0)), np.zeros((1, 8)))


def test_layer_norm_with_scale_and_shift():
    norm = LayerNorm(4, eps=1e-5)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)), jnp.float32)
    np.testing.assert_array_equal(norm(x), layer_norm(x, 1e-5))
    norm.scale_D[...] = jnp.array([1.0, 2.0, 3.0, 4.0])
    norm.shift_D[...] = jnp.array([0.0, 1.0, 0.0, -1.0])
    np.testing.assert_allclose(norm(x), layer_norm(x, 1e-5) * norm.scale_D[...] + norm.shift_D[...], rtol=1e-6)


def test_rms_norm_equals_its_formula():
    norm = RMSNorm(4)
    norm.scale_K[...] = jnp.array([1.0, 2.0, 3.0, 4.0])
    out = norm(jnp.array([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, 2.0, 2.0], [6.0, 0.0, 0.0, 8.0]]))
    np.testing.assert_allclose(out, [[1, -2, 3, -4], [1, 2, 3, 4], [1.2, 0, 0, 6.4]], rtol=1e-6)


@pytest.mark.parametrize("norm", [layer_norm, LayerNorm(256), RMSNorm(256)], ids=["layer", "affine", "rms"])
def test_bfloat16_is_kept_but_not_computed_in(norm):
    # Far from zero the squares need more than bfloat16's 8 bits.
    x = jnp.asarray(50 + np.random.default_rng(0).normal(size=(4, 256)), jnp.bfloat16)
    out, exact = norm(x), norm(x.astype(jnp.float32))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))
