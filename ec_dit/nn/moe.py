"""The sparse feed-forward layer: router, dispatch, experts, combine.

`dispatch` and `combine` are an inverse pair over slots: the first gathers each slot's token, the second adds each slot's
gated output back to its token. A token in no slot gets zero, and the block's residual carries it (Algorithm 1).
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ec_dit.core import sharding
from ec_dit.nn import cost, param
from ec_dit.nn.cost import Cost, Load
from ec_dit.nn.mlp import Activation, Mlp, gelu, is_gated, swiglu
from ec_dit.nn.norms import layer_norm
from ec_dit.nn.routing import losses, record, scores
from ec_dit.nn.routing.expert_choice import least_scores
from ec_dit.nn.routing.rules import RULES, has_thresholds, route
from ec_dit.nn.routing.slots import Routing, gates_by_token
from ec_dit.nn.routing.spec import CombineKind, RouterInput, RoutingSpec, group_tokens

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
        losses: the others that count (`nn/routing/losses.py`), by name, before their weights.
        experts_BS: int32, the number of experts on every token.
        threshold_E: of rules with thresholds, those of this pass; None of others.
        asked_E: the share of requests for each expert, where its bias follows from that; None elsewhere.
        gate_BSE: the gate of every expert on every token, NaN where it did not take it; None unless the routing reports gates.
    """

    untaken: jax.Array
    max_experts: jax.Array
    gate_entropy: jax.Array
    dropped: jax.Array
    aux_loss: jax.Array
    losses: Mapping[str, jax.Array]
    experts_BS: jax.Array
    threshold_E: jax.Array | None = None
    asked_E: jax.Array | None = None
    gate_BSE: jax.Array | None = None


def stats_axes(spec: RoutingSpec) -> Any:
    """Gives the logical axes of the statistics of a layer: scalars, and numbers by image."""
    gates: Any = ("batch", None, None) if spec.report_gates else None
    others: Any = dict.fromkeys(losses.weights(spec), ())
    thresholds: Any = (None,) if has_thresholds(spec) else None
    asked: Any = (None,) if spec.bias_rate else None
    return RouterStats((), (), (), (), (), others, ("batch", None), thresholds, asked, gates)  # type: ignore[arg-type]


def stacked_axes(spec: RoutingSpec) -> Any:
    """Gives the logical axes of the statistics of several layers, stacked on L."""
    return jax.tree.map(lambda axes: (None, *axes), stats_axes(spec), is_leaf=lambda axes: type(axes) is tuple)


