"""What a router thinks of a token and an expert: logits of its matrix, scores of logits. All in float32."""

import jax
import jax.numpy as jnp

from ec_dit.nn.routing.spec import RouterKind, ScoreKind

_HIGHEST = jax.lax.Precision.HIGHEST
_LEAST = 1e-12  # of a length that is divided by


def logits(x_GSD: jax.Array, w_router_DE: jax.Array, router: RouterKind = "linear") -> jax.Array:
    """Computes x W, or the cosines of x and the columns of W, which are prototypes then (ProMoE): (G, S, E)."""
    if router == "cosine":
        x_GSD, w_router_DE = _unit(x_GSD, -1), _unit(w_router_DE, 0)
    return jnp.einsum("GSD,DE->GSE", x_GSD, w_router_DE, precision=_HIGHEST)


def time_logits(time_BD: jax.Array, w_time_DE: jax.Array) -> jax.Array:
    """Computes what the time adds to the logits of all tokens of an image: (B, 1, E)."""
    return jnp.einsum("BD,DE->BE", time_BD.astype(jnp.float32), w_time_DE, precision=_HIGHEST)[:, None]


def scores(logits_GSE: jax.Array, kind: ScoreKind = "softmax") -> jax.Array:
    """Makes scores of logits: their softmax over experts, each one's sigmoid, or the logits as they are."""
    if kind == "softmax":
        return jax.nn.softmax(logits_GSE, axis=-1)
    return jax.nn.sigmoid(logits_GSE) if kind == "sigmoid" else logits_GSE


def _unit(vectors: jax.Array, axis: int) -> jax.Array:
    squares = jnp.square(vectors).sum(axis, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, _LEAST**2))
