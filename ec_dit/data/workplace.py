"""Where a data set is put together, unit by unit: what a killed run finished there, the next one need not do again.

On a disk that is a hidden folder beside the data set's place, which it takes when it is whole. Buckets cannot move folders: there
the files come to their place at once, and a folder `.incomplete` among them says that they are not all.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from etils import epath

from ec_dit.core import paths, processes
from ec_dit.core.errors import UserError

REPORT = "report.json"  # the last file of a data set to be written
INCOMPLETE = ".incomplete"
_PLAN, _UNITS, _SET, _REFUSED = "plan.json", "units", "set", "refused.json"
_CLEARING = "clearing"  # in a bucket, while an old data set is removed
_WHOLE = "whole"  # in a bucket: says that the set is, and that what is left beside it only waits to be removed
_SCRATCH = "scratch-"
_REPLACED = "replaced"  # where an old data set waits until the new one has its place


class Workplace:
    """One data set in the making.

    Attributes:
        files: folder of its files.
    """

    def __init__(self, base: epath.Path, files: epath.Path, scratch: Path):
        self.files = files
        self._units, self._scratch, self._refused = base / _UNITS, scratch, base / _REFUSED

    def finished(self) -> set[int]:
        """The units that are done."""
        return {int(path.stem) for path in self._units.glob("*.json")}

    def facts(self, unit: int) -> dict[str, Any]:
        """What `finish` was told of a unit."""
        return json.loads((self._units / f"{unit:06d}.json").read_text())

    def lines(self, unit: int) -> list[str]:
        """The lines that `finish` was given of a unit."""
        return (self._units / f"{unit:06d}.lines").read_text(encoding="utf-8").split("\n")[:-1]

    def finish(self, unit: int, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Says that a unit's files are all there; `facts` are JSON, `lines` hold no line breaks."""
        self._write(f"{unit:06d}.lines", "".join(f"{line}\n" for line in lines))
        self._write(f"{unit:06d}.json", json.dumps(facts))  # last: it is what `finished` looks for

    def forget(self, unit: int) -> None:
        """Has a unit that is done made again."""
        (self._units / f"{unit:06d}.json").unlink()

    def refuse(self, share: float, numbers: Sequence[int]) -> None:
        """Notes units with faults, which were too many for a share."""
        self._refused.write_text(json.dumps({"share": share, "units": list(numbers)}))

    def take_back(self, share: float) -> None:
        """Forgets units that were refused: they may be mended by now. A larger share takes them as they are."""
        if not self._refused.exists():
            return
        found = json.loads(self._refused.read_text())
        self._refused.unlink()
        if share <= found["share"]:
            paths.remove(self._units / f"{unit:06d}.json" for unit in found["units"])

    def scratch(self, name: str) -> Path:
        """A path on this machine to write the file `name` to, before `put` brings it to its place."""
        return self._scratch / name

    def put(self, path: Path) -> None:
        """Moves a file from `scratch` to the set; it appears there whole."""
        self._move(path, self.files / path.name)

    def put_bytes(self, name: str, data: bytes) -> None:
        """Writes a small file of the set."""
        path = self.scratch(name)
        path.write_bytes(data)
        self.put(path)

    def _write(self, name: str, text: str) -> None:
        path = self.scratch(name)
        path.write_text(text, encoding="utf-8")
        self._move(path, self._units / name)

    def _move(self, path: Path, target: epath.Path) -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        if paths.is_remote(target):
            paths.copy_file(path, target)
            path.unlink()
        else:
            path.replace(str(target))


