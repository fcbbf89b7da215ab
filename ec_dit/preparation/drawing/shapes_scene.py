"""The little world of the `shapes` data set: what a caption may ask for, how it is said and where the objects stand.

Six task types, named as in GenEval: one object, two objects, counting, colours, position, colour attribution. A
*requirement* is the caption in a form that a program can check, JSON-serialisable:
`{"task": str, "include": [{"shape": str, "color": str | None, "count": int}, ...], "relation": str | None}`,
where the relation ("left", "right", "above", "below") holds of the first included object relative to the second.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ec_dit.core import seeds
from ec_dit.core.errors import UserError
from ec_dit.preparation.drawing.shapes_draw import GROUNDS, OUTLINES, PALETTE, Thing

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
PLACEMENTS = ("cell", "jitter", "free")
RELATIONS = ("left", "right", "above", "below")

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}
_PLURALS = {"cross": "crosses"}
_RELATION_PHRASES = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "on top of"),
    "below": ("below", "under"),
}
_FRAMES = ("{}", "a picture of {}", "a drawing of {}")
_LAYOUT_TRIES = 1000
_MOST_PLACES = 16


@dataclass(frozen=True)
class ShapesOptions:
    """Everything that decides the `shapes` data set; its difficulty is set here.

    Attributes:
        image_size: side of the square image, in pixels.
        cells: grid cells along each side; an object's size is measured in cells.
        placement: `cell` centres each object in a cell, `jitter` moves it inside its cell, `free` puts it anywhere.
        ground: `plain` (one warm white) or `textured` (a random pale pattern).
        object_size: smallest and largest object, as a fraction of a cell's side.
        shapes: names out of OUTLINES, two or more.
        colors: names out of PALETTE, three or more.
        most: objects of one picture, at most; so many are counted.
        tasks: names out of TASKS that scenes take in turn; one that stands twice has twice as many.
        relation_colors: share of the captions of `position` that say which colours the objects have. What "left of" means is
            easier to learn of a red and a blue object, as seen through much noise shapes look alike and colours do not.
        train, validation, novel: number of examples in each split.
        seed: every example is a function of (seed, split, index) and of the options above.
    """

    image_size: int = 64
    cells: int = 4
    placement: str = "cell"
    ground: str = "plain"
    object_size: tuple[float, float] = (0.86, 0.86)
    shapes: tuple[str, ...] = ("circle", "square", "triangle", "star")
    colors: tuple[str, ...] = ("red", "yellow", "green", "blue", "purple")
    most: int = 4
    tasks: tuple[str, ...] = TASKS
    relation_colors: float = 0.0
    train: int = 20_000
    validation: int = 600
    novel: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.object_size
        cell = self.image_size / max(self.cells, 1)
        checks = (
            (self.placement in PLACEMENTS, f"placement is {self.placement!r}; choose one of {PLACEMENTS}"),
            (self.ground in GROUNDS, f"ground is {self.ground!r}; choose one of {GROUNDS}"),
            (0 <= self.seed <= seeds.LARGEST, f"seed is {self.seed}; it must be from 0 to {seeds.LARGEST}"),
            (self.image_size <= 4096, f"image_size is {self.image_size}; it must be at most 4096"),
            (self.most in _NUMBERS, f"most is {self.most}; it must be from 2 to {max(_NUMBERS)}"),
            (
                self.cells >= 2 and self.cells**2 >= self.most,
                f"cells is {self.cells}; {self.most} objects need at least {max(2, math.ceil(math.sqrt(self.most)))}",
            ),
            (
                bool(self.tasks) and set(self.tasks) <= set(TASKS),
                f"tasks is {self.tasks}; name some out of {TASKS}",
            ),
            (
                0.0 <= self.relation_colors <= 1.0,
                f"relation_colors is {self.relation_colors}; it is a share, from 0 to 1",
            ),
            (0.0 < low <= high < 1.0, f"object_size is {self.object_size}; it needs 0 < smallest <= largest < 1"),
            (
                low * cell >= 6.0,
                f"the smallest object is {low * cell:.1f} px wide; 6 px is the least: raise image_size",
            ),
            (
                low / max(self.cells, 1) >= 0.06,
                f"the smallest object is {low / max(self.cells, 1):.3f} of the image; 0.06 is the least: lower cells",
            ),
            (
                (1.0 - high) * cell >= 1.5,
                f"objects stand {(1.0 - high) * cell:.1f} px apart; 1.5 px is the least: lower object_size",
            ),
            (
                len(set(self.shapes)) == len(self.shapes) >= 2,
                f"shapes is {self.shapes}; name at least 2 different ones",
            ),
            (
                len(set(self.colors)) == len(self.colors) >= 3,
                f"colors is {self.colors}; name at least 3 different ones",
            ),
            (set(self.shapes) <= set(OUTLINES), f"shapes is {self.shapes}; known are {tuple(OUTLINES)}"),
            (set(self.colors) <= set(PALETTE), f"colors is {self.colors}; known are {tuple(PALETTE)}"),
            (min(self.train, self.validation, self.novel) >= 0, "train, validation and novel must not be negative"),
        )
        for holds, message in checks:
            if not holds:
                raise UserError(f"shapes: {message}.")

    def held_out(self) -> frozenset[tuple[str, str]]:
        """Lists the (colour, shape) pairs that training never draws: one colour for each shape."""
        return frozenset((self.colors[i % len(self.colors)], shape) for i, shape in enumerate(self.shapes))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(shape: str) -> str:
    return _PLURALS.get(shape, f"{shape}s")


def caption_of(requirement: Mapping[str, Any], rng: np.random.Generator | None = None) -> str:
    """Says a requirement in words: the plainest way, or with `rng` one of the few ways that the data set knows."""

    def pick(options: Sequence[str]) -> str:
        return options[0] if rng is None else options[int(rng.integers(len(options)))]

    items = requirement["include"]
    nouns = [f"{item['color']} {item['shape']}" if item["color"] else item["shape"] for item in items]
    if requirement["task"] == "counting":
        core = f"{_NUMBERS[items[0]['count']]} {_plural(items[0]['shape'])}"
    elif requirement["relation"]:
        phrase = pick(_RELATION_PHRASES[requirement["relation"]])
        core = f"{_with_article(nouns[0])} {phrase} {_with_article(nouns[1])}"
    else:
        core = " and ".join(_with_article(noun) for noun in nouns)
    return pick(_FRAMES).format(core)


def sample_requirement(options: ShapesOptions, task: str, novel: bool, rng: np.random.Generator) -> dict[str, Any]:
    """Draws what a caption of `task` asks for. Named colours are trained ones, or, if `novel`, held out at least once.

    Raises:
        UserError: for `novel` and a task whose captions name no colour.
    """
    if novel and task not in ("colors", "color_attr"):
        raise UserError(f"task {task!r} names no colour and so has no novel prompts; use 'colors' or 'color_attr'.")
    number = 2 if task in ("two_object", "position", "color_attr") else 1
    shapes = [str(shape) for shape in rng.permutation(options.shapes)[:number]]
    colors: list[str | None] = [None] * number
    if task in ("colors", "color_attr"):
        held_out = options.held_out()
        while True:
            named = [str(color) for color in rng.permutation(options.colors)[:number]]
            if novel == any(pair in held_out for pair in zip(named, shapes, strict=True)):
                break
        colors = list(named)
    count = int(rng.integers(2, options.most + 1)) if task == "counting" else 1
    include = [{"shape": shape, "color": color, "count": count} for shape, color in zip(shapes, colors, strict=True)]
    relation = RELATIONS[int(rng.integers(len(RELATIONS)))] if task == "position" else None
    return {"task": task, "include": include, "relation": relation}


def stands(relation: str, first: Sequence[float], second: Sequence[float], ratio: float = 1.0) -> bool:
    """Tells whether centre `first` (x, y) stands left of, ... `second`, by `ratio` times more than it stands aside."""
    x, y = second[0] - first[0], second[1] - first[1]
    ahead, aside = {"left": (x, y), "right": (-x, y), "above": (y, x), "below": (-y, x)}[relation]
    return bool(ahead > ratio * abs(aside))


def _layout(options: ShapesOptions, sizes: np.ndarray, placement: str, rng: np.random.Generator) -> np.ndarray | None:
    """Centres [N, 2] in pixels for objects of these sizes, or None where objects placed freely came too close."""
    number, cell = len(sizes), options.image_size / options.cells
    if placement == "free":
        margin = sizes[:, None] / 2.0 + 0.5
        centres: np.ndarray = rng.uniform(margin, options.image_size - margin, (number, 2))
        apart = np.abs(centres[:, None] - centres[None]).max(axis=-1)
        needed = (sizes[:, None] + sizes[None]) / 2.0 + 1.5
        return centres if np.all((apart >= needed) | np.eye(number, dtype=bool)) else None
    chosen = rng.permutation(options.cells**2)[:number]
    centres = (np.stack([chosen % options.cells, chosen // options.cells], axis=1) + 0.5) * cell
    if placement == "jitter":
        slack = (cell - sizes[:, None] - 1.5) / 2.0
        centres = centres + rng.uniform(-1.0, 1.0, (number, 2)) * slack
    return centres


def place(options: ShapesOptions, requirement: Mapping[str, Any], rng: np.random.Generator) -> list[Thing]:
    """Sets the scene that `requirement` describes: colours it leaves open are drawn from the trained pairs."""
    wanted = [item for item in requirement["include"] for _ in range(item["count"])]
    held_out = options.held_out()
    colors = [
        item["color"] or str(rng.choice([c for c in options.colors if (c, item["shape"]) not in held_out]))
        for item in wanted
    ]
    cell = options.image_size / options.cells
    sizes = rng.uniform(*options.object_size, len(wanted)) * cell
    relation = requirement["relation"]
    for attempt in range(2 * _LAYOUT_TRIES):
        # A crowded scene may have no free layout left; cells always have room.
        placement = "jitter" if options.placement == "free" and attempt >= _LAYOUT_TRIES else options.placement
        centres = _layout(options, sizes, placement, rng)
        if centres is not None and (relation is None or stands(relation, centres[0], centres[1], 1.5)):
            break
    else:
        raise UserError(f"shapes: found no room for {len(wanted)} objects; lower object_size or raise cells.")
    return [
        Thing(item["shape"], color, float(x), float(y), float(size))
        for item, color, (x, y), size in zip(wanted, colors, centres, sizes, strict=True)
    ]


def for_validation(options: ShapesOptions, things: Sequence[Thing]) -> bool:
    """Tells whether a scene belongs to `validation`, not to `train`, by its objects and the cells their centres lie in.

    A cell and its mirror image are one place, as training may mirror. The objects' hash shifts the sum of their places:
    with n places (8 on a 4 x 4 grid) one scene in min(n, 16) does, and each object alone has a place where it does.
    """
    cell = options.image_size / options.cells
    objects = json.dumps(sorted((thing.shape, thing.color) for thing in things))
    shift = int.from_bytes(hashlib.sha256(objects.encode()).digest()[:8])
    half = (options.cells + 1) // 2
    columns = [int(thing.x // cell) for thing in things]
    folded = [min(column, options.cells - 1 - column) for column in columns]
    places = sum(int(thing.y // cell) * half + column for thing, column in zip(things, folded, strict=True))
    return (shift + places) % min(_MOST_PLACES, options.cells * half) == 0


def eval_prompts(
    options: ShapesOptions, per_task: int, seed: int, novel: bool = False
) -> list[tuple[str, str, dict[str, Any]]]:
    """Prompts in the plainest wording, `per_task` of each task in order: (task, caption, requirement).

    With `novel`, the tasks that name colours alone, each prompt with a colour and shape never trained together.
    """
    prompts = []
    for number, task in enumerate(TASKS):
        if novel and task not in ("colors", "color_attr"):
            continue
        for index in range(per_task):
            rng = np.random.default_rng([seed, int(novel), number, index])
            requirement = sample_requirement(options, task, novel, rng)
            prompts.append((task, caption_of(requirement), requirement))
    return prompts
