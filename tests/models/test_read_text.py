"""What is made of a text once for all predictions: the same predictions, at every time, whatever the blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ec_dit.models.dit import DiT
from ec_dit.nn.routing.spec import RoutingSpec
from tests.models.test_sizes import SPECS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SPECS)
def test_predictions_by_a_text_that_was_read_are_the_same(name, randomise):
    spec = SPECS[name]
    graphdef, params = randomise(lambda: DiT(spec, rngs=nnx.Rngs(0)))
    rng, side, routing = np.random.default_rng(0), spec.latent_size, RoutingSpec(capacity_factor=2.0)
    x_BYXZ = jnp.asarray(rng.normal(size=(2, side, side, spec.channels)), jnp.float32)
    text_BTM = jnp.asarray(rng.normal(size=(2, 6, spec.text_width)), jnp.float32)
    mask_BT = jnp.arange(6) < jnp.array([[6], [3]])
    pooled_BM = jnp.asarray(rng.normal(size=(2, spec.pooled_width)), jnp.float32) if spec.pooled_width else None
    tokens = side // spec.patch

    @jax.jit
    def predict(params, t_B, text_BTM, kept=None):
        model = nnx.merge(graphdef, params)
        how = {"routing": routing, "pooled_BM": pooled_BM, "kept": kept}
        return model(x_BYXZ, t_B, text_BTM, mask_BT, **how)[0]

    read = jax.jit(lambda params: nnx.merge(graphdef, params).read(text_BTM, mask_BT, tokens, tokens))(params)
    for t in (0.1, 0.9):
        t_B = jnp.full(2, t)
        expected = predict(params, t_B, text_BTM)
        np.testing.assert_allclose(predict(params, t_B, *read), expected, rtol=1e-5, atol=1e-5)
    other = jax.tree.map(lambda a: a[..., ::-1], read)
    assert np.abs(predict(params, t_B, *other) - expected).max() > 1e-3