class RouterContext(NamedTuple):
    """What a router may read instead of the tokens that its experts get.

    Attributes:
        tokens_BSD: as they are before they are normalised and modulated.
        start_BSD: as they entered the block.
        time_BD: the time embedding.
    """

    tokens_BSD: jax.Array
    start_BSD: jax.Array
    time_BD: jax.Array


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
    """E feed-forward experts behind a router without bias, and perhaps one more that works on every token.

    Every device routes the groups of its own images. One all-to-all takes each slot's token to the expert's device and one
    brings the output back; the experts' weights are gathered over the axes that shard them beyond 'expert'.

    Args:
        hidden: inner width of an expert.
        shared: inner width of the expert of every token; 0: there is none.
        reads: what the router reads.
        thresholds, predictor, biases: whether the rule needs such (`nn/routing/rules.py`).
        records: whether training keeps a table of how many experts a token gets (`nn/routing/record.py`).
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        num_experts: int,
        *,
        bias: bool = False,
        activation: Activation = "gelu",
        shared: int = 0,
        reads: RouterInput = "modulated",
        records: bool = False,
        thresholds: bool = False,
        predictor: bool = False,
        biases: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.reads, gated = dtype, reads, is_gated(activation)
        self.w_router_DE = param.router(rngs, (width, num_experts), ("embed", None))
        self.w_up_EDF = param.matrix(rngs, (num_experts, width, hidden), UP, "bio")
        self.w_down_EFD = param.matrix(rngs, (num_experts, hidden, width), DOWN, "bio")
        self.b_up_EF = param.table(jnp.zeros((num_experts, hidden)), UP_BIAS) if bias else None
        self.b_down_ED = param.table(jnp.zeros((num_experts, width)), DOWN_BIAS) if bias else None
        self.w_gate_EDF = param.matrix(rngs, (num_experts, width, hidden), UP, "bio") if gated else None
        self.b_gate_EF = param.table(jnp.zeros((num_experts, hidden)), UP_BIAS) if bias and gated else None
        times = reads == "normed_time"
        self.w_time_DE = param.router(rngs, (width, num_experts), ("embed", None)) if times else None
        self.threshold_E = param.table(jnp.zeros(num_experts), (None,)) if thresholds else None
        self.bias_E = param.table(jnp.zeros(num_experts), (None,)) if biases else None
        self.predictor = (
            Mlp(width, width, num_experts, bias=True, act=jax.nn.silu, dtype=jnp.float32, rngs=rngs)
            if predictor
            else None
        )
        self.load_Q = param.table(jnp.zeros(record.NOISE_LEVELS), (None,)) if records else None
        self.shared = Mlp(width, shared, bias=bias, gated=gated, dtype=dtype, rngs=rngs) if shared else None

    def __call__(
        self, x_BSD: jax.Array, spec: RoutingSpec, context: RouterContext | None = None
    ) -> tuple[jax.Array, RouterStats]:
        """Routes the tokens of the batch in groups; the output has the shape of x.

        Args:
            context: needed where the router reads something else than x.
        """
        images, tokens, width = x_BSD.shape
        group_size = group_tokens(images * tokens, tokens, spec.group_size)
        groups_GSD = x_BSD.reshape(-1, group_size, width)
        groups_GSD = groups_GSD.astype(jnp.float32)  # so that the gradient of a token in many slots adds up in float32
        logits_GSE = self._logits(groups_GSD, spec, context)
        scores_GSE = scores.scores(logits_GSE, spec.score)
        threshold_E = None if self.threshold_E is None or not spec.by_threshold else param.gather(self.threshold_E)
        predicted_GSE = None if self.predictor is None else self.predictor(jax.lax.stop_gradient(groups_GSD))
        bias_E = None if self.bias_E is None else param.gather(self.bias_E)
        routing = route(scores_GSE, spec, threshold_E, predicted_GSE, bias_E)
        if self.threshold_E is not None and routing.threshold_E is None:
            routing = routing._replace(threshold_E=least_scores(scores_GSE, routing.index_GEC))
        slots_EGCD = _exchange(dispatch(groups_GSD, routing.index_GEC).astype(self.dtype), "to experts")
        slots_EGCD = _exchange(self._experts(slots_EGCD), "to groups")
        out_GSD = combine(slots_EGCD, routing.index_GEC, routing.gate_GEC, group_size, spec.combine)
        share_GSE = scores_GSE if spec.score == "softmax" else jax.nn.softmax(logits_GSE, axis=-1)
        counted = losses.losses(spec, logits_GSE, routing, predicted_GSE)
        stats = _stats(routing, share_GSE, (images, tokens))._replace(losses=counted)
        if spec.report_gates:
            leaves_empty = spec.by_threshold or RULES[spec.routing].leaves_empty
            gate_GSE = gates_by_token(routing, group_size, leaves_empty=leaves_empty)
            stats = stats._replace(gate_BSE=gate_GSE.reshape(images, tokens, -1))
        out_BSD = out_GSD.reshape(x_BSD.shape)
        return out_BSD if self.shared is None else out_BSD + self.shared(x_BSD), stats

    def _logits(self, groups_GSD: jax.Array, spec: RoutingSpec, context: RouterContext | None) -> jax.Array:
        """What the router thinks of the tokens of each group and the experts, float32 (G, S, E)."""
        w_router_DE = param.gather(self.w_router_DE)
        if self.reads == "modulated":
            return scores.logits(groups_GSD, w_router_DE, spec.router)
        if context is None:
            raise ValueError(f"a router that reads {self.reads} needs a context")
        read_BSD = context.start_BSD if self.reads == "start" else context.tokens_BSD
        read_GSD = layer_norm(read_BSD.astype(jnp.float32)).reshape(groups_GSD.shape)
        logits_GSE = scores.logits(read_GSD, w_router_DE, spec.router)
        if self.w_time_DE is None:
            return logits_GSE
        time_BSE = scores.time_logits(context.time_BD, param.gather(self.w_time_DE))
        time_BSE = jnp.broadcast_to(time_BSE, (*read_BSD.shape[:2], logits_GSE.shape[-1]))
        return logits_GSE + time_BSE.reshape(logits_GSE.shape)

    def _experts(self, slots_EGCD: jax.Array) -> jax.Array:
        """Each expert's feed-forward layer on its own slots."""
        up = self._inner(slots_EGCD, self.w_up_EDF, self.b_up_EF)
        inner = (
            gelu(up)
            if self.w_gate_EDF is None
            else swiglu(self._inner(slots_EGCD, self.w_gate_EDF, self.b_gate_EF), up)
        )
        down = jnp.einsum("EGCF,EFD->EGCD", inner, param.gather(self.w_down_EFD, self.dtype))
        down = checkpoint_name(sharding.psum(down, "ffn"), EXPERT_PRODUCT)
        return down if self.b_down_ED is None else down + param.gather(self.b_down_ED, self.dtype)[:, None, None]

    def _inner(self, slots_EGCD: jax.Array, w_EDF: nnx.Param, b_EF: nnx.Param | None) -> jax.Array:
        """A product of each expert's slots with one of its matrices, (E, G, C, F)."""
        product = jnp.einsum("EGCD,EDF->EGCF", slots_EGCD, param.gather(w_EDF, self.dtype))
        product = checkpoint_name(product, EXPERT_PRODUCT)
        return product if b_EF is None else product + param.gather(b_EF, self.dtype)[:, None, None]

    @staticmethod
    def cost(
        width: int,
        hidden: int,
        num_experts: int,
        *,
        bias: bool = False,
        activation: Activation = "gelu",
        shared: int = 0,
        reads: RouterInput = "modulated",
        records: bool = False,
        thresholds: bool = False,
        predictor: bool = False,
        biases: bool = False,
        load: Load,
    ) -> Cost:
        """Counts a layer of these sizes: the router, all experts, and those that work on a token on average."""
        gated = is_gated(activation)
        expert, router = Mlp.cost(width, hidden, bias=bias, gated=gated), cost.linear(width, num_experts, load.tokens)
        working = Cost(
            num_experts * expert.params,
            round(load.capacity_factor * expert.params),
            load.tokens * round(load.capacity_factor * expert.flops),
        )
        if reads == "normed_time":
            router += cost.linear(width, num_experts)
        if records:
            router += cost.always(record.NOISE_LEVELS)
        for each in (thresholds, biases):
            router += cost.always(num_experts if each else 0)
        if predictor:
            router += Mlp.cost(width, width, num_experts, bias=True, rows=load.tokens)
        if shared:
            working += Mlp.cost(width, shared, bias=bias, gated=gated, rows=load.tokens)
        return router + working


