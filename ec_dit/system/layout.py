"""How a model lies on devices that draw with it: `sample.layout`. Training splits weights for room; drawing rarely needs to.

Drawing holds no gradients and no moments, and every evaluation of the network uses all weights. Where dense weights are gathered
for it, as in training, the interconnect bounds the step; where they are copied, nothing of them travels. Experts are split no
further than pays: each device reads its experts' weights at every evaluation, and tokens travel to experts that lie elsewhere.
"""

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ec_dit.config import specs
from ec_dit.core import processes, settings, sharding
from ec_dit.core.errors import UserError
from ec_dit.core.hardware import EFFICIENCY, Chip, host_bytes, tpu
from ec_dit.core.mesh import COPIED_AXES, MESH_AXES, make_mesh, mesh_of
from ec_dit.nn import param, stack
from ec_dit.system.model import System

_MOST_APART = 12  # blocks
ALONE, BESIDE_TRAINING = 0.5, 0.15  # shares of a device's memory that weights to draw with may take


@dataclass(frozen=True)
class _Candidate:
    """A mesh, what a device then holds of the weights, and how long the experts would take, where that is known."""

    mesh: Mesh
    held: int
    seconds: float


def for_sampling(system: System, share: float = ALONE) -> System:
    """Gives the same model as it lies where it is drawn with: on a mesh of its own, of the same devices.

    Args:
        share: of a device's memory that `auto` gives to weights.

    Raises:
        UserError: no mesh of that layout fits the model's widths.
    """
    if system.config.sample.combine == "auto" and system.mesh.devices.flat[0].platform == "tpu":
        system = replace(system, config=settings.changed(system.config, {"sample.combine": "one_hot"}))
    wanted, devices = system.config.sample.layout, list(system.mesh.devices.flat)
    if wanted == "mesh" or len(devices) == 1:
        return system
    copied = [] if wanted == "fsdp" else list(_candidates(system, devices, COPIED_AXES))
    if wanted == "auto":
        copied = [each for each in copied if each.held <= share * _memory(devices)]
    in_parts = [] if copied or wanted == "copied" else list(_candidates(system, devices, MESH_AXES))
    if not copied and not in_parts:
        raise UserError(
            f"--config.sample.layout={wanted}: no mesh of {len(devices)} devices fits this model; take mesh, and a "
            "--config.mesh that does."
        )
    # Of equally fast ones that with the fewest parts of experts; where memory is short, that with the most.
    best = min(copied, key=lambda each: (each.seconds, -each.held)) if copied else in_parts[-1]
    shape = json.loads(processes.of_first(json.dumps(list(best.mesh.shape.items()))))  # hosts may differ in memory
    axes, sizes = zip(*shape, strict=True)
    return replace(system, mesh=_mesh(sizes, devices, axes))


