"""Tokens to the slots of experts and back: an inverse pair, and the way between devices.

`dispatch` gathers each slot's token, `combine` adds each slot's gated output back to its token.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from ec_dit.core import sharding
from ec_dit.nn.routing.spec import CombineKind


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dispatch(tokens_GSD: jax.Array, index_GEC: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Gathers the token of every slot in `dtype`, experts first: (E, G, C, D).

    Its gradient adds up in float32 over the slots that hold a token, and is returned in the tokens' dtype.
    """
    rows_D = tokens_GSD.astype(dtype).reshape(-1, tokens_GSD.shape[-1])
    return rows_D[_rows(index_GEC, tokens_GSD.shape[1])]


def _dispatch_forward(
    tokens_GSD: jax.Array, index_GEC: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    like_S = jnp.zeros(tokens_GSD.shape[1], tokens_GSD.dtype)  # how many tokens, and of which dtype
    return dispatch(tokens_GSD, index_GEC, dtype), (index_GEC, like_S)


def _dispatch_backward(
    _dtype: jnp.dtype, kept: tuple[jax.Array, jax.Array], grad_EGCD: jax.Array
) -> tuple[jax.Array, None]:
    index_GEC, like_S = kept
    return _sums(grad_EGCD.astype(jnp.float32), index_GEC, like_S.size).astype(like_S.dtype), None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)


def _rows(index_GEC: jax.Array, size: int) -> jax.Array:
    """Numbers the tokens of slots through all groups, experts first: (E, G, C)."""
    first_G11 = size * jnp.arange(len(index_GEC))[:, None, None]
    return (index_GEC + first_G11).transpose(1, 0, 2)


def _sums(slots_EGCD: jax.Array, index_GEC: jax.Array, size: int) -> jax.Array:
    """Adds up what is in the slots of every token: (G, S, D)."""
    groups, width = len(index_GEC), slots_EGCD.shape[-1]
    rows_D = jnp.zeros((groups * size, width), slots_EGCD.dtype)
    # Of all groups at once: one by one, the slots would have to be laid out by group before.
    rows_D = rows_D.at[_rows(index_GEC, size).reshape(-1)].add(slots_EGCD.reshape(-1, width))
    return rows_D.reshape(groups, size, width)


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
    return _sums(gated_EGCD, index_GEC, group_size).astype(slots_EGCD.dtype)


def _combine_forward(
    slots_EGCD: jax.Array, index_GEC: jax.Array, gate_GEC: jax.Array, group_size: int, how: CombineKind
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    return combine(slots_EGCD, index_GEC, gate_GEC, group_size, how), (slots_EGCD, index_GEC, gate_GEC)


def _combine_backward(
    _group_size: int, _how: CombineKind, kept: tuple[jax.Array, jax.Array, jax.Array], grad_GSD: jax.Array
) -> tuple[jax.Array, None, jax.Array]:
    slots_EGCD, index_GEC, gate_GEC = kept
    grad_EGCD = dispatch(grad_GSD, index_GEC, grad_GSD.dtype).astype(jnp.float32)
    gate_EGC = gate_GEC.transpose(1, 0, 2)
    grad_gate_EGC = (grad_EGCD * slots_EGCD.astype(jnp.float32)).sum(-1)
    return (grad_EGCD * gate_EGC[..., None]).astype(slots_EGCD.dtype), None, grad_gate_EGC.transpose(1, 0, 2)


combine.defvjp(_combine_forward, _combine_backward)


def exchange(slots: jax.Array, way: Literal["to experts", "to groups"]) -> jax.Array:
    """Sends slots to the devices of their experts, or back.

    From slots_EGCD, of the groups of this device, to slots_WEGCD, of the experts of this device, or the other way. W is the
    device that a slot comes from, of those that share the experts; alone it is 1. It stays in front, as nothing is moved about
    in memory then.
    """
    axes = sharding.mesh_axes("expert")
    if way == "to experts":
        slots = slots.reshape(jax.lax.axis_size(axes) if axes else 1, -1, *slots.shape[1:])
    slots = jax.lax.all_to_all(slots, axes, 0, 0) if axes else slots
    return slots if way == "to experts" else slots.reshape(-1, *slots.shape[2:])
