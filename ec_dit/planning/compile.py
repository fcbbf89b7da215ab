"""Compiles a config's real step for a topology that need not be there: shapes in, the program of one device out."""

import dataclasses
import functools
import hashlib
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
from flax import nnx

from ec_dit.config import RunConfig, specs
from ec_dit.core import settings, sharding, topology
from ec_dit.core.errors import UserError
from ec_dit.core.hardware import TPUS, Chip, host_bytes
from ec_dit.core.tree import named_leaves
from ec_dit.data import dataset as datasets
from ec_dit.data.batch import Batch, Text
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.models.text_to_image import ReadText, TextToImage
from ec_dit.sampling.generator import guided_prediction, read_captions
from ec_dit.sampling.settings import SampleSettings
from ec_dit.system import layout
from ec_dit.system import model as systems
from ec_dit.system import step as training_step
from ec_dit.system.model import System
from ec_dit.train.checkpoint import abstract_like
from ec_dit.train.state import TrainState


@dataclass(frozen=True)
class Lowered:
    """A step before it is compiled.

    Attributes:
        step: its program, of all devices.
        system: whose step it is.
        images: in a step, over all devices.
        held: bytes on one device by kind: what goes into the program and stays.
        given: shapes and shardings of what it takes behind the parameters or the state.
        seconds: that lowering took.
    """

    step: jax.stages.Lowered
    system: System
    images: int
    held: dict[str, int]
    given: tuple[Any, ...]
    seconds: float

    @property
    def digest(self) -> str:
        """SHA-256 of all that the compiler reads: the same compiler makes the same of it."""
        options = sorted((self.system.compiler_options or {}).items())
        place = (self.system.mesh.devices.flat[0].device_kind, coordinates(self.system.mesh), options)
        return hashlib.sha256(f"{place}\n{self.step.as_text()}".encode()).hexdigest()

    def compile(self) -> "Compiled":
        """Compiles it.

        Raises:
            DoesNotFit: if a chip has too little memory.
            UserError: for whatever else the compiler refuses.
        """
        start = time.perf_counter()
        try:
            program = self.step.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise DoesNotFit(str(error), self.held) from error
            raise UserError(f"the compiler refuses this step: {str(error).strip().splitlines()[0]}") from error
        return Compiled(program, self, self.seconds + time.perf_counter() - start)


@dataclass(frozen=True)
class Compiled:
    """A program.

    Attributes:
        program: of one device.
        lowered: what it was compiled from.
        seconds: that lowering and compiling took.
    """

    program: jax.stages.Compiled
    lowered: Lowered
    seconds: float

    @property
    def needed(self) -> int:
        """Bytes of one device's memory that it takes."""
        memory = self.program.memory_analysis()
        assert memory is not None
        every = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.generated_code_size_in_bytes
        )
        # The peak that a CPU's compiler tells leaves out what the program makes on its way.
        on_cpu = self.lowered.system.mesh.devices.flat[0].platform == "cpu"
        return every if on_cpu else memory.peak_memory_in_bytes or every


def devices(text: str) -> tuple[list[Any], Chip]:
    """The devices of a topology such as v5p:8x8x8, v4:4x4x8, v5e:4x4 or cpu:8, and what one of them can do.

    Emulated devices share the memory of this machine.

    Raises:
        UserError: for a topology that there is not, or without the compiler for it.
    """
    wanted = topology.parse(text)
    chip = wanted.chip
    if wanted.name == topology.CPU:
        here = jax.devices("cpu")
        if len(here) < wanted.chips:
            raise UserError(f"--topology={wanted}: {len(here)} emulated devices are here.")
        memory = host_bytes() / wanted.chips
        return here[: wanted.chips], dataclasses.replace(chip, hbm_bytes=min(chip.hbm_bytes, memory))
    from jax.experimental import topologies

    name = TPUS[wanted.name].compiler_name
    options: dict[str, Any] = {"chip_config_name": name} if name else {}
    if wanted.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=str(wanted), **options).devices
    except Exception as error:  # the compiler's own errors have no common class
        if not importlib.util.find_spec("libtpu"):
            raise NoCompiler("the TPU's compiler is not installed: pip install -e '.[tpu]'") from error
        raise UserError(f"--topology={wanted}: the compiler says: {str(error).strip().splitlines()[0]}") from error
    return list(found), chip


def coordinates(mesh: jax.sharding.Mesh) -> list[tuple[int, ...]]:
    """Where every device of the mesh stands in its torus, in flat order; its number where it has no place."""
    return [tuple(getattr(device, "coords", (device.id,))) for device in mesh.devices.flat]


class NoCompiler(UserError):
    """The compiler for a topology is not installed."""


class DoesNotFit(UserError):
    """The compiler gave up: the program needs more memory than a chip has.

    Attributes:
        needed: bytes; None if it did not say.
        held: bytes on one device by kind, as of `Compiled`.
    """

    def __init__(self, message: str, held: dict[str, int]):
        super().__init__(message)
        used = re.search(r"(?:[Uu]sed |required for HLO temporaries \()([\d.]+)([KMGT])", message)
        self.needed = round(float(used[1]) * 1024 ** (1 + "KMGT".index(used[2]))) if used else None
        self.held = held


def make_system(config: RunConfig, on: Sequence[Any]) -> System:
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
    return systems.make_system(config, tokenizer, on)


def lower(config: RunConfig, on: Sequence[Any], what: str) -> Lowered:
    """Lowers a step, `what` being train or sample.

    Raises:
        UserError: for a config that does not fit the devices.
    """
    return (train_step if what == "train" else sample_step)(specs.largest(config) if what == "train" else config, on)


