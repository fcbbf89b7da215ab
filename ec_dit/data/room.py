"""Memory for what several threads hold at a time, in whatever is counted: who wants more than is left waits for the others."""

import contextlib
import threading
from collections.abc import Iterator


class Room:
    """A semaphore of `size` parts of which one may take many, in the order in which they ask.

    Who asks for more than there is gets all of it, alone. A thread must not ask again while it holds some.
    """

    def __init__(self, size: int):
        self._size, self._left = size, size
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextlib.contextmanager
    def hold(self, parts: int) -> Iterator[None]:
        """Holds `parts` while the block runs."""
        parts = min(parts, self._size)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._left >= parts)
            self._left -= parts
        try:
            yield
        finally:
            with self._changed:
                self._left += parts
                self._changed.notify_all()
