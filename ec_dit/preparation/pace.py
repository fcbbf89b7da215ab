"""How fast a preparation is once it runs: steps that compile when a shape first comes up are left out."""

import contextlib
import time
from collections.abc import Hashable, Iterator

_LEAST_IMAGES, _LEAST_SECONDS = 500, 60  # one of them must be reached, or there is nothing to say


class Pace:
    """A clock that begins when it is made."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._known: set[Hashable] = set()
        self._seconds, self._images = 0.0, 0  # of first steps

    @contextlib.contextmanager
    def step(self, kind: Hashable, images: int = 0) -> Iterator[None]:
        """Times a step that may compile when it is the first of its kind; `images` are done with it."""
        begin = time.monotonic()
        yield
        if kind not in self._known:
            self._known.add(kind)
            self._seconds += time.monotonic() - begin
            self._images += images

    def line(self, images: int) -> str | None:
        """Gives what to say after so many images, the first ones included; None where it would say little."""
        images -= self._images
        seconds = time.monotonic() - self._start - self._seconds
        if seconds <= 0 or (images < _LEAST_IMAGES and seconds < _LEAST_SECONDS) or images < 1:
            return None
        speed = images / seconds
        return f"{speed:,.1f} images/s in this process: {1e6 / speed / 3600:,.1f} hours for a million"
