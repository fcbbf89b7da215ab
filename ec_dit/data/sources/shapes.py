"""The embedded data set: scenes of one to four simple objects with captions, drawn by this package.

Split `train` and `validation` share one distribution; `novel` asks for colour-shape pairs that training never shows.
Every record is a function of (options, split, index), so any one of them can be drawn on its own.
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ec_dit.core.errors import UserError
from ec_dit.data.records import Record
from ec_dit.data.sources.shapes_draw import draw_scene
from ec_dit.data.sources.shapes_scene import TASKS, ShapesOptions, caption_of, place, sample_requirement

_SPLITS = ("train", "validation", "novel")


class ShapesSource:
    """Draws the `shapes` data set (see ShapesOptions for what can be set). Implements records.Source."""

    name = "shapes"

    def __init__(self, options: ShapesOptions) -> None:
        self.options = options

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, 'train' first."""
        return _SPLITS

    def size(self, split: str) -> int:
        """Number of examples in a split. Raises UserError for a split that does not exist."""
        if split not in _SPLITS:
            raise UserError(f"shapes has no split {split!r}; choose one of {_SPLITS}.")
        return int(getattr(self.options, split))

    def record(self, split: str, index: int) -> Record:
        """Draws one example. `meta` holds task, objects (shape, color, box as left, top, right, bottom) and require."""
        size = self.size(split)
        if not 0 <= index < size:
            raise UserError(f"shapes has {size} examples in {split!r}; there is no number {index}.")
        rng = np.random.default_rng([self.options.seed, _SPLITS.index(split), index])
        novel = split == "novel"
        tasks = ("colors", "color_attr") if novel else TASKS
        requirement = sample_requirement(self.options, tasks[index % len(tasks)], novel, rng)
        caption = caption_of(requirement, rng)
        things = place(self.options, requirement, rng)
        buffer = io.BytesIO()
        image = draw_scene(self.options.image_size, things, self.options.ground, rng)
        Image.fromarray(image).save(buffer, format="PNG")
        objects = [{"shape": t.shape, "color": t.color, "box": [round(v, 2) for v in t.box()]} for t in things]
        return Record(
            id=f"{split}-{index:07d}",
            image=buffer.getvalue(),
            caption=caption,
            flip=requirement["relation"] is None,
            meta={"task": requirement["task"], "objects": objects, "require": requirement},
        )

    def records(self, split: str) -> Iterator[Record]:
        """Yields every example of `split` in order."""
        for index in range(self.size(split)):
            yield self.record(split, index)
