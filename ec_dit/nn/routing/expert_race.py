"""Expert Race (2503.16057): all tokens and experts of a pool compete for its places, and the best pairs win.

The pool is a routing group. A threshold parts the best S f_c pairs from the others; training takes it from the group, and keeps
its running mean, by which an image alone is routed.
"""

import jax
import jax.numpy as jnp

from ec_dit.nn.routing.slots import Routing
from ec_dit.nn.routing.thresholds import above, room


def expert_race(scores_GSE: jax.Array, slots: int, most: float, threshold_E: jax.Array | None = None) -> Routing:
    """Gives each expert the tokens whose score for it is not below the threshold, the best first.

    Args:
        slots: an expert's even share: E slots pairs win.
        most: of `slots`, what an expert has room for; beyond that winners are dropped.
        threshold_E: of training; None: that of each group.
    """
    groups, group_size, experts = scores_GSE.shape
    places = None if threshold_E is None else experts * slots
    if threshold_E is None:
        best_GR, _ = jax.lax.top_k(scores_GSE.reshape(groups, group_size * experts), experts * slots)
        threshold_E = best_GR[:, -1:]
    threshold_GE = jax.lax.stop_gradient(jnp.broadcast_to(threshold_E, (groups, experts)))
    routing, _ = above(scores_GSE, threshold_GE, room(slots, most, group_size), places)
    return routing._replace(threshold_E=threshold_GE.mean(0))
