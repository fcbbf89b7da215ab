"""The folder of a run's checkpoints: which of its entries are checkpoints, what is removed, and what is put aside.

A checkpoint is a folder named after its step, which holds `state/` and `meta/metadata`, a JSON object that says the step too.
Anything else is somebody else's and stays. What a kill leaves of a save or a deletion is no checkpoint, and is cleared.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath
from etils.epath import backend

from ec_dit.core import json_file, paths, processes
from ec_dit.core.errors import DamageError, UserError
from ec_dit.core.json_file import damaged
from ec_dit.train import checkpoint_files

_TORN = ".orbax-checkpoint-tmp"  # in the names of folders that Orbax is writing, and that we are deleting
_COMMITTED = "commit_success.txt"  # in a bucket, where folders cannot be renamed, it comes last and goes first
_PARTS = {"state", "meta", "_CHECKPOINT_METADATA", checkpoint_files.FILE, _COMMITTED}


class CheckpointFolder:
    """A folder, local or on gs://, that need not exist."""

    def __init__(self, path: str):
        self.path = paths.at(path)
        self._remote = paths.is_remote(self.path)

    def numbered(self) -> list[int]:
        """The numbers that name folders, largest first; whether they are checkpoints, `record` says."""
        names = [name for name in self._names() if name.isdecimal() and str(int(name)) == name]
        return sorted(map(int, names), reverse=True)

    def seen_by_all(self) -> list[int]:
        """The numbers of folders that process 0 sees, once all do: a network disk shows them to other hosts late.

        Raises:
            UserError: where one never does.
        """
        deadline = time.monotonic() + processes.VISIBLE_SECONDS
        while True:
            here = self.numbered()
            told = processes.of_first(", ".join(map(str, here)))
            steps = [int(step) for step in told.split(", ") if step]
            if processes.everywhere(set(here) >= set(steps)):
                return steps
            if not processes.everywhere(time.monotonic() < deadline):
                raise UserError(
                    f"process 0 sees the checkpoints {told} in {self.path}, which not every process does (here: {here}): "
                    f"give a folder seen by all."
                )
            time.sleep(1)

    def steps(self) -> list[int]:
        """The checkpoints whose records are whole, newest first."""
        return list(self._sound())

    def record(self, step: int) -> dict[str, Any] | None:
        """What was saved beside the state of `step`; None where that folder is no checkpoint of this step.

        Raises:
            DamageError: where it is one, but its record is not what was written.
        """
        folder = self.path / str(step)
        if self._remote and not (folder / _COMMITTED).exists():
            return None
        file = folder / "meta" / "metadata"
        try:
            data = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            if (folder / "state").exists() or (folder / "meta").exists():
                raise damaged(f"checkpoint {folder}", "its meta/metadata is missing") from None
            return None
        where = f"checkpoint {folder}"
        read = json_file.parse(data, where)
        record = json_file.unseal(read, where)
        if json_file.SEAL not in read and "config" not in record:  # which every version wrote
            raise damaged(where, "its meta/metadata is not what was written")
        return record if record.get("step", step) == step else None

    def newest_record(self) -> dict[str, Any] | None:
        """The record of the newest checkpoint that has a whole one; None where there is no checkpoint.

        Raises:
            DamageError: where there are checkpoints, but none with a whole record.
        """
        error: DamageError | None = None
        for step in self.numbered():
            try:
                if (record := self.record(step)) is not None:
                    return record
            except DamageError as found:
                error = error or found
        if error is not None:
            raise DamageError(f"{error} {self.no_other}")
        return None

    @property
    def no_other(self) -> str:
        """What to do where there is no checkpoint to go on from."""
        return f"No other checkpoint is in {self.path}: bring a copy back, or start again in another --workdir."

    def is_there(self, step: int) -> bool:
        """Whether the folder of `step` is still there, and no deletion of it has begun."""
        paths.look_again(self.path)
        return (self.path / str(step) / _COMMITTED if self._remote else self.path / str(step)).exists()

    def make_room(self, step: int) -> str | None:
        """Moves what is no checkpoint of `step` out of its place, if anything is; returns the name that it has now."""
        if not (self.path / str(step)).exists():
            return None
        return self.put_aside(step, "aside")

    def put_aside(self, step: int, ending: str) -> str:
        """Renames the folder of `step` to one that no one takes for a step, and returns the new name."""
        taken = set(self._names())
        names = (f"{step}.{ending}{'' if n == 1 else f'-{n}'}" for n in range(1, len(taken) + 2))
        name = next(name for name in names if name not in taken)
        source, target = self.path / str(step), self.path / name
        if not self._remote:
            source.rename(target)
            return name
        _copy_objects(source, target)  # a kill leaves what is there whole, until all of it is there twice
        self._delete(step)
        return name

    def prune(self, keep: int | None) -> None:
        """Deletes all checkpoints but the newest `keep`; None = nothing."""
        if keep is None:
            return
        for step in self.steps()[keep:]:
            if self._remote or not Path(self.path / str(step)).is_symlink():
                self._delete(step)

    def clear_torn(self) -> None:
        """Removes what a kill left of saves and deletions."""
        names = self._names()
        torn = [name for name in names if name.partition(_TORN)[0].isdecimal() and _TORN in name]
        if self._remote:
            torn += [name for name in names if name.isdecimal() and self._is_torn(name)]
        paths.remove(self.path / name for name in torn)

    def _is_torn(self, name: str) -> bool:
        inside = {entry.name for entry in (self.path / name).iterdir()}
        return bool(inside) and inside <= _PARTS - {_COMMITTED}

    def _delete(self, step: int) -> None:
        folder = self.path / str(step)
        if self._remote:
            (folder / _COMMITTED).unlink(missing_ok=True)
        else:
            gone = self.path / f"{step}{_TORN}-deleted"
            if gone.exists():
                gone.rmtree()
            folder.rename(gone)
            folder = gone
        folder.rmtree()

    def _sound(self) -> Iterator[int]:
        for step in self.numbered():
            try:
                if self.record(step) is not None:
                    yield step
            except DamageError:
                continue

    def _names(self) -> list[str]:
        paths.look_again(self.path)
        return [entry.name for entry in self.path.iterdir()] if self.path.exists() else []


def _copy_objects(source: epath.Path, target: epath.Path) -> None:
    """Copies a folder of a bucket within it; nothing is brought here."""
    files = backend.fsspec_backend.fs(source)
    root = str(source).partition("://")[2]
    names = [name.removeprefix(f"{root}/") for name in files.find(str(source))]
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda name: files.cp_file(str(source / name), str(target / name)), names))
