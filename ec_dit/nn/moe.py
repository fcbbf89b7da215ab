"""The sparse feed-forward layer: router, dispatch, experts, combine.

`dispatch` and `combine` are an inverse pair over slots: the first gathers each slot's token, the second adds each slot's
gated output back to its token. A token in no slot gets zero, and the block's residual carries it (Algorithm 1).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ec_dit.core.sharding import constrain
from ec_dit.nn import param
from ec_dit.nn.mlp import gelu
from ec_dit.nn.routing import CombineKind, Routing, RoutingSpec, group_tokens, route

EXPERT_PRODUCT = "expert_product"  # name of the experts' matrix products, for remat policies


class RouterStats(NamedTuple):
    """What one sparse layer reports of a forward pass; scalars in float32.

    Attributes:
        untaken: share of tokens that no expert took.
        max_experts: largest number of experts on one token.
        gate_entropy: mean entropy of a token's scores over experts, in nats.
        dropped: share of token-choice requests that found no slot.
        aux_loss: load-balancing loss before its weight.
        experts_BS: int32, the number of experts on every token.
    """

    untaken: jax.Array
    max_experts: jax.Array
    gate_entropy: jax.Array
    dropped: jax.Array
    aux_loss: jax.Array
    experts_BS: jax.Array


def dispatch(tokens_GSD: jax.Array, index_GEC: jax.Array) -> jax.Array:
    """The token of every slot, experts first: (E, G, C, D)."""
    slots_GECD = jax.vmap(lambda tokens_SD, index_EC: tokens_SD[index_EC])(tokens_GSD, index_GEC)
    return slots_GECD.transpose(1, 0, 2, 3)


def combine(
    slots_EGCD: jax.Array, index_GEC: jax.Array, gate_GEC: jax.Array, group_size: int, how: CombineKind = "scatter"
) -> jax.Array:
    """Sum over the slots that hold a token of gate x output: (G, S, D), summed in float32, returned in the slots' dtype."""
    if how == "one_hot":
        place_GECS = jax.nn.one_hot(index_GEC, group_size) * gate_GEC[..., None]
        place_GECS = place_GECS.astype(slots_EGCD.dtype)
        out_GSD = jnp.einsum("EGCD,GECS->GSD", slots_EGCD, place_GECS, preferred_element_type=jnp.float32)
        return out_GSD.astype(slots_EGCD.dtype)

    gated_EGCD = slots_EGCD.astype(jnp.float32) * gate_GEC.transpose(1, 0, 2)[..., None]

    def add(gated_ECD: jax.Array, index_EC: jax.Array) -> jax.Array:
        return jnp.zeros((group_size, gated_ECD.shape[-1]), gated_ECD.dtype).at[index_EC].add(gated_ECD)

    return jax.vmap(add, in_axes=(1, 0))(gated_EGCD, index_GEC).astype(slots_EGCD.dtype)


class MoE(nnx.Module):
    """E feed-forward experts behind a router without bias."""

    def __init__(
        self, width: int, hidden: int, num_experts: int, *, bias: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.dtype, self.bias = dtype, bias
        self.w_router_DE = param.router(rngs, (width, num_experts), ("embed", None))
        self.w_up_EDF = param.matrix(rngs, (num_experts, width, hidden), ("expert", "expert_embed", "ffn"), "bio")
        self.w_down_EFD = param.matrix(rngs, (num_experts, hidden, width), ("expert", "ffn", "expert_embed"), "bio")
        if bias:
            self.b_up_EF = param.table(jnp.zeros((num_experts, hidden)), ("expert", "ffn"))
            self.b_down_ED = param.table(jnp.zeros((num_experts, width)), ("expert", "expert_embed"))

    def __call__(self, x_BSD: jax.Array, spec: RoutingSpec) -> tuple[jax.Array, RouterStats]:
        """Routes the tokens of the batch in groups; the output has the shape of x."""
        images, tokens, width = x_BSD.shape
        group_size = group_tokens(images * tokens, tokens, spec.group_size)
        groups_GSD = constrain(x_BSD.reshape(-1, group_size, width), "batch", None, None, name="routing groups")

        scores_GSE = self.scores(groups_GSD)
        routing = route(scores_GSE, spec)
        slots_EGCD = dispatch(groups_GSD.astype(self.dtype), routing.index_GEC)
        slots_EGCD = self.experts(constrain(slots_EGCD, "expert", "group", None, None, name="expert slots"))
        slots_EGCD = constrain(slots_EGCD, "expert", "group", None, None, name="expert slots")
        out_GSD = combine(slots_EGCD, routing.index_GEC, routing.gate_GEC, group_size, spec.combine)
        out_GSD = constrain(out_GSD, "batch", None, None, name="routing groups")
        return out_GSD.reshape(x_BSD.shape), _stats(routing, scores_GSE, (images, tokens))

    def scores(self, x_GSD: jax.Array) -> jax.Array:
        """softmax over experts of x W_r, in float32 whatever the dtype of x."""
        logits_GSE = jnp.einsum(
            "GSD,DE->GSE",
            x_GSD.astype(jnp.float32),
            self.w_router_DE[...],
            precision=jax.lax.Precision.HIGHEST,
        )
        return jax.nn.softmax(logits_GSE, axis=-1)

    def experts(self, slots_EGCD: jax.Array) -> jax.Array:
        """Every expert's feed-forward layer on its own slots."""
        up = jnp.einsum("EGCD,EDF->EGCF", slots_EGCD, self.w_up_EDF[...].astype(self.dtype))
        up = checkpoint_name(up, EXPERT_PRODUCT)
        if self.bias:
            up += self.b_up_EF[...].astype(self.dtype)[:, None, None]
        down = jnp.einsum("EGCF,EFD->EGCD", gelu(up), self.w_down_EFD[...].astype(self.dtype))
        down = checkpoint_name(down, EXPERT_PRODUCT)
        return down + self.b_down_ED[...].astype(self.dtype)[:, None, None] if self.bias else down


def _stats(routing: Routing, scores_GSE: jax.Array, shape_BS: tuple[int, int]) -> RouterStats:
    scores_GSE = jax.lax.stop_gradient(scores_GSE)
    return RouterStats(
        untaken=(routing.experts_GS == 0).mean(dtype=jnp.float32),
        max_experts=routing.experts_GS.max().astype(jnp.float32),
        gate_entropy=jax.scipy.special.entr(scores_GSE).sum(-1).mean(),
        dropped=routing.dropped,
        aux_loss=routing.aux_loss,
        experts_BS=routing.experts_GS.reshape(shape_BS),
    )
