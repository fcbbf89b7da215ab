"""DiffMoE (2503.14487): expert choice in a pool, and a predictor of how many tokens an expert would take of an image alone.

The pool is a routing group. The predictor reads the tokens, without a gradient to them; it learns which the experts took, and
thresholds of its probabilities are running means of those that part as many as they took.
"""

import jax
import jax.numpy as jnp

from ec_dit.nn.routing.expert_choice import expert_choice
from ec_dit.nn.routing.slots import Routing
from ec_dit.nn.routing.thresholds import filled, fullest, room


def diffmoe(
    scores_GSE: jax.Array, predicted_GSE: jax.Array, slots: int, most: float, threshold_E: jax.Array | None = None
) -> Routing:
    """Gives each expert its best tokens: `slots` in training, and as many as its predictor finds likely enough alone.

    Args:
        predicted_GSE: logits of the predictor.
        most: of `slots`, what an expert has room for.
        threshold_E: of training; None: this is training.
    """
    likely_GES = jax.nn.sigmoid(predicted_GSE).swapaxes(1, 2)
    if threshold_E is None:
        least_GE = jax.lax.top_k(likely_GES, slots)[0][..., -1]
        return expert_choice(scores_GSE, slots)._replace(threshold_E=jax.lax.stop_gradient(least_GE.mean(0)))
    _, group_size, experts = scores_GSE.shape
    count_GE = (likely_GES > threshold_E[:, None]).sum(-1)
    gate_GEC, index_GEC = jax.lax.top_k(scores_GSE.swapaxes(1, 2), room(slots, most, group_size))
    wanted_GEC = jnp.arange(gate_GEC.shape[-1]) < count_GE[..., None]
    filled_GEC = fullest(wanted_GEC, gate_GEC, experts * slots)
    routing = filled(gate_GEC, index_GEC, filled_GEC, count_GE.sum(-1), group_size)
    return routing._replace(threshold_E=threshold_E)
