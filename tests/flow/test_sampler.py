"""Integrators against an equation whose solution is known; guidance against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.flow.guidance import guide, interleave
from ec_dit.flow.sampler import count_evaluations, integrate, time_grid


def decay(x, t):
    """dx/dt = 2 x: x(0) = x(1) exp(-2)."""
    return 2 * x


def error(kind, steps):
    x = integrate(decay, jnp.ones((1,)), time_grid(steps), kind)
    return abs(float(x[0]) - np.exp(-2.0))


@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("heun", 2)])
def test_error_falls_with_the_order_of_the_method(kind, order):
    assert np.log2(error(kind, 16) / error(kind, 32)) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("kind", ["euler", "heun"])
def test_a_straight_path_is_exact_in_any_number_of_steps(kind):
    data, noise = jnp.array([3.0, -1.0]), jnp.array([0.5, 2.0])
    for steps in (1, 3):
        np.testing.assert_allclose(integrate(lambda x, t: noise - data, noise, time_grid(steps), kind), data, rtol=1e-6)


def test_time_grid_ends_and_shift():
    np.testing.assert_allclose(time_grid(4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(time_grid(2, 3.0), [1, 0.75, 0])  # 3 x 0.5 / (1 + 2 x 0.5)


@pytest.mark.parametrize("kind", ["euler", "heun"])
@pytest.mark.parametrize(
    ("scale", "interval", "guided"),
    [(1.0, (0.0, 1.0), []), (3.0, (0.0, 1.0), [1, 0.8, 0.6, 0.4, 0.2]), (3.0, (0.2, 0.7), [0.6, 0.4, 0.2])],
)
def test_evaluations_are_counted_as_they_happen(kind, scale, interval, guided):
    calls = {1: [], 2: []}  # copies of the image -> times of evaluation

    def velocity(copies):
        def evaluate(x, t_B, condition):
            assert len(x) == len(t_B) == len(condition) == copies
            # From the running program: the scan traces this once, whatever the number of steps.
            jax.debug.callback(lambda t: calls[copies].append(round(float(t), 6)), t_B[0])
            return x

        return evaluate

    times, zero = time_grid(5), jnp.zeros(1)
    function = guide(velocity(1), velocity(2), zero, zero, scale, interval)
    jax.block_until_ready(jax.jit(lambda noise: integrate(function, noise, times, kind))(jnp.ones(1)))
    jax.effects_barrier()

    at = [1, 0.8, 0.6, 0.4, 0.2]
    at += at[1:] if kind == "heun" else []  # the second evaluation of every step but the last
    assert sorted(calls[2]) == sorted(t for t in at if t in guided)
    assert sorted(calls[1]) == sorted(t for t in at if t not in guided)
    assert count_evaluations(times, kind, scale, interval) == len(calls[1]) + 2 * len(calls[2])


def test_interleave_keeps_an_image_beside_its_copy():
    np.testing.assert_array_equal(interleave(jnp.array([1, 2]), jnp.array([10, 20])), [1, 10, 2, 20])


def test_guidance_follows_its_formula_inside_the_interval_only():
    def velocity(x, t_B, condition):
        return condition

    condition, null = jnp.array([3.0, 5.0]), jnp.array([1.0, 2.0])
    guided = guide(velocity, velocity, condition, null, 2.0, (0.25, 0.75))
    np.testing.assert_allclose(guided(jnp.zeros(2), jnp.float32(0.5)), null + 2 * (condition - null))
    np.testing.assert_allclose(guided(jnp.zeros(2), jnp.float32(0.9)), condition)
    np.testing.assert_allclose(guided(jnp.zeros(2), jnp.float32(0.1)), condition)
