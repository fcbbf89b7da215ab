"""DDPM's noise: by hand, and against diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.flow import ddpm

DDPM = ddpm.Ddpm()


def test_signal_shares_by_hand():
    shares = ddpm.signal_shares()
    assert shares.shape == (1000,)
    np.testing.assert_allclose(shares[:2], [1 - 1e-4, (1 - 1e-4) * (1 - (1e-4 + 0.0199 / 999))], rtol=1e-12)
    assert shares[-1] == pytest.approx(4.04e-5, rel=0.01)


@pytest.mark.extra("conformance")
def test_diffuse_equals_diffusers():
    import torch
    from diffusers import DDPMScheduler

    rng = np.random.default_rng(0)
    data, noise = rng.normal(size=(2, 5, 3, 4, 2)).astype(np.float32)
    levels = np.array([0, 1, 371, 998, 999])
    ours = DDPM.diffuse(data, noise, jnp.asarray(levels / 1000, jnp.float32))
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    theirs = scheduler.add_noise(*(torch.from_numpy(a) for a in (data, noise, levels)))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_every_time_names_its_level():
    times_B = jnp.arange(1000) / 1000
    np.testing.assert_array_equal(ddpm.level(times_B), np.arange(1000))
    np.testing.assert_array_equal(
        ddpm.level(DDPM.nearest_time(jnp.array([0, 0.0007, 0.0012, 0.5, 0.9984, 1]))), [0, 0, 1, 500, 998, 999]
    )


def test_training_visits_every_level_alike():
    levels = ddpm.level(DDPM.draw_times(jax.random.key(0), 200_000))
    counts = np.bincount(levels, minlength=1000)
    assert counts.size == 1000
    assert counts.min() > 120 and counts.max() < 280  # 200 +- 14, five standard deviations


@pytest.mark.parametrize(
    ("spacing", "steps", "levels"),
    [
        ("linspace", 4, [999, 749, 500, 250]),
        ("leading", 4, [750, 500, 250, 0]),
        ("trailing", 4, [999, 749, 499, 249]),
        ("trailing", 3, [999, 666, 332]),
        ("linspace", 1, [999]),
    ],
)
def test_levels_that_sampling_visits(spacing, steps, levels):
    assert ddpm.levels_to_visit(steps, spacing).tolist() == levels
