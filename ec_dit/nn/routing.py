"""Which expert processes which token: pure functions from router scores to slots.

A routing group holds S tokens; every expert has C slots in it. Both rules answer in the same form, so that dispatch and
combine know nothing of the rule: `index_GEC` names the token in each slot, `gate_GEC` weighs what comes back from it, and
an empty slot has gate 0. Scores are a softmax over experts in float32.

  expert choice (Algorithm 1): each expert takes the C tokens that score highest for it.
  token choice (GShard top-2): each token asks for its two best experts; who comes too late finds the expert full.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from ec_dit.core import rounding
from ec_dit.core.errors import UserError
from ec_dit.core.settings import SIZE, key, only, unless

RoutingKind = Literal["expert_choice", "token_choice", "dense"]
CombineKind = Literal["scatter", "one_hot"]
GateKind = Literal["score", "normalized"]
IMAGE = "image"  # the size of a routing group: the tokens of one image
_LEAST_SCORE, _NOT_TAKEN = 1e-30, -1e30  # below any score; its logarithm, below any other


@dataclass(frozen=True)
class RoutingSpec:
    """How a sparse layer routes; may differ between training and sampling.

    Attributes:
        routing: the rule.
        capacity_factor: f_c; C = S f_c / E, rounded up.
        group_size: S, tokens that are routed together; IMAGE for the tokens of one image, whatever their number.
        gate: 'normalized' makes experts that are copies of one feed-forward layer give its output.
        report_gates: whether the layer's statistics hold every gate, which takes memory; no key of a config.
    """

    routing: RoutingKind = "expert_choice"
    capacity_factor: float = key(
        2.0, "f_c: experts per token on average", above=0, at_most=SIZE, use=unless("moe.routing", "dense")
    )
    group_size: int | str = IMAGE
    combine: CombineKind = key(
        "scatter",
        "how outputs return to tokens: added up one by one, or by a product with a one-hot matrix",
        use=unless("moe.routing", "dense"),
        resumable=True,
    )
    gate: GateKind = key(
        "score",
        "the softmaxed score (Algorithm 1), or that divided by the sum over the experts that took the token (upcycled models)",
        use=only("moe.routing", "expert_choice"),
        params="meaning",
    )
    report_gates: bool = False


class Routing(NamedTuple):
    """Where tokens go, and what is worth knowing about it.

    Attributes:
        index_GEC: int32, the token of the group in each slot.
        gate_GEC: float32, the weight of each slot's output; 0 where the slot is empty.
        experts_GS: int32, how many experts took each token.
        dropped: float32 scalar, the share of requests that found no slot (token choice; else 0).
        aux_loss: float32 scalar, load-balancing loss before its weight (token choice; else 0).
    """

    index_GEC: jax.Array
    gate_GEC: jax.Array
    experts_GS: jax.Array
    dropped: jax.Array
    aux_loss: jax.Array


def group_tokens(num_tokens: int, image_tokens: int, group_size: int | str) -> int:
    """The size S of a routing group.

    Args:
        num_tokens: tokens in the whole batch.
        image_tokens: tokens of one image.
        group_size: as in `RoutingSpec`.

    Raises:
        UserError: if groups do not divide the tokens.
    """
    size = image_tokens if group_size == IMAGE else int(group_size)
    if size < 1 or num_tokens % size:
        raise UserError(
            f"routing: groups of {size} tokens do not divide the {num_tokens} tokens of a batch ({num_tokens // image_tokens}"
            f" images x {image_tokens} tokens). Choose a group_size that divides {num_tokens}, or 'image'."
        )
    return size


def capacity(group_size: int, num_experts: int, capacity_factor: float) -> int:
    """C, the slots of one expert in one group: S f_c / E rounded up, as images have any number of tokens; from 1 to S."""
    return min(math.ceil(group_size * rounding.fraction(capacity_factor) / num_experts), group_size)


def check_capacity(group_size: int, num_experts: int, capacity_factor: float) -> None:
    """Refuses groups whose capacity must be rounded: of those that a config is made for, where f_c would not be as it says.

    Raises:
        UserError: unless C = S f_c / E is a whole number from 1 to S.
    """
    slots = group_size * rounding.fraction(capacity_factor) / num_experts
    if slots.denominator != 1 or not 1 <= slots <= group_size:
        raise UserError(
            f"routing: capacity C = group size {group_size} x capacity factor {capacity_factor:g} / {num_experts} experts "
            f"= {float(slots):g} must be a whole number from 1 to {group_size}. Change the group size or the capacity factor."
        )


def route(scores_GSE: jax.Array, spec: RoutingSpec) -> Routing:
    """Applies the rule of `spec` to softmaxed scores."""
    _, group_size, experts = scores_GSE.shape
    slots = capacity(group_size, experts, spec.capacity_factor)
    return (
        token_choice(scores_GSE, slots)
        if spec.routing == "token_choice"
        else expert_choice(scores_GSE, slots, spec.gate)
    )


def expert_choice(scores_GSE: jax.Array, slots: int, gate: GateKind = "score") -> Routing:
    """Algorithm 1, lines 2-3: per expert the `slots` best tokens; among equals the first. Balanced by construction."""
    gate_GEC, index_GEC = jax.lax.top_k(scores_GSE.swapaxes(1, 2), slots)
    experts_GS = _add_up(jnp.ones_like(index_GEC), index_GEC, scores_GSE.shape[1])
    if gate == "normalized":
        gate_GEC = _normalized(scores_GSE, index_GEC)
    zero = jnp.zeros((), jnp.float32)
    return Routing(index_GEC, gate_GEC, experts_GS, dropped=zero, aux_loss=zero)


def token_choice(scores_GSE: jax.Array, slots: int) -> Routing:
    """GShard top-2 (2006.16668, Algorithm 1) without its random second choice.

    Gates are normalised over a token's two choices before capacity is applied. All first choices are served before any
    second, each in the order of the tokens. The auxiliary loss, per group and averaged, is E sum_e f_e p_e, with f_e the
    share of the group's tokens whose first choice is e (no gradient) and p_e the mean score of e: 1 when balanced.
    """
    groups, group_size, experts = scores_GSE.shape
    best_GS2, choice_GS2 = jax.lax.top_k(scores_GSE, 2)
    gate_GS2 = best_GS2 / best_GS2.sum(-1, keepdims=True)

    # Requests in the order of service: first choices of all tokens, then second choices.
    expert_GR = choice_GS2.swapaxes(1, 2).reshape(groups, 2 * group_size)
    gate_GR = gate_GS2.swapaxes(1, 2).reshape(groups, 2 * group_size)
    asks_GRE = jax.nn.one_hot(expert_GR, experts, dtype=jnp.int32)
    place_GR = ((asks_GRE.cumsum(1) - 1) * asks_GRE).sum(-1)
    served_GR = place_GR < slots
    token_R = jnp.tile(jnp.arange(group_size, dtype=jnp.int32), 2)

    def fill(values_R: jax.Array, expert_R: jax.Array, place_R: jax.Array) -> jax.Array:
        # A place past the last slot is out of bounds, and 'drop' leaves such a request unwritten.
        return jnp.zeros((experts, slots), values_R.dtype).at[expert_R, place_R].set(values_R, mode="drop")

    index_GEC = jax.vmap(lambda e_R, p_R: fill(token_R, e_R, p_R))(expert_GR, place_GR)
    gate_GEC = jax.vmap(fill)(gate_GR, expert_GR, place_GR)
    experts_GS = served_GR.reshape(groups, 2, group_size).sum(1, dtype=jnp.int32)

    first_GSE = asks_GRE[:, :group_size].astype(jnp.float32)
    aux_loss = experts * (first_GSE.mean(1) * scores_GSE.mean(1)).sum(-1).mean()
    return Routing(index_GEC, gate_GEC, experts_GS, dropped=1 - served_GR.mean(dtype=jnp.float32), aux_loss=aux_loss)


def gates_by_token(routing: Routing, group_size: int, kind: RoutingKind) -> jax.Array:
    """Gives the gate of every expert on every token (G, S, E), float32; NaN where the expert did not take the token."""
    index_GEC = routing.index_GEC
    if kind == "token_choice":  # expert choice leaves no slot empty
        index_GEC = jnp.where(routing.gate_GEC > 0, index_GEC, group_size)  # out of bounds: 'drop' writes nothing

    def spread(gate_C: jax.Array, index_C: jax.Array) -> jax.Array:
        return jnp.full(group_size, jnp.nan, jnp.float32).at[index_C].set(gate_C, mode="drop")

    return jax.vmap(jax.vmap(spread))(routing.gate_GEC, index_GEC).swapaxes(1, 2)


def _normalized(scores_GSE: jax.Array, index_GEC: jax.Array) -> jax.Array:
    """(G, E, C): scores over their sum over the experts that took the token.

    By way of a softmax: an expert must fill its slots, also with tokens whose scores for it are next to nothing, and the quotient
    of two such numbers has no gradient in float32.
    """
    log_GES = jnp.log(jnp.maximum(scores_GSE, _LEAST_SCORE)).swapaxes(1, 2)
    taken_GES = jax.vmap(jax.vmap(lambda index_C: jnp.zeros(scores_GSE.shape[1], bool).at[index_C].set(True)))(
        index_GEC
    )
    share_GES = jax.nn.softmax(jnp.where(taken_GES, log_GES, _NOT_TAKEN), axis=1)
    return jnp.take_along_axis(share_GES, index_GEC, axis=2)


def _add_up(values_GEC: jax.Array, index_GEC: jax.Array, group_size: int) -> jax.Array:
    """(G, S): for every token the sum of the values in the slots that hold it."""

    def add(values_EC: jax.Array, index_EC: jax.Array) -> jax.Array:
        return jnp.zeros(group_size, values_EC.dtype).at[index_EC].add(values_EC)

    return jax.vmap(add)(values_GEC, index_GEC)
