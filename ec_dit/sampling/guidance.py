"""Classifier-free guidance over any prediction that is linear in data and noise: velocity, data, epsilon.

The conditional and the unconditional copy of an image are neighbours in the batch, so that a routing group may hold both
(the paper's inference group of 512 tokens) and still no other image.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ec_dit.nn.embeddings import patchify, unpatchify

GuidanceNorm = Literal["none", "token"]
_TINY = 1e-12  # of a length: a prediction of zeros stays zeros
PredictFn = Callable[[jax.Array, jax.Array, Any], jax.Array]  # (x, t_B, condition) -> prediction


def interleave(first: Any, second: Any) -> Any:
    """Leaves (B, ...) and (B, ...) -> (2B, ...) in the order first_0, second_0, first_1, second_1, ..."""
    return jax.tree.map(lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:]), first, second)


def token_lengths(out_BYXZ: jax.Array, like_BYXZ: jax.Array, patch: int) -> jax.Array:
    """Gives every token of `out` the length that it has in `like`: strong guidance then turns predictions, and stretches none."""
    out_BSP, like_BSP = patchify(out_BYXZ, patch), patchify(like_BYXZ, patch)
    length_BS, wanted_BS = (jnp.linalg.norm(tokens, axis=-1, keepdims=True) for tokens in (out_BSP, like_BSP))
    rows, columns = (side // patch for side in out_BYXZ.shape[1:3])
    return unpatchify(out_BSP * (wanted_BS / jnp.maximum(length_BS, _TINY)), patch, rows, columns)


def always(interval: tuple[float, float]) -> bool:
    """Tells whether guidance acts at every time."""
    return interval[0] <= 0 and interval[1] >= 1


def guide(
    predict: PredictFn,
    paired_predict: PredictFn,
    condition: Any,
    pair: Any,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    shorten: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """p = p_null + scale (p_cond - p_null) where t lies in `interval` (2404.07724), p_cond elsewhere.

    Args:
        predict: evaluates B images with their condition.
        paired_predict: evaluates 2B images, interleaved as above.
        condition, pair: of these; what is never evaluated is never read.
        scale: 1 needs no unconditional pass and makes none.
        interval: closed range of times.
        shorten: (guided prediction, conditional one) -> what is taken instead of the first; None: the first.

    Returns:
        a function of (x, t), t scalar.
    """

    def plain(x: jax.Array, t: jax.Array) -> jax.Array:
        return predict(x, jnp.full(x.shape[0], t), condition)

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        both = paired_predict(interleave(x, x), jnp.full(2 * x.shape[0], t), pair)
        both = both.reshape(-1, 2, *x.shape[1:])
        out = both[:, 1] + scale * (both[:, 0] - both[:, 1])
        return out if shorten is None else shorten(out, both[:, 0])

    if scale == 1:
        return plain
    if always(interval):
        return guided
    low, high = interval
    return lambda x, t: jax.lax.cond((t >= low) & (t <= high), guided, plain, x, t)
