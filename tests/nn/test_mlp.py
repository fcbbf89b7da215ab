"""The feed-forward layer against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.nn import param
from ec_dit.nn.mlp import Mlp, gelu


def plain_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_gelu_is_the_tanh_form():
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    np.testing.assert_allclose(gelu(x), plain_gelu(x.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("out", [None, 3])
def test_mlp_equals_its_formula(bias, out):
    build = lambda: Mlp(6, 12, out, bias=bias, dtype=jnp.float32, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef, params, _ = param.split(nnx.eval_shape(build))
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=leaf.shape) for name, leaf in params.items()}
    x = rng.normal(size=(2, 5, 6))

    up = x @ params["w_up_DF"] + params.get("b_up_F", 0)
    expected = plain_gelu(up) @ params["w_down_FD"] + params.get("b_down_D", 0)
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    np.testing.assert_allclose(nnx.merge(graphdef, single)(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-4)


def test_the_activation_is_an_argument():
    mlp = Mlp(4, 4, bias=True, act=lambda x: 0 * x, dtype=jnp.float32, rngs=nnx.Rngs(0))
    mlp.b_down_D[...] = jnp.arange(4.0)
    np.testing.assert_array_equal(mlp(jnp.ones((1, 4))), [[0, 1, 2, 3]])


def test_bfloat16_computes_with_float32_parameters():
    mlp = Mlp(4, 4, bias=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert mlp(jnp.ones((2, 4), jnp.float32)).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(mlp))} == {jnp.dtype(jnp.float32)}


def test_gelu_keeps_its_input_only():
    x = jnp.linspace(-3, 3, 64, dtype=jnp.bfloat16)
    _, backward = jax.vjp(gelu, x)
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.size > 1]
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [((64,), jnp.bfloat16)]
