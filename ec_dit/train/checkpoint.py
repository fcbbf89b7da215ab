"""Orbax checkpoints: asynchronous, the newest few kept, restored onto whatever mesh the run now has."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from ec_dit.core import paths
from ec_dit.core.errors import UserError
from ec_dit.core.tree import named_leaves
from ec_dit.train.state import TrainState


class Checkpointer:
    """Saves and restores (state, meta) by step under `directory`.

    Args:
        directory: local or gs:// folder; created when missing, unless `read_only`.
        keep: newest checkpoints that stay; None = all.
        asynchronous: `save` returns before the files are written.
    """

    def __init__(self, directory: str, *, keep: int | None = None, asynchronous: bool = True, read_only: bool = False):
        self._directory = paths.at(directory)
        if read_only and not self._directory.exists():
            raise UserError(f"no checkpoints in {self._directory}: train there first, or check --workdir.")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=asynchronous,
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """The newest complete step, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Starts saving and returns once the arrays may be overwritten; a step that is there already stays as it is."""
        if step == self.latest():
            return
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(dict(meta)))
        if not self._manager.save(step, args=args):
            raise RuntimeError(f"checkpoint {step} was not saved")

    def restore(self, step: int, abstract: TrainState, only: Collection[str] = TrainState._fields) -> TrainState:
        """The state of `step`; the ShapeDtypeStructs of `abstract` carry the shardings it gets.

        Args:
            only: fields of the state to read; the others come back as None.

        Raises:
            UserError: when the checkpoint is damaged or holds another model.
        """
        self._check_there(step)
        with self._damage_named(step):
            # Orbax keeps a state as a dict of its fields.
            asked = {name: field for name, field in abstract._asdict().items() if name in only}
            self._check_shapes(step, asked)
            how = ocp.checkpoint_utils.construct_restore_args(asked)
            args = ocp.args.PyTreeRestore(asked, restore_args=how, partial_restore=True)
            found = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
            return TrainState(**{name: found.get(name) for name in TrainState._fields})

    def fields(self, step: int) -> set[str]:
        """Which fields of a state the checkpoint of `step` holds; a converted model has its parameters alone."""
        self._check_there(step)
        with self._damage_named(step):
            return set(self._manager.item_metadata(step)["state"].tree)

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the state of `step`.

        Raises:
            UserError: when the checkpoint is damaged.
        """
        self._check_there(step)
        with self._damage_named(step):
            return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def _check_there(self, step: int) -> None:
        if step not in self._manager.all_steps():
            there = sorted(self._manager.all_steps())
            raise UserError(f"there is no checkpoint {self._directory / str(step)}; there are {there}.")

    @contextlib.contextmanager
    def _damage_named(self, step: int) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        # What broken files end in; other OSErrors are of connections and disks, and say nothing of the files.
        except (ValueError, KeyError, AttributeError, TypeError, FileNotFoundError, NotADirectoryError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"checkpoint {self._directory / str(step)} cannot be restored: {reason} "
                f"Remove that folder to go on from the checkpoint before it."
            ) from error

    def _check_shapes(self, step: int, asked: Mapping[str, Any]) -> None:
        """Raises UserError where the arrays on disk are not those of the fields `asked` for, before anything is read."""
        there = self._manager.item_metadata(step)["state"].tree
        if absent := sorted(asked.keys() - there.keys()):
            raise UserError(
                f"checkpoint {self._directory / str(step)} has no {', '.join(absent)}: it is no run to go on with, but holds "
                f"converted parameters. Start a run from them: --config.train.init_from={self._directory.parent} with another "
                f"--workdir."
            )
        saved = {name: tuple(a.shape) for name, a in named_leaves({name: there[name] for name in asked})}
        wanted = {
            # A typed random key is stored as its words.
            name: tuple(jax.eval_shape(jax.random.key_data, a).shape if _is_key(a) else a.shape)
            for name, a in named_leaves(dict(asked))
        }
        differing = [name for name in sorted(saved.keys() | wanted.keys()) if saved.get(name) != wanted.get(name)]
        if differing:
            name = differing[0]
            raise UserError(
                f"checkpoint {self._directory / str(step)} holds another model: {len(differing)} arrays differ, first {name}: "
                f"{saved.get(name, 'missing')} saved, {wanted.get(name, 'none')} wanted."
            )

    def check(self) -> None:
        """Raises what ended a save that ran in the background, if something did."""
        self._manager.check_for_errors()
        if not self._manager.is_saving_in_progress():
            self._manager.wait_until_finished()  # of the thread that renames and deletes; it has nothing to wait for

    def wait(self) -> None:
        """Until everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the manager."""
        self._manager.wait_until_finished()
        self._manager.close()


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def abstract_like(abstract: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of `abstract` with `shardings`, for `Checkpointer.restore`."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
