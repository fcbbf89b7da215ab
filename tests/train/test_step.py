"""The step against plain arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ec_dit.train.state import TrainState, init_state
from ec_dit.train.step import make_step

pytestmark = pytest.mark.slow


def quadratic(params, frozen, batch, key):
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


def test_micro_batches_draw_for_themselves_and_take_every_third_example():
    def noisy(params, frozen, batch, key):
        noise = jax.random.normal(key)
        return noise * (batch @ params["w"]).sum(), {"loss": noise * batch.sum(), "router/max_experts": batch.max(0)}

    batch = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    batch[1, 0], batch[2, 1] = 9, 8  # the largest stand in other micro-batches than the last
    state = fresh(optax.sgd(0.1))
    done, metrics = jax.jit(make_step(noisy, optax.sgd(0.1), 0.99, accumulate=3))(state, batch)

    key = jax.random.fold_in(state.key, 0)
    noises = [float(jax.random.normal(jax.random.fold_in(key, i))) for i in range(3)]
    parts = [batch[i::3] for i in range(3)]
    gradient = np.mean([noise * part.sum(0) for noise, part in zip(noises, parts, strict=True)], axis=0)
    w = np.array([0.5, -0.5]) - 0.1 * gradient
    np.testing.assert_allclose(done.params["w"], w, rtol=1e-5)
    losses = [noise * part.sum() for noise, part in zip(noises, parts, strict=True)]
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    np.testing.assert_array_equal(metrics["router/max_experts"], [9, 8])
    assert float(metrics["grad_norm"]) == pytest.approx(np.sqrt((gradient**2).sum()), rel=1e-5)
    assert float(metrics["param_norm"]) == pytest.approx(np.sqrt((w**2).sum()), rel=1e-5)


def test_frozen_parameters_get_no_gradient_and_stay():
    """Where the same numbers were differentiated too, 0.5 w f would move w by 0.1 w instead of 0.05 f."""

    def product(params, frozen, batch, key):
        loss = 0.5 * jnp.sum(params["w"] * frozen["w"]) + 0 * batch.sum()
        return loss, {"loss": loss}

    tx = optax.sgd(0.1)
    state = fresh(tx)
    frozen = {"w": jnp.copy(state.params["w"])}
    for accumulate in (1, 2):
        done, _ = jax.jit(make_step(product, tx, 0.9, accumulate), donate_argnums=0)(
            fresh(tx), jnp.ones((2, 1)), frozen
        )
        np.testing.assert_allclose(done.params["w"], [0.475, -0.475], rtol=1e-6)
        np.testing.assert_array_equal(frozen["w"], [0.5, -0.5])
        assert jax.tree.structure(done) == jax.tree.structure(state)


def test_weights_and_run_have_keys_of_their_own():
    made = init_state(lambda key: {"w": jax.random.key_data(key).astype(jnp.float32)}, optax.sgd(0.1), seed=3)
    of_params, of_run = jax.random.split(jax.random.key(3))
    np.testing.assert_array_equal(jax.random.key_data(made.key), jax.random.key_data(of_run))
    np.testing.assert_array_equal(made.params["w"], jax.random.key_data(of_params).astype(jnp.float32))
    np.testing.assert_array_equal(made.ema["w"], made.params["w"])


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
    def noisy(params, frozen, batch, key):
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