def laid_out(params: Any, system: System) -> Any:
    """Lays parameters, from whatever mesh of the same devices, out as `system` draws with them."""
    wanted = system.sampling_params(system.abstract_params())

    def cast(leaf: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        return leaf if leaf.dtype == like.dtype else leaf.astype(like.dtype)

    cast_params = jax.tree.map(cast, params, wanted)
    return jax.device_put(cast_params, jax.tree.map(lambda like: like.sharding, wanted))


def as_computed(system: System) -> Callable[[Any], Any]:
    """Gives what makes of parameters what sampling programs take: on one CPU, of a sparse model, each block's own.

    Deep models stay stacked: their programs would grow with their depth.
    """
    spec = specs.dit_spec(system.config)
    alone = system.mesh.size == 1 and system.mesh.devices.flat[0].platform == "cpu"
    if not (alone and spec.num_sparse and spec.num_blocks <= _MOST_APART):
        return lambda params: params
    return jax.jit(functools.partial(stack.apart, infos=system.infos))


def _candidates(system: System, devices: Sequence[Any], axes: Sequence[str]) -> Iterator[_Candidate]:
    """Every mesh of these axes on which the weights divide: with more and more parts of the experts."""
    config, tensor = system.config, system.mesh.shape["tensor"]
    over, experts = len(devices) // tensor, config.moe.num_experts or 1
    shapes = system.shapes()
    held = system.sampling_params(shapes)
    for parts in (n for n in range(1, over + 1) if over % n == 0 and experts % n == 0):
        rest = over // parts
        fsdp = math.gcd(rest, config.model.width) if axes is MESH_AXES else 1
        mesh = _mesh((rest // fsdp, fsdp, parts, tensor), devices, axes)
        try:
            lie = param.shardings(shapes, system.infos, mesh)
        except UserError:  # a width that does not divide so
            continue
        size = sum(
            math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf, where in zip(jax.tree.leaves(held), jax.tree.leaves(lie), strict=True)
        )
        yield _Candidate(mesh, size, _seconds(system, shapes, mesh) if axes is COPIED_AXES else 0.0)


def _seconds(system: System, shapes: Any, mesh: Mesh) -> float:
    """How long the experts of one evaluation take, by the data sheet of a TPU; 0 where none is known."""
    device, config = mesh.devices.flat[0], system.config
    kind = tpu(device.device_kind) if device.platform == "tpu" else None
    if kind is None or not config.moe.num_experts:
        return 0.0
    images = sharding.even_batch(config.sample.batch_size, mesh) / sharding.batch_ways(mesh)
    tokens = images * specs.image_tokens(config) * (1 if config.sample.guidance == 1 else 2)
    taken = tokens * specs.computed_factor(config, sampling_on=mesh)
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(system.infos), strict=True)
    weights = sum(math.prod(leaf.shape) for leaf, info in pairs if "expert" in info.axes)
    chip, parts = kind.chip, sharding.ways(mesh, "expert")
    itemsize = system.dtype.itemsize
    computing = (
        2 * taken * weights / config.moe.num_experts / mesh.shape["tensor"] / (chip.flops * EFFICIENCY["compute"])
    )
    reading = weights / parts / mesh.shape["tensor"] * itemsize / (chip.hbm_bandwidth * EFFICIENCY["hbm"])
    sent = 2 * specs.dit_spec(config).num_sparse * taken * config.model.width * itemsize
    whole, block = _box(list(mesh.devices.flat), parts)
    return max(computing, reading) + sent * _hops(block, whole, chip) / (chip.link_bandwidth * EFFICIENCY["ici"])


def _mesh(sizes: Sequence[int], devices: Sequence[Any], axes: Sequence[str]) -> Mesh:
    """A mesh of these axes; on a torus the devices that share experts are a box, whose sides are as short as can be."""
    *_, parts, tensor = sizes
    if axes == COPIED_AXES and parts > 1 and tensor == 1:
        _, block = _box(devices, parts)
        if block:

            def place(device: Any) -> tuple[list[int], list[int]]:
                pairs = list(zip(device.coords, block, strict=True))
                return [at // side for at, side in pairs], [at % side for at, side in pairs]

            grid = np.array(sorted(devices, key=place), dtype=object).reshape(sizes)
            return mesh_of(grid, axes)
    return make_mesh(sizes, devices, axes)


def _box(devices: Sequence[Any], parts: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(sides of the torus on which the devices are, sides of the best box of so many of them); () where there is none."""
    if devices[0].platform != "tpu" or not hasattr(devices[0], "coords"):
        return (), ()
    whole = tuple(max(column) + 1 for column in zip(*(device.coords for device in devices), strict=True))
    if math.prod(whole) != len(devices):  # several devices to a chip, or a part of a slice
        return (), ()
    kind = tpu(devices[0].device_kind)
    sides = [[n for n in range(1, side + 1) if side % n == 0] for side in whole]
    boxes = [box for box in itertools.product(*sides) if math.prod(box) == parts]
    return whole, min(boxes, key=lambda box: _hops(box, whole, kind.chip), default=()) if kind else ()


def _hops(box: Sequence[int], whole: Sequence[int], chip: Chip) -> float:
    """Times of one link in which tokens reach the other devices of a box, all at once: the longest of its sides counts.

    Along a side of k a byte passes k / 4 links on average, of the two that a device has there; where the side is no ring, half
    of them are idle.
    """
    sides = zip(box, chip.directions(box, whole), strict=True)
    return max((side / (4 * number) for side, number in sides if side > 1), default=0.0)


def _memory(devices: Sequence[Any]) -> float:
    """Bytes of one device."""
    device = devices[0]
    if device.platform == "tpu" and (kind := tpu(device.device_kind)):
        return kind.chip.hbm_bytes
    if device.platform == "cpu":
        local = sum(each.process_index == device.process_index for each in devices)
        return host_bytes() / local
    stats = device.memory_stats() or {}
    return float(stats.get("bytes_limit", 16e9))
