"""Rectified flow, and the sign convention of the whole project, once: t = 0 is data, t = 1 is noise.

x_t = (1 - t) x_0 + t x_1 with x_1 ~ N(0, I); the target velocity is dx/dt = x_1 - x_0.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from ec_dit.core import rounding

PathKind = Literal["rectified", "ddpm"]  # the latter stands in flow/ddpm.py
Prediction = Literal["velocity", "data", "epsilon"]  # what a network's output means
LOSS_FLOOR = 0.05


def interpolate(data: jax.Array, noise: jax.Array, t_B: jax.Array) -> jax.Array:
    """x_t for every example; data and noise share one shape that starts with B."""
    t = t_B.reshape(-1, *(1,) * (data.ndim - 1))
    return (1 - t) * data + t * noise


def velocity_target(data: jax.Array, noise: jax.Array) -> jax.Array:
    """dx/dt along the straight path."""
    return noise - data


def velocity_from_data(x_t: jax.Array, data: jax.Array, t_B: jax.Array, floor: float) -> jax.Array:
    """The velocity that leads from x_t to `data`: (x_t - data) / t.

    A model that predicts data instead of velocity need not carry the noise through its width (2511.13720), which serves
    patches with more numbers than the width.

    Args:
        floor: smallest t to divide by. Training sets LOSS_FLOOR, below which the division would only amplify errors;
            a sampler 0, so that its last step lands on the data.
    """
    t = jnp.maximum(t_B, floor).reshape(-1, *(1,) * (data.ndim - 1))
    return (x_t - data) / t


def sample_times(key: jax.Array, batch: int, mean: float, std: float) -> jax.Array:
    """Logit-normal training times (B,): t = sigmoid(u), u ~ N(mean, std), as in SD3 (2403.03206, section 3.1)."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, (batch,)))


def even_times(position_B: jax.Array) -> jax.Array:
    """Times in [0, 1) for positions of a set: every stretch of consecutive positions covers all noise levels evenly.

    Multiples of the golden ratio modulo 1, in whole numbers of 32 bits: a product in float32 would lose the fraction of
    those of large positions.
    """
    word_B = position_B.astype(jnp.uint32) * jnp.uint32(0x9E3779B9) + jnp.uint32(1 << 31)
    return (word_B >> 8).astype(jnp.float32) / (1 << 24)


def keep_tokens(key: jax.Array, batch: int, tokens: int, mask_ratio: float) -> jax.Array | None:
    """Which tokens of each image stay in training: (B, S (1 - ratio)) sorted indices, or None when all do.

    Every image draws its own uniformly random subset, as MaskDiT does (2306.09305).
    """
    if not mask_ratio:
        return None
    order_BS = jnp.argsort(jax.random.uniform(key, (batch, tokens)), axis=1)
    return jnp.sort(order_BS[:, : rounding.kept_tokens(tokens, mask_ratio)], axis=1)