@contextlib.contextmanager
def opened(out: str | PurePath, plan: Mapping[str, Any], *, overwrite: bool) -> Iterator[Workplace]:
    """The workplace of the data set `out`; when the context ends without an error, the set takes its place.

    All processes enter it; what it holds they must share.

    Args:
        plan: JSON; what the bytes depend on. What was made by another plan is not gone on with.
        overwrite: replaces a finished data set at `out`; never anything else.

    Raises:
        UserError: `out` is taken, or being made by somebody else; another plan left finished units, which are not thrown
            away unasked; the processes do not see the same folder.
    """
    place = paths.at(out)
    if paths.is_remote(place):
        base, files = place / INCOMPLETE, place
    else:
        base = place.parent / f".{place.name}{INCOMPLETE}"
        files = base / _SET
    if processes.count() > 1:
        refuse_taken(out, overwrite)
        processes.wait(f"all have looked at {place}")
    with contextlib.ExitStack() as stack:
        if processes.is_first():
            if not paths.is_remote(place):
                stack.enter_context(_locked(Path(base), Path(place)))
            elif (base / _WHOLE).exists():
                _remove(base)
            refuse_taken(out, overwrite)
            _begin(place, base, files, plan)
        processes.check_shared(base, "an --out")
        with _scratch(base) as scratch:
            yield Workplace(base, files, Path(scratch))
        processes.wait(f"{place} is made")
        if processes.is_first():
            if not paths.is_remote(place):
                if not _is_free(place):
                    Path(place).rename(Path(base) / _REPLACED)
                Path(files).rename(place)
            else:
                (base / _WHOLE).write_text("")
            _remove(base)
    processes.wait(f"{place} is finished")


def _begin(place: epath.Path, base: epath.Path, files: epath.Path, plan: Mapping[str, Any]) -> None:
    """Makes the folders; goes on with what is there, if it was made by the same plan."""
    text = json.dumps(plan, indent=1, sort_keys=True)
    if (base / _PLAN).exists() and files.exists():  # without the files, the set took its place just before a kill
        old = (base / _PLAN).read_text()
        if old == text:
            paths.remove(base.glob(f"{_SCRATCH}*"))  # of a killed process
            return
        if any((base / _UNITS).glob("*.json")):
            changed = "\n  ".join(difference(json.loads(old), json.loads(text)))
            raise UserError(
                f"{base} holds what an interrupted preparation made with other settings:\n  {changed}\n"
                "Give the same ones to go on with it, or remove that folder to start from the beginning."
            )
    (base / _PLAN).unlink(missing_ok=True)
    if paths.is_remote(place):
        base.mkdir(parents=True, exist_ok=True)
        (base / _CLEARING).write_text("")  # first: whoever comes after a kill goes on with clearing
        paths.remove(path for path in place.iterdir() if path.name != INCOMPLETE)
    paths.remove(path for path in base.iterdir() if path.name != _CLEARING)
    for folder in (base, files, base / _UNITS):
        folder.mkdir(parents=True, exist_ok=True)
    (base / _PLAN).write_text(text)
    (base / _CLEARING).unlink(missing_ok=True)


def _remove(base: epath.Path) -> None:
    """Removes what was of use while the set was made; last what says that the set is whole."""
    paths.remove(path for path in base.iterdir() if path.name != _WHOLE)
    base.rmtree()


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines 'key: old -> new' for whatever differs between two JSON objects."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {json.dumps(a)} -> {json.dumps(b)}")
    return lines


def refuse_taken(out: str | PurePath, overwrite: bool) -> None:
    """Raises UserError if `out` holds anything, other than a data set in the making or one that may be replaced."""
    place = paths.at(out)
    if _is_free(place):
        return
    if not place.is_dir():
        raise UserError(f"{place} is a file; name a folder for the data set")
    if (place / INCOMPLETE).exists():
        return
    if not (place / REPORT).exists():
        raise UserError(f"{place} holds other files and is not a data set; name another folder")
    if not overwrite:
        raise UserError(f"{place} already holds a data set; name another folder, or pass --overwrite to replace it")


def _is_free(out: epath.Path) -> bool:
    return not out.exists() or (out.is_dir() and not any(out.iterdir()))


@contextlib.contextmanager
def _locked(base: Path, out: Path) -> Iterator[None]:
    """Makes `base`, which is this process's until the end.

    An old data set that has not been replaced yet goes back to `out`, after a failure and after a kill.
    """
    try:
        base.mkdir(parents=True, exist_ok=True)
        handle = os.open(base, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot write beside {out}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is preparing {out} now; wait for it to finish") from error
        except OSError:
            pass  # A file system without locks.
        try:
            _put_back(base / _REPLACED, out)
            yield
        finally:
            _put_back(base / _REPLACED, out)
            if not any((base / _UNITS).glob("*.json")) or not (base / _SET).exists():
                shutil.rmtree(base, ignore_errors=True)  # nothing worth keeping, or all of it has taken its place
    finally:
        os.close(handle)


def _put_back(replaced: Path, out: Path) -> None:
    if replaced.exists() and _is_free(epath.Path(out)):
        replaced.rename(out)


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
