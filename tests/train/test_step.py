"""The step and the optimizers against plain arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ec_dit.nn.param import ParamInfo
from ec_dit.train.optimizer import OptimizerSpec, make_optimizer, make_schedule
from ec_dit.train.state import TrainState, init_state
from ec_dit.train.step import make_step


def spec(**changes):
    values = {
        "name": "rmsprop",
        "learning_rate": 0.1,
        "adam_learning_rate": 0.01,
        "warmup_steps": 0,
        "schedule": "constant",
        "steps": 10,
        "momentum": 0.9,
        "decay": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    }
    return OptimizerSpec(**values | changes)


MATRIX, TABLE = ParamInfo(("embed", "ffn"), "io", hidden=True), ParamInfo(("embed",), None, hidden=False)
EDGE = ParamInfo((None, "embed"), "io", hidden=False)


def test_schedules_at_their_corners():
    warm = make_schedule(spec(warmup_steps=4), 1.0)
    np.testing.assert_allclose([warm(i) for i in (0, 1, 3, 4, 9)], [0.25, 0.5, 1, 1, 1])
    cosine = make_schedule(spec(warmup_steps=2, schedule="cosine", steps=12), 1.0)
    np.testing.assert_allclose([cosine(i) for i in (0, 1, 2, 7, 12)], [0.5, 1, 1, 0.5, 0], atol=1e-7)


def test_rmsprop_with_momentum_is_the_textbook_rule():
    rng = np.random.default_rng(0)
    w, nu, momentum = rng.normal(size=3), np.zeros(3), np.zeros(3)
    tx = make_optimizer(spec(), {"w": TABLE})
    params = {"w": jnp.asarray(w, jnp.float32)}
    opt_state = tx.init(params)
    for i in range(1, 6):
        g = rng.normal(size=3)
        nu = 0.99 * nu + 0.01 * g**2
        momentum = 0.9 * momentum + g / (np.sqrt(nu / (1 - 0.99**i)) + 1e-8)
        w = w - 0.1 * momentum
        updates, opt_state = tx.update({"w": jnp.asarray(g, jnp.float32)}, opt_state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], w, rtol=1e-5)


@pytest.mark.parametrize("name", ["rmsprop", "adamw", "muon"])
def test_weight_decay_shrinks_matrices_only(name):
    """By rate x decay of the weight, whatever the optimizer; also those at the edges, which Muon leaves to Adam."""
    tx = make_optimizer(spec(name=name, weight_decay=0.5), {"w": MATRIX, "edge": EDGE, "b": TABLE})
    params = {"w": jnp.full((2, 2), 3.0), "edge": jnp.full((2, 2), 0.003), "b": jnp.full(2, 3.0)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 * 0.5 * 3.0, rtol=1e-6)
    np.testing.assert_allclose(updates["edge"], -0.1 * 0.5 * 0.003, rtol=1e-6)
    np.testing.assert_allclose(updates["b"], 0)


def test_muon_orthogonalises_each_expert_and_leaves_tables_to_adam():
    info = ParamInfo(("expert", "embed", "ffn"), "bio", hidden=True)
    tx = make_optimizer(spec(name="muon", learning_rate=1.0), {"w": info, "b": TABLE})
    params = {"w": jnp.zeros((3, 8, 8)), "b": jnp.zeros(4)}
    grads = {"w": jax.random.normal(jax.random.key(0), (3, 8, 8)), "b": jnp.array([1.0, -2.0, 3.0, 0.5])}
    updates, _ = tx.update(grads, tx.init(params), params)
    for expert in np.asarray(updates["w"]):
        assert np.linalg.svd(expert, compute_uv=False) == pytest.approx(
            np.ones(8), abs=0.45
        )  # Newton-Schulz is inexact
    first = 0.01 * (0.9 * 0.1 / (1 - 0.9**2) + 1)  # of Adam with Nesterov momentum: the sign, times this
    np.testing.assert_allclose(updates["b"], [-first, first, -first, -first], rtol=1e-4)


def test_clipping_bounds_the_gradient():
    tx = make_optimizer(spec(name="adamw", clip_norm=1.0), {"w": TABLE})
    params = {"w": jnp.zeros(2)}
    _, clipped = tx.update({"w": jnp.array([30.0, 40.0])}, tx.init(params), params)
    _, small = tx.update({"w": jnp.array([0.6, 0.8])}, tx.init(params), params)
    for a, b in zip(jax.tree.leaves(clipped), jax.tree.leaves(small), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


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
