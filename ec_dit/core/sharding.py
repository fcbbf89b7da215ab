"""THE table: which mesh axes each logical axis is laid over. Change the layout here and nowhere else.

Parameters and activations name their axes by logical words (`('expert', 'embed', 'ffn')`). This module turns words into
a `PartitionSpec` and refuses what would quietly go wrong: an unknown word, one mesh axis used twice, or a dimension that
its mesh axes do not divide (jit would replicate it without a word).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ec_dit.core.errors import UserError

LogicalAxes = Sequence[str | None]

Entry = str | tuple[str, ...]  # a mesh axis; of several, the first that the mesh has
# Dense weights lie over one of the two: over both, the shards of a large mesh would be a few rows.
WEIGHTS = ("expert", "fsdp")
EXPERTS = ("expert", "moe")

RULES: dict[str, tuple[Entry, ...]] = {
    # activations
    "batch": ("data", "fsdp", EXPERTS),  # images, and the routing groups made of them
    # parameters
    "expert": (EXPERTS,),
    "expert_embed": ("fsdp",),  # the width dimension of expert weights, which 'expert' shards already
    "embed": (WEIGHTS,),  # the width dimension of every other weight
    "hidden": ("tensor", WEIGHTS),  # of dense feed-forward layers: longer than the width, so shards are larger
    "head_dim": (WEIGHTS,),  # qk-norm scales and biases of heads
    "heads": ("tensor",),
    "ffn": ("tensor",),
    # never sharded
    "layers": (),
}

TOKENS_TRAVEL = ("expert",)  # weights are not gathered along these: tokens are sent to where they lie


def partition_spec(
    axes: LogicalAxes, shape: Sequence[int], mesh: Mesh | AbstractMesh, name: str = "array"
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
        over = _over(mesh, axis) if axis else ()
        if clash := used & set(over):
            raise UserError(f"{name} {tuple(axes)}: mesh axis {sorted(clash)} would shard two of its dimensions.")
        used |= set(over)
        ways = math.prod(mesh.shape[a] for a in over)
        if size % ways:
            named = " x ".join(f"{a}={mesh.shape[a]}" for a in over)
            raise UserError(
                f"{name}: dimension '{axis}' of size {size} is not divisible by {ways} (mesh {named}). "
                f"Choose another --config.mesh, or a size that {ways} divides."
            )
        entries.append(over or None)
    return PartitionSpec(*entries)


def named_sharding(axes: LogicalAxes, shape: Sequence[int], mesh: Mesh, name: str = "array") -> NamedSharding:
    """As `partition_spec`, bound to `mesh`."""
    return NamedSharding(mesh, partition_spec(axes, shape, mesh, name))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of scalars and keys: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def ways(mesh: Mesh | AbstractMesh, axis: str) -> int:
    """Into how many parts `mesh` splits a dimension of a logical axis."""
    return math.prod(mesh.shape[a] for a in _over(mesh, axis))


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts `mesh` splits a batch."""
    return ways(mesh, "batch")


