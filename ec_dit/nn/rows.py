"""Products of experts with as many tokens as each of them took.

Slots give every expert as many places, filled or not. Where experts take tokens by a threshold, one may take more than the mean,
so that many slots stay empty. Rows are the filled slots alone, those of one expert behind those of the one before. Their number
is what all experts of all groups take at most: it is static, and how they are shared out is not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ec_dit.nn.routing.slots import Routing
from ec_dit.nn.routing.spec import CombineKind

_TILE = (8, 128)  # rows of a tile, at least and at most


class Rows(NamedTuple):
    """The filled slots of a routing.

    Attributes:
        token_N: int32, which of the tokens of all groups.
        gate_N: float32, the weight of the output; 0 behind the last row that is filled.
        expert_N: int32, whose it is.
        counts_E: int32, how many are an expert's. The last one has those behind the filled ones too, so that all have an owner.
    """

    token_N: jax.Array
    gate_N: jax.Array
    expert_N: jax.Array
    counts_E: jax.Array


def rows(routing: Routing, group_size: int, places: int) -> Rows:
    """Lists the filled slots of all groups, in the order of their experts.

    Args:
        places: N; more slots than these must not be filled.
    """
    groups, experts, slots = routing.gate_GEC.shape
    gate_R = routing.gate_GEC.swapaxes(0, 1).ravel()
    first_token_G = group_size * jnp.arange(groups, dtype=jnp.int32)
    token_R = (routing.index_GEC + first_token_G[:, None, None]).swapaxes(0, 1).ravel()
    filled_R = gate_R != 0
    place_N = jnp.flatnonzero(filled_R, size=places, fill_value=0)
    behind_N = jnp.arange(places) >= filled_R.sum()
    expert_N = jnp.where(behind_N, experts - 1, place_N // (groups * slots))
    return Rows(
        token_R[place_N],
        jnp.where(behind_N, 0, gate_R[place_N]),
        expert_N,
        (expert_N[:, None] == jnp.arange(experts)).sum(0, dtype=jnp.int32),
    )


def product(rows_ND: jax.Array, w_EDF: jax.Array, counts_E: jax.Array) -> jax.Array:
    """Multiplies each row with the matrix of its expert, (N, F).

    By JAX's `ragged_dot` on TPUs, where XLA has a kernel for it; elsewhere that would multiply all rows with all matrices.
    """
    return jax.lax.platform_dependent(rows_ND, w_EDF, counts_E, tpu=jax.lax.ragged_dot, default=by_tiles)


def by_tiles(rows_ND: jax.Array, w_EDF: jax.Array, counts_E: jax.Array) -> jax.Array:
    """Gives the same by tiles of rows, each of one expert.

    A tile is an eighth of an expert's even share, so that tiles that are not full cost about an eighth more.
    """
    num, experts = len(rows_ND), len(counts_E)
    share = max(1, num // (8 * experts))
    tile = min(max(_TILE[0], 1 << share.bit_length() - 1), _TILE[1])
    tiles = num // tile + experts  # each expert has at most one that is not full

    tiles_E = -(-counts_E // tile)
    end_E, last_tile_E = jnp.cumsum(counts_E), jnp.cumsum(tiles_E)
    expert_N = (jnp.arange(num)[:, None] >= end_E).sum(1)
    rank_N = jnp.arange(num) - (end_E - counts_E)[expert_N]
    place_N = (last_tile_E - tiles_E)[expert_N] * tile + rank_N
    owner_T = (jnp.arange(tiles)[:, None] >= last_tile_E).sum(1).clip(max=experts - 1)

    padded_ND = jnp.zeros((tiles * tile, rows_ND.shape[1]), rows_ND.dtype).at[place_N].set(rows_ND)
    out = jax.lax.map(lambda one: one[0] @ w_EDF[one[1]], (padded_ND.reshape(tiles, tile, -1), owner_T))
    return out.reshape(-1, w_EDF.shape[-1])[place_N]


def add_up(out_ND: jax.Array, chosen: Rows, num_tokens: int, how: CombineKind = "scatter") -> jax.Array:
    """Sums gate x output over the rows of every token, in float32; (tokens, D) in the dtype of the outputs.

    With 'one_hot' gates are rounded to it, as `dispatch.combine` does; in either way outputs are added up one by one.
    """
    gate_N = chosen.gate_N.astype(out_ND.dtype) if how == "one_hot" else chosen.gate_N
    gated_ND = out_ND.astype(jnp.float32) * gate_N[:, None]
    summed_ND = jnp.zeros((num_tokens, out_ND.shape[1]), jnp.float32).at[chosen.token_N].add(gated_ND)
    return summed_ND.astype(out_ND.dtype)
