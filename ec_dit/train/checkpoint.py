"""Orbax checkpoints: asynchronous, the newest few kept, restored onto whatever mesh the run now has, and compared with what was
saved.

Beside the state lies a record of it: its step, and shape, dtype and fingerprint of every array; and a list of the files, with
their digests. A checkpoint that differs from them is damaged, and the one before it serves.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint._src.metadata.array_metadata_store import Store

from ec_dit.core import processes
from ec_dit.core.errors import DamageError, TryAgain, UserError, explain
from ec_dit.core.fingerprints import leaf_fingerprints
from ec_dit.core.json_file import damaged, seal
from ec_dit.core.tree import is_key, named_leaves
from ec_dit.train import checkpoint_files
from ec_dit.train.background import Task, patience
from ec_dit.train.checkpoint_folder import CheckpointFolder
from ec_dit.train.state import TrainState

T = TypeVar("T")
_ATTEMPTS = 10  # at reading the newest checkpoint, while a run deletes old ones
_PART = 2**20  # bytes of a part that one of several holders of an array writes


class AbsentError(UserError):
    """A checkpoint that is not there, or was deleted while it was read."""


def _tree_handler() -> ocp.PyTreeCheckpointHandler:
    """Makes Orbax's handler of trees, which has small arrays that lie in several copies written by the holder of one.

    By default each holder writes a part, and compiles a program to cut it out: several for each array, at the first save.
    """
    types = ocp.type_handlers
    arrays = types.ArrayHandler(array_metadata_store=Store(), min_slice_bytes_for_replica_parallel=_PART)
    others = [(kind, types.get_type_handler(kind)) for kind in types.supported_types() if kind is not jax.Array]
    return ocp.PyTreeCheckpointHandler(
        type_handler_registry=types.create_type_handler_registry((jax.Array, arrays), *others)
    )


class Checkpointer:
    """Saves and restores (state, meta) by step under `directory`.

    Args:
        directory: local or gs:// folder; created when missing, unless `read_only`.
        keep: newest checkpoints that stay; None = all.
        asynchronous: `save` returns before the files are written.
        read_only: nothing in the folder is changed.
    """

    def __init__(self, directory: str, *, keep: int | None = None, asynchronous: bool = True, read_only: bool = False):
        self._folder = CheckpointFolder(directory)
        self._keep, self._asynchronous, self._read_only = keep, asynchronous, read_only
        self._arrays = _tree_handler()
        self._saver: ocp.AsyncCheckpointer | None = None
        self._end: Task | None = None  # of the save that was begun last
        if read_only:
            if processes.of_first(str(self._folder.path.exists())) == "False":
                raise UserError(f"no checkpoints in {self._folder.path}: train there first, or check the path.")
            self._folder.seen_by_all()
            return
        if processes.is_first():
            self._folder.path.mkdir(parents=True, exist_ok=True)
            self._folder.clear_torn()
        processes.wait("the checkpoints are looked at")
        items = {"state": _tree_handler(), "meta": ocp.JsonCheckpointHandler()}
        self._saver = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**items))

    def latest(self) -> int | None:
        """The newest step whose record is whole, None if there is none."""
        return next(iter(self._folder.steps()), None)

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Starts saving and returns once the arrays may be overwritten; a step that is there already stays as it is.

        Raises:
            what the save before ended with.
        """
        assert self._saver is not None
        self.wait()
        if processes.of_first(str(self.latest()) if processes.is_first() else "") == str(step):
            return
        fields = state._asdict() if isinstance(state, TrainState) else dict(state)
        prints, leaves = leaf_fingerprints(fields), dict(named_leaves(fields))
        arrays = {name: {**_facts(leaf), "fingerprints": prints[name]} for name, leaf in leaves.items()}
        record = seal({**meta, "step": step, "arrays": arrays})
        if processes.is_first():
            self._folder.make_room(step)
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(fields), meta=ocp.args.JsonSave(record))
        self._saver.save(self._folder.path / str(step), args=args)  # begins with all processes waiting for each other
        self._end = Task(functools.partial(self._finish, step))
        if not self._asynchronous:
            self.wait()

    def _finish(self, step: int) -> None:
        assert self._saver is not None
        self._saver.wait_until_finished()
        if processes.is_first():
            checkpoint_files.write_list(self._folder.path / str(step))
            self._folder.prune(self._keep)

    def check(self) -> None:
        """Raises what a save in the background ended with, if it has; waits for nothing."""
        if self._end is not None and not self._end.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until everything saved is on disk; raises what a save ended with."""
        end, self._end = self._end, None
        if end is not None:
            end.result()

    def close(self) -> None:
        """Waits, and frees what saving needs."""
        self.wait()
        if self._saver is not None:
            self._saver.close()

    def newest(self, read: Callable[[int], T], say: Callable[[str], None]) -> tuple[T, int] | None:
        """(what `read` makes of it, step) of the newest checkpoint that is whole; None where there is no checkpoint.

        Damaged ones are said, and, unless this object is `read_only`, renamed, so that nobody takes them for checkpoints; only
        then those before the newest `keep` go, of which a kill may have left more. Every process calls it.

        Args:
            read: called with steps, newest first, until it raises no DamageError.

        Raises:
            UserError: when all of them are damaged, or some process does not see them.
        """
        for _ in range(_ATTEMPTS):
            try:
                found = self._newest(self._folder.seen_by_all(), read, say)
            except AbsentError:  # a run that goes on meanwhile has newer ones
                continue
            if found is not None and not self._read_only and processes.is_first():
                self._folder.prune(self._keep)
            return found
        raise TryAgain(f"checkpoints in {self._folder.path} are deleted faster than they can be read.")

    def _newest(self, steps: list[int], read: Callable[[int], T], say: Callable[[str], None]) -> tuple[T, int] | None:
        broken: dict[int, str] = {}
        for step in steps:
            try:
                if self._record(step) is None:
                    say(f"{self._folder.path / str(step)} is no checkpoint of step {step}: left alone")
                    continue
                result = read(step)
            except DamageError as error:
                broken[step] = str(error)
                continue
            for number, message in broken.items():
                kept = "" if self._read_only else f" It is kept as {self._put_aside(number)}."
                say(f"{message}{kept} The checkpoint before it is used: {step}.")
            return result, step
        if not broken:
            return None
        raise DamageError("\n".join([*broken.values(), self._folder.no_other]))

    def _put_aside(self, step: int) -> str:
        name = self._folder.put_aside(step, "damaged") if processes.is_first() else f"{step}.damaged"
        processes.wait(f"checkpoint {step} is put aside")
        return name

    def restore(self, step: int, abstract: TrainState, only: Collection[str] = TrainState._fields) -> TrainState:
        """The state of `step`; the ShapeDtypeStructs of `abstract` carry the shardings it gets. Every process calls it.

        Args:
            only: fields of the state to read; the others come back as None.

        Raises:
            DamageError: when the arrays are not those that were saved.
            AbsentError: when there is no such checkpoint, or somebody deleted it meanwhile.
            UserError: when it holds another model, or cannot be read.
        """
        record = self.meta(step)
        # Orbax keeps a state as a dict of its fields.
        asked = {name: field for name, field in abstract._asdict().items() if name in only}
        self._agreed(step, lambda: self._compare_files(step))
        found = self._agreed(step, lambda: self._read(step, asked, record))
        self._agreed(step, lambda: self._compare(step, found, record))
        return TrainState(*(found.get(name) for name in TrainState._fields))  # type: ignore[arg-type]

    def fields(self, step: int) -> set[str]:
        """Which fields of a state the checkpoint of `step` holds; a converted model has its parameters alone."""
        if "arrays" in (record := self.meta(step)):
            return {name.partition("/")[0] for name in record["arrays"]}
        return self._agreed(step, lambda: set(self._tree(step)))

    def meta(self, step: int) -> dict[str, Any]:
        """The record of `step`, with what was saved beside its state.

        Raises:
            AbsentError: when there is no such checkpoint.
            DamageError: when its record is damaged.
        """
        if (record := self._record(step)) is None:
            there = self._folder.steps()[::-1]
            raise AbsentError(f"there is no checkpoint {self._folder.path / str(step)}; there are {there}.")
        return record

    def _record(self, step: int) -> dict[str, Any] | None:
        record = self._agreed(step, lambda: self._folder.record(step))
        if not processes.everywhere(record is None) and not processes.everywhere(record is not None):
            raise AbsentError(f"{self._name(step)} is not there for every process.")
        return record

    def _read(self, step: int, asked: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
        self._check_shapes(step, asked, record)
        how = ocp.checkpoint_utils.construct_restore_args(asked)
        args = ocp.args.PyTreeRestore(asked, restore_args=how, partial_restore=True)
        # Of the handler itself: the classes around it wait for processes that may have met an error.
        found: dict[str, Any] = self._arrays.restore(self._folder.path / str(step) / "state", args=args)
        return found

    def _tree(self, step: int) -> dict[str, Any]:
        tree: dict[str, Any] = self._arrays.metadata(self._folder.path / str(step) / "state").tree
        return tree

    def _compare_files(self, step: int) -> None:
        if processes.is_first():  # many processes have many files
            checkpoint_files.compare(self._folder.path / str(step))

    def _compare(self, step: int, found: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Raises DamageError, and frees the arrays, where they are not those of the record."""
        if "arrays" not in record:
            return  # of a version that wrote none
        prints = leaf_fingerprints(found)
        dtypes = {name: _facts(leaf)["dtype"] for name, leaf in named_leaves(dict(found))}
        saved = {name: record["arrays"][name]["fingerprints"] for name in prints}
        wrong = [name for name, dtype in dtypes.items() if saved[name][dtype] != prints[name][dtype]]
        if not wrong:
            return
        for leaf in jax.tree.leaves(found):
            leaf.delete()
        raise damaged(self._name(step), f"{len(wrong)} of {len(prints)} arrays are not those saved, first {wrong[0]}")

    def _name(self, step: int) -> str:
        return f"checkpoint {self._folder.path / str(step)}"

    def _agreed(self, step: int, work: Callable[[], T]) -> T:
        """What `work` returns in each process; if it meets an error in one, all of them raise.

        An error of the content, whatever Orbax and TensorStore make of it, becomes a DamageError; others say nothing against it.
        """
        result, error = None, None
        with patience():
            try:
                result = work()
            except UserError as known:
                error = known
            except (jax.errors.JaxRuntimeError, MemoryError):
                raise
            except Exception as cause:  # noqa: BLE001 - Orbax and what it stands on raise anything
                error = self._told(step, cause)
        if isinstance(error, DamageError) and not self._folder.is_there(step):
            error = AbsentError(
                f"{self._name(step)} was deleted while it was read; there are {self._folder.steps()[::-1]}."
            )
        for kind in (AbsentError, DamageError, UserError):
            if not processes.everywhere(not isinstance(error, kind)):
                raise error or kind(f"{self._name(step)} cannot be read: another process says why.")
        return result  # type: ignore[return-value]

    def _told(self, step: int, cause: Exception) -> UserError:
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].partition(" [tensorstore_spec=")[0][:500]
        absent = isinstance(cause, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if not absent and (known := explain(cause)) is not None:
            return type(known)(f"{self._name(step)} cannot be read: {known}")
        if isinstance(cause, OSError) and not absent:
            return TryAgain(f"{self._name(step)} cannot be read: {reason}")
        return damaged(self._name(step), reason)

    def _check_shapes(self, step: int, asked: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Compares the arrays on disk with those `asked` for, before anything is read.

        Raises:
            UserError: where the checkpoint is of another model.
            DamageError: where Orbax's list of arrays is not the record's.
        """
        tree = self._tree(step)
        on_disk = {name: tuple(leaf.shape) for name, leaf in named_leaves(tree)}
        there = on_disk
        if "arrays" in record:
            there = {name: tuple(facts["shape"]) for name, facts in record["arrays"].items()}
            if there != on_disk:
                raise damaged(self._name(step), "state/_METADATA is not what was written")
        if absent := sorted(asked.keys() - tree.keys()):
            raise UserError(
                f"{self._name(step)} has no {', '.join(absent)}: it is no run to go on with, but holds converted parameters. "
                f"Start a run from them: --config.train.init_from={self._folder.path.parent} with another --workdir."
            )
        saved = {name: shape for name, shape in there.items() if name.partition("/")[0] in asked}
        wanted = {name: tuple(_facts(leaf)["shape"]) for name, leaf in named_leaves(dict(asked))}
        differing = [name for name in sorted(saved.keys() | wanted.keys()) if saved.get(name) != wanted.get(name)]
        if differing:
            name = differing[0]
            raise UserError(
                f"{self._name(step)} holds another model: {len(differing)} arrays differ, first {name}: "
                f"{saved.get(name, 'missing')} saved, {wanted.get(name, 'none')} wanted."
            )


def _facts(leaf: Any) -> dict[str, Any]:
    """Shape and dtype as they are stored: a typed random key as its words."""
    if is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def abstract_like(abstract: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of `abstract` with `shardings`, for `Checkpointer.restore`."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
