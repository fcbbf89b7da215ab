"""Initial values, and the way from a module to plain trees and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.nn import param
from ec_dit.nn.mlp import Mlp
from ec_dit.nn.param import ParamInfo


@pytest.mark.parametrize(
    ("shape", "roles", "fan_in", "fan_out"),
    [
        ((200, 300), "io", 200, 300),
        ((200, 6, 50), "ioo", 200, 300),
        ((4, 50, 300), "iio", 200, 300),
        ((8, 100, 300), "bio", 100, 300),
        ((100, 6, 200), "ibo", 100, 200),
    ],
)
def test_matrix_is_xavier_normal_over_its_own_fans(shape, roles, fan_in, fan_out):
    value = param.matrix(nnx.Rngs(0), shape, (None,) * len(shape), roles)[...]
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value.std(), (2 / (fan_in + fan_out)) ** 0.5, rtol=0.02)
    assert abs(value.mean()) < 0.01 * value.std() * 3


def test_matrix_may_start_at_zero():
    assert not param.matrix(nnx.Rngs(0), (3, 4), (None, None), "io", zero=True)[...].any()


def test_router_scores_unit_inputs_with_unit_variance():
    w_DE = param.router(nnx.Rngs(0), (512, 64), ("embed", None))[...]
    x_SD = np.random.default_rng(0).normal(size=(256, 512)).astype(np.float32)
    np.testing.assert_allclose((x_SD @ w_DE).std(), 1, rtol=0.05)


def test_split_gives_plain_trees_of_one_structure_and_merge_the_model_back():
    model = Mlp(4, 4, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graphdef, params, infos = param.split(model)
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "w_up_DF": (4, 4),
        "w_down_FD": (4, 4),
        "b_up_F": (4,),
        "b_down_D": (4,),
    }
    assert infos == {
        "w_up_DF": ParamInfo((None, "hidden"), "io", hidden=True),
        "w_down_FD": ParamInfo(("hidden", None), "io", hidden=True),
        "b_up_F": ParamInfo(("hidden",), None, hidden=False),
        "b_down_D": ParamInfo(("embed",), None, hidden=False),
    }
    x = jnp.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(nnx.merge(graphdef, params)(x), model(x))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    np.testing.assert_array_equal(nnx.merge(graphdef, doubled).b_up_F[...], 2 * model.b_up_F[...])


def test_a_stacked_parameter_names_its_layers():
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Mlp(4, 8, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    make = jax.vmap(lambda key: nnx.state(Mlp(4, 8, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(key))))
    stack = lambda: nnx.merge(graphdef, make(jax.random.split(jax.random.key(0), 3)))  # noqa: E731
    _, params, infos = param.split(nnx.eval_shape(stack))
    assert params["w_up_DF"].shape == (3, 4, 8)
    assert infos["w_up_DF"] == ParamInfo(("layers", None, "hidden"), "bio", hidden=True)
    assert infos["b_up_F"] == ParamInfo(("layers", "hidden"), None, hidden=False)
