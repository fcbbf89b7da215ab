"""What an evaluation suite is: it asks for images of its own prompts and returns figures, a table and a picture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

# (prompts, index of each among the images of its prompt) -> (which of them, uint8 images), as batches finish
Generate = Callable[[Sequence[str], Sequence[int]], Iterator[tuple[slice, np.ndarray]]]


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a suite.

    Attributes:
        figures: JSON-serialisable; 'mean' is the headline.
        table: for people.
        sheet: some of the images with their prompts.
    """

    figures: Mapping[str, Any]
    table: str
    sheet: Image.Image


class Evaluator(Protocol):
    """A suite, built with its prompts; it knows no model."""

    name: str

    def run(self, generate: Generate, progress: Callable[[int, int], None]) -> Evaluation:
        """Generates, scores, and calls `progress(images done, images in all)` on the way."""
        ...