def even_batch(images: int, mesh: Mesh | AbstractMesh) -> int:
    """Rounds a number of images up, so that the devices share a batch evenly."""
    ways = batch_ways(mesh)
    return -(-images // ways) * ways


def local_parts(mesh: Mesh) -> tuple[int, ...]:
    """Which of the `batch_ways` parts of a batch lie on this process's devices, ascending."""
    ways = batch_ways(mesh)
    lie = named_sharding(("batch",), (ways,), mesh).addressable_devices_indices_map((ways,))
    return tuple(sorted({rows[0].start or 0 for rows in lie.values() if rows is not None}))


def place(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process holds whole, batch first, laid over the mesh."""

    def put(a: np.ndarray) -> jax.Array:
        where = named_sharding(("batch", *(None,) * (a.ndim - 1)), a.shape, mesh, "the batch")
        return jax.make_array_from_callback(a.shape, where, lambda index: a[index])

    return jax.tree.map(put, tree)


def place_parts(tree: Any, mesh: Mesh) -> Any:
    """Arrays of which every process holds its `local_parts`, batch first, as global arrays laid over the mesh."""

    def put(a: np.ndarray) -> jax.Array:
        shape = (a.shape[0] * batch_ways(mesh) // len(local_parts(mesh)), *a.shape[1:])
        where = named_sharding(("batch", *(None,) * (a.ndim - 1)), shape, mesh, "the batch")
        return jax.make_array_from_process_local_data(where, a, shape)

    return jax.tree.map(put, tree)


def constrain(array: jax.Array, *axes: str | None, name: str = "activation") -> jax.Array:
    """Lays an activation out by logical axes on the mesh in context; without a mesh, the array as it is.

    Raises:
        UserError: if a dimension does not divide over the mesh; `name` says of what.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return array
    return jax.lax.with_sharding_constraint(array, partition_spec(axes, array.shape, mesh, name))


def per_device(
    function: Callable[..., Any], in_axes: Sequence[Any], out_axes: Any, name: str = "activation"
) -> Callable[..., Any]:
    """`function` run by each device of the mesh in context on its own parts; what travels is what `function` says.

    Inside it the compiler lays nothing out by itself: `gather` gathers weights, `psum` adds up partial results, and
    `mesh_axes` names the axes for other collectives. Without a mesh, on one device, or inside another `per_device`, it is the
    function as it is.

    Args:
        in_axes: logical axes of each argument, in the argument's structure; None for an argument that is None.
        out_axes: logical axes of the outputs, in their structure; () for what is the same everywhere.

    Raises:
        UserError: if a dimension of an argument does not divide over the mesh; `name` says of what.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return function

    def out_spec(axes: LogicalAxes) -> PartitionSpec:
        return PartitionSpec(*(_over(mesh, axis) or None if axis else None for axis in axes))

    def in_spec(axes: LogicalAxes, array: jax.Array) -> PartitionSpec:
        what = name if "batch" in axes else "a weight"
        return partition_spec(axes, array.shape, mesh, what)

    def call(*arrays: Any) -> Any:
        in_specs = jax.tree.map(in_spec, tuple(in_axes), arrays, is_leaf=_is_axes)
        out_specs = jax.tree.map(out_spec, out_axes, is_leaf=_is_axes)
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(*arrays)

    return call


def mesh_axes(*logical: str) -> tuple[str, ...]:
    """Inside `per_device`: the mesh axes, larger than 1, that the `logical` axes are laid over. Outside: none."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not mesh.manual_axes:
        return ()
    return _over(mesh, *logical)


def gather(weight: jax.Array, axes: LogicalAxes, dtype: jnp.dtype) -> jax.Array:
    """Inside `per_device`: gathers a weight, in `dtype`, along the axes that also split the batch.

    In the backward pass its gradient is summed and scattered in `dtype`, then added up in float32 over devices that hold copies.
    The shards lie along a dimension of their own, in front of a matrix: in other places the TPU's compiler pads their rows, or
    turns the gradient's reduce-scatter into an all-reduce.
    """
    weight = vary(weight, axes).astype(dtype)
    for dimension, axis in enumerate(axes):
        if axis is None or axis in TOKENS_TRAVEL:
            continue
        if over := tuple(a for a in mesh_axes(axis) if a in mesh_axes("batch")):
            front = jnp.moveaxis(weight, dimension, 0)
            parts = jax.lax.all_gather(front.reshape(front.shape[0], -1), over)
            weight = jnp.moveaxis(parts.reshape(-1, *front.shape[1:]), 0, dimension)
    return weight


def vary(weight: jax.Array, axes: LogicalAxes) -> jax.Array:
    """Inside `per_device`: makes a weight vary over devices that hold copies, so that its gradient is summed in its own dtype."""
    sharded = mesh_axes(*(axis for axis in axes if axis))
    copies = tuple(axis for axis in mesh_axes("batch") if axis not in sharded)
    return jax.lax.pcast(weight, copies, to="varying") if copies else weight


def psum(partial: jax.Array, axis: str) -> jax.Array:
    """Inside `per_device`: sums partial products over a dimension that the mesh splits beside the batch."""
    over = tuple(a for a in mesh_axes(axis) if a not in mesh_axes("batch"))
    return jax.lax.psum(partial, over) if over else partial


def batch_mean(value: jax.Array) -> jax.Array:
    """Averages over the devices that share the batch, inside `per_device`; outside there is one."""
    over = mesh_axes("batch")
    return jax.lax.pmean(value, over) if over else value


def _over(mesh: Mesh | AbstractMesh, *logical: str) -> tuple[str, ...]:
    entries = (entry for word in logical for entry in RULES[word])
    choices = ((entry,) if isinstance(entry, str) else entry for entry in entries)
    chosen = (next((a for a in options if mesh.shape.get(a, 1) > 1), None) for options in choices)
    return tuple(dict.fromkeys(a for a in chosen if a is not None))


def _is_axes(node: Any) -> bool:
    return type(node) is tuple and all(axis is None or isinstance(axis, str) for axis in node)
