"""How a system is trained: its optimizer and state, the step, the validation loss, and batches on the mesh."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ec_dit.config import specs
from ec_dit.core import sharding
from ec_dit.core.errors import UserError
from ec_dit.data.batch import Batch
from ec_dit.models.text_to_image import TextToImage
from ec_dit.nn.routing import record
from ec_dit.nn.routing.rules import RULES
from ec_dit.nn.routing.spec import Routed
from ec_dit.objectives.base import Objective
from ec_dit.system.model import System
from ec_dit.train import state as train_state
from ec_dit.train.optimizer import make_optimizer
from ec_dit.train.state import TrainState, state_shardings
from ec_dit.train.step import make_step


def optimizer(system: System) -> optax.GradientTransformation:
    """Makes the config's optimizer for the system's parameters."""
    return make_optimizer(system.config.optimizer, system.config.train.steps, system.infos)


def abstract_state(system: System, tx: optax.GradientTransformation) -> tuple[TrainState, TrainState]:
    """Gives (shapes, shardings) of the training state; takes no memory."""
    with jax.set_mesh(system.mesh):
        abstract = jax.eval_shape(lambda: train_state.init_state(system.init_params, tx, system.config.seed))
    return abstract, state_shardings(abstract, system.infos, system.mesh)


def init_state(system: System, tx: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """Makes a fresh state, every device its own part."""
    # Dozens of random draws run once: on CPU, optimising their code takes several times as long as running it plain.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

    def init() -> TrainState:
        return train_state.init_state(system.init_params, tx, system.config.seed)

    with jax.set_mesh(system.mesh):
        return jax.jit(init, out_shardings=shardings, compiler_options=options)()


def make_train_step(system: System, tx: optax.GradientTransformation, shardings: TrainState) -> jax.stages.Wrapped:
    """Makes the jitted training step (state, batch as `place` gives it, frozen parameters); lower it to inspect the program."""
    objective = specs.training_objective(system.config, system.null_text())

    def loss_fn(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        # A micro-batch is a slice of the batch: say again how it lies.
        batch = jax.tree.map(lambda a: sharding.constrain(a, "batch", *(None,) * (a.ndim - 1)), batch)
        return objective.loss(_model(system, params), _frozen(system, frozen), batch, key)

    config = system.config
    rule = RULES.get(config.moe.routing)
    settle = functools.partial(record.updated, keep=rule.keep if rule else 0.0, bias_rate=config.moe.bias_rate)
    step = make_step(loss_fn, tx, config.optimizer.ema_decay, config.train.accumulate, settle)
    outputs = (shardings, sharding.replicated(system.mesh))
    return jax.jit(step, out_shardings=outputs, donate_argnums=0, compiler_options=system.compiler_options)


class ScheduledStep:
    """The training step, for each capacity of the config's schedule in its time; compiled when it first comes up.

    Args:
        first_step: that is trained next.
        frozen: parameters of an objective's reference.
    """

    def __init__(
        self, system: System, tx: optax.GradientTransformation, shardings: TrainState, first_step: int, frozen: Any
    ):
        self._system, self._next = system, first_step

        @functools.cache
        def step_of(capacity_factor: float) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
            now = replace(system, config=specs.with_capacity(system.config, capacity_factor))
            return functools.partial(make_train_step(now, tx, shardings), frozen=frozen)

        self._step_of = step_of

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """Trains the next step."""
        step = self._step_of(specs.capacity_at(self._system.config, self._next))
        self._next += 1
        return step(state, batch)


def make_validation(system: System) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Makes the jitted (params, batch, frozen parameters) -> (sum of the images' losses, number of images).

    Images of any shape are routed as sampling routes an image alone; position -1 leaves an image out.
    """
    objective = specs.training_objective(system.config, system.null_text())

    def loss_fn(params: Any, batch: Batch, frozen: Any = None) -> tuple[jax.Array, jax.Array]:
        real_B = batch.position_B >= 0
        loss_B = _losses(system, objective, "sampling", params, frozen, batch)
        return jnp.where(real_B, loss_B, 0).sum(), real_B.sum()

    return jax.jit(loss_fn, out_shardings=sharding.replicated(system.mesh))


def make_losses(
    system: System, times: Sequence[float], routed: Routed = "sampling"
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Makes the jitted (params, batch) -> (position_B, loss_B), each image at times[position mod their number].

    Args:
        routed: as sampling routes an image alone, or in training's groups; images that fill up a batch are routed along then.

    Raises:
        UserError: the objective compares the model with another.
    """
    objective = specs.training_objective(system.config, system.null_text())
    if objective.needs_reference:
        raise UserError(
            f"losses at fixed times are of the model alone; --config.objective.name={system.config.objective.name} compares it "
            "with the one that it started from."
        )

    def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return batch.position_B, _losses(system, objective, routed, params, None, batch, jnp.asarray(times))

    return jax.jit(loss_fn, out_shardings=sharding.replicated(system.mesh))


def _losses(
    system: System,
    objective: Objective,
    routed: Routed,
    params: Any,
    frozen: Any,
    batch: Batch,
    times: jax.Array | None = None,
) -> jax.Array:
    """The validation loss of each image; of those at position -1, a number that means nothing."""
    _, rows, columns, _ = batch.image_BYXZ.shape
    if routed == "sampling":
        objective = replace(objective, routing=specs.sample_settings(system.config, (rows, columns)).routing)
    counted = batch._replace(position_B=jnp.maximum(batch.position_B, 0))
    return objective.validation_loss(_model(system, params), _frozen(system, frozen), counted, times)


def frozen_shape(system: System) -> Any:
    """Gives shapes and shardings of the frozen parameters, in the dtype in which they are used; None for an objective without."""
    if not system.config.objective.kind.needs_reference:
        return None
    return system.sampling_params(system.abstract_params())


def _model(system: System, params: Any) -> TextToImage:
    model: TextToImage = nnx.merge(system.graphdef, params)
    return model


def _frozen(system: System, params: Any) -> TextToImage | None:
    return None if params is None else _model(system, params)


def place(system: System, batch: Batch) -> Batch:
    """Places a loader's batch, the part of this process, as one global batch on the mesh; record numbers stay behind.

    Raises:
        UserError: the objective learns from pairs, and these are none.
    """
    objective = system.config.objective
    if objective.kind.needs_pairs and batch.rejected_BYXZ is None:
        raise UserError(
            f"--config.objective.name={objective.name} learns from pairs of pictures with one caption each, and these data "
            f"hold single pictures. Choose data of pairs, --config.data.source=synthetic to measure speed, or another objective."
        )
    placed: Batch = sharding.place_parts(batch._replace(record_B=None), system.mesh)
    return placed


def stream(system: System, batches: Iterator[Batch]) -> Iterator[tuple[Batch, np.ndarray | None]]:
    """Yields a loader's batches on the devices, tagged with their record numbers."""
    for batch in batches:
        yield place(system, batch), batch.record_B
