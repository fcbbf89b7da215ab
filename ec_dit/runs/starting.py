"""What a run starts with: its newest checkpoint, another run's parameters, or fresh ones; and its frozen reference."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ec_dit import config as config_lib
from ec_dit.core.errors import TryAgain, UserError
from ec_dit.core.fingerprints import fingerprint
from ec_dit.runs.workdir import Workdir
from ec_dit.system import step as training_step
from ec_dit.system.model import System
from ec_dit.train.checkpoint import Checkpointer, abstract_like
from ec_dit.train.state import TrainState

_REFERENCE = "reference"  # in the record of a checkpoint


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on.

    Attributes:
        state: on the mesh.
        step: steps done.
        frozen: parameters that the objective compares the model with, laid out as the state's; None where it needs none.
        noted: of `frozen`, for the records of checkpoints.
    """

    state: TrainState
    step: int
    frozen: Any = None
    noted: Mapping[str, Any] = field(default_factory=dict)


def start(
    system: System,
    tx: optax.GradientTransformation,
    abstract: tuple[TrainState, TrainState],
    checkpointer: Checkpointer,
    say: Callable[[str], None],
) -> Start:
    """Reads or makes the state, and the frozen reference of an objective that needs one.

    Args:
        abstract: shapes and shardings of the state.
        checkpointer: of the run.

    Raises:
        UserError: what is to be read cannot be; or the reference is gone, or is another than the run began with.
    """
    wanted = abstract_like(*abstract)
    newest = checkpointer.newest(lambda step: checkpointer.restore(step, wanted), say)
    path, frozen = system.config.train.init_from, training_step.frozen_shape(system)
    if newest is not None:
        state, step = newest
        say(f"resuming at step {step}")
        if frozen is None:
            return Start(state, step)
        noted = checkpointer.meta(step)[_REFERENCE]
        return Start(state, step, _copy(system, _reference(system, noted), frozen), {_REFERENCE: noted})

    state = training_step.init_state(system, tx, abstract[1])
    if not path:
        return Start(state, 0)
    for leaf in jax.tree.leaves((state.params, state.ema)):
        leaf.delete()  # or memory would hold the model twice
    params, made_at = Workdir(path).start(system)
    _tell(system, say)
    state = state._replace(params=params, ema=_copy(system, params, wanted.ema))
    if frozen is None:
        return Start(state, 0)
    noted = {"workdir": path, "step": made_at, "fingerprint": fingerprint(params)}
    return Start(state, 0, _copy(system, params, frozen), {_REFERENCE: noted})


def _reference(system: System, noted: Mapping[str, Any]) -> Any:
    """Reads again what the run started with. Raises UserError where it is gone or another."""
    path, objective = system.config.train.init_from, system.config.objective.name
    what = f"the parameters that this run started from (step {noted['step']} of {noted['workdir']})"
    mend = f"objective.name={objective} compares the model with them: name a folder that has them with --config.train.init_from."
    try:
        params, _ = Workdir(path).start(system, noted["step"])
    except TryAgain:
        raise
    except UserError as error:
        raise UserError(f"{what} are gone from --config.train.init_from={path}: {error}\n{mend}") from error
    if fingerprint(params) != noted["fingerprint"]:
        raise UserError(f"--config.train.init_from={path} holds others than {what}.\n{mend}")
    return params


def _copy(system: System, params: Any, wanted: Any) -> Any:
    """Copies parameters into memory of their own, since the step overwrites the state's, in the dtypes of `wanted`."""

    def copied(params: Any) -> Any:
        return jax.tree.map(lambda a, like: jnp.copy(a).astype(like.dtype), params, wanted)

    with jax.set_mesh(system.mesh):
        return jax.jit(copied, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, wanted))(params)


def _tell(system: System, say: Callable[[str], None]) -> None:
    """Says where the parameters come from, and what differs of what they are made for."""
    source = Workdir(system.config.train.init_from)
    say(f"starting with the parameters of {system.config.train.init_from}")
    for line in config_lib.difference(source.config(), system.config, "shape", "meaning"):
        say(f"note: they were made with another {line}")
    made, here = source.encoding(), system.encoding
    if made is not None and here is not None and system.config.data.normalize == "channel":
        say(
            f"note: its latents were normalised by {made.mean_Z} and {made.std_Z}, those here are by {here.mean_Z} and "
            f"{here.std_Z}"
        )
