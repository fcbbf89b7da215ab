"""Blocks of one kind stacked along a leading 'layers' dimension and scanned, so that depth costs no compile time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.core.errors import UserError
from ec_dit.nn import param
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
        weights = nnx.as_pure(weights)
        if any(isinstance(leaf, tuple) for leaf in jax.tree.leaves(weights, is_leaf=_is_apart)):
            return self._through(graphdef, weights, carry, apply, *given)

        def body(carry: Any, of_repeat: Any) -> tuple[Any, Any]:
            weights, *own = of_repeat
            return apply(nnx.merge(graphdef, weights), carry, *own)

        if self.remat != "none":
            body = jax.checkpoint(body, policy=POLICIES[self.remat], prevent_cse=False)
        return jax.lax.scan(body, carry, (weights, *given))

    def _through(
        self, graphdef: nnx.GraphDef, weights: Any, carry: Any, apply: Callable[..., tuple[Any, Any]], *given: Any
    ) -> tuple[Any, Any]:
        """The same with weights that `apart` took apart, without a scan."""
        outs = []
        for i in range(self.repeats):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], weights, is_leaf=_is_apart)
            of_repeat = jax.tree.map(lambda leaf, i=i: leaf[i], given)
            carry, out = apply(nnx.merge(graphdef, own), carry, *of_repeat)
            outs.append(out)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


def apart(params: Any, infos: Any) -> Any:
    """Takes stacked parameters apart: a tuple of the repeats' own in place of each array with a leading L.

    A CPU's program writes to memory what it slices from an array; of arrays of their own, weights are read where they are. No
    gradient can be taken of them, and no mesh splits them.

    Args:
        params, infos: as `param.split` gives them.
    """

    def part(leaf: jax.Array, info: param.ParamInfo) -> Any:
        return tuple(leaf[i] for i in range(leaf.shape[0])) if info.axes[:1] == ("layers",) else leaf

    return jax.tree.map(part, params, infos)


def _is_apart(node: Any) -> bool:
    return isinstance(node, tuple)
