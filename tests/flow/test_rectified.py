"""Rectified flow against hand-computed numbers; the draws against their distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.flow import loss
from ec_dit.flow.process import even_times
from ec_dit.flow.rectified import LOSS_FLOOR, RectifiedFlow, velocity_from_data
from ec_dit.objectives.denoise import keep_tokens

FLOW = RectifiedFlow()


def test_convention_is_zero_for_data_and_one_for_noise():
    data, noise = jnp.array([[1.0, 2.0]]), jnp.array([[5.0, -2.0]])
    np.testing.assert_allclose(FLOW.diffuse(data, noise, jnp.array([0.0])), data)
    np.testing.assert_allclose(FLOW.diffuse(data, noise, jnp.array([1.0])), noise)
    np.testing.assert_allclose(FLOW.diffuse(data, noise, jnp.array([0.25])), [[2.0, 1.0]])
    np.testing.assert_allclose(FLOW.target("velocity", data, data, noise, jnp.array([0.5])), [[4.0, -4.0]])


def test_velocity_from_data_is_the_target_where_data_are_known():
    data, noise = jax.random.normal(jax.random.key(0), (2, 3, 4))
    t_B = jnp.array([0.05, 0.4, 1.0])
    x_t = FLOW.diffuse(data, noise, t_B)
    np.testing.assert_allclose(velocity_from_data(x_t, data, t_B, 0.0), noise - data, rtol=1e-3, atol=1e-5)


def test_velocity_from_data_is_bounded_near_zero():
    assert float(
        velocity_from_data(jnp.array([[2.0]]), jnp.array([[1.0]]), jnp.array([0.0]), LOSS_FLOOR)[0, 0]
    ) == pytest.approx(20)


@pytest.mark.parametrize("start", [0, 2**24, 12_345_678, 2**31 - 65])
def test_every_stretch_of_positions_has_even_times(start):
    positions = np.arange(start, start + 64, dtype=np.int32)
    times = np.asarray(even_times(jnp.asarray(positions)))
    golden = round(2**32 * (5**0.5 - 1) / 2)
    expected = [(int(n) * golden + 2**31) % 2**32 / 2**32 for n in positions]
    np.testing.assert_allclose(times, expected, rtol=0, atol=1e-7)
    assert times.min() >= 0 and times.max() < 1
    gaps = np.diff(np.sort(times))
    assert gaps.min() > 0.5 / 64 and gaps.max() < 2.5 / 64


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (2.0, 0.5)])
def test_times_are_logit_normal(mean, std):
    t = np.asarray(RectifiedFlow(mean, std).draw_times(jax.random.key(1), 20_000), np.float64)
    logits = np.log(t / (1 - t))
    assert logits.mean() == pytest.approx(mean, abs=0.03)
    assert logits.std() == pytest.approx(std, rel=0.03)


def test_kept_tokens_are_sorted_distinct_and_uniform():
    keep_BS = np.asarray(keep_tokens(jax.random.key(2), 4000, 8, 0.5))
    assert keep_BS.shape == (4000, 4)
    assert (np.diff(keep_BS, axis=1) > 0).all()
    np.testing.assert_allclose(np.bincount(keep_BS.ravel()) / 4000, 0.5, atol=0.03)
    assert keep_tokens(jax.random.key(2), 4, 8, 0.0) is None
    few = keep_tokens(jax.random.key(2), 4, 10, 0.9)  # 10 x (1 - 0.9) is less than 1 in floats
    assert few.shape == (4, 1)


def test_loss_by_level_sums_to_the_whole():
    loss_B, t_B = jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([0.2, 0.3, 0.26, 1.0])
    level_sum, level_count = loss.by_level(loss_B, t_B)
    np.testing.assert_allclose(level_sum, [1, 6, 0, 8])
    np.testing.assert_allclose(level_count, [1, 2, 0, 1])


def test_the_loss_is_a_mean_square_per_image():
    np.testing.assert_allclose(loss.squared_error(jnp.ones((2, 3, 4)), jnp.array([[[0.0]], [[3.0]]])), [1, 4])


def test_grid_ends_and_shift():
    np.testing.assert_allclose(FLOW.grid(4).times, [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(RectifiedFlow(time_shift=3.0).grid(2).times, [1, 0.75, 0])  # 3 x 0.5 / (1 + 2 x 0.5)
