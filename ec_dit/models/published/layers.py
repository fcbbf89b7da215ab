"""What several published transformers have in common: layers as rules of a name map, and the refusal of what they lack."""

from collections.abc import Mapping
from typing import Any

from ec_dit.core.errors import UserError
from ec_dit.core.name_map import FLAT, LINEAR, LINEAR_INTO, SAME, Rules, Way


def check_holds(title: str, sizes: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuses a model that a published transformer cannot hold.

    Args:
        sizes: config key -> (what the model has, what the transformer can have).

    Raises:
        UserError: naming every key that differs.
    """
    wrong = [f"{key} is {ours}, not {theirs}" for key, (ours, theirs) in sizes.items() if ours != theirs]
    if wrong:
        raise UserError(
            f"diffusers' {title} transformer cannot hold this model: {'; '.join(wrong)}. Export it as safetensors instead "
            "(--to=safetensors)."
        )


def within(start: str, rules: Rules) -> Rules:
    """Gives rules of a layer for where it stands in ours."""
    return {f"{start}/{ours}": rule for ours, rule in rules.items()}


def mlp(theirs: str) -> Rules:
    """Gives a perceptron of two layers, linear_1 and linear_2."""
    names = {"up_DF": "linear_1", "down_FD": "linear_2"}
    rules = {f"w_{ours}": (f"{theirs}.{linear}.weight", LINEAR) for ours, linear in names.items()}
    return rules | {"b_up_F": (f"{theirs}.linear_1.bias", SAME), "b_down_D": (f"{theirs}.linear_2.bias", SAME)}


def feed_forward(theirs: str) -> Rules:
    """Gives a feed-forward layer, net.0 and net.2; gated ones have both products in the first, the gate behind."""
    return {
        "w_up_DF": (f"{theirs}.net.0.proj.weight", LINEAR),
        "b_up_F": (f"{theirs}.net.0.proj.bias", SAME),
        "w_down_FD": (f"{theirs}.net.2.weight", LINEAR),
        "b_down_D": (f"{theirs}.net.2.bias", SAME),
    }


def gated_feed_forward(theirs: str) -> Rules:
    """Gives a gated feed-forward layer without biases: the first tensor holds both products, the gate second."""
    return {
        "w_up_DF": (f"{theirs}.net.0.proj.weight", LINEAR.cut(0, 0)),
        "w_gate_DF": (f"{theirs}.net.0.proj.weight", LINEAR.cut(0, 1)),
        "w_down_FD": (f"{theirs}.net.2.weight", LINEAR),
    }


def attention(
    theirs: str,
    query: str = "to_q",
    key: str = "to_k",
    value: str = "to_v",
    out: str = "to_out.0",
    turned: Way = LINEAR,
) -> Rules:
    """Gives an attention's four projections with biases, by diffusers' names for them.

    Args:
        turned: for queries and keys.
    """
    return {
        "w_q_DHK": (f"{theirs}.{query}.weight", turned),
        "b_q_HK": (f"{theirs}.{query}.bias", FLAT),
        "w_k_MNK": (f"{theirs}.{key}.weight", turned),
        "b_k_NK": (f"{theirs}.{key}.bias", FLAT),
        "w_v_MNK": (f"{theirs}.{value}.weight", LINEAR),
        "b_v_NK": (f"{theirs}.{value}.bias", FLAT),
        "w_o_HKD": (f"{theirs}.{out}.weight", LINEAR_INTO),
        "b_o_D": (f"{theirs}.{out}.bias", SAME),
    }
