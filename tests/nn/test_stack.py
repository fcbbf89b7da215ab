"""A scanned stack against a Python loop over its layers, and the cost of depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.core.errors import UserError
from ec_dit.nn import param
from ec_dit.nn.mlp import Mlp
from ec_dit.nn.stack import Stack

pytestmark = pytest.mark.slow

WIDTH = 6


def build(repeats, remat="none"):
    layer = lambda key: Mlp(WIDTH, 12, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(key))  # noqa: E731
    return lambda: Stack(layer, jax.random.split(jax.random.key(0), repeats), remat=remat)


def apply(mlp, x_BD):
    x_BD += mlp(x_BD)
    return x_BD, x_BD.sum()


def test_every_repeat_starts_with_weights_of_its_own():
    _, params, infos = param.split(build(3)())
    w_LDF = params["blocks"]["w_up_DF"]
    assert w_LDF.shape == (3, WIDTH, 12)
    assert infos["blocks"]["w_up_DF"].axes == ("layers", None, "hidden")
    assert len(np.unique(w_LDF)) == w_LDF.size


def test_the_scan_equals_a_loop(randomise):
    graphdef, params = randomise(build(4))
    x_BD = jnp.asarray(np.random.default_rng(0).normal(size=(3, WIDTH)), jnp.float32)
    out_BD, sums_L = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x, apply))(params, x_BD)

    layer_def = nnx.graphdef(nnx.eval_shape(lambda: Mlp(WIDTH, 12, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    sums = []
    for i in range(4):
        x_BD, total = apply(nnx.merge(layer_def, jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])), x_BD)
        sums.append(total)
    np.testing.assert_allclose(out_BD, x_BD, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sums_L, sums, rtol=1e-4, atol=1e-4)


def gradient_of(graphdef):
    return jax.grad(lambda params, x: jnp.square(nnx.merge(graphdef, params)(x, apply)[0]).sum())


def test_remat_changes_what_is_computed_but_no_gradient(randomise):
    x_BD = jnp.asarray(np.random.default_rng(0).normal(size=(3, WIDTH)), jnp.float32)
    gradients, products = {}, {}
    for remat in ("none", "dots", "full"):
        graphdef, params = randomise(build(4, remat))
        gradients[remat] = jax.jit(gradient_of(graphdef))(params, x_BD)
        products[remat] = str(jax.make_jaxpr(gradient_of(graphdef))(params, x_BD)).count("dot_general")
    for remat in ("dots", "full"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), gradients["none"], gradients[remat]
        )
    assert products["none"] == products["dots"] < products["full"]


def test_depth_costs_no_program_size():
    x_BD = jax.ShapeDtypeStruct((3, WIDTH), jnp.float32)
    sizes = set()
    for repeats in (2, 16):
        graphdef, params, _ = param.split(nnx.eval_shape(build(repeats, "full")))
        sizes.add(jax.jit(gradient_of(graphdef)).lower(params, x_BD).as_text().count("\n"))
    assert len(sizes) == 1


def test_an_unknown_remat_policy_is_refused():
    with pytest.raises(UserError, match=r"remat 'some': choose none, dots, full"):
        build(1, "some")()
