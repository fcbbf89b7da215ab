"""Grouped-query attention against float64 NumPy that repeats the key-value heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.nn import param
from ec_dit.nn.attention import Attention
from tests import plain

pytestmark = pytest.mark.slow

WIDTH, TEXT_WIDTH, HEAD_DIM = 12, 10, 8


def make(heads, kv_heads, *, cross=False, qk_norm=False, bias=False, dtype=jnp.float32):
    """An attention layer whose parameters are all random, and those parameters in float64."""
    context = TEXT_WIDTH if cross else WIDTH
    sizes = (WIDTH, context, heads, kv_heads, HEAD_DIM)
    build = lambda: Attention(*sizes, qk_norm=qk_norm, bias=bias, dtype=dtype, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef, params, _ = param.split(nnx.eval_shape(build))
    rng = np.random.default_rng(heads * 10 + kv_heads)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / 3, params)
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return nnx.merge(graphdef, single), params


def run(layer, *arrays):
    return jax.jit(layer.__call__)(*arrays)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "bias", "qk_norm"),
    [(1, 1, True, False), (4, 4, False, False), (6, 2, False, True), (6, 3, True, True), (4, 1, False, False)],
)
def test_self_attention(heads, kv_heads, bias, qk_norm):
    layer, params = make(heads, kv_heads, qk_norm=qk_norm, bias=bias)
    x = np.random.default_rng(0).normal(size=(2, 7, WIDTH))
    everywhere = np.ones((2, 7), bool)
    expected = plain.attention(params, x, x, everywhere)
    np.testing.assert_allclose(run(layer, jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_masked_cross_attention(heads, kv_heads):
    layer, params = make(heads, kv_heads, cross=True, bias=True, qk_norm=True)
    rng = np.random.default_rng(0)
    x, context = rng.normal(size=(3, 7, WIDTH)), rng.normal(size=(3, 5, TEXT_WIDTH))
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0]], bool)
    expected = plain.attention(params, x, context, mask)
    x, context = jnp.asarray(x, jnp.float32), jnp.asarray(context, jnp.float32)
    out = run(layer, x, context, mask)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    # What is masked has no influence at all, however large.
    np.testing.assert_array_equal(run(layer, x, jnp.where(mask[..., None], context, 1e4), mask), out)


def test_causal_attention_sees_no_later_token():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, WIDTH)), jnp.float32)
    mask = jnp.arange(7) < jnp.array([[7], [4]])
    layer, _ = make(4, 2)
    causal, _ = make(4, 2)
    causal.causal = True
    for length in range(1, 8):
        wanted = run(layer, x[:, :length], None, mask[:, :length])[:, -1]
        np.testing.assert_allclose(run(causal, x, None, mask)[:, length - 1], wanted, rtol=1e-5, atol=1e-5)


def test_scale_and_offset_of_the_scores():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, WIDTH)), jnp.float32)
    layer, _ = make(4, 4)
    wanted = run(layer, x)
    layer.scale = 0.5 / np.sqrt(HEAD_DIM)
    layer.w_q_DHK[...] *= 2
    np.testing.assert_allclose(run(layer, x), wanted, rtol=1e-5, atol=1e-5)
    # An offset that leaves one head a single key.
    offset_HST = jnp.zeros((4, 7, 7)).at[1, :, :6].set(-1e9)
    last_BNK = jnp.einsum("bm,mnk->bnk", x[:, -1], layer.w_v_MNK[...])
    only = jnp.einsum("bk,kd->bd", last_BNK[:, 1], layer.w_o_HKD[1])[:, None]
    layer.w_o_HKD[...] = layer.w_o_HKD[...].at[jnp.array([0, 2, 3])].set(0)
    out = run(layer, x, None, None, offset_HST)
    np.testing.assert_allclose(out, jnp.broadcast_to(only, out.shape), rtol=1e-4, atol=1e-5)


def test_zero_out():
    layer = Attention(12, 12, 1, 1, 8, zero_out=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert layer.w_v_MNK[...].any()
    assert not run(layer, jnp.ones((1, 3, 12)), jnp.ones((1, 2, 12))).any()


def test_bfloat16_computes_with_float32_parameters():
    exact, _ = make(6, 2, qk_norm=True, bias=True)
    layer, _ = make(6, 2, qk_norm=True, bias=True, dtype=jnp.bfloat16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, WIDTH)), jnp.float32)
    out = run(layer, x)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(out.astype(jnp.float32), run(exact, x), atol=0.05)


def test_no_scores_are_kept_for_the_backward_pass():
    layer = Attention(8, 8, 2, 2, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    _, backward = jax.vjp(layer, jnp.ones((1, 32, 8)))
    scores = 2 * 32 * 32
    assert all(leaf.size < scores for leaf in jax.tree.leaves(backward))
