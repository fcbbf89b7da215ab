"""Where a data set is put together, unit by unit: what a killed run finished there, the next one need not do again.

On a disk that is a hidden folder beside the data set's place, which it takes when it is whole. Buckets cannot move folders: there
the files come to their place at once, and a folder `.incomplete` among them says that they are not all.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from etils import epath

from ec_dit.core import json_file, lock, paths, processes
from ec_dit.core.errors import UserError
from ec_dit.data import layout
from ec_dit.data.layout import INCOMPLETE, REPORT, SKIPPED
from ec_dit.preparation import ownership, plans, unit_notes
from ec_dit.preparation.counting import UnitFacts

_PLAN, _UNITS, _SET = "plan.json", "units", "set"
_CLEARING = "clearing"  # in a bucket, while an old data set is removed
_WHOLE = "whole"  # in a bucket: says that the set is, and that what is left beside it only waits to be removed
_SCRATCH = "scratch-"
_REPLACED = "replaced"  # where an old data set waits until the new one has its place
_OWN = (_PLAN, plans.PIECES, _UNITS, _SET, plans.REFUSED, _CLEARING, _WHOLE, SKIPPED)


class Workplace:
    """One data set in the making.

    Attributes:
        files: folder of its files.
        units: what is noted of those that are done.
    """

    def __init__(self, base: epath.Path, files: epath.Path, scratch: Path, name: str, held: lock.Lock):
        self.files = files
        self.units = unit_notes.UnitNotes(base / _UNITS, self._write)
        self._base = base
        self._scratch, self._name, self._held = scratch, name, held

    def finish(self, unit: int, facts: Mapping[str, Any], counts: UnitFacts, lines: Sequence[str]) -> None:
        """Says that a unit's files are all there; `facts` are JSON, with 'files'; `lines` hold no line breaks."""
        self._held.check()
        self.units.write(unit, facts, counts, lines)

    def note_refused(self, share: float, numbers: Sequence[int]) -> None:
        """Notes units with faults, which were too many for a share."""
        self._write(self._base / plans.REFUSED, json.dumps(json_file.seal({"share": share, "units": list(numbers)})))

    def discard_refused(self, share: float) -> None:
        """Discards units that were refused: they may be mended by now. A larger share takes them as they are."""
        refused = plans.read_refusal(self._base)
        if refused is not None and share <= refused.share:
            for unit in refused.units:
                self.units.discard(unit)
        (self._base / plans.REFUSED).unlink(missing_ok=True)

    def explain(self, lines: Iterable[str]) -> epath.Path:
        """Writes what was left out to a file that stays when the preparation fails, until the next one; its path."""
        path = self.scratch(SKIPPED)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        self._move(path, self._base / SKIPPED)
        return self._base / SKIPPED

    def clear_strays(self, claimed: Collection[str]) -> None:
        """Removes files of records that no unit claims.

        Raises:
            UserError: others put such files there, which TFDS would take for a part of the set.
        """
        left = [name for name in paths.sizes(self.files) if layout.is_record_file(name) and name not in claimed]
        own = [name for name in left if layout.is_record_file(name, self._name)]
        paths.remove(self.files / name for name in own)
        if others := sorted(set(left) - set(own)):
            raise UserError(
                f"{self.files} holds {', '.join(others[:5])}, which are not of this data set; move them away, and the same "
                "command goes on"
            )

    def scratch(self, name: str) -> Path:
        """Gives a path on this machine to write the file `name` to, before `put` brings it to its place."""
        return self._scratch / name

    def put(self, path: Path) -> None:
        """Moves a file from `scratch` to the set; it appears there whole."""
        self._move(path, self.files / path.name)

    def put_bytes(self, name: str, data: bytes) -> None:
        """Writes a small file of the set."""
        path = self.scratch(name)
        path.write_bytes(data)
        self.put(path)

    def _write(self, target: epath.Path, text: str) -> None:
        path = self.scratch(target.name)
        path.write_text(text, encoding="utf-8")
        self._move(path, target)

    def _move(self, path: Path, target: epath.Path) -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        if paths.is_remote(target):
            paths.copy_file(path, target)
            path.unlink()
        else:
            path.replace(str(target))


