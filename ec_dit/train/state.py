"""Everything a training run must remember, as one pytree, and how it is laid over the mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from ec_dit.core import sharding
from ec_dit.core.tree import named_leaves, owner
from ec_dit.nn import param

_SMALL = 64  # optimizer constants of at most so many numbers are copied to every device


class TrainState(NamedTuple):
    """Parameters, optimizer, moving average, and where the run stands.

    Attributes:
        step: int32 scalar, steps done.
        key: random key of the run; what a step draws depends on this and on `step` alone.
        params, ema: float32 trees of one structure.
        opt_state: of the optax transformation.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def init_state(init_params: Callable[[jax.Array], Any], tx: optax.GradientTransformation, seed: int) -> TrainState:
    """A fresh state; trace it under jit with `state_shardings` to create it sharded."""
    key_params, key_run = jax.random.split(jax.random.key(seed))
    params = init_params(key_params)
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), key_run, params, ema, tx.init(params))


def state_shardings(abstract: TrainState, infos: Any, mesh: Mesh) -> Any:
    """A TrainState of NamedShardings: optimizer state lies where its parameter lies.

    Args:
        abstract: `jax.eval_shape` of the state.
        infos: `nn.param.ParamInfo` of every parameter.

    Raises:
        UserError: if a parameter's dimension does not divide over the mesh.
        ValueError: if an optimizer keeps an array that belongs to no parameter; it would be replicated unseen.
    """
    params = dict(named_leaves(param.shardings(abstract.params, infos, mesh)))
    everywhere = sharding.replicated(mesh)
    by_name = dict(named_leaves(abstract.params))

    def of_optimizer(name: str, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        owned_by = owner(name, params)
        if owned_by is not None and leaf.shape == by_name[owned_by].shape:
            return params[owned_by]
        if leaf.size > _SMALL:
            raise ValueError(f"optimizer state {name} of shape {leaf.shape} belongs to no parameter: how to shard it?")
        return everywhere

    opt_leaves = [of_optimizer(name, leaf) for name, leaf in named_leaves(abstract.opt_state)]
    in_order = [everywhere, everywhere, *params.values(), *params.values(), *opt_leaves]  # the fields of TrainState
    return jax.tree.unflatten(jax.tree.structure(abstract), in_order)
