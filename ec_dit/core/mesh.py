"""The device mesh: four named axes, always present, so that a sharding rule never asks which of them exist.

All but `tensor` split the batch. `data` copies parameters; `expert` splits the experts of sparse layers, and dense weights;
`fsdp` splits experts further, and dense weights where there is no expert axis; `tensor` splits heads and feed-forward width.
Where a model is only drawn with, `moe` may stand in place of `expert`: it splits the experts alone, and copies dense weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from ec_dit.core.errors import UserError
from ec_dit.core.settings import SIZE, key

MESH_AXES = ("data", "fsdp", "expert", "tensor")
COPIED_AXES = ("data", "fsdp", "moe", "tensor")


def _size(value: int) -> str | None:
    return None if value == -1 or 1 <= value <= SIZE else "must be at least 1, or -1"


@dataclass(frozen=True)
class MeshSpec:
    """The `mesh` section: devices per axis of MESH_AXES; one of them -1: all that are left."""

    data: int = key(-1, "copies of the parameters", check=_size, resumable=True)
    fsdp: int = key(1, "parts of each expert; of dense weights where expert = 1", check=_size, resumable=True)
    expert: int = key(1, "parts of the experts, and of dense weights", check=_size, resumable=True)
    tensor: int = key(1, "parts of heads and feed-forward width", check=_size, resumable=True)


def resolve_shape(shape: Sequence[int], num_devices: int) -> tuple[int, ...]:
    """Fills in the one axis given as -1 so that the mesh covers `num_devices`.

    Raises:
        UserError: if the sizes cannot multiply to the number of devices.
    """
    sizes = tuple(int(size) for size in shape)
    named = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(
            f"mesh {named}: sizes are whole numbers >= 1, at most one of them -1 (all devices that are left)."
        )
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and num_devices % known == 0:
        sizes = tuple(num_devices // known if size == -1 else size for size in sizes)
    if math.prod(sizes) != num_devices:
        raise UserError(
            f"mesh {named} covers {known} devices, but {num_devices} are here. Set --config.mesh.{{{','.join(MESH_AXES)}}} "
            f"so that their product is {num_devices}; one of them may be -1."
        )
    return sizes


def make_mesh(
    shape: Sequence[int], devices: Sequence[jax.Device] | None = None, axes: Sequence[str] = MESH_AXES
) -> Mesh:
    """A mesh of these axes over `devices` (default: all). `shape` as in `resolve_shape`."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = resolve_shape(shape, len(devices))
    # On a torus an axis of 16 may need one physical dimension and half of another.
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return mesh_of(grid, axes)


def mesh_of(grid: np.ndarray, axes: Sequence[str]) -> Mesh:
    """A mesh of devices in a grid of these axes."""
    return Mesh(grid, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