def _exchange(slots_EGCD: jax.Array, way: Literal["to experts", "to groups"]) -> jax.Array:
    """(E, G of this device, C, D) <-> (E of this device, G of all that share the experts, C, D)."""
    axes = sharding.mesh_axes("expert")
    split, join = (0, 1) if way == "to experts" else (1, 0)
    return jax.lax.all_to_all(slots_EGCD, axes, split, join, tiled=True) if axes else slots_EGCD


def _stats(routing: Routing, share_GSE: jax.Array, shape: tuple[int, int]) -> RouterStats:
    everyone, mean = sharding.mesh_axes("batch"), sharding.batch_mean
    most = routing.experts_GS.max().astype(jnp.float32)
    entropy = jax.scipy.special.entr(jax.lax.stop_gradient(share_GSE)).sum(-1).mean()
    return RouterStats(
        untaken=mean((routing.experts_GS == 0).mean(dtype=jnp.float32)),
        max_experts=jax.lax.pmax(most, everyone) if everyone else most,
        gate_entropy=mean(entropy),
        dropped=mean(routing.dropped),
        aux_loss=mean(routing.aux_loss),
        losses={},
        experts_BS=routing.experts_GS.reshape(shape),
        threshold_E=None if routing.threshold_E is None else mean(routing.threshold_E),
        asked_E=None if routing.asked_E is None else mean(routing.asked_E),
    )
