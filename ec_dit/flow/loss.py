"""The L2 loss, per image and by noise level."""

import jax
import jax.numpy as jnp

LEVELS = 4  # equal ranges of t in which the loss is reported


def squared_error(predicted_BSP: jax.Array, target_BSP: jax.Array) -> jax.Array:
    """Mean squared error of each image, (B,) float32."""
    error = predicted_BSP.astype(jnp.float32) - target_BSP.astype(jnp.float32)
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def by_level(loss_B: jax.Array, t_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum of losses, number of images) in each of LEVELS ranges of t; their ratio is the mean, once both are summed."""
    level_B = jnp.clip((t_B * LEVELS).astype(jnp.int32), 0, LEVELS - 1)
    member = jax.nn.one_hot(level_B, LEVELS)
    return loss_B @ member, member.sum(0)
