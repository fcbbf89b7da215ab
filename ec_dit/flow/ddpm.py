"""DDPM (2006.11239) with 1000 levels of noise and linear betas, as PixArt-alpha was trained: a path beside rectified flow.

Level n = 0 ... 999 stands for t = n / 1000, so that 0 is data (almost: level 0 has 1 % noise) and 1 is noise, as everywhere.
x_n = sqrt(abar_n) x_0 + sqrt(1 - abar_n) eps, and the network predicts eps.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

LEVELS = 1000
Spacing = Literal["linspace", "leading", "trailing"]


def signal_shares() -> np.ndarray:
    """abar_n of every level, float64: the product of 1 - beta, with betas from 1e-4 to 0.02."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, LEVELS))


def diffuse(data: jax.Array, noise: jax.Array, t_B: jax.Array) -> jax.Array:
    """x_n for every example; data and noise share one shape that starts with B."""
    share = jnp.asarray(signal_shares(), jnp.float32)[level(t_B)]
    share = share.reshape(-1, *(1,) * (data.ndim - 1))
    return jnp.sqrt(share) * data + jnp.sqrt(1 - share) * noise


def level(t_B: jax.Array) -> jax.Array:
    """n of a time n / 1000."""
    return jnp.clip(jnp.round(LEVELS * t_B).astype(jnp.int32), 0, LEVELS - 1)


def nearest_level(t_B: jax.Array) -> jax.Array:
    """The time of a level for every t from 0 to 1."""
    return jnp.clip(jnp.floor(LEVELS * t_B), 0, LEVELS - 1) / LEVELS


def sample_times(key: jax.Array, batch: int) -> jax.Array:
    """Training times (B,): every level as likely as any."""
    return jax.random.randint(key, (batch,), 0, LEVELS) / LEVELS


def levels_to_visit(steps: int, spacing: Spacing) -> np.ndarray:
    """The levels n at which `steps` evaluations are made, descending.

    'linspace' reaches from the noisiest level to just above the cleanest, as diffusers' DPM-Solver does; 'leading' takes
    multiples of one stride, which leaves out the noisiest, as its DDIM does; 'trailing' counts the stride from the noisiest
    (2305.08891, section 3.3), as both do.
    """
    if spacing == "linspace":
        return np.linspace(0, LEVELS - 1, steps + 1).round().astype(int)[:0:-1]
    if spacing == "leading":
        return (np.arange(steps) * (LEVELS // steps))[::-1]
    return np.round(np.arange(LEVELS, 0, -LEVELS / steps))[:steps].astype(int) - 1
