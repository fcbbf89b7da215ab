"""What one picture with its captions is, wherever it came from: sources yield these, data sets store them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class Record:
    """One image with its captions.

    Attributes:
        id: stable name, unique within its split; the same source gives the same id every time.
        image: encoded bytes of an image, as images.decode reads them.
        captions: plain texts, at least one; evaluation takes the first.
        weights: how often training takes each caption, relative to the others; () = all alike.
        split: which one it belongs to.
        flip: whether the captions stay true when the image is mirrored left to right.
        meta: JSON-serialisable facts about the example, for filters and scorers (task, objects, aesthetic, ...).
    """

    id: str
    image: bytes
    captions: tuple[str, ...]
    weights: tuple[float, ...] = ()
    split: str = TRAIN
    flip: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """The first caption."""
        return self.captions[0]
