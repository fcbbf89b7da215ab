"""Expert choice (the paper's Algorithm 1): each expert takes the tokens that score highest for it."""

import jax
import jax.numpy as jnp

from ec_dit.nn.routing.slots import Routing, add_up
from ec_dit.nn.routing.spec import GateKind
from ec_dit.nn.routing.thresholds import above

_LEAST_SCORE, _NOT_TAKEN = 1e-30, -1e30  # below any score; its logarithm, below any other


def expert_choice(scores_GSE: jax.Array, slots: int, gate: GateKind = "score") -> Routing:
    """Algorithm 1, lines 2-3: per expert the `slots` best tokens; among equals the first. Balanced by construction."""
    gate_GEC, index_GEC = jax.lax.top_k(scores_GSE.swapaxes(1, 2), slots)
    experts_GS = add_up(jnp.ones_like(index_GEC), index_GEC, scores_GSE.shape[1])
    if gate == "normalized":
        gate_GEC = _normalized(scores_GSE, index_GEC)
    zero = jnp.zeros((), jnp.float32)
    return Routing(index_GEC, gate_GEC, experts_GS, dropped=zero, aux_loss=zero)


def least_scores(scores_GSE: jax.Array, index_GEC: jax.Array) -> jax.Array:
    """Gives the lowest score with which each expert took a token, averaged over the groups, (E,); without a gradient."""
    last_GE = index_GEC[..., -1]
    return jax.lax.stop_gradient(jnp.take_along_axis(scores_GSE, last_GE[:, None], axis=1)[:, 0].mean(0))


def by_thresholds(
    scores_GSE: jax.Array, threshold_E: jax.Array, room: int, places: int, gate: GateKind = "score"
) -> Routing:
    """Gives each expert of an image alone the tokens that it would have taken in training, among those of several images.

    Args:
        threshold_E: running means of `least_scores`.
        room: slots of an expert.
        places: of all experts of a group.
    """
    threshold_GE = jnp.broadcast_to(threshold_E, (len(scores_GSE), len(threshold_E)))
    routing, filled_GEC = above(scores_GSE, threshold_GE, room, places)
    if gate == "normalized":
        share_GEC = _normalized(scores_GSE, routing.index_GEC, filled_GEC)
        routing = routing._replace(gate_GEC=jnp.where(filled_GEC, share_GEC, 0))
    return routing._replace(threshold_E=threshold_E)


def _normalized(scores_GSE: jax.Array, index_GEC: jax.Array, filled_GEC: jax.Array | None = None) -> jax.Array:
    """(G, E, C): scores over their sum over the experts that took the token.

    By way of a softmax: an expert must fill its slots, also with tokens whose scores for it are next to nothing, and the quotient
    of two such numbers has no gradient in float32.
    """
    taken_GEC = index_GEC if filled_GEC is None else jnp.where(filled_GEC, index_GEC, scores_GSE.shape[1])
    log_GES = jnp.log(jnp.maximum(scores_GSE, _LEAST_SCORE)).swapaxes(1, 2)
    taken_GES = jax.vmap(jax.vmap(lambda index_C: jnp.zeros(scores_GSE.shape[1], bool).at[index_C].set(True)))(
        taken_GEC
    )
    share_GES = jax.nn.softmax(jnp.where(taken_GES, log_GES, _NOT_TAKEN), axis=1)
    return jnp.take_along_axis(share_GES, index_GEC, axis=2)
