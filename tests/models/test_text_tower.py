"""The small text encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.models.text_spec import TowerSpec
from ec_dit.models.text_tower import TextTower

SPEC = TowerSpec(vocab_size=11, width=16, num_blocks=2, num_heads=4, length=6)
IDS_BT = jnp.array([[3, 4, 5, 1, 0, 0], [7, 4, 9, 2, 6, 1]])
MASK_BT = jnp.array([[True] * 4 + [False] * 2, [True] * 6])


@pytest.fixture
def run(randomise):
    graphdef, params = randomise(lambda: TextTower(SPEC, rngs=nnx.Rngs(0)))
    return jax.jit(nnx.merge(graphdef, params).__call__)


def test_embeddings_have_unit_variance(run):
    out_BTM = run(IDS_BT, MASK_BT)
    assert out_BTM.shape == (2, 6, 16)
    np.testing.assert_allclose(out_BTM.mean(-1), np.zeros((2, 6)), atol=1e-5)
    np.testing.assert_allclose(out_BTM.var(-1), np.ones((2, 6)), rtol=1e-3)


def test_hidden_tokens_have_no_influence(run):
    out_BTM = run(IDS_BT, MASK_BT)
    changed = run(IDS_BT.at[0, 4:].set(8), MASK_BT)
    np.testing.assert_array_equal(changed[MASK_BT], out_BTM[MASK_BT])


def test_a_shorter_batch_gives_the_same_embeddings(run):
    np.testing.assert_allclose(run(IDS_BT[:1, :4], MASK_BT[:1, :4]), run(IDS_BT, MASK_BT)[:1, :4], atol=1e-5)


def test_attention_looks_both_ways_and_order_matters(run):
    out_BTM = run(IDS_BT, MASK_BT)
    later = run(IDS_BT.at[1, 5].set(8), MASK_BT)
    assert jnp.abs(later[1, 0] - out_BTM[1, 0]).max() > 1e-3
    swapped = run(IDS_BT[:, jnp.array([1, 0, 2, 3, 4, 5])], MASK_BT)
    assert jnp.abs(swapped[1, 1] - out_BTM[1, 0]).max() > 1e-3


def test_bfloat16_computes_with_float32_parameters(randomise):
    graphdef, params = randomise(lambda: TextTower(SPEC, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert jax.jit(lambda: nnx.merge(graphdef, params)(IDS_BT, MASK_BT))().dtype == jnp.bfloat16
