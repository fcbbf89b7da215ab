"""A dense DiT as the start of a sparse one: sparse upcycling (2212.05055) for expert choice.

Every expert begins as a copy of its block's feed-forward layer. With gates normalised over the experts that took a token
(`RoutingSpec.gate`), copies together give what the one layer gave, whatever the router says: the sparse model starts as the dense
one wherever a token is taken at all. Where every expert may take every token (capacity factor = number of experts), that is
everywhere; at smaller capacities a token that no expert takes goes without.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ec_dit.core.errors import UserError
from ec_dit.models.spec import DiTSpec

_COPIED = {"w_up_EDF": "w_up_DF", "w_down_EFD": "w_down_FD", "b_up_EF": "b_up_F", "b_down_ED": "b_down_D"}
_COPIED |= {"w_gate_EDF": "w_gate_DF", "b_gate_EF": "b_gate_F"}


def upcycle(
    dense: Mapping[str, Any], fresh: Mapping[str, Any], dense_spec: DiTSpec, spec: DiTSpec, key: jax.Array, noise: float
) -> dict[str, Any]:
    """Makes the parameters of a sparse DiT from those of its dense twin; to be jitted, with the shardings of the sparse one.

    Args:
        dense: parameters of a DiT of `dense_spec`.
        fresh: newly initialised ones of `spec`, whose routers stay.
        noise: standard deviation of what is added to the weights of each copy, as a share of that layer's own, so that experts
            may differ from the start. 0 for exact copies.

    Raises:
        UserError: if the two structures differ in more than their experts.
    """
    check(dense_spec, spec)
    stages, first = [], 0
    for (pattern, repeats, _), stage in zip(spec.stages(), _ordered(fresh["stages"]), strict=True):
        made = []
        for place, block in enumerate(_ordered(stage["blocks"])):
            numbers = first + place + len(pattern) * np.arange(repeats)
            key, key_block = jax.random.split(key)
            made.append(_block(_dense_blocks(dense, dense_spec, numbers), block, key_block, noise))
        stages.append({"blocks": dict(enumerate(made))})
        first += len(pattern) * repeats
    return {**dense, "stages": dict(enumerate(stages))}


def _dense_blocks(dense: Mapping[str, Any], dense_spec: DiTSpec, numbers: np.ndarray) -> Any:
    """Blocks of a dense model, stacked; those of one stage of a sparse one are of one stage of its dense twin."""
    first = 0
    for stage, params in zip(dense_spec.stages(), _ordered(dense["stages"]), strict=True):
        if first <= numbers[0] < first + stage.repeats:
            return jax.tree.map(lambda a, rows=numbers - first: a[rows], params["blocks"][0])
        first += stage.repeats
    raise AssertionError(f"a dense model of {first} blocks has no block {numbers[0]}")


def check(dense_spec: DiTSpec, spec: DiTSpec) -> None:
    """Refuses structures that differ in more than their experts."""
    if dense_spec.num_sparse or not spec.num_sparse:
        raise UserError("upcycling makes a sparse model of a dense one; the other way there is none.")
    names = [n for n in spec.__dataclass_fields__ if n not in ("sparse", "remat", "attention")]
    if wrong := [n for n in names if getattr(dense_spec, n) != getattr(spec, n)]:
        raise UserError(f"the dense and the sparse model differ in {', '.join(wrong)}.")
    if spec.sparse.expert_width not in (0, spec.hidden):
        raise UserError(
            f"experts of width {spec.sparse.expert_width} are no copies of feed-forward layers of width {spec.hidden}: leave "
            "moe.expert_width at 0."
        )


def _block(dense: Mapping[str, Any], fresh: Mapping[str, Any], key: jax.Array, noise: float) -> dict[str, Any]:
    """One stacked block; `fresh` says whether it is sparse."""
    if "w_router_DE" not in fresh["ffn"]:
        return dict(dense)
    ffn: dict[str, Any] = {}
    for name, like in fresh["ffn"].items():
        if name == "shared":  # adds nothing at first
            ffn[name] = {part: jnp.zeros_like(a) if "down" in part else a for part, a in like.items()}
            continue
        if name not in _COPIED or like is None:
            ffn[name] = like
            continue
        one = dense["ffn"][_COPIED[name]]
        copies = jnp.broadcast_to(one[:, None], like.shape)
        if noise and name.startswith("w_"):
            key, key_noise = jax.random.split(key)
            spread = noise * one.std(axis=tuple(range(1, one.ndim)), keepdims=True)[:, None]
            copies += spread * jax.random.normal(key_noise, like.shape)
        ffn[name] = copies
    return {**dense, "ffn": ffn}


def _ordered(numbered: Mapping[Any, Any]) -> list[Any]:
    """The values of what an nnx.List is as a pure tree."""
    return [numbered[number] for number in sorted(numbered)]
