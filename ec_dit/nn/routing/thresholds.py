"""Experts that take what scores above a threshold, as far as they and their group have room.

So is an image alone routed where training had a pool of several images.
"""

import math

import jax
import jax.numpy as jnp

from ec_dit.nn.routing.slots import Routing, add_up


def above(
    scores_GSE: jax.Array, threshold_GE: jax.Array, room: int, places: int | None = None
) -> tuple[Routing, jax.Array]:
    """Gives each expert the tokens whose score for it is not below its threshold, the best first; and which slots are filled.

    Args:
        room: slots of an expert; what finds none is dropped.
        places: of all experts of a group, if there are fewer than slots; see `fullest`.
    """
    gate_GEC, index_GEC = jax.lax.top_k(scores_GSE.swapaxes(1, 2), room)
    filled_GEC = fullest(gate_GEC >= threshold_GE[..., None], gate_GEC, places)
    wanted_G = (scores_GSE >= threshold_GE[:, None]).sum((1, 2))
    return filled(gate_GEC, index_GEC, filled_GEC, wanted_G, scores_GSE.shape[1]), filled_GEC


def fullest(filled_GEC: jax.Array, gate_GEC: jax.Array, places: int | None) -> jax.Array:
    """Keeps, of the slots that are to be filled, as many of a group as it has places: those with the largest gates.

    Among equals that of the first expert, and of it the first.
    """
    groups, experts, slots = filled_GEC.shape
    if places is None or places >= experts * slots:
        return filled_GEC
    gate_GR = jnp.where(filled_GEC, gate_GEC, -jnp.inf).reshape(groups, -1)
    _, best_GN = jax.lax.top_k(gate_GR, places)
    kept_GR = jax.vmap(lambda best_N: jnp.zeros(experts * slots, bool).at[best_N].set(True))(best_GN)
    return filled_GEC & kept_GR.reshape(filled_GEC.shape)


def filled(
    gate_GEC: jax.Array, index_GEC: jax.Array, filled_GEC: jax.Array, wanted_G: jax.Array, group_size: int
) -> Routing:
    """Makes the routing of slots of which some stay empty; `wanted_G` counts what was to go to experts."""
    experts_GS = add_up(filled_GEC.astype(jnp.int32), index_GEC, group_size)
    dropped = ((wanted_G - filled_GEC.sum((1, 2))) / jnp.maximum(wanted_G, 1)).mean(dtype=jnp.float32)
    zero = jnp.zeros((), jnp.float32)
    return Routing(index_GEC, jnp.where(filled_GEC, gate_GEC, 0), experts_GS, dropped, zero)


def room(slots: int, most: float, group_size: int) -> int:
    """Gives the slots of an expert where it may take more than its even share of `slots`."""
    return min(math.ceil(slots * most - 1e-9), group_size)
