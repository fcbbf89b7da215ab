"""Compiles a config's real step for a topology that need not be there: shapes in, the program of one device out."""

import dataclasses
import importlib.util
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ec_dit import build, specs
from ec_dit.core import sharding
from ec_dit.core.errors import UserError
from ec_dit.core.tree import named_leaves
from ec_dit.data import dataset as datasets
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.eval.generate import guided_prediction
from ec_dit.models.text_to_image import Text
from ec_dit.planning.hardware import CHIPS, Chip
from ec_dit.train.checkpoint import abstract_like


@dataclass(frozen=True)
class Compiled:
    """A program, and what it holds.

    Attributes:
        program: of one device.
        system: whose step it is.
        images: in a step, over all devices.
        held: bytes on one device by kind: what goes into the program and stays.
        seconds: that compiling took.
    """

    program: jax.stages.Compiled
    system: build.System
    images: int
    held: dict[str, int]
    seconds: float


def chip_of(topology: str) -> Chip:
    """What a chip of the topology can do.

    Raises:
        UserError: for one that nobody knows.
    """
    name, _, shape = topology.partition(":")
    sides = [int(side) if side.isdigit() else 0 for side in shape.split("x")]
    if name not in CHIPS or min(sides) < 1 or (name == "cpu" and len(sides) > 1):
        raise UserError(f"--topology={topology}: write it as v5p:8x8x8, or cpu:8; known are {', '.join(CHIPS)}.")
    return CHIPS[name]


def devices(topology: str) -> tuple[list[Any], Chip]:
    """The devices of a topology such as v5p:8x8x8, v4:4x4x8, v5e:4x4 or cpu:8, and what one of them can do.

    Raises:
        UserError: for a topology that nobody knows, or without the compiler for it.
    """
    name, _, shape = topology.partition(":")
    chip = chip_of(topology)
    if name == "cpu":
        found = jax.devices("cpu")
        if len(found) < int(shape):
            raise UserError(f"--topology={topology}: {len(found)} emulated devices are here.")
        return found[: int(shape)], chip
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if name == "v4" else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # the compiler's own errors have no common class
        if not importlib.util.find_spec("libtpu"):
            raise NoCompiler("the TPU's compiler is not installed: pip install -e '.[tpu]'") from error
        raise UserError(f"--topology={topology}: the compiler says: {str(error).strip().splitlines()[0]}") from error
    return list(found), chip


def coordinates(mesh: jax.sharding.Mesh) -> list[tuple[int, ...]]:
    """Where every device of the mesh stands in its torus, in flat order; its number where it has no place."""
    return [tuple(getattr(device, "coords", (device.id,))) for device in mesh.devices.flat]


class NoCompiler(UserError):
    """The compiler for a topology is not installed."""


class DoesNotFit(UserError):
    """The compiler gave up: the program needs more memory than a chip has. `needed` bytes, None if it did not say."""

    def __init__(self, message: str):
        super().__init__(message)
        used = re.search(r"(?:[Uu]sed |required for HLO temporaries \()([\d.]+)([KMGT])", message)
        self.needed = round(float(used[1]) * 1024 ** (1 + "KMGT".index(used[2]))) if used else None


def make_system(config: ConfigDict, on: Sequence[Any]) -> build.System:
    """The config's system on these devices, with the tokenizer of its data where a text tower is trained along."""
    tokenizer = None
    if config.text.encoder == "tower":
        d = config.data
        if not (d.path and Path(d.path).exists()):
            raise UserError(
                f"the text tower's size depends on the tokenizer of {d.path or '--config.data.path'}: "
                f"python -m ec_dit.prepare --source={d.source or 'SOURCE'} --out={d.path or 'DIR'}"
            )
        path = datasets.open(d.path).tokenizer_path
        tokenizer = Tokenizer.load(path) if path else None
    return build.make_system(config, tokenizer, on)


def train_step(config: ConfigDict, on: Sequence[Any]) -> Compiled:
    """The training step on a batch of the config's shapes."""
    system = make_system(config, on)
    specs.check_batch(config, system.mesh)
    tx = system.optimizer()
    abstract, shardings = system.abstract_state(tx)
    state = abstract_like(abstract, shardings)
    batch = _batch(system, config.train.batch_size)
    held = {
        "parameters": per_device_bytes(state.params),
        "optimizer": per_device_bytes(state.opt_state),
        "ema": per_device_bytes(state.ema),
        "batch": per_device_bytes(batch),
    }
    step = system.step(tx, shardings)
    return _compile(system, config.train.batch_size, held, lambda: step.lower(state, batch))


def sample_step(config: ConfigDict, on: Sequence[Any]) -> Compiled:
    """One guided network evaluation of the sampler, with the weights in the dtype of the computation."""
    system = make_system(config, on)
    settings = specs.sample_settings(config)
    params = system.sampling_params(abstract_like(*system.abstract_state(system.optimizer())).params)
    ways = sharding.batch_ways(system.mesh)
    images = -(-settings.batch_size // ways) * ways  # as the sampler pads it
    noise, text = _batch(system, images)
    held = {"parameters": per_device_bytes(params), "batch": per_device_bytes((noise, text))}
    always = dataclasses.replace(settings, guidance_interval=(0.0, 1.0))

    def evaluate(params: Any, noise: jax.Array, text: Text) -> jax.Array:
        predict = guided_prediction(system.graphdef, always, params, images, text, system.null_text())
        return predict(noise, jnp.float32(0.5))

    step = jax.jit(evaluate, compiler_options=system.compiler_options)
    return _compile(system, images, held, lambda: step.lower(params, noise, text))


def per_device_bytes(tree: Any) -> int:
    """Bytes of an abstract tree's arrays on one device, by their shardings."""
    total = 0
    for _, leaf in named_leaves(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        total += int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    return total


def _batch(system: build.System, images: int) -> tuple[jax.ShapeDtypeStruct, Text]:
    d, t = system.config.data, system.config.text
    x = _on(system, (images, d.size, d.size, d.channels), jnp.float32)
    if t.encoder == "tower":
        tokens = _on(system, (images, t.length), jnp.int32)
    else:
        tokens = _on(system, (images, t.length, t.width), jnp.float32)
    return x, Text(tokens, _on(system, (images, t.length), jnp.bool_))


def _on(system: build.System, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    where = sharding.named_sharding(("batch", *(None,) * (len(shape) - 1)), shape, system.mesh, "the batch")
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def _compile(system: build.System, images: int, held: dict[str, int], lower: Any) -> Compiled:
    start = time.perf_counter()
    with jax.set_mesh(system.mesh):
        lowered = lower()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise DoesNotFit(str(error)) from error
        raise UserError(f"the compiler refuses this step: {str(error).strip().splitlines()[0]}") from error
    return Compiled(program, system, images, held, time.perf_counter() - start)
