"""One source read by several processes, each its share of the examples; the first puts them together in the source's order."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, BinaryIO

from etils import epath
from tqdm import tqdm

from ec_dit.core import paths, processes
from ec_dit.data.records import Record, Skipped, Source


@contextlib.contextmanager
def divided(source: Source, out: str | PurePath, progress: bool = True) -> Iterator[Source]:
    """`source`, its examples made by all processes of the run; to be called by all, and its records read by the first.

    What the others made passes through files beside `out`. The others leave this context when the first one does.

    Raises:
        UserError: if the processes do not share the folder of `out`.
    """
    if processes.count() == 1:
        yield source
        return
    place = paths.at(out)
    folder = place.parent / f".{place.name}.parts"
    if processes.is_first() and folder.exists():
        folder.rmtree()
    processes.check_shared(folder, "an --out")
    _write_share(source, folder, progress and processes.is_first())
    processes.wait("all parts are written")
    try:
        yield _Merged(source, folder)
    finally:
        if processes.is_first():
            folder.rmtree()
    processes.wait("the parts are read")


def _write_share(source: Source, folder: epath.Path, progress: bool) -> None:
    part, parts = processes.index(), processes.count()
    for split in source.splits():
        with (folder / f"{split}.{part}").open("wb") as file:
            items = source.records(split, part, parts)
            for item in tqdm(
                items, desc=f"{source.name}, {split}, 1 of {parts} parts", disable=not progress, unit=" images"
            ):
                _write(file, item)


def _write(file: BinaryIO, item: Record | Skipped) -> None:
    """One line of JSON, and the image's bytes behind it."""
    facts: dict[str, Any]
    if isinstance(item, Skipped):
        facts = {"id": item.id, "reason": item.reason}
    else:
        facts = {"id": item.id, "bytes": len(item.image), "caption": item.caption, "flip": item.flip, "meta": item.meta}
    file.write(json.dumps(facts).encode() + b"\n")
    if isinstance(item, Record):
        file.write(item.image)


def _read(file: BinaryIO) -> Record | Skipped | None:
    """What `_write` wrote; None at the end."""
    line = file.readline()
    if not line:
        return None
    facts = json.loads(line)
    if "reason" in facts:
        return Skipped(**facts)
    return Record(image=file.read(facts.pop("bytes")), **facts)


class _Merged:
    """The source as if one process had read it."""

    def __init__(self, source: Source, folder: epath.Path):
        self.name, self._source, self._folder = source.name, source, folder
        for extra in ("options", "libraries", "size"):  # what some sources have beside the protocol
            if hasattr(source, extra):
                setattr(self, extra, getattr(source, extra))

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, 'train' first."""
        return self._source.splits()

    def records(self, split: str, part: int = 0, parts: int = 1) -> Iterator[Record | Skipped]:
        """Yields the examples of `split` in the source's order."""
        with contextlib.ExitStack() as stack:
            names = [f"{split}.{i}" for i in range(processes.count())]
            opened = [stack.enter_context((self._folder / name).open("rb")) for name in names]
            turns = (_read(file) for file in itertools.cycle(opened))
            yield from itertools.islice(iter(lambda: next(turns), None), part, None, parts)
