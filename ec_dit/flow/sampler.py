"""Integrators of dx/dt = v(x, t) from noise (t = 1) down to data (t = 0)."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

SamplerKind = Literal["euler", "heun"]


def time_grid(steps: int, shift: float = 1.0) -> np.ndarray:
    """steps + 1 times from 1 to 0. `shift` > 1 spends more steps near noise: t -> shift t / (1 + (shift - 1) t)."""
    t = np.linspace(1.0, 0.0, steps + 1)
    return (shift * t / (1 + (shift - 1) * t)).astype(np.float32)


def integrate(
    velocity: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array, times: np.ndarray, kind: SamplerKind
) -> jax.Array:
    """x at the last of `times`, starting from `noise` at the first.

    Args:
        velocity: (x, scalar t) -> dx/dt.
        kind: 'euler', first order, one evaluation a step; 'heun', second order, two, but one in the last step: at t = 0
            there is no noise left to tell the direction by (EDM, 2206.00364, Algorithm 1, does the same).
    """

    def step(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        t, t_next = pair
        slope = velocity(x, t)
        if kind == "heun":
            slope = (slope + velocity(x + (t_next - t) * slope, t_next)) / 2
        return x + (t_next - t) * slope, None

    full = times if kind == "euler" else times[:-1]
    x, _ = jax.lax.scan(step, noise, (jnp.asarray(full[:-1]), jnp.asarray(full[1:])))
    if kind == "heun":
        x = x + (times[-1] - times[-2]) * velocity(x, jnp.asarray(times[-2]))
    return x


def count_evaluations(times: np.ndarray, kind: SamplerKind, scale: float, interval: tuple[float, float]) -> int:
    """NFE: network evaluations per image, a guided one counting twice."""
    at = times[:-1] if kind == "euler" else np.concatenate([times[:-1], times[1:-1]])
    guided = (at >= interval[0]) & (at <= interval[1]) & (scale != 1)
    return int(at.size + guided.sum())
