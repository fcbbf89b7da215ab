"""What one example is, wherever it came from: every source yields these, every data set stores these."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Record:
    """One image with its caption.

    Attributes:
        id: stable name, unique within its split; the same source gives the same id every time.
        image: encoded bytes (PNG, JPEG or WebP) of an RGB image.
        caption: plain text, never empty.
        flip: whether the caption stays true when the image is mirrored left to right.
        meta: JSON-serialisable facts about the example, for scorers (task, objects, ...).
    """

    id: str
    image: bytes
    caption: str
    flip: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """An example left out, with the reason that the report gives: what follows a first colon is detail, not counted."""

    id: str
    reason: str


class Source(Protocol):
    """Where examples come from. Iterating a split twice must give the same records in the same order.

    A source may also have `options` (a dataclass), `libraries` that its bytes depend on, and `size(split)`.
    """

    name: str

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, 'train' first."""
        ...

    def records(self, split: str, part: int = 0, parts: int = 1) -> Iterator[Record | Skipped]:
        """Yields the examples part, part + parts, part + 2 parts, ... of `split`, kept or skipped; by default all."""
        ...
