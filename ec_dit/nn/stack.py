"""Blocks of one kind stacked along a leading 'layers' dimension and scanned, so that depth costs no compile time."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ec_dit.core.errors import UserError
from ec_dit.nn.experts import EXPERT_PRODUCT

_policies = jax.checkpoint_policies
POLICIES: dict[str, Callable[..., bool]] = {
    # Keep matrix products with weights. Those of experts have a batch dimension, E, and are told by their name.
    "dots": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names(EXPERT_PRODUCT)
    ),
    "full": _policies.nothing_saveable,  # keep only what enters a repeat
}


class Stack(nnx.Module):
    """Copies of the module that `make` builds, each with weights of its own.

    Args:
        make: builds one repeat from its random keys.
        keys_L: of every repeat, one key or several.
        remat: 'none', 'dots' or 'full': what the backward pass recomputes.
    """

    def __init__(self, make: Callable[[jax.Array], nnx.Module], keys_L: jax.Array, *, remat: str = "none"):
        if remat != "none" and remat not in POLICIES:
            raise UserError(f"remat '{remat}': choose none, {', '.join(POLICIES)}.")
        self.remat = remat
        self.repeats = len(keys_L)
        graphdefs = list[nnx.GraphDef]()  # of the one trace of `make`: large models take seconds to trace

        def weights(keys: jax.Array) -> nnx.State:
            graphdef, state = nnx.split(make(keys))
            graphdefs.append(graphdef)
            return state

        weights_L = jax.vmap(weights)(keys_L)
        self.blocks = nnx.merge(graphdefs[0], weights_L)

    def __call__(self, carry: Any, apply: Callable[..., tuple[Any, Any]], *given: Any) -> tuple[Any, Any]:
        """Runs `apply(repeat, carry, *given) -> (carry, out)` through all repeats; outs come back stacked on a leading L.

        Args:
            given: trees whose leaves have a leading L, of which each repeat gets its own.
        """
        graphdef, weights = nnx.split(self.blocks)

        def body(carry: Any, of_repeat: Any) -> tuple[Any, Any]:
            weights, *own = of_repeat
            return apply(nnx.merge(graphdef, weights), carry, *own)

        if self.remat != "none":
            body = jax.checkpoint(body, policy=POLICIES[self.remat], prevent_cse=False)
        return jax.lax.scan(body, carry, (nnx.as_pure(weights), *given))
