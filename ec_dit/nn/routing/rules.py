"""The rules by which tokens and experts find each other; a new one is a file beside this and a row of RULES."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from ec_dit.nn.routing.expert_choice import expert_choice
from ec_dit.nn.routing.slots import Routing
from ec_dit.nn.routing.spec import RoutingKind, RoutingSpec, capacity
from ec_dit.nn.routing.token_choice import token_choice, top_k


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        apply: (scores (G, S, E), slots C, spec) -> what is in the slots.
        leaves_empty: whether slots may stay empty.
    """

    apply: Callable[[jax.Array, int, RoutingSpec], Routing]
    leaves_empty: bool = True


RULES: dict[RoutingKind, Rule] = {
    "expert_choice": Rule(lambda scores, slots, spec: expert_choice(scores, slots, spec.gate), leaves_empty=False),
    "token_choice": Rule(lambda scores, slots, _: token_choice(scores, slots)),
    "top_k": Rule(lambda scores, slots, spec: top_k(scores, slots, spec.top_k, spec.gate)),
}


def route(scores_GSE: jax.Array, spec: RoutingSpec) -> Routing:
    """Applies the rule of `spec` to scores, with as many slots as its capacity factor gives the group."""
    _, group_size, experts = scores_GSE.shape
    slots = capacity(group_size, experts, spec.capacity_factor)
    routing = RULES[spec.routing].apply(scores_GSE, slots, spec)
    return routing if spec.gate_scale == 1 else routing._replace(gate_GEC=spec.gate_scale * routing.gate_GEC)