@contextlib.contextmanager
def opened(
    out: str | PurePath,
    plan: Mapping[str, Any],
    *,
    overwrite: bool,
    pieces: Sequence[str] = (),
    mark: str = "",
    say: Callable[[str], None] | None = None,
) -> Iterator[Workplace | None]:
    """Opens the workplace of the data set `out`; when the context ends without an error, the set takes its place.

    All processes enter it; what it holds they must share. While another run makes the same set, this one waits.

    Args:
        plan: JSON; what the bytes depend on. What was made by another plan is not gone on with.
        overwrite: replaces a finished data set at `out`; never anything else.
        pieces: names of what the source is read from, by which messages say what changed.
        mark: what the report calls `mark`; where a set of that mark is there, there is nothing to do, unless `overwrite` is
            to replace it and it was there before.
        say: told who makes the set, when another run does.

    Yields:
        The workplace; None where there is nothing to do.

    Raises:
        TakenError: another data set is at `out`.
        UserError: `out` is taken by something else; another plan left finished units, which are not thrown away unasked; the
            processes do not see the same folder.
    """
    place = ownership.place_of(out)
    if paths.is_remote(place):
        if "/" not in str(place).removeprefix("gs://").strip("/"):
            raise UserError(f"{place} is a whole bucket; name a folder in it for the data set")
        base, files = place / INCOMPLETE, place
    else:
        base = place.parent / f".{place.name}{INCOMPLETE}"
        files = base / _SET
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write beside {place}: {error.strerror}") from error
    before = _mark(place)
    with (
        lock.held(place.parent / f".{place.name}.lock", f"the data set {place}", say or _silent, wait=True) as held,
        contextlib.ExitStack() as stack,
    ):
        paths.look_again(place)
        made = False
        with processes.told_by_first():
            if processes.is_first():
                if not paths.is_remote(place):
                    stack.callback(_leave, Path(base), place)
                    ownership.restore(Path(base) / _REPLACED, place)
                elif (base / _WHOLE).exists():
                    _remove(base)
                made = bool(mark) and mark == _mark(place) and (not overwrite or mark != before)
                if not made:
                    ownership.check_free(place, overwrite)
                    _begin(place, base, files, plan, pieces)
        if processes.everywhere(made or not processes.is_first()):
            yield None
            return
        processes.check_shared(base, "an --out")
        with _scratch(base) as scratch:
            yield Workplace(base, files, Path(scratch), str(plan.get("source", "")), held)
        processes.wait(f"{place} is made")
        if processes.is_first():
            held.check()
            if not paths.is_remote(place):
                if not ownership.is_free(place):
                    Path(place).rename(Path(base) / _REPLACED)
                Path(files).rename(place)
                ownership.restore(Path(base) / _REPLACED, place)
            else:
                (base / _WHOLE).write_text("")
            _remove(base)
    processes.wait(f"{place} is finished")


def _silent(line: str) -> None:
    pass


def _mark(place: epath.Path) -> str | None:
    """That of the finished data set there."""
    if (place / INCOMPLETE).exists() or ownership.listed(place) is None:
        return None
    return json_file.read(place / REPORT).get("mark")


def _begin(
    place: epath.Path, base: epath.Path, files: epath.Path, plan: Mapping[str, Any], pieces: Sequence[str]
) -> None:
    """Makes the folders; goes on with what is there, if it was made by the same plan."""
    text = json.dumps(json_file.seal(plan), indent=1, sort_keys=True)
    new = json.loads(json.dumps(plan))
    old: dict[str, Any] | None = None
    if (base / _PLAN).exists():
        advice = f"Remove {base} to start from the beginning."
        old = json_file.read_sealed(base / _PLAN, advice)
        if files.exists():  # without the files, the set took its place just before a kill
            if old == new:
                paths.remove([*base.glob(f"{_SCRATCH}*"), base / SKIPPED])  # of a process that failed
                return
            done = unit_notes.finished(base / _UNITS)
            if done and any(path.name != INCOMPLETE for path in files.iterdir()):  # some with records
                plans.check_same(base, old, new, pieces, done)
    elif not (base / _CLEARING).exists() and (unknown := _names(base)):
        raise UserError(f"{base} holds {', '.join(unknown[:5])}, which no preparation left there; move that away first")
    base.mkdir(parents=True, exist_ok=True)
    (base / _CLEARING).write_text("")  # first: whoever comes after a kill goes on with clearing
    if paths.is_remote(place):
        if own := ownership.listed(place):
            ownership.remove(place, own)
        if old is not None:
            strays = [n for n in paths.sizes(place) if layout.is_record_file(n, old["source"], old["units"])]
            paths.remove(place / name for name in strays)
    (base / _PLAN).unlink(missing_ok=True)
    _clear(base, keep=_CLEARING)
    for folder in (base, files, base / _UNITS):
        folder.mkdir(parents=True, exist_ok=True)
    (base / plans.PIECES).write_text(json.dumps(json_file.seal({"pieces": list(pieces)})))
    (base / _PLAN).write_text(text)
    (base / _CLEARING).unlink(missing_ok=True)


def _names(folder: epath.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def _clear(base: epath.Path, keep: str) -> None:
    """Removes what preparations leave in their folder, but for one file, and nothing else."""
    names = [name for name in _names(base) if name in _OWN or name.startswith((_SCRATCH, ".shared-"))]
    paths.remove(base / name for name in names if name != keep)


def _remove(base: epath.Path) -> None:
    """Removes what was of use while the set was made; last what says that the set is whole, or whose the folder is."""
    for keep in (_WHOLE, _PLAN):
        if (base / keep).exists():
            _clear(base, keep)
            (base / keep).unlink()
    if not paths.is_remote(base):
        with contextlib.suppress(OSError):  # what others put there stays
            Path(base).rmdir()


def _leave(base: Path, place: epath.Path) -> None:
    """After a failure, and after success: clears the folder if nothing in it is worth keeping."""
    ownership.restore(base / _REPLACED, place)
    finished = any((base / _UNITS).glob("*.json")) and (base / _SET).exists()
    if (base / _PLAN).exists() and not finished and not (base / SKIPPED).exists():
        _remove(epath.Path(base))


@contextlib.contextmanager
def _scratch(base: epath.Path) -> Iterator[str]:
    """A folder on this machine, this process's own, on the same disk as `base` if that is on one."""
    if paths.is_remote(base):
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    own = Path(base) / f"{_SCRATCH}{processes.index()}-{os.urandom(4).hex()}"
    own.mkdir()
    try:
        yield str(own)
    finally:
        shutil.rmtree(own, ignore_errors=True)
