"""How far a preparation is, on a bar."""

import contextlib
from collections.abc import Sequence

from ec_dit.core import processes
from ec_dit.core.terminal import Progress


class Bar(contextlib.AbstractContextManager):
    """Progress in pictures; where the source does not know its size, guessed from the units that are done.

    Args:
        sizes: of the shards of each unit that this process makes.
        before: units that were done before.
    """

    def __init__(self, name: str, sizes: Sequence[Sequence[int | None]], before: int, shown: bool):
        known = [None if None in unit else sum(filter(None, unit)) for unit in sizes]
        self._guess = None in known
        self._units, self._done = len(sizes), 0
        total = None if self._guess else sum(size or 0 for size in known)
        share = f", 1 of {processes.count()} parts" if processes.count() > 1 else ""
        gone_on = f", going on after {before} of {before + len(sizes)} units" if before else ""
        shown = shown and processes.is_first()
        self._progress = Progress(f"{name}{share}{gone_on}", total, "images", shown=shown)

    @property
    def count(self) -> int:
        """How many examples there were."""
        return self._progress.count

    def update(self) -> None:
        """Counts an example."""
        self._progress.update()

    def unit_done(self) -> None:
        """Counts a unit."""
        self._done += 1
        if self._guess:
            self._progress.total = self.count * self._units // self._done

    def __exit__(self, *exc: object) -> None:
        self._progress.__exit__(*exc)