def train_step(config: RunConfig, on: Sequence[Any]) -> Lowered:
    """Lowers the training step, on a batch of the config's shapes."""
    system = make_system(config, on)
    specs.check_batch(config, system.mesh)
    tx = training_step.optimizer(system)
    abstract, shardings = training_step.abstract_state(system, tx)
    state, frozen = abstract_like(abstract, shardings), training_step.frozen_shape(system)
    batch = batch_shapes(system, config.train.batch_size, pairs=config.objective.kind.needs_pairs)
    step = training_step.make_train_step(system, tx, shardings)
    size = {**_state_bytes(state, frozen), "batch": per_device_bytes(batch)}
    return _lower(system, config.train.batch_size, size, step, state, batch, frozen)


def held(config: RunConfig, on: Sequence[Any], what: str) -> dict[str, int]:
    """Bytes of the state on one device by kind, from its shardings; nothing is compiled.

    Raises:
        UserError: for a config that does not fit the devices.
    """
    if what != "train":
        system = _sampling_system(config, on)
        return {"parameters": per_device_bytes(system.sampling_params(system.abstract_params()))}
    system = make_system(config, on)
    specs.check_batch(config, system.mesh)
    state = abstract_like(*training_step.abstract_state(system, training_step.optimizer(system)))
    return _state_bytes(state, training_step.frozen_shape(system))


def _state_bytes(state: TrainState, frozen: Any) -> dict[str, int]:
    kinds = {"parameters": state.params, "optimizer": state.opt_state, "ema": state.ema}
    kinds |= {} if frozen is None else {"reference": frozen}
    return {kind: per_device_bytes(tree) for kind, tree in kinds.items()}


def _sampling_system(config: RunConfig, on: Sequence[Any]) -> System:
    """The system as it lies to be drawn with; where no mesh is asked for, the devices need not be those of training."""
    if config.sample.layout != "mesh":
        config = settings.changed(config, {"mesh.data": -1, "mesh.fsdp": 1, "mesh.expert": 1})
    return layout.for_sampling(make_system(config, on))


def sample_step(config: RunConfig, on: Sequence[Any]) -> Lowered:
    """Lowers one guided network evaluation of the sampler, with the weights in the dtype of the computation.

    What is made of captions once for all evaluations is there.
    """
    system = _sampling_system(config, on)
    sampling = specs.sample_settings(system.config)
    params = system.sampling_params(system.abstract_params())
    images = sharding.even_batch(sampling.batch_size, system.mesh)  # as the sampler pads it
    batch = batch_shapes(system, images)
    always = dataclasses.replace(sampling, guidance_interval=(0.0, 1.0))
    conditions = _conditions(system, always, params, batch)
    size = {"parameters": params, "captions": conditions, "batch": batch.image_BYXZ}

    def evaluate(params: Any, noise: jax.Array, conditions: Any) -> jax.Array:
        return guided_prediction(system.graphdef, always, params, conditions)(noise, jnp.float32(0.5))

    step = jax.jit(evaluate, compiler_options=system.compiler_options)
    held = {kind: per_device_bytes(tree) for kind, tree in size.items()}
    computed = layout.as_computed(system)
    taken = params if system.mesh.size > 1 else jax.eval_shape(computed, params)
    return _lower(system, images, held, step, taken, batch.image_BYXZ, conditions)


def _conditions(system: System, sampling: SampleSettings, params: Any, batch: Batch) -> Any:
    """Gives shapes and shardings of what sampling keeps of captions."""
    read = functools.partial(read_captions, system.graphdef, sampling)
    with jax.set_mesh(system.mesh):
        shapes = jax.eval_shape(
            lambda params, text: read(params, batch.image_BYXZ.shape[:3], text, system.null_text()), params, batch.text
        )
    model: TextToImage = nnx.merge(system.graphdef, params)

    def place(text: ReadText) -> ReadText:
        axes = jax.tree.map(lambda leaf: ("batch", *(None,) * (leaf.ndim - 1)), text)
        axes = axes._replace(kept=model.dit.kept_axes)
        return jax.tree.map(
            lambda leaf, axes: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding.named_sharding(axes, leaf.shape, system.mesh, "the captions")
            ),
            text,
            axes,
        )

    return tuple(None if text is None else place(text) for text in shapes)


def per_device_bytes(tree: Any) -> int:
    """Bytes of an abstract tree's arrays on one device, by their shardings."""
    total = 0
    for _, leaf in named_leaves(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        total += int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    return total


def batch_shapes(system: System, images: int, *, pairs: bool = False) -> Batch:
    """Gives shapes and shardings of a batch of square images, as `place` puts one on the mesh."""
    d, t = system.config.data, system.config.text
    x = _on(system, (images, d.size, d.size, d.channels), jnp.float32)
    if t.encoder == "tower":
        tokens = _on(system, (images, t.length), jnp.int32)
    else:
        tokens = _on(system, (images, t.length, t.width), jnp.float32)
    pooled = _on(system, (images, t.pooled), jnp.float32) if t.pooled else None
    text = Text(tokens, _on(system, (images, t.length), jnp.bool_), pooled)
    return Batch(x, text, rejected_BYXZ=x if pairs else None)


def _on(system: System, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    where = sharding.named_sharding(("batch", *(None,) * (len(shape) - 1)), shape, system.mesh, "the batch")
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def _lower(
    system: System, images: int, size: dict[str, int], step: jax.stages.Wrapped, held: Any, *given: Any
) -> Lowered:
    start = time.perf_counter()
    with jax.set_mesh(system.mesh):
        lowered = step.lower(held, *given)
    return Lowered(lowered, system, images, size, given, time.perf_counter() - start)
