"""Losses that keep a router in order, beside the balance of token choice. Each is a mean over tokens, before its weight."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ec_dit.core import sharding
from ec_dit.nn.routing.slots import Routing, filled_index
from ec_dit.nn.routing.spec import RoutingSpec


def weights(spec: RoutingSpec) -> dict[str, float]:
    """Lists the losses that count, and how much."""
    predictor = spec.predictor_weight if spec.routing == "diffmoe" else 0.0
    every = {"z": spec.z_weight, "similarity": spec.similarity_weight, "predictor": predictor}
    return {name: weight for name, weight in every.items() if weight}


def losses(
    spec: RoutingSpec, logits_GSE: jax.Array, routing: Routing, predicted_GSE: jax.Array | None = None
) -> Mapping[str, jax.Array]:
    """Computes those that count; over all devices."""
    every = {
        "z": lambda: z_loss(logits_GSE),
        "similarity": lambda: similarity(logits_GSE, routing),
        "predictor": lambda: predictor_loss(predicted_GSE, routing),
    }
    return {name: every[name]() for name in weights(spec)}


def z_loss(logits_GSE: jax.Array) -> jax.Array:
    """Computes the mean square of log sum_e exp(logit_e), which keeps logits small (ST-MoE, 2202.08906, eq. 5)."""
    return sharding.batch_mean(jnp.square(jax.nn.logsumexp(logits_GSE, axis=-1)).mean())


def similarity(logits_GSE: jax.Array, routing: Routing) -> jax.Array:
    """Computes the router similarity loss (Expert Race, 2503.16057): it parts experts that take the same tokens.

    With P the softmax of the logits of all T tokens and M the selection, P' = P^T P and M' = M^T M:
    sum_ij W_ij P'_ij / T, where W_ii = E M'_ii / sum_i M'_ii and W_ij = (E^2 - E) M'_ij / sum of M' off the diagonal. W has no
    gradient.
    """
    experts = logits_GSE.shape[-1]
    share_GSE = jax.nn.softmax(logits_GSE, axis=-1)
    taken_GSE = taken(routing, logits_GSE.shape[1])
    highest = jax.lax.Precision.HIGHEST
    shared_EE, both_EE = (
        _total(jnp.einsum("GSE,GSJ->EJ", each, each, precision=highest)) for each in (share_GSE, taken_GSE)
    )
    itself = jnp.eye(experts, dtype=bool)
    alone, others = (jnp.where(where, both_EE, 0) for where in (itself, ~itself))
    weight_EE = experts * alone / _at_least(alone.sum()) + (experts**2 - experts) * others / _at_least(others.sum())
    tokens = _total(jnp.float32(logits_GSE.shape[0] * logits_GSE.shape[1]))
    return (jax.lax.stop_gradient(weight_EE) * shared_EE).sum() / tokens


def predictor_loss(predicted_GSE: jax.Array | None, routing: Routing) -> jax.Array:
    """Computes the mean binary cross-entropy of which experts took which tokens (DiffMoE)."""
    assert predicted_GSE is not None
    took_GSE = taken(routing, predicted_GSE.shape[1])
    return sharding.batch_mean((jax.nn.softplus(predicted_GSE) - took_GSE * predicted_GSE).mean())


def taken(routing: Routing, group_size: int) -> jax.Array:
    """Gives 1 where an expert took a token, float32 (G, S, E)."""

    def mark(index_C: jax.Array) -> jax.Array:
        return jnp.zeros(group_size).at[index_C].set(1, mode="drop")

    return jax.vmap(jax.vmap(mark))(filled_index(routing, group_size)).swapaxes(1, 2)


def _at_least(total: jax.Array) -> jax.Array:
    return jnp.maximum(total, 1)  # of counts: where nothing was taken, nothing is weighed


def _total(value: jax.Array) -> jax.Array:
    everyone = sharding.mesh_axes("batch")
    return jax.lax.psum(value, everyone) if everyone else value
