"""Token choice: each token asks for the experts that score highest for it; who comes too late finds the expert full.

All first choices are served before any second, each in the order of the tokens.
"""

import jax
import jax.numpy as jnp

from ec_dit.nn.routing.slots import Routing
from ec_dit.nn.routing.spec import GateKind


def token_choice(scores_GSE: jax.Array, slots: int) -> Routing:
    """Applies GShard's top-2 (2006.16668, Algorithm 1) without its random second choice.

    Gates are normalised over a token's two choices before capacity is applied. The auxiliary loss, per group and averaged, is
    E sum_e f_e p_e, with f_e the share of the group's tokens whose first choice is e (no gradient) and p_e the mean score of
    e: 1 when balanced.
    """
    routing, asks_GRE = _serve(scores_GSE, slots, 2, "normalized")
    first_GSE = asks_GRE[:, : scores_GSE.shape[1]].astype(jnp.float32)
    return routing._replace(aux_loss=_balance(first_GSE, scores_GSE))


def top_k(
    scores_GSE: jax.Array, slots: int, choices: int, gate: GateKind = "score", bias_E: jax.Array | None = None
) -> Routing:
    """Serves each token's `choices` best experts, by their scores and biases (DeepSeek-V3, 2412.19437, eq. 16; no part of gates).

    Gates are the scores, or those over their sum over the token's choices (before capacity is applied). The auxiliary loss is
    that of `token_choice` with all choices in place of the first: f_e is the share of all choices that are e.
    """
    groups, group_size, experts = scores_GSE.shape
    routing, asks_GRE = _serve(scores_GSE, slots, choices, gate, bias_E)
    asked_GSE = asks_GRE.reshape(groups, choices, group_size, experts).mean(1, dtype=jnp.float32)
    share_GSE = scores_GSE / scores_GSE.sum(-1, keepdims=True)  # of sigmoids, which do not add up to 1
    asked_E = None if bias_E is None else asks_GRE.mean((0, 1), dtype=jnp.float32)
    return routing._replace(aux_loss=_balance(asked_GSE, share_GSE), asked_E=asked_E)


def _serve(
    scores_GSE: jax.Array, slots: int, choices: int, gate: GateKind, bias_E: jax.Array | None = None
) -> tuple[Routing, jax.Array]:
    """Fills the slots in the order of service; also which expert each request is for, 0 or 1."""
    groups, group_size, experts = scores_GSE.shape
    if bias_E is None:
        gate_GSJ, choice_GSJ = jax.lax.top_k(scores_GSE, choices)
    else:
        _, choice_GSJ = jax.lax.top_k(jax.lax.stop_gradient(scores_GSE + bias_E), choices)
        gate_GSJ = jnp.take_along_axis(scores_GSE, choice_GSJ, axis=2)
    if gate == "normalized":
        gate_GSJ /= gate_GSJ.sum(-1, keepdims=True)

    # Requests in the order of service: first choices of all tokens, then second choices, and so on.
    expert_GR = choice_GSJ.swapaxes(1, 2).reshape(groups, choices * group_size)
    gate_GR = gate_GSJ.swapaxes(1, 2).reshape(groups, choices * group_size)
    asks_GRE = jax.nn.one_hot(expert_GR, experts, dtype=jnp.int32)
    place_GR = ((asks_GRE.cumsum(1) - 1) * asks_GRE).sum(-1)
    served_GR = place_GR < slots
    token_R = jnp.tile(jnp.arange(group_size, dtype=jnp.int32), choices)

    def fill(values_R: jax.Array, expert_R: jax.Array, place_R: jax.Array) -> jax.Array:
        # A place past the last slot is out of bounds, and 'drop' leaves such a request unwritten.
        return jnp.zeros((experts, slots), values_R.dtype).at[expert_R, place_R].set(values_R, mode="drop")

    index_GEC = jax.vmap(lambda e_R, p_R: fill(token_R, e_R, p_R))(expert_GR, place_GR)
    gate_GEC = jax.vmap(fill)(gate_GR, expert_GR, place_GR)
    experts_GS = served_GR.reshape(groups, choices, group_size).sum(1, dtype=jnp.int32)
    dropped = 1 - served_GR.mean(dtype=jnp.float32)
    routing = Routing(index_GEC, gate_GEC, experts_GS, dropped, aux_loss=jnp.zeros(()))
    return routing, asks_GRE


def _balance(asked_GSE: jax.Array, share_GSE: jax.Array) -> jax.Array:
    return asked_GSE.shape[-1] * (asked_GSE.mean(1) * share_GSE.mean(1)).sum(-1).mean()
