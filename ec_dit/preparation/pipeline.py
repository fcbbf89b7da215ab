"""Examples on their way through a preparation: looked at ahead of their turn by several threads, and counted on a bar."""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ec_dit.core import processes
from ec_dit.core.terminal import Progress
from ec_dit.data.records import Record

_BYTES_AHEAD = 2**28  # of pictures as they were found, read before they are needed


def ahead(pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any], window: int) -> Iterator[Any]:
    """function(item) in the items' order, computed in `pool` up to `window` items, or 256 MiB of records, ahead."""
    waiting: collections.deque[tuple[Any, int]] = collections.deque()
    size_ahead = 0
    try:
        for item in items:
            size = len(item.image) if isinstance(item, Record) else 0
            waiting.append((pool.submit(function, item), size))
            size_ahead += size
            while len(waiting) >= window or (size_ahead > _BYTES_AHEAD and waiting):
                future, size = waiting.popleft()
                size_ahead -= size
                yield future.result()
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        for future, _ in waiting:
            future.cancel()


class Bar(contextlib.AbstractContextManager):
    """Progress in pictures; where the source does not know its size, guessed from the units that are done.

    Args:
        sizes: of the shards of each unit that this process makes.
        before: units that were done before.
    """

    def __init__(self, name: str, sizes: Sequence[Sequence[int | None]], before: int, shown: bool):
        known = [sum(filter(None, of)) if None not in of else None for of in sizes]
        self._guess = None in known
        self._units, self._done = len(sizes), 0
        total = None if self._guess else sum(size or 0 for size in known)
        share = f", 1 of {processes.count()} parts" if processes.count() > 1 else ""
        gone_on = f", going on after {before} of {before + len(sizes)} units" if before else ""
        shown = shown and processes.is_first()
        self._progress = Progress(f"{name}{share}{gone_on}", total, "images", shown=shown)

    @property
    def count(self) -> int:
        """Of examples."""
        return self._progress.count

    def update(self) -> None:
        """One more example."""
        self._progress.update()

    def unit_done(self) -> None:
        """One more unit."""
        self._done += 1
        if self._guess:
            self._progress.total = self.count * self._units // self._done

    def __exit__(self, *exc: object) -> None:
        self._progress.__exit__(*exc)
