"""How a sparse layer routes, as plain data, and how many tokens that makes an expert take from a group.

What a router scores is in `scores.py`, the rules are in files of their own and in the table of `rules.py`, and what they all
answer is in `slots.py`.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ec_dit.core import rounding
from ec_dit.core.errors import UserError
from ec_dit.core.settings import SIZE, key, only, unless

RoutingKind = Literal["expert_choice", "token_choice", "top_k", "expert_race", "diffmoe", "dense"]
CombineKind = Literal["scatter", "one_hot"]
ScoreKind = Literal["softmax", "sigmoid", "identity"]
RouterKind = Literal["linear", "cosine"]
RouterInput = Literal["modulated", "normed_time", "start"]
GateKind = Literal["score", "normalized"]
Routed = Literal["sampling", "training"]  # as an image alone, or in training's groups
IMAGE = "image"  # the size of a routing group: the tokens of one image
_SPARSE = unless("moe.routing", "dense")


@dataclass(frozen=True)
class RoutingSpec:
    """How a sparse layer routes; may differ between training and sampling.

    Attributes:
        routing: the rule.
        capacity_factor: f_c; C = S f_c / E, rounded up.
        group_size: S, tokens that are routed together; IMAGE for the tokens of one image, whatever their number.
        gate: 'normalized' makes experts that are copies of one feed-forward layer give its output.
        by_threshold: whether thresholds of training decide, as for an image alone where training had a pool; no key of a config.
        report_gates: whether the layer's statistics hold every gate, which takes memory; no key of a config.
    """

    routing: RoutingKind = "expert_choice"
    capacity_factor: float = key(2.0, "f_c: experts per token on average", above=0, at_most=SIZE, use=_SPARSE)
    group_size: int | str = IMAGE
    combine: CombineKind = key(
        "scatter",
        "how outputs return to tokens: added up one by one, or by a product with a one-hot matrix",
        use=_SPARSE,
        resumable=True,
    )
    chunks: int = key(
        1,
        "parts, at most, in which groups go through experts on other devices: tokens of one travel while others are computed",
        at_least=1,
        at_most=64,
        use=_SPARSE,
        resumable=True,
    )
    gate: GateKind = key(
        "score",
        "the score (Algorithm 1), or that divided by the sum over the experts that took the token (upcycled models), of top_k "
        "over its choices",
        use=only("moe.routing", "expert_choice", "top_k"),
        params="meaning",
    )
    score: ScoreKind = key(
        "softmax",
        "of logits: softmax over experts (the paper's); sigmoid, each by itself (DSMoE); identity (ProMoE, Expert Race)",
        use=only("moe.routing", "expert_choice", "top_k", "expert_race"),
        params="meaning",
    )
    gate_scale: float = key(1.0, "multiplies gates (Nucleus-Image: 2.5)", above=0, use=_SPARSE, params="meaning")
    router: RouterKind = key(
        "linear", "logits: inner products, or cosines with prototypes (ProMoE)", use=_SPARSE, params="meaning"
    )
    top_k: int = key(
        2,
        "experts that each token asks for; capacity_factor x tokens / experts of them find room with each",
        at_least=1,
        at_most=SIZE,
        use=only("moe.routing", "top_k"),
        params="meaning",
    )
    bias_rate: float = key(
        0.0,
        "balance of top_k without a loss: at every step each expert's bias, added to its scores where tokens choose, rises by so "
        "much if it was asked less than its share, and falls if more (DeepSeek-V3: 0.001)",
        at_least=0,
        at_most=1,
        use=only("moe.routing", "top_k"),
        params="shape",
    )
    z_weight: float = key(0.0, "of the router's z-loss (ST-MoE)", at_least=0, use=_SPARSE)
    similarity_weight: float = key(0.0, "of the router similarity loss (Expert Race: 1e-4)", at_least=0, use=_SPARSE)
    most: float = key(
        2.0,
        "slots of an expert at most, over its even share, where thresholds decide how many it fills",
        at_least=1,
        at_most=SIZE,
        use=only("moe.routing", "expert_race", "diffmoe"),
    )
    predictor_weight: float = key(
        0.01, "of the loss of the predictors of capacity", at_least=0, use=only("moe.routing", "diffmoe")
    )
    record: bool = key(
        False,
        "training keeps how many experts a token gets at each noise level, and with expert_choice above which scores, which "
        "sample.capacity=matched goes by",
        use=_SPARSE,
        params="shape",
    )
    report_gates: bool = False
    by_threshold: bool = False


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
