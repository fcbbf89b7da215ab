"""Classifier-free guidance over any prediction that is linear in data and noise: velocity, data, epsilon.

The conditional and the unconditional copy of an image are neighbours in the batch, so that a routing group may hold both
(the paper's inference group of 512 tokens) and still no other image.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PredictFn = Callable[[jax.Array, jax.Array, Any], jax.Array]  # (x, t_B, condition) -> prediction


def interleave(first: Any, second: Any) -> Any:
    """Leaves (B, ...) and (B, ...) -> (2B, ...) in the order first_0, second_0, first_1, second_1, ..."""
    return jax.tree.map(lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:]), first, second)


def guide(
    predict: PredictFn,
    paired_predict: PredictFn,
    condition: Any,
    null_condition: Any,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """p = p_null + scale (p_cond - p_null) where t lies in `interval` (2404.07724), p_cond elsewhere.

    Args:
        predict: evaluates B images with their condition.
        paired_predict: evaluates 2B images, interleaved as above.
        condition, null_condition: pytrees whose leaves start with B.
        scale: 1 needs no unconditional pass and makes none.
        interval: closed range of times.

    Returns:
        a function of (x, t), t scalar.
    """

    def plain(x: jax.Array, t: jax.Array) -> jax.Array:
        return predict(x, jnp.full(x.shape[0], t), condition)

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        both = paired_predict(interleave(x, x), jnp.full(2 * x.shape[0], t), interleave(condition, null_condition))
        both = both.reshape(-1, 2, *x.shape[1:])
        return both[:, 1] + scale * (both[:, 0] - both[:, 1])

    if scale == 1:
        return plain
    low, high = interval
    if low <= 0 and high >= 1:
        return guided
    return lambda x, t: jax.lax.cond((t >= low) & (t <= high), guided, plain, x, t)
