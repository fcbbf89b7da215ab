"""Expert choice (the paper's Algorithm 1): each expert takes the tokens that score highest for it."""

import jax
import jax.numpy as jnp

from ec_dit.nn.routing.slots import Routing, add_up
from ec_dit.nn.routing.spec import GateKind

_LEAST_SCORE, _NOT_TAKEN = 1e-30, -1e30  # below any score; its logarithm, below any other


def expert_choice(scores_GSE: jax.Array, slots: int, gate: GateKind = "score") -> Routing:
    """Algorithm 1, lines 2-3: per expert the `slots` best tokens; among equals the first. Balanced by construction."""
    gate_GEC, index_GEC = jax.lax.top_k(scores_GSE.swapaxes(1, 2), slots)
    experts_GS = add_up(jnp.ones_like(index_GEC), index_GEC, scores_GSE.shape[1])
    if gate == "normalized":
        gate_GEC = _normalized(scores_GSE, index_GEC)
    zero = jnp.zeros((), jnp.float32)
    return Routing(index_GEC, gate_GEC, experts_GS, dropped=zero, aux_loss=zero)


def _normalized(scores_GSE: jax.Array, index_GEC: jax.Array) -> jax.Array:
    """(G, E, C): scores over their sum over the experts that took the token.

    By way of a softmax: an expert must fill its slots, also with tokens whose scores for it are next to nothing, and the quotient
    of two such numbers has no gradient in float32.
    """
    log_GES = jnp.log(jnp.maximum(scores_GSE, _LEAST_SCORE)).swapaxes(1, 2)
    taken_GES = jax.vmap(jax.vmap(lambda index_C: jnp.zeros(scores_GSE.shape[1], bool).at[index_C].set(True)))(
        index_GEC
    )
    share_GES = jax.nn.softmax(jnp.where(taken_GES, log_GES, _NOT_TAKEN), axis=1)
    return jnp.take_along_axis(share_GES, index_GEC, axis=2)
