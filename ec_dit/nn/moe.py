"""The sparse feed-forward layer: router, dispatch, experts, combine.

A token that no expert took gets zero, and the block's residual carries it (Algorithm 1).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ec_dit.core import sharding
from ec_dit.nn import cost, experts, param, rows
from ec_dit.nn.cost import Cost, Load
from ec_dit.nn.dispatch import combine, dispatch, exchange
from ec_dit.nn.experts import EXPERT_PRODUCT, ExpertWeights, Spread
from ec_dit.nn.mlp import Activation, Mlp, is_gated
from ec_dit.nn.norms import layer_norm
from ec_dit.nn.routing import losses, record, scores
from ec_dit.nn.routing.expert_choice import least_scores
from ec_dit.nn.routing.rules import RULES, has_thresholds, route
from ec_dit.nn.routing.slots import Routing, gates_by_token
from ec_dit.nn.routing.spec import RouterInput, RoutingSpec, capacity, group_tokens

ROWS = 256  # of an expert, about as many as TPUs multiply with its weights while they read them


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


class MoE(nnx.Module):
    """E feed-forward experts behind a router without bias, and perhaps one more that works on every token.

    Every device routes the groups of its own images. One all-to-all takes each slot's token to the expert's device and one
    brings the output back; the experts' weights are gathered over the axes that shard them beyond 'expert'. Where thresholds
    decide how many slots are filled, and a device has all experts, empty slots are not computed (`nn/rows.py`).

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
        by_rows = spec.by_threshold and not sharding.mesh_axes("expert")
        out_GSD = self._by_rows(groups_GSD, routing, spec) if by_rows else self._by_slots(groups_GSD, routing, spec)
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

    def _by_slots(self, groups_GSD: jax.Array, routing: Routing, spec: RoutingSpec) -> jax.Array:
        """Sends every slot's token to its expert, wherever that is, and its output back; some groups after the other."""
        groups, _, slots = routing.index_GEC.shape
        parts = chunks(groups, slots, spec.chunks)
        given = (jnp.split(a, parts) for a in (groups_GSD, routing.index_GEC, routing.gate_GEC))
        return jnp.concatenate([self._at_once(x, index, gate, spec) for x, index, gate in zip(*given, strict=True)])

    def _at_once(
        self, groups_GSD: jax.Array, index_GEC: jax.Array, gate_GEC: jax.Array, spec: RoutingSpec
    ) -> jax.Array:
        slots_WEGCD = exchange(dispatch(groups_GSD, index_GEC, self.dtype), "to experts")
        out_WEGCD = experts.compute(slots_WEGCD, self._weights())
        slots_EGCD = exchange(self._added(out_WEGCD, lambda b_ED: b_ED[:, None, None]), "to groups")
        return combine(slots_EGCD, index_GEC, gate_GEC, groups_GSD.shape[1], spec.combine)

    def _by_rows(self, groups_GSD: jax.Array, routing: Routing, spec: RoutingSpec) -> jax.Array:
        """Takes no more slots than a fixed capacity would fill, where all experts are on this device."""
        groups, group_size, width = groups_GSD.shape
        num_experts = routing.index_GEC.shape[1]
        places = groups * num_experts * capacity(group_size, num_experts, spec.capacity_factor)
        chosen = rows.rows(routing, group_size, places)
        out_ND = experts.feed_forward(
            groups_GSD.reshape(-1, width)[chosen.token_N].astype(self.dtype),
            self._weights(),
            lambda rows_NX, w_EXY: rows.product(rows_NX, w_EXY, chosen.counts_E),
            lambda b_EY: b_EY[chosen.expert_N],
        )
        out_ND = self._added(out_ND, lambda b_ED: b_ED[chosen.expert_N])
        return rows.add_up(out_ND, chosen, groups * group_size, spec.combine).reshape(groups_GSD.shape)

    def _weights(self) -> ExpertWeights:
        """The weights of this device's experts, as they are computed with."""

        def gathered(held: nnx.Param | None) -> jax.Array | None:
            return None if held is None else param.gather(held, self.dtype)

        up_EDF, down_EFD = param.gather(self.w_up_EDF, self.dtype), param.gather(self.w_down_EFD, self.dtype)
        return ExpertWeights(
            up_EDF, down_EFD, gathered(self.w_gate_EDF), gathered(self.b_up_EF), gathered(self.b_gate_EF)
        )

    def _added(self, out: jax.Array, spread: Spread) -> jax.Array:
        """What the parts of an expert give together, and its last bias."""
        out = checkpoint_name(sharding.psum(out, "ffn"), EXPERT_PRODUCT)
        return out if self.b_down_ED is None else out + spread(param.gather(self.b_down_ED, self.dtype))

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


def chunks(groups: int, slots: int, most: int) -> int:
    """Into how many parts the groups of a device are divided, so that tokens of one travel while others are computed.

    One where no tokens travel; else as many as leave an expert enough rows to compute while its weights are read.

    Args:
        groups: of this device.
        slots: of an expert in a group.
        most: parts at most.
    """
    axes = sharding.mesh_axes("expert")
    rows = groups * slots * (jax.lax.axis_size(axes) if axes else 0)
    return max(n for n in range(1, most + 1) if n == 1 or (groups % n == 0 and rows >= n * ROWS))


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
