"""The embedded data set: scenes of one to four simple objects with captions, drawn by this package.

Splits `train` and `validation` show the same kinds of scenes, and no scene is in both (shapes_scene.for_validation
says where it belongs); `novel` asks for colour-shape pairs that training never shows.
Every record is a function of (options, split, index), so any one of them can be drawn on its own.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from ec_dit.core.errors import UserError
from ec_dit.data import images
from ec_dit.data.records import Record
from ec_dit.preparation.drawing.base import DrawnSource
from ec_dit.preparation.drawing.shapes_draw import draw_scene
from ec_dit.preparation.drawing.shapes_scene import (
    ShapesOptions,
    caption_of,
    for_validation,
    place,
    sample_requirement,
)
from ec_dit.preparation.source import Kind, ranges

_SPLITS = ("train", "validation", "novel")
_SCENE_TRIES = 1000


class ShapesSource(DrawnSource):
    """Draws the `shapes` data set (see ShapesOptions for what can be set). Implements source.Source."""

    name = "shapes"
    libraries: tuple[str, ...] = ()

    def __init__(self, options: ShapesOptions) -> None:
        self.options = options
        self._shards = [shard for split in _SPLITS for shard in ranges(self.size(split), name=f"{split} ")]

    def splits(self) -> tuple[str, ...]:
        """Lists the splits, 'train' first."""
        return _SPLITS

    def size(self, split: str) -> int:
        """Counts the examples in a split. Raises UserError for a split that does not exist."""
        if split not in _SPLITS:
            raise UserError(f"shapes has no split {split!r}; choose one of {_SPLITS}.")
        return int(getattr(self.options, split))

    def record(self, split: str, index: int) -> Record:
        """Draws one example. `meta` holds task, objects (shape, color, box as left, top, right, bottom) and require.

        Raises:
            UserError: there is no such split or index, or the options allow too few scenes.
        """
        size = self.size(split)
        if not 0 <= index < size:
            raise UserError(f"shapes has {size} examples in {split!r}; there is no number {index}.")
        rng = np.random.default_rng([self.options.seed, _SPLITS.index(split), index])
        novel = split == "novel"
        tasks = ("colors", "color_attr") if novel else self.options.tasks
        task = tasks[index % len(tasks)]
        for _ in range(_SCENE_TRIES):
            requirement = sample_requirement(self.options, task, novel, rng)
            caption = caption_of(requirement, rng)
            things = place(self.options, requirement, rng)
            if novel or for_validation(self.options, things) == (split == "validation"):
                break
        else:
            raise UserError(f"shapes: found no {task} scene for {split!r}; raise cells, or name more shapes or colors.")
        if requirement["relation"] and self.options.relation_colors and rng.random() < self.options.relation_colors:
            seen = [{"shape": thing.shape, "color": thing.color, "count": 1} for thing in things]
            caption = caption_of({**requirement, "include": seen}, rng)
        image = draw_scene(self.options.image_size, things, self.options.ground, rng)
        objects = [{"shape": t.shape, "color": t.color, "box": [round(v, 2) for v in t.box()]} for t in things]
        return Record(
            id=f"{split}-{index:07d}",
            image=images.encode_png(Image.fromarray(image)),
            captions=(caption,),
            split=split,
            flip=requirement["relation"] is None,
            meta={"task": requirement["task"], "objects": objects, "require": requirement},
        )

    def records(self, shard: int) -> Iterator[Record]:
        """Yields the examples of one stretch."""
        split, _, numbers = self._shards[shard].name.partition(" ")
        start, _, end = numbers.partition("-")
        for index in range(int(start), int(end)):
            yield self.record(split, index)


SOURCE = Kind(ShapesSource, ShapesOptions)
