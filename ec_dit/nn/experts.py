"""The feed-forward layers of experts, each on its own tokens: all at once, or one after the other."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ec_dit.nn.mlp import gelu, swiglu

EXPERT_PRODUCT = "expert_product"  # name of the experts' matrix products, for remat policies

Multiply = Callable[[jax.Array, jax.Array], jax.Array]
Spread = Callable[[jax.Array], jax.Array]


class ExpertWeights(NamedTuple):
    """Weights of feed-forward layers with a leading E, without the last bias; None for what there is not."""

    up_EDF: jax.Array
    down_EFD: jax.Array
    gate_EDF: jax.Array | None
    b_up_EF: jax.Array | None
    b_gate_EF: jax.Array | None


def feed_forward(tokens: jax.Array, weights: ExpertWeights, multiply: Multiply, spread: Spread) -> jax.Array:
    """Each expert's layer on its own tokens, however they are laid out.

    Args:
        tokens: (..., D).
        multiply: tokens (..., X) with matrices of the experts (E, X, Y): (..., Y).
        spread: gives biases of the experts (E, Y) to their tokens.
    """

    def inner(w_EDF: jax.Array, b_EF: jax.Array | None) -> jax.Array:
        product = checkpoint_name(multiply(tokens, w_EDF), EXPERT_PRODUCT)
        return product if b_EF is None else product + spread(b_EF)

    up = inner(weights.up_EDF, weights.b_up_EF)
    hidden = gelu(up) if weights.gate_EDF is None else swiglu(inner(weights.gate_EDF, weights.b_gate_EF), up)
    return multiply(hidden, weights.down_EFD)


def compute(slots_WEGCD: jax.Array, weights: ExpertWeights) -> jax.Array:
    """Computes the experts' layers as suits the device; the last bias is not in it.

    Products of many small matrices at once are slow on CPUs, up to 1.8 x as slow as one after the other.
    """
    return jax.lax.platform_dependent(slots_WEGCD, weights, cpu=in_turn, default=at_once)


def at_once(slots_WEGCD: jax.Array, weights: ExpertWeights) -> jax.Array:
    """Computes the experts' layers in products that all experts share; the last bias is not in it."""
    return feed_forward(
        slots_WEGCD,
        weights,
        lambda slots_WEGCX, w_EXY: jnp.einsum("WEGCX,EXY->WEGCY", slots_WEGCX, w_EXY),
        lambda b_EY: b_EY[:, None, None],
    )


def in_turn(slots_WEGCD: jax.Array, weights: ExpertWeights) -> jax.Array:
    """Computes the same in products of one expert after the other."""
    devices, experts, *rest = slots_WEGCD.shape
    rows_END = slots_WEGCD.swapaxes(0, 1).reshape(experts, -1, rest[-1])

    def one(of_expert: tuple[jax.Array, ExpertWeights]) -> jax.Array:
        rows_ND, own = of_expert
        return feed_forward(rows_ND, own, jnp.matmul, lambda b_Y: b_Y)

    out_END = jax.lax.map(one, (rows_END, weights))
    return out_END.reshape(experts, devices, *rest).swapaxes(0, 1)
