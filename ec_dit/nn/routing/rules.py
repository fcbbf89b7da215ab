"""The rules by which tokens and experts find each other; a new one is a file beside this and a row of RULES."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax

from ec_dit.nn.routing.diffmoe import diffmoe
from ec_dit.nn.routing.expert_choice import by_thresholds, expert_choice
from ec_dit.nn.routing.expert_race import expert_race
from ec_dit.nn.routing.slots import Routing
from ec_dit.nn.routing.spec import RoutingKind, RoutingSpec, capacity
from ec_dit.nn.routing.thresholds import room
from ec_dit.nn.routing.token_choice import token_choice, top_k


class Asked(NamedTuple):
    """What a rule decides by.

    Attributes:
        scores_GSE: of tokens and experts.
        slots: C, an expert's even share of a group.
        spec: how the layer routes.
        threshold_E: of training, where the rule has such and is to go by them.
        bias_E: of the experts, where tokens choose by such.
        predicted_GSE: what the predictor of capacity thinks, where there is one.
    """

    scores_GSE: jax.Array
    slots: int
    spec: RoutingSpec
    threshold_E: jax.Array | None
    predicted_GSE: jax.Array | None
    bias_E: jax.Array | None


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        apply: what is in the slots.
        leaves_empty: whether slots may stay empty in training.
        by_tokens: whether tokens choose experts, whose load a loss has to balance.
        pools: whether training has a pool of several images, and an image alone is routed by its running thresholds.
        keep: of running thresholds at every step.
        predicts: whether it has a predictor of capacity.
    """

    apply: Callable[[Asked], Routing]
    leaves_empty: bool = True
    by_tokens: bool = False
    pools: bool = False
    keep: float = 0.99
    predicts: bool = False


def _expert_choice(asked: Asked) -> Routing:
    scores_GSE, spec = asked.scores_GSE, asked.spec
    if asked.threshold_E is None:
        return expert_choice(scores_GSE, asked.slots, spec.gate)
    most = room(asked.slots, spec.most, scores_GSE.shape[1])
    places = asked.slots * scores_GSE.shape[2]
    return by_thresholds(scores_GSE, asked.threshold_E, most, places, spec.gate)


def _diffmoe(asked: Asked) -> Routing:
    assert asked.predicted_GSE is not None
    return diffmoe(asked.scores_GSE, asked.predicted_GSE, asked.slots, asked.spec.most, asked.threshold_E)


RULES: dict[RoutingKind, Rule] = {
    "expert_choice": Rule(_expert_choice, leaves_empty=False),
    "token_choice": Rule(lambda a: token_choice(a.scores_GSE, a.slots), by_tokens=True),
    "top_k": Rule(lambda a: top_k(a.scores_GSE, a.slots, a.spec.top_k, a.spec.gate, a.bias_E), by_tokens=True),
    "expert_race": Rule(lambda a: expert_race(a.scores_GSE, a.slots, a.spec.most, a.threshold_E), pools=True),
    "diffmoe": Rule(_diffmoe, pools=True, keep=0.95, predicts=True),
}


def is_by_tokens(routing: RoutingKind) -> bool:
    """Tells whether tokens choose experts; of dense blocks nobody chooses."""
    return routing in RULES and RULES[routing].by_tokens


def has_thresholds(spec: RoutingSpec) -> bool:
    """Tells whether training keeps running thresholds."""
    rule = RULES.get(spec.routing)
    return rule is not None and (rule.pools or (spec.record and spec.routing == "expert_choice"))


def route(
    scores_GSE: jax.Array,
    spec: RoutingSpec,
    threshold_E: jax.Array | None = None,
    predicted_GSE: jax.Array | None = None,
    bias_E: jax.Array | None = None,
) -> Routing:
    """Applies the rule of `spec` to scores, with as many slots as its capacity factor gives the group; else as `Asked`."""
    _, group_size, experts = scores_GSE.shape
    slots = capacity(group_size, experts, spec.capacity_factor)
    routing = RULES[spec.routing].apply(Asked(scores_GSE, slots, spec, threshold_E, predicted_GSE, bias_E))
    return routing if spec.gate_scale == 1 else routing._replace(gate_GEC=spec.gate_scale * routing.gate_GEC)
