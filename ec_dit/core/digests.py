"""SHA-256 of contents: of the small files of a folder, listed beside them, so that what is missing or changed is seen before it
is used; and of what scores were made of.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
from etils import epath

from ec_dit.core import json_file, paths

FILE = "digests.json"


class DigestedFiles:
    """Files of one folder, local or on gs://.

    Args:
        mend: how the files can be made again, for messages.
    """

    def __init__(self, folder: epath.Path, mend: str):
        self._folder, self._mend = folder, mend

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none, or one that was not written with the others.

        Files of a folder without a list are not compared.

        Raises:
            DamageError: where it is not as it was written.
        """
        for attempt in (1, 2):  # somebody may be writing them anew
            digests = self._digests()
            data = _content(self._folder / name)
            if digests is None:
                return data
            if name not in digests:
                return None
            if data is not None and _digest(data) == digests[name]:
                return data
            if attempt == 2:
                break
        reason = "it is missing" if data is None else f"its SHA-256 is not that in {FILE}"
        raise json_file.damaged(str(self._folder / name), reason, self.advice)

    @property
    def advice(self) -> str:
        """What to do about a damaged file."""
        advice = f"Bring a copy back, or {self._mend}."
        if (self._folder / FILE).exists():
            advice += f" If you changed it yourself, remove {self._folder / FILE}: files are then no longer compared."
        return advice

    def foreign(self, contents: Mapping[str, bytes | None], *, ours: bool) -> list[str]:
        """Names of files of others that `write` would replace or remove: those that the list does not have.

        Args:
            ours: whether all of them are this folder's own where it has no list.
        """
        if (written := self._written()) is None:
            if ours:
                return []
            there = [name for name in contents if _content(self._folder / name) not in (None, contents[name])]
            return sorted(there) + ([FILE] if (self._folder / FILE).exists() else [])
        wanted = {name: data for name, data in contents.items() if data is not None and name not in written}
        return sorted(name for name, data in wanted.items() if _content(self._folder / name) not in (None, data))

    def write(self, contents: Mapping[str, bytes | None]) -> None:
        """Writes files in this order, and the list of them last; None stands for a file that there shall not be.

        What is there already is not written again, and what an older list does not have is not removed. A kill between two files
        leaves a folder without a list.
        """
        written = self._written()
        if written is not None:
            contents = {name: data for name, data in contents.items() if data is not None or name in written}
        listed = {name: _digest(data) for name, data in contents.items() if data is not None}
        changed = {name: data for name, data in contents.items() if data != _content(self._folder / name)}
        try:
            if not changed and self._digests() == listed:
                return
        except json_file.DamageError:
            pass
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / FILE).unlink(missing_ok=True)
        for name, data in changed.items():
            if data is None:
                (self._folder / name).unlink(missing_ok=True)
            else:
                replace(self._folder / name, data)
        replace(self._folder / FILE, (json.dumps(json_file.seal({"files": listed}), indent=2) + "\n").encode())

    def _written(self) -> set[str] | None:
        """Which files the list has; None where there is none, or a damaged or foreign one."""
        try:
            digests = self._digests()
        except json_file.DamageError:
            return None
        return None if digests is None else set(digests)

    def _digests(self) -> dict[str, str] | None:
        if (data := _content(self._folder / FILE)) is None:
            return None
        where, advice = str(self._folder / FILE), f"Remove it (files are then no longer compared), or {self._mend}."
        listed = json_file.unseal(json_file.parse(data, where, advice), where, advice).get("files")
        return json_file.typed(listed, dict[str, str], where, advice)


def replace(path: epath.Path, data: bytes) -> None:
    """Writes a file that others see as it was before, or whole."""
    if paths.is_remote(path):
        path.write_bytes(data)  # objects in a bucket appear whole
        return
    temporary = path.parent / f"{path.name}.tmp"
    temporary.write_bytes(data)
    temporary.replace(path)


def of_file(path: epath.Path) -> dict[str, str]:
    """Says which file it is: where it lies, and the SHA-256 of its content."""
    return {"path": str(path), "sha256": _digest(path.read_bytes())}


def of_passing(arrays: Iterable[np.ndarray], notes: MutableMapping[str, Any]) -> Iterator[np.ndarray]:
    """Passes arrays on, and at their end notes the SHA-256 of all of them, shapes included, as `pixels_sha256`."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
        yield array
    notes["pixels_sha256"] = digest.hexdigest()


def _content(path: epath.Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
