"""How a model lies on devices that draw with it: `sample.layout`. Training splits weights for room; drawing rarely needs to.

Drawing holds no gradients and no moments, and every evaluation of the network uses all weights. Where dense weights are gathered
for it, as in training, the interconnect bounds the step; where they are copied, nothing of them travels. Experts are split no
further than pays: each device reads its experts' weights at every evaluation, and tokens travel to experts that lie elsewhere.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh

from ec_dit.config import specs
from ec_dit.core import processes, settings, sharding
from ec_dit.core.errors import UserError
from ec_dit.core.hardware import EFFICIENCY, Tpu, tpu
from ec_dit.core.mesh import COPIED_AXES, MESH_AXES, make_mesh
from ec_dit.nn import param
from ec_dit.system.model import System

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
    return replace(system, mesh=make_mesh(sizes, devices, axes))


def laid_out(params: Any, system: System) -> Any:
    """Lays parameters, from whatever mesh of the same devices, out as `system` draws with them."""
    wanted = system.sampling_params(system.abstract_params())

    def cast(leaf: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        return leaf if leaf.dtype == like.dtype else leaf.astype(like.dtype)

    cast_params = jax.tree.map(cast, params, wanted)
    return jax.device_put(cast_params, jax.tree.map(lambda like: like.sharding, wanted))


def _candidates(system: System, devices: Sequence[Any], axes: Sequence[str]) -> Iterator[_Candidate]:
    """Every mesh of these axes on which the weights divide: with more and more parts of the experts."""
    config, tensor = system.config, system.mesh.shape["tensor"]
    over, experts = len(devices) // tensor, config.moe.num_experts or 1
    shapes = system.shapes()
    held = system.sampling_params(shapes)
    for parts in (n for n in range(1, over + 1) if over % n == 0 and experts % n == 0):
        rest = over // parts
        fsdp = math.gcd(rest, config.model.width) if axes is MESH_AXES else 1
        mesh = make_mesh((rest // fsdp, fsdp, parts, tensor), devices, axes)
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
    return max(computing, reading) + sent * _hops(kind, parts) / (chip.link_bandwidth * EFFICIENCY["ici"])


def _hops(kind: Tpu, parts: int) -> float:
    """Links that a byte takes to one of so many neighbours on average, over those that a device sends on."""
    span = parts ** (1 / (3 if kind.cubes else 2))
    return 0.0 if parts == 1 else math.ceil(span) / 4


def _memory(devices: Sequence[Any]) -> float:
    """Bytes of one device."""
    device = devices[0]
    if device.platform == "tpu" and (kind := tpu(device.device_kind)):
        return kind.chip.hbm_bytes
    if device.platform == "cpu":
        local = sum(each.process_index == device.process_index for each in devices)
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / local
    stats = device.memory_stats() or {}
    return float(stats.get("bytes_limit", 16e9))
