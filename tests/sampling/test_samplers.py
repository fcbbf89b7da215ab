"""Integrators against an equation whose solution is known; guidance against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.flow.ddpm import Ddpm
from ec_dit.flow.rectified import RectifiedFlow
from ec_dit.sampling.guidance import guide, interleave
from ec_dit.sampling.samplers import SAMPLERS, count_evaluations

pytestmark = pytest.mark.slow


def decay(x, t):
    """dx/dt = 2 x: x(0) = x(1) exp(-2)."""
    return 2 * x


def error(kind, steps):
    x = SAMPLERS[kind](decay, "velocity", jnp.ones((1,)), RectifiedFlow().grid(steps))
    return abs(float(x[0]) - np.exp(-2.0))


@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("heun", 2)])
def test_error_falls_with_the_order_of_the_method(kind, order):
    assert np.log2(error(kind, 16) / error(kind, 32)) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("kind", ["euler", "heun"])
def test_a_straight_path_is_exact_in_any_number_of_steps(kind):
    data, noise = jnp.array([3.0, -1.0]), jnp.array([0.5, 2.0])
    for steps in (1, 3):
        made = SAMPLERS[kind](lambda x, t: noise - data, "velocity", noise, RectifiedFlow().grid(steps))
        np.testing.assert_allclose(made, data, rtol=1e-6)


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

    grid, zero = RectifiedFlow().grid(5), jnp.zeros(1)
    function = guide(velocity(1), velocity(2), zero, jnp.zeros(2), scale, interval)
    jax.block_until_ready(jax.jit(lambda noise: SAMPLERS[kind](function, "velocity", noise, grid))(jnp.ones(1)))
    jax.effects_barrier()

    at = [1, 0.8, 0.6, 0.4, 0.2]
    at += at[1:] if kind == "heun" else []  # the second evaluation of every step but the last
    assert sorted(calls[2]) == sorted(t for t in at if t in guided)
    assert sorted(calls[1]) == sorted(t for t in at if t not in guided)
    assert count_evaluations(grid.times, SAMPLERS[kind], scale, interval) == len(calls[1]) + 2 * len(calls[2])


def gaussian(prediction, mean=0.5, std=0.3):
    """The best prediction for one-dimensional Gaussian data, at x = alpha x_0 + sigma eps of either path."""

    def predict(x, t):
        if prediction == "epsilon":
            share = jnp.asarray(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[jnp.round(1000 * t).astype(int)]
            alpha, sigma = jnp.sqrt(share), jnp.sqrt(1 - share)
        else:
            alpha, sigma = 1 - t, t
        spread = (alpha * std) ** 2 + sigma**2
        noise = sigma * (x - alpha * mean) / spread
        data = mean + alpha * std**2 * (x - alpha * mean) / spread
        return {"epsilon": noise, "data": data, "velocity": noise - data}[prediction]

    return predict


def gaussian_error(prediction, kind, steps):
    """Distance from where the exact flow takes each starting point: its quantile among the data."""
    grid = (Ddpm() if prediction == "epsilon" else RectifiedFlow()).grid(steps)
    alpha, sigma = grid.signal[0], grid.noise[0]
    start = np.linspace(-1.5, 1.5, 7)
    quantile = (start - alpha * 0.5) / np.hypot(alpha * 0.3, sigma)
    made = SAMPLERS[kind](gaussian(prediction), prediction, jnp.asarray(start, jnp.float32), grid)
    return np.abs(np.asarray(made) - (0.5 + 0.3 * quantile)).max()


@pytest.mark.parametrize("prediction", ["velocity", "data", "epsilon"])
def test_the_second_order_solver_follows_the_exact_flow_closer(prediction):
    first, second = (gaussian_error(prediction, kind, 40) for kind in ("ddim", "dpmpp_2m"))
    assert second < first / 3
    assert gaussian_error(prediction, "ddim", 160) == pytest.approx(first / 4, rel=0.15)
    assert gaussian_error(prediction, "dpmpp_2m", 160) < second / 6


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_on_straight_lines_ddim_is_euler(prediction):
    noise = jnp.linspace(-2, 2, 9)
    grid = RectifiedFlow(time_shift=2.0).grid(7)
    ddim, euler = (SAMPLERS[kind](gaussian(prediction), prediction, noise, grid) for kind in ("ddim", "euler"))
    np.testing.assert_allclose(ddim, euler, rtol=1e-5, atol=1e-6)


@pytest.mark.extra("conformance")
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize(
    # Not DDIM with linspace, whose stride there is not its grid's, nor DPM-Solver with leading, whose is shorter.
    ("kind", "spacing"),
    [("ddim", "leading"), ("ddim", "trailing"), ("dpmpp_2m", "linspace"), ("dpmpp_2m", "trailing")],
)
def test_ddpm_samplers_equal_diffusers(kind, spacing, steps):
    import torch
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    common = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": spacing}
    if kind == "ddim":
        scheduler = DDIMScheduler(**common, clip_sample=False)
    else:
        scheduler = DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)
    scheduler.set_timesteps(steps)
    grid = Ddpm(spacing).grid(steps)
    assert [round(1000 * float(t)) for t in grid.times[:-1]] == scheduler.timesteps.tolist()

    predict = gaussian("epsilon")
    x = torch.linspace(-2, 2, 9)
    for t in scheduler.timesteps:
        epsilon = np.asarray(predict(jnp.asarray(x.numpy()), jnp.float32(float(t) / 1000)))
        x = scheduler.step(torch.from_numpy(epsilon.copy()), t, x).prev_sample
    made = SAMPLERS[kind](predict, "epsilon", jnp.linspace(-2, 2, 9), grid)
    np.testing.assert_allclose(made, x.numpy(), rtol=1e-4, atol=1e-5)


def test_interleave_keeps_an_image_beside_its_copy():
    np.testing.assert_array_equal(interleave(jnp.array([1, 2]), jnp.array([10, 20])), [1, 10, 2, 20])


def test_guidance_follows_its_formula_inside_the_interval_only():
    def velocity(x, t_B, condition):
        return condition

    condition, null = jnp.array([3.0, 5.0]), jnp.array([1.0, 2.0])
    guided = guide(velocity, velocity, condition, interleave(condition, null), 2.0, (0.25, 0.75))
    np.testing.assert_allclose(guided(jnp.zeros(2), jnp.float32(0.5)), null + 2 * (condition - null))
    np.testing.assert_allclose(guided(jnp.zeros(2), jnp.float32(0.9)), condition)
    np.testing.assert_allclose(guided(jnp.zeros(2), jnp.float32(0.1)), condition)
    pair = interleave(condition, null)
    early, late = (guide(velocity, velocity, condition, pair, 2.0, interval) for interval in ((0.5, 1.0), (0.0, 0.5)))
    for t, expected in ((0.9, early), (0.1, late)):
        for function in (early, late):
            wanted = null + 2 * (condition - null) if function is expected else condition
            np.testing.assert_allclose(function(jnp.zeros(2), jnp.float32(t)), wanted)
