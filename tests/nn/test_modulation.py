"""How time enters: identity at the start, the formula afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.nn.modulation import VECTORS, ModulationTable, TimeModulation, adaptive_norm, modulate


def test_modulate_by_hand():
    x_BSD = jnp.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    shift_BD = jnp.array([[10.0, 20.0], [0.0, 0.0]])
    scale_BD = jnp.array([[0.0, 1.0], [-1.0, 0.5]])
    expected_BSD = [[[11, 24], [13, 28]], [[0, 9], [0, 12]]]
    np.testing.assert_array_equal(modulate(x_BSD, shift_BD, scale_BD), expected_BSD)


@pytest.mark.parametrize("vectors", [2, VECTORS])
def test_time_modulation_starts_at_zero(vectors):
    out = TimeModulation(8, vectors, dtype=jnp.float32, rngs=nnx.Rngs(0))(jnp.ones((3, 8)))
    np.testing.assert_array_equal(out, np.zeros((3, vectors, 8)))


def test_time_modulation_equals_its_formula():
    modulation = TimeModulation(4, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    w, b, time = rng.normal(size=(4, 3, 4)), rng.normal(size=(3, 4)), rng.normal(size=(2, 4))
    modulation.w_IAD[...], modulation.b_AD[...] = jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)
    silu = time / (1 + np.exp(-time))
    expected = np.stack([silu @ w[:, a] + b[a] for a in range(3)], axis=1)
    np.testing.assert_allclose(modulation(jnp.asarray(time, jnp.float32)), expected, atol=1e-5)


def test_a_table_adds_its_offsets_and_its_gates_start_at_zero():
    table = ModulationTable(64, rngs=nnx.Rngs(0))
    shared_BAD = np.random.default_rng(0).normal(size=(2, VECTORS, 64)).astype(np.float32)
    offsets = table(shared_BAD) - shared_BAD
    np.testing.assert_allclose(offsets[:, [2, 5]], 0, atol=1e-6)
    shifts_and_scales = np.asarray(offsets[:, [0, 1, 3, 4]])
    np.testing.assert_allclose(shifts_and_scales[0], shifts_and_scales[1], atol=1e-6)
    np.testing.assert_allclose(shifts_and_scales.std(), 64**-0.5, rtol=0.2)


def test_adaptive_norm_keeps_its_inputs_only():
    x_BSD, shift_BD, scale_BD = jnp.ones((2, 5, 8), jnp.bfloat16), jnp.ones((2, 8)), jnp.ones((2, 8))
    _, backward = jax.vjp(adaptive_norm, x_BSD, shift_BD, scale_BD)
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.size >= x_BSD.size]
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [(x_BSD.shape, jnp.bfloat16)]
