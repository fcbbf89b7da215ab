"""What is noted of the units of a data set in the making that are done, and whether it still is what was noted."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from ec_dit.core import json_file
from ec_dit.core.errors import DamageError
from ec_dit.preparation.counting import UnitFacts

_LINES_SHA256 = "lines_sha256"  # among the facts of a unit
_AGAIN = "The same command makes that part again."


def finished(folder: epath.Path) -> set[int]:
    """Lists the units of which notes in `folder` say that they are done."""
    return {int(path.stem) for path in folder.glob("*.json")}


class UnitNotes:
    """A file of facts and one of lines for each unit that is done. What is damaged of them counts as not done from then on.

    Args:
        folder: of these files.
        write: gives a file its text, whole.
    """

    def __init__(self, folder: epath.Path, write: Callable[[epath.Path, str], None]):
        self._folder, self._write_file = folder, write
        self._lines_sha256: dict[int, str | None] = {}  # by unit, of those whose facts were read

    def finished(self) -> set[int]:
        """Lists the units that are done."""
        return finished(self._folder)

    def facts(self, unit: int) -> dict[str, Any]:
        """Reads what `write` was told of a unit, its 'counts' as UnitFacts.

        Raises:
            DamageError: it is no longer what was written.
        """
        with self._made_again_if_damaged(unit) as path:
            found = json_file.read_sealed(path, _AGAIN)
            files = json_file.typed(found["files"], dict[str, dict[str, Any]], str(path), _AGAIN)
            for facts in files.values():
                json_file.typed(facts, dict[str, int | str | list[str]], str(path), _AGAIN)
            self._lines_sha256[unit] = found.pop(_LINES_SHA256, None)  # earlier versions noted none
            return found | {"counts": json_file.typed(found["counts"], UnitFacts, str(path), _AGAIN)}

    def lines(self, unit: int) -> list[str]:
        """Reads the lines that `write` was given of a unit.

        Raises:
            DamageError: they are no longer what was written.
        """
        if unit not in self._lines_sha256:
            self.facts(unit)
        path = self._folder / f"{unit:06d}.lines"
        with self._made_again_if_damaged(unit), json_file.whole(str(path), _AGAIN):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                raise json_file.damaged(str(path), "it is missing", _AGAIN) from None
            if self._lines_sha256[unit] not in (None, hashlib.sha256(data).hexdigest()):
                raise json_file.damaged(str(path), "its SHA-256 is not the one noted with the unit", _AGAIN)
            return data.decode().split("\n")[:-1]

    def write(self, unit: int, facts: Mapping[str, Any], counts: UnitFacts, lines: Sequence[str]) -> None:
        """Says that a unit is done; `facts` are JSON, with 'files'; `lines` hold no line breaks."""
        text = "".join(f"{line}\n" for line in lines)
        self._write_file(self._folder / f"{unit:06d}.lines", text)
        noted = {"counts": dataclasses.asdict(counts), _LINES_SHA256: hashlib.sha256(text.encode()).hexdigest()}
        self._write_file(
            self._folder / f"{unit:06d}.json", json.dumps(json_file.seal(dict(facts) | noted))
        )  # last: it is what `finished` looks for

    def discard(self, unit: int) -> None:
        """Discards what is noted of a unit, so that it is made again."""
        (self._folder / f"{unit:06d}.json").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _made_again_if_damaged(self, unit: int) -> Iterator[epath.Path]:
        """A context for reading what is noted of a unit; gives the path of its facts."""
        path = self._folder / f"{unit:06d}.json"
        try:
            with json_file.whole(str(path), _AGAIN):
                yield path
        except DamageError:
            self.discard(unit)
            raise
