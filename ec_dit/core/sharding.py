"""THE table: which mesh axes each logical axis is laid over. Change the layout here and nowhere else.

Parameters and activations name their axes by logical words (`('expert', 'embed', 'ffn')`). This module turns words into
a `PartitionSpec` and refuses what would quietly go wrong: an unknown word, one mesh axis used twice, or a dimension that
its mesh axes do not divide (jit would replicate it without a word).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ec_dit.core.errors import UserError

LogicalAxes = Sequence[str | None]

RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp", "expert"),  # images, and the routing groups made of them
    # parameters
    "expert": ("expert",),
    "expert_embed": ("fsdp",),  # the width dimension of expert weights, which 'expert' shards already
    "embed": ("fsdp", "expert"),  # the width dimension of every other weight
    "head_dim": ("expert",),  # qk-norm scales and biases of heads
    "heads": ("tensor",),
    "ffn": ("tensor",),
    # never sharded
    "layers": (),
    # axes that hold copies of the experts' weights
    "replica": ("data",),
}


def partition_spec(
    axes: LogicalAxes, shape: Sequence[int], mesh: Mesh | AbstractMesh, name: str = "array", rules: Mapping = RULES
) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions carry the logical `axes` (None = not sharded).

    Raises:
        UserError: a mesh axis used twice, or a dimension not divisible by the mesh axes it is laid over.
        KeyError: a word that the table does not have.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{name}: {len(axes)} logical axes {tuple(axes)} for shape {tuple(shape)}")
    entries: list[tuple[str, ...] | None] = []
    used: set[str] = set()
    for axis, size in zip(axes, shape, strict=True):
        mesh_axes = tuple(a for a in (rules[axis] if axis else ()) if mesh.shape[a] > 1)
        if clash := used & set(mesh_axes):
            raise UserError(f"{name} {tuple(axes)}: mesh axis {sorted(clash)} would shard two of its dimensions.")
        used |= set(mesh_axes)
        ways = math.prod(mesh.shape[a] for a in mesh_axes)
        if size % ways:
            over = " x ".join(f"{a}={mesh.shape[a]}" for a in mesh_axes)
            raise UserError(
                f"{name}: dimension '{axis}' of size {size} is not divisible by {ways} (mesh {over}). "
                f"Choose another --config.mesh, or a size that {ways} divides."
            )
        entries.append(mesh_axes or None)
    return PartitionSpec(*entries)


def named_sharding(axes: LogicalAxes, shape: Sequence[int], mesh: Mesh, name: str = "array") -> NamedSharding:
    """As `partition_spec`, bound to `mesh`."""
    return NamedSharding(mesh, partition_spec(axes, shape, mesh, name))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of scalars and keys: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts `mesh` splits a batch."""
    return math.prod(mesh.shape[a] for a in RULES["batch"])


def constrain(array: jax.Array, *axes: str | None, name: str = "activation") -> jax.Array:
    """Lays an activation out by logical axes on the mesh in context; without a mesh, the array as it is.

    Raises:
        UserError: if a dimension does not divide over the mesh; `name` says of what.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return array
    return jax.lax.with_sharding_constraint(array, partition_spec(axes, array.shape, mesh, name))


def mesh_axes(*logical: str) -> tuple[str, ...]:
    """The axes of the mesh in context, larger than 1, that the `logical` axes are laid over; () without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    return tuple(dict.fromkeys(a for word in logical for a in RULES[word] if mesh.shape[a] > 1))


def per_device(
    function: Callable[..., Any], in_axes: Sequence[LogicalAxes], out_axes: Any, name: str = "activation"
) -> Callable[..., Any]:
    """`function` run by each device of the mesh in context on its own parts, with collectives over `mesh_axes`.

    The compiler then lays nothing out by itself. Without a mesh, or on one device, it is the function as it is.

    Args:
        in_axes: logical axes of each argument, which are arrays.
        out_axes: logical axes of each output, in the structure of the outputs; () for what is the same everywhere.

    Raises:
        UserError: if a dimension of an argument does not divide over the mesh; `name` says of what.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function

    def out_spec(axes: LogicalAxes) -> PartitionSpec:
        return PartitionSpec(*((mesh_axes(axis) or None) if axis else None for axis in axes))

    def call(*arrays: jax.Array) -> Any:
        in_specs = tuple(partition_spec(axes, a.shape, mesh, name) for axes, a in zip(in_axes, arrays, strict=True))
        out_specs = jax.tree.map(out_spec, out_axes, is_leaf=_is_axes)
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(*arrays)

    return call


def _is_axes(node: Any) -> bool:
    return type(node) is tuple and all(axis is None or isinstance(axis, str) for axis in node)
