"""What a parameter is: an array, the logical axes it is sharded by, and the role each dimension plays.

Roles are one letter a dimension: `i` summed over (fan in), `o` produced (fan out), `b` batched (experts, stacked
layers). They serve initialisation, weight decay and Muon, which all must know where the matrix in an array is. Parameters
with no matrix in them (biases, tables, norm scales) have no roles.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ec_dit.core import sharding
from ec_dit.core.sharding import LogicalAxes
from ec_dit.core.tree import named_leaves


@dataclass(frozen=True)
class ParamInfo:
    """Logical axes and roles of one parameter, the stacked 'layers' dimension included.

    `hidden` tells matrices between hidden widths, which Muon takes, from those at the model's edges (patches in and out).
    """

    axes: tuple[str | None, ...]
    roles: str | None
    hidden: bool


def matrix(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: LogicalAxes, roles: str, *, zero: bool = False, hidden: bool = True
) -> nnx.Param:
    """Makes a float32 weight matrix, Xavier-normal over its `i` and `o` dimensions, or zero."""
    fan_in = math.prod(n for n, role in zip(shape, roles, strict=True) if role == "i")
    fan_out = math.prod(n for n, role in zip(shape, roles, strict=True) if role == "o")
    std = 0.0 if zero else math.sqrt(2 / (fan_in + fan_out))
    value = jnp.zeros(shape) if zero else std * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value, axes=tuple(axes), roles=roles, hidden=hidden)


def router(rngs: nnx.Rngs, shape: tuple[int, int], axes: LogicalAxes) -> nnx.Param:
    """Makes the router's matrix. It has no roles: a few columns of scores are no map between widths for Muon to orthogonalise."""
    return table(jax.random.normal(rngs.params(), shape, jnp.float32) / math.sqrt(shape[0]), axes)


def table(value: jax.Array, axes: LogicalAxes) -> nnx.Param:
    """Makes a float32 parameter that is no matrix: a bias, a norm scale, an embedding table."""
    return nnx.Param(value.astype(jnp.float32), axes=tuple(axes), roles=None, hidden=False)


def gather(parameter: nnx.Param, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Gives a parameter as its layer computes with it: in `dtype`, gathered over the axes of the mesh that split the batch."""
    return sharding.gather(parameter[...], parameter.axes, dtype)


def per_device(
    module: nnx.Module, function: Callable[..., Any], in_axes: Sequence[Any], out_axes: Any, name: str
) -> Callable[..., Any]:
    """`function(module, *arrays)` run by each device on its part of the weights and of the arrays, as `sharding.per_device`."""
    graphdef, params, infos = split(module)
    axes = jax.tree.map(lambda info: info.axes, infos)

    def run(params: Any, *arrays: Any) -> Any:
        return function(nnx.merge(graphdef, params), *arrays)

    return functools.partial(sharding.per_device(run, (axes, *in_axes), out_axes, name), params)


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    """Splits a model into (graph definition, parameters, their ParamInfo): two trees of one structure, plain nested dicts.

    `nnx.merge(graphdef, params)` gives the model back.
    """
    graphdef, state = nnx.split(model, nnx.Param)
    info = jax.tree.map(_info, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(info)


def shardings(abstract: Any, infos: Any, mesh: Mesh) -> Any:
    """Gives the NamedSharding of every parameter.

    Args:
        abstract: arrays or ShapeDtypeStructs of the parameters.
        infos: their ParamInfo.

    Raises:
        UserError: if a dimension does not divide over the mesh.
    """
    leaves = [
        sharding.named_sharding(info.axes, leaf.shape, mesh, name)
        for (name, leaf), info in zip(named_leaves(abstract), jax.tree.leaves(infos), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _info(param: nnx.Param) -> ParamInfo:
    axes, roles, value = param.axes, param.roles, param.get_value()
    if not isinstance(value, tuple) and value.ndim == len(axes) + 1:  # made by a vmap over layers
        axes, roles = ("layers", *axes), roles and "b" + roles
    return ParamInfo(axes, roles, param.hidden)
