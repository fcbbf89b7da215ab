"""Small models whose parameters are all random: a fresh one starts as the identity and would hide most mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.nn import param


@pytest.fixture
def randomise():
    """`build() -> module` to (graph definition, normal parameters of the given scale)."""

    def randomise(build, seed=0, scale=0.3):
        graphdef, params, _ = param.split(nnx.eval_shape(build))
        rng = np.random.default_rng(seed)
        return graphdef, jax.tree.map(
            lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), params
        )

    return randomise
