"""A frozen encoder in memory: its module's structure, and its parameters laid over the mesh by the one sharding table."""

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ec_dit.core import name_map, sharding
from ec_dit.core.hub import TensorFiles
from ec_dit.core.tree import named_leaves
from ec_dit.nn import param


class Frozen(NamedTuple):
    """`nnx.merge(graphdef, params)` is the module; pass `params` as an argument to what is jitted, not as a constant."""

    graphdef: nnx.GraphDef
    params: Any


def load(
    make: Callable[[nnx.Rngs], nnx.Module],
    entries: Callable[[Iterable[str]], name_map.Table],
    files: TensorFiles,
    mesh: Mesh,
    dtype: jnp.dtype,
    ignored: Collection[str] = (),
) -> Frozen:
    """The module that `make` describes with weights from files; no parameter exists anywhere but where it is to lie.

    Args:
        entries: from the names of the module's parameters to their table.
        dtype: of the parameters in memory.
        ignored: starts of the names of tensors that belong to other parts of the published model.

    Raises:
        UserError: if the files hold other tensors than the module has, or a dimension does not divide over the mesh.
    """
    graphdef, shapes, infos = param.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    names = [name for name, _ in named_leaves(shapes)]
    where = iter(names)

    def lay(leaf: jax.ShapeDtypeStruct, info: param.ParamInfo) -> jax.ShapeDtypeStruct:
        laid = sharding.named_sharding(info.axes, leaf.shape, mesh, next(where))
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=laid)

    abstract = jax.tree.map(lay, shapes, infos)
    return Frozen(graphdef, name_map.load(files, entries(names), abstract, ignored))
