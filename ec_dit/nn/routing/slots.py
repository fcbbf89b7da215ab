"""What every rule answers: which token is in which slot of which expert, and what comes back from there weighs.

A routing group holds S tokens; every expert has C slots in it. Dispatch and combine know nothing of the rule: `index_GEC` names
the token in each slot, `gate_GEC` weighs what comes back from it, and an empty slot has gate 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Routing(NamedTuple):
    """Where tokens go, and what is worth knowing about it.

    Attributes:
        index_GEC: int32, the token of the group in each slot.
        gate_GEC: float32, the weight of each slot's output; 0 where the slot is empty.
        experts_GS: int32, how many experts took each token.
        dropped: float32 scalar, the share of requests that found no slot (token choice; else 0).
        aux_loss: float32 scalar, load-balancing loss before its weight (token choice; else 0).
        threshold_E: float32, above which each expert took tokens, averaged over the groups; None for rules that need no such.
        asked_E: float32, the share of all requests that were for each expert; None where nothing follows from it.
    """

    index_GEC: jax.Array
    gate_GEC: jax.Array
    experts_GS: jax.Array
    dropped: jax.Array
    aux_loss: jax.Array
    threshold_E: jax.Array | None = None
    asked_E: jax.Array | None = None


def gates_by_token(routing: Routing, group_size: int, *, leaves_empty: bool) -> jax.Array:
    """Gives the gate of every expert on every token (G, S, E), float32; NaN where the expert did not take the token.

    Args:
        leaves_empty: whether the rule may leave slots empty, as their gate of 0 then tells.
    """
    index_GEC = filled_index(routing, group_size) if leaves_empty else routing.index_GEC

    def spread(gate_C: jax.Array, index_C: jax.Array) -> jax.Array:
        return jnp.full(group_size, jnp.nan, jnp.float32).at[index_C].set(gate_C, mode="drop")

    return jax.vmap(jax.vmap(spread))(routing.gate_GEC, index_GEC).swapaxes(1, 2)


def filled_index(routing: Routing, group_size: int) -> jax.Array:
    """Gives the token in each slot, and one out of bounds, by which 'drop' writes nothing, for an empty slot."""
    return jnp.where(routing.gate_GEC != 0, routing.index_GEC, group_size)  # logits as gates may be negative


def add_up(values_GEC: jax.Array, index_GEC: jax.Array, group_size: int) -> jax.Array:
    """Gives for every token the sum of the values in the slots that hold it, (G, S)."""

    def add(values_EC: jax.Array, index_EC: jax.Array) -> jax.Array:
        return jnp.zeros(group_size, values_EC.dtype).at[index_EC].add(values_EC)

    return jax.vmap(add)(values_GEC, index_GEC)
