"""The sparse feed-forward layer: router, dispatch, experts, combine.

`dispatch` and `combine` are an inverse pair over slots: the first gathers each slot's token, the second adds each slot's
gated output back to its token. A token in no slot gets zero, and the block's residual carries it (Algorithm 1).
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ec_dit.core import sharding
from ec_dit.nn import cost, param
from ec_dit.nn.cost import Cost, Load
from ec_dit.nn.mlp import Mlp, gelu
from ec_dit.nn.routing import CombineKind, Routing, RoutingSpec, gates_by_token, group_tokens, route

EXPERT_PRODUCT = "expert_product"  # name of the experts' matrix products, for remat policies

UP, DOWN = ("expert", "expert_embed", "ffn"), ("expert", "ffn", "expert_embed")
UP_BIAS, DOWN_BIAS = ("expert", "ffn"), ("expert", "expert_embed")


class RouterStats(NamedTuple):
    """What one sparse layer reports of a forward pass; scalars in float32.

    Attributes:
        untaken: share of tokens that no expert took.
        max_experts: largest number of experts on one token.
        gate_entropy: mean entropy of a token's scores over experts, in nats.
        dropped: share of token-choice requests that found no slot.
        aux_loss: load-balancing loss before its weight.
        experts_BS: int32, the number of experts on every token.
        gate_BSE: the gate of every expert on every token, NaN where it did not take it; None unless the routing reports gates.
    """

    untaken: jax.Array
    max_experts: jax.Array
    gate_entropy: jax.Array
    dropped: jax.Array
    aux_loss: jax.Array
    experts_BS: jax.Array
    gate_BSE: jax.Array | None = None


# Logical axes of the statistics: scalars, and experts by image.
STATS_AXES: Any = RouterStats((), (), (), (), (), ("batch", None))  # type: ignore[arg-type]


def stacked_axes(spec: RoutingSpec) -> Any:
    """Gives the logical axes of the statistics of several layers, stacked on L."""
    gates = ("batch", None, None) if spec.report_gates else None
    every = STATS_AXES._replace(gate_BSE=gates)
    return RouterStats._make(axes and (None, *axes) for axes in every)


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


class MoE(nnx.Module):
    """E feed-forward experts behind a router without bias.

    Every device routes the groups of its own images. One all-to-all takes each slot's token to the expert's device and one
    brings the output back; the experts' weights are gathered over the axes that shard them beyond 'expert'.
    """

    def __init__(
        self, width: int, hidden: int, num_experts: int, *, bias: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.dtype = dtype
        self.w_router_DE = param.router(rngs, (width, num_experts), ("embed", None))
        self.w_up_EDF = param.matrix(rngs, (num_experts, width, hidden), UP, "bio")
        self.w_down_EFD = param.matrix(rngs, (num_experts, hidden, width), DOWN, "bio")
        self.b_up_EF = param.table(jnp.zeros((num_experts, hidden)), UP_BIAS) if bias else None
        self.b_down_ED = param.table(jnp.zeros((num_experts, width)), DOWN_BIAS) if bias else None

    def __call__(self, x_BSD: jax.Array, spec: RoutingSpec) -> tuple[jax.Array, RouterStats]:
        """Routes the tokens of the batch in groups; the output has the shape of x."""
        images, tokens, width = x_BSD.shape
        group_size = group_tokens(images * tokens, tokens, spec.group_size)
        groups_GSD = x_BSD.reshape(-1, group_size, width)
        groups_GSD = groups_GSD.astype(jnp.float32)  # so that the gradient of a token in many slots adds up in float32
        scores_GSE = router_scores(groups_GSD, param.gather(self.w_router_DE))
        routing = route(scores_GSE, spec)
        slots_EGCD = _exchange(dispatch(groups_GSD, routing.index_GEC).astype(self.dtype), "to experts")
        slots_EGCD = _exchange(self._experts(slots_EGCD), "to groups")
        out_GSD = combine(slots_EGCD, routing.index_GEC, routing.gate_GEC, group_size, spec.combine)
        stats = _stats(routing, scores_GSE, (images, tokens))
        if spec.report_gates:
            gate_GSE = gates_by_token(routing, group_size, spec.routing)
            stats = stats._replace(gate_BSE=gate_GSE.reshape(images, tokens, -1))
        return out_GSD.reshape(x_BSD.shape), stats

    def _experts(self, slots_EGCD: jax.Array) -> jax.Array:
        """Each expert's feed-forward layer on its own slots."""
        up = jnp.einsum("EGCD,EDF->EGCF", slots_EGCD, param.gather(self.w_up_EDF, self.dtype))
        up = checkpoint_name(up, EXPERT_PRODUCT)
        if self.b_up_EF is not None:
            up += param.gather(self.b_up_EF, self.dtype)[:, None, None]
        down = jnp.einsum("EGCF,EFD->EGCD", gelu(up), param.gather(self.w_down_EFD, self.dtype))
        down = checkpoint_name(sharding.psum(down, "ffn"), EXPERT_PRODUCT)
        return down if self.b_down_ED is None else down + param.gather(self.b_down_ED, self.dtype)[:, None, None]

    @staticmethod
    def cost(width: int, hidden: int, num_experts: int, *, bias: bool = False, load: Load) -> Cost:
        """Counts a layer of these sizes: the router, all experts, and those that work on a token on average."""
        expert, router = Mlp.cost(width, hidden, bias=bias), cost.linear(width, num_experts, load.tokens)
        working = Cost(
            num_experts * expert.params,
            round(load.capacity_factor * expert.params),
            load.tokens * round(load.capacity_factor * expert.flops),
        )
        return router + working


def router_scores(x_GSD: jax.Array, w_router_DE: jax.Array) -> jax.Array:
    """Computes the softmax over experts of x W_r, in float32."""
    highest = jax.lax.Precision.HIGHEST
    return jax.nn.softmax(jnp.einsum("GSD,DE->GSE", x_GSD, w_router_DE, precision=highest), axis=-1)


def _exchange(slots_EGCD: jax.Array, way: Literal["to experts", "to groups"]) -> jax.Array:
    """(E, G of this device, C, D) <-> (E of this device, G of all that share the experts, C, D)."""
    axes = sharding.mesh_axes("expert")
    split, join = (0, 1) if way == "to experts" else (1, 0)
    return jax.lax.all_to_all(slots_EGCD, axes, split, join, tiled=True) if axes else slots_EGCD


def _stats(routing: Routing, scores_GSE: jax.Array, shape: tuple[int, int]) -> RouterStats:
    everyone = sharding.mesh_axes("batch")

    def mean(value: jax.Array) -> jax.Array:
        return jax.lax.pmean(value, everyone) if everyone else value

    most = routing.experts_GS.max().astype(jnp.float32)
    entropy = jax.scipy.special.entr(jax.lax.stop_gradient(scores_GSE)).sum(-1).mean()
    return RouterStats(
        untaken=mean((routing.experts_GS == 0).mean(dtype=jnp.float32)),
        max_experts=jax.lax.pmax(most, everyone) if everyone else most,
        gate_entropy=mean(entropy),
        dropped=mean(routing.dropped),
        aux_loss=mean(routing.aux_loss),
        experts_BS=routing.experts_GS.reshape(shape),
    )
