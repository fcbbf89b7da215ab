"""Tokens to the slots of experts and back: an inverse pair, and the way between devices.

`dispatch` gathers each slot's token, `combine` adds each slot's gated output back to its token.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from ec_dit.core import sharding
from ec_dit.nn.routing.spec import CombineKind


def dispatch(tokens_GSD: jax.Array, index_GEC: jax.Array) -> jax.Array:
    """Gathers the token of every slot, experts first: (E, G, C, D)."""
    slots_GECD = jax.vmap(lambda tokens_SD, index_EC: tokens_SD[index_EC])(tokens_GSD, index_GEC)
    return slots_GECD.transpose(1, 0, 2, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def combine(
    slots_EGCD: jax.Array, index_GEC: jax.Array, gate_GEC: jax.Array, group_size: int, how: CombineKind = "scatter"
) -> jax.Array:
    """Sums gate x output over the slots that hold a token: (G, S, D), summed in float32, returned in the slots' dtype.

    Its gradient is a gather, however it sums. 'one_hot' rounds gates to the slots' dtype, 'scatter' does not.
    """
    if how == "one_hot":
        place_GECS = jax.nn.one_hot(index_GEC, group_size) * gate_GEC[..., None]
        place_GECS = place_GECS.astype(slots_EGCD.dtype)
        out_GSD = jnp.einsum("EGCD,GECS->GSD", slots_EGCD, place_GECS, preferred_element_type=jnp.float32)
        return out_GSD.astype(slots_EGCD.dtype)

    gated_EGCD = slots_EGCD.astype(jnp.float32) * gate_GEC.transpose(1, 0, 2)[..., None]

    def add(gated_ECD: jax.Array, index_EC: jax.Array) -> jax.Array:
        return jnp.zeros((group_size, gated_ECD.shape[-1]), gated_ECD.dtype).at[index_EC].add(gated_ECD)

    return jax.vmap(add, in_axes=(1, 0))(gated_EGCD, index_GEC).astype(slots_EGCD.dtype)


def _combine_forward(
    slots_EGCD: jax.Array, index_GEC: jax.Array, gate_GEC: jax.Array, group_size: int, how: CombineKind
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return combine(slots_EGCD, index_GEC, gate_GEC, group_size, how), (slots_EGCD, index_GEC, gate_GEC)


def _combine_backward(
    _group_size: int, _how: CombineKind, kept: tuple[jax.Array, jax.Array, jax.Array], grad_GSD: jax.Array
) -> tuple[jax.Array, None, jax.Array]:
    slots_EGCD, index_GEC, gate_GEC = kept
    grad_EGCD = dispatch(grad_GSD, index_GEC).astype(jnp.float32)
    gate_EGC = gate_GEC.transpose(1, 0, 2)
    grad_gate_EGC = (grad_EGCD * slots_EGCD.astype(jnp.float32)).sum(-1)
    return (grad_EGCD * gate_EGC[..., None]).astype(slots_EGCD.dtype), None, grad_gate_EGC.transpose(1, 0, 2)


combine.defvjp(_combine_forward, _combine_backward)


def exchange(slots_EGCD: jax.Array, way: Literal["to experts", "to groups"]) -> jax.Array:
    """Sends slots to the devices of their experts, or back.

    From (E, G of this device, C, D) to (E of this device, G of all that share the experts, C, D), or the other way.
    """
    axes = sharding.mesh_axes("expert")
    split, join = (0, 1) if way == "to experts" else (1, 0)
    return jax.lax.all_to_all(slots_EGCD, axes, split, join, tiled=True) if axes else slots_EGCD
