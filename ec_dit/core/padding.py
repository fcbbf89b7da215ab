"""Batches of one size, so that one compiled program serves however many items there are."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def padded(items: Sequence[T], size: int, filling: T) -> Iterator[tuple[slice, list[T]]]:
    """Yields which of the items are next, and these as a list of `size`, the last one filled up with `filling`."""
    for start in range(0, len(items), size):
        part = slice(start, min(start + size, len(items)))
        yield part, [*items[part], *[filling] * (size - (part.stop - start))]
