"""Expert Race (2503.16057): all tokens and experts of a pool compete for its places, and the best pairs win.

The pool is a routing group. A threshold parts the best S f_c pairs from the others; training takes it from the group, and keeps
its running mean, by which an image alone is routed.
"""

import math

import jax
import jax.numpy as jnp

from ec_dit.nn.routing.slots import Routing, add_up


def expert_race(scores_GSE: jax.Array, slots: int, most: float, threshold_E: jax.Array | None = None) -> Routing:
    """Gives each expert the tokens whose score for it is not below the threshold, the best first.

    Args:
        slots: an expert's even share: E slots pairs win.
        most: of `slots`, what an expert has room for; beyond that winners are dropped.
        threshold_E: of training; None: that of each group.
    """
    groups, group_size, experts = scores_GSE.shape
    winners = experts * slots
    if threshold_E is None:
        best_GR, _ = jax.lax.top_k(scores_GSE.reshape(groups, group_size * experts), winners)
        threshold_GE = jnp.broadcast_to(best_GR[:, -1:], (groups, experts))
    else:
        threshold_GE = jnp.broadcast_to(threshold_E, (groups, experts))
    threshold_GE = jax.lax.stop_gradient(threshold_GE)
    gate_GEC, index_GEC = jax.lax.top_k(scores_GSE.swapaxes(1, 2), room(slots, most, group_size))
    wins_GEC = gate_GEC >= threshold_GE[..., None]
    experts_GS = add_up(wins_GEC.astype(jnp.int32), index_GEC, group_size)
    dropped = dropped_share((scores_GSE >= threshold_GE[:, None]).sum((1, 2)), wins_GEC)
    zero = jnp.zeros((), jnp.float32)
    return Routing(index_GEC, jnp.where(wins_GEC, gate_GEC, 0), experts_GS, dropped, zero, threshold_GE.mean(0))


def dropped_share(wanted_G: jax.Array, filled_GEC: jax.Array) -> jax.Array:
    """Gives the share of what was to go to experts that found no slot, averaged over the groups."""
    return ((wanted_G - filled_GEC.sum((1, 2))) / jnp.maximum(wanted_G, 1)).mean(dtype=jnp.float32)


def room(slots: int, most: float, group_size: int) -> int:
    """Gives the slots of an expert where it may take more than its even share."""
    return min(math.ceil(slots * most - 1e-9), group_size)
