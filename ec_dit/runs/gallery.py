"""Drawn pictures that are kept in a folder, so that whoever is killed goes on, and nobody counts what is not there.

Beside the folder NAME stands NAME.json: the settings that the pictures depend on. The folder itself holds what a tool wants in it
and nothing else, since official scorers take whatever lies there.
"""

import collections
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from ec_dit.core import ahead, digests, json_file, paths, processes
from ec_dit.core.differences import differences
from ec_dit.core.errors import UserError
from ec_dit.data import images
from ec_dit.evaluators.base import Wanted
from ec_dit.layouts import files as layout_files
from ec_dit.layouts.base import PictureFile

_UNFINISHED = ".tmp"  # ends the name of a file that is being written

Draw = Callable[
    [Sequence[str], Sequence[int]], Iterator[np.ndarray]
]  # (prompts, their indices) -> pictures, one by one


class Gallery:
    """The pictures that a suite wants, in a folder.

    Args:
        folder: seen by all processes; process 0 writes.
        facts: what the pictures depend on, beside prompts and layout.
        made_by: what else is known of them, which may change while they are drawn: versions, devices.
        replace: pictures with other facts are removed, where else they are left alone and refused.

    Attributes:
        count, grey: pictures so far, and those that are plain grey, as all are whose numbers were not finite.
    """

    def __init__(
        self,
        folder: epath.Path,
        wanted: Wanted,
        facts: Mapping[str, Any],
        made_by: Mapping[str, Any],
        *,
        replace: bool = False,
    ):
        assert wanted.prompts is not None
        self._folder, self._wanted, self._replace = folder, wanted, replace
        self._record = folder.parent / f"{folder.name}.json"
        self._files = wanted.layout.files(wanted.prompts, wanted.num)
        self._beside = wanted.layout.beside(wanted.prompts)
        self._facts = {**wanted.facts, **facts}
        self._made_by = dict(made_by)
        self._earlier: dict[str, Any] = {}  # the record that an earlier call left
        self.count = self.grey = 0

    def images(self, draw: Draw) -> Iterator[np.ndarray]:
        """Yields all pictures in their order: those that are there are read, the others drawn and kept.

        Every process goes over them.

        Raises:
            UserError: the folder holds pictures with other settings, or files that are none of these, or one that does not open.
        """
        missing = self._missing()
        texts = [prompt.text for prompt in self._wanted.each]
        indices = _repeats(texts)
        jobs = [i for file in self._files if file.name in missing for i in self._numbers(file)]
        drawn = draw([texts[i] for i in jobs], [indices[i] for i in jobs])
        there = (file for file in self._files if file.name not in missing)
        with ThreadPoolExecutor(ahead.THREADS) as pool:
            read = layout_files.read_all(self._folder, there)
            writing: list[Future[None]] = []
            for file in self._files:
                if file.name in missing:
                    tiles, data = layout_files.encode(file, [next(drawn) for _ in range(file.tiles)])
                    if processes.is_first():
                        writing.append(pool.submit(digests.replace, self._folder / file.name, data))
                        while len(writing) > 2 * ahead.THREADS:
                            writing.pop(0).result()
                else:
                    tiles = next(read)
                self.count += len(tiles)
                for picture in tiles:
                    self.grey += bool((picture == images.GREY).all())
                    yield picture
            collections.deque(drawn, maxlen=0)  # nothing is left; a run that was told to stop stops here at the latest
            for future in writing:
                future.result()
        if processes.is_first() and (missing or self._earlier.get("finished") is not True):
            self._write_record(
                finished=True, made_by=self._made_by if missing else self._earlier.get("made_by", self._made_by)
            )

    def _numbers(self, file: PictureFile) -> range:
        """Which of all pictures are in a file."""
        start = file.number * self._wanted.num + file.first
        return range(start, start + file.tiles)

    def _missing(self) -> set[str]:
        """Makes the folder ready, and names the files that are not there."""
        told = ""
        with processes.told_by_first():
            if processes.is_first():
                told = json.dumps(self._prepared())
        names: list[str] = json.loads(processes.of_first(told))
        return set(names)

    def _prepared(self) -> list[str]:
        paths.check_can_write(self._folder, "--out")
        there = layout_files.names(self._folder)
        for name in [name for name in there if name.endswith(_UNFINISHED)]:
            (self._folder / name).unlink(missing_ok=True)  # of a process that was killed
            there.remove(name)
        if self._record.exists():
            there = self._compared(there)
        expected = {file.name for file in self._files}
        layout_files.check_no_others(self._folder, there, expected | self._beside.keys(), "--out")
        if there and not self._record.exists():
            raise UserError(
                f"{self._folder} holds pictures, but {self._record} is missing, which says with which settings they were drawn: "
                f"remove the folder, or name another with --out; to score them as they are, use --images."
            )
        for folder in {str(epath.Path(name).parent) for name in (*expected, *self._beside)}:
            (self._folder / folder).mkdir(parents=True, exist_ok=True)
        missing = [file.name for file in self._files if file.name not in there]
        if missing:
            self._write_record(finished=False, made_by=self._made_by)
        for name, data in self._beside.items():
            digests.replace(self._folder / name, data)
        return missing

    def _compared(self, there: set[str]) -> set[str]:
        """Which of the files that are there may be used. Raises UserError where they were drawn with other settings."""
        self._earlier = json_file.read(self._record, "Remove it and its folder: the pictures are then drawn again.")
        settings = self._earlier.get("settings")
        changes = list(differences(settings if isinstance(settings, dict) else {}, self._facts))
        if not changes:
            return there
        if not self._replace:
            lines = "\n  ".join(map(str, changes[:10]))
            raise UserError(
                f"{self._folder} holds pictures that were drawn with other settings:\n  {lines}\n"
                f"Remove the folder and {self._record.name}, or name another folder with --out."
            )
        listed = self._earlier.get("files")
        for name in there & set(listed if isinstance(listed, list) else ()):
            (self._folder / name).unlink(missing_ok=True)
            there = there - {name}
        return there

    def _write_record(self, *, finished: bool, made_by: Any) -> None:
        names = [file.name for file in self._files] + list(self._beside)
        record = {"settings": self._facts, "made_by": made_by, "finished": finished, "files": names}
        self._record.parent.mkdir(parents=True, exist_ok=True)
        digests.replace(self._record, (json.dumps(record, indent=2) + "\n").encode())


def _repeats(texts: Sequence[str]) -> list[int]:
    """How often each text came before, so that one that comes again gives another picture."""
    seen: dict[str, int] = {}
    found = []
    for text in texts:
        found.append(seen.get(text, 0))
        seen[text] = found[-1] + 1
    return found
