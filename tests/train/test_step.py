"""The step against plain arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ec_dit.train.state import TrainState, init_state
from ec_dit.train.step import make_step


def quadratic(params, batch, key):
    loss = jnp.mean(jnp.square(batch @ params["w"] - 1))
    return loss, {"loss": loss}


def fresh(tx):
    return init_state(lambda key: {"w": jnp.array([0.5, -0.5])}, tx, seed=0)


def test_accumulated_gradients_equal_one_large_batch():
    tx = optax.sgd(0.1)
    batch = jax.random.normal(jax.random.key(0), (12, 2))
    whole, metrics = make_step(quadratic, tx, 0.99)(fresh(tx), batch)
    parts, metrics_parts = make_step(quadratic, tx, 0.99, accumulate=3)(fresh(tx), batch)
    np.testing.assert_allclose(parts.params["w"], whole.params["w"], rtol=1e-6)
    assert float(metrics_parts["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    assert float(metrics_parts["grad_norm"]) == pytest.approx(float(metrics["grad_norm"]), rel=1e-6)


def test_moving_average_ramps_up():
    tx = optax.sgd(0.1)
    step = make_step(quadratic, tx, 0.5)
    state, average = fresh(tx), np.array([0.5, -0.5])
    for i in range(12):
        state, _ = step(state, jnp.ones((2, 2)) * (i + 1) / 10)
        decay = min(0.5, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * np.asarray(state.params["w"])
    np.testing.assert_allclose(state.ema["w"], average, rtol=1e-5)


def test_every_step_draws_its_own_randomness_from_seed_and_step_alone():
    def noisy(params, batch, key):
        noise = jax.random.normal(key)
        return noise * params["w"].sum(), {"loss": noise}

    tx = optax.sgd(0.0)
    step = make_step(noisy, tx, 0.9)
    state = fresh(tx)
    first, metrics_1 = step(state, 0)
    _, metrics_2 = step(first, 0)
    _, again = step(TrainState(jnp.ones((), jnp.int32), *first[1:]), 0)
    assert float(metrics_1["loss"]) != float(metrics_2["loss"])
    assert float(again["loss"]) == float(metrics_2["loss"])
