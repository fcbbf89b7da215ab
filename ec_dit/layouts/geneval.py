"""GenEval's layout and its prompt file, evaluation_metadata.jsonl: what pictures must show, for a program to check.

A line is {"tag", "prompt", "include": [{"class", "count", "color"?, "position"?: [relation, index]}], "exclude"?: [{"class",
"count"}]} (djghosh13/geneval, prompts/create_prompts.py). The index of a position is that of an earlier entry of `include`.
"""

import codecs
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ec_dit.core import json_file, paths
from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.layouts.base import Layout, PictureFile, Prompt

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
# COCO's, in its order. GenEval says "computer mouse", "tv remote" and "computer keyboard" for mouse, remote and keyboard.
CLASSES = tuple(
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking meter, "
    "bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, "
    "frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, "
    "wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, "
    "chair, couch, potted plant, bed, dining table, toilet, tv, laptop, computer mouse, tv remote, computer keyboard, "
    "cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, "
    "toothbrush".split(", ")
)

_ADVICE = "Write the line as GenEval's evaluation_metadata.jsonl has it."
_OPTIONAL = ("exclude", "color", "position")
_KEYS = {"tag": str, "prompt": str, "include": list, "exclude": list}
_INCLUDE_KEYS = {"class": str, "count": int, "color": str, "position": tuple[str, int]}
_EXCLUDE_KEYS = {"class": str, "count": int}


@dataclass(frozen=True)
class Include:
    """Objects that a picture must show.

    Attributes:
        class_name: of all of them.
        count: how many there must be at least.
        colour: of each; None: any.
        position: (relation, index): so each of them stands to every object of `include[index]`; None: anywhere.
    """

    class_name: str
    count: int
    colour: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Exclude:
    """Objects of which a picture must show fewer than `count`."""

    class_name: str
    count: int


@dataclass(frozen=True)
class Task:
    """A prompt, and what its pictures must show.

    Attributes:
        tag: of TAGS: which of the six tasks it belongs to.
        line: the JSON text that says all this, as the file has it.
    """

    tag: str
    prompt: str
    include: tuple[Include, ...]
    exclude: tuple[Exclude, ...]
    line: str


def read(
    path: str | PurePath, classes: Collection[str] | None = None, colours: Collection[str] | None = COLOURS
) -> list[Task]:
    """Reads the tasks of a prompt file in their order; empty lines are left out.

    Args:
        path: of the file, on a disk or in a bucket.
        classes: names that may stand there, such as CLASSES; None: any.
        colours: likewise.

    Raises:
        UserError: there is no such file, it holds no task or one twice, or a line is none; it names the line.
    """
    file = paths.at(path)
    if not file.is_file():
        raise UserError(f"there is no file {file}; give the path of GenEval's evaluation_metadata.jsonl.")
    return parse(file.read_bytes(), str(file), classes, colours)


def parse(
    data: bytes, where: str, classes: Collection[str] | None = None, colours: Collection[str] | None = COLOURS
) -> list[Task]:
    """Makes tasks of the content of a prompt file; `where` it comes from, for messages, the others as `read` has them."""
    tasks: list[Task] = []
    numbers: dict[tuple[Any, ...], int] = {}  # content -> number of its line
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{where}, line {number},"
        content = json_file.parse(line, place, _ADVICE)
        with json_file.whole(place, _ADVICE):
            task = _task(content, line.decode().strip(), classes, colours)
        first = numbers.setdefault((task.tag, task.prompt, task.include, task.exclude), number)
        if first != number:
            raise UserError(f"{place} is line {first} again; leave one of them out.")
        tasks.append(task)
    if not tasks:
        raise UserError(f"{where} holds no tasks; give GenEval's evaluation_metadata.jsonl, which has one a line.")
    return tasks


class Geneval(Layout):
    """00000/metadata.jsonl and 00000/samples/0000.png, ..., by the number of the line; four pictures of each prompt."""

    NUM = 4

    def read(self, path: str) -> list[Prompt]:
        """Reads evaluation_metadata.jsonl; classes and colours may be any."""
        return prompts_of(read(path, colours=None))

    def files(self, prompts: Sequence[Prompt], num: int) -> list[PictureFile]:
        """Lists 00000/samples/0000.png, ..."""
        return [
            PictureFile(f"{prompt.id}/samples/{index:04d}.png", number, index)
            for number, prompt in enumerate(prompts)
            for index in range(num)
        ]

    def beside(self, prompts: Sequence[Prompt]) -> Mapping[str, bytes]:
        """Gives the metadata of every folder."""
        return {f"{prompt.id}/metadata.jsonl": prompt.line.encode() for prompt in prompts}


def prompts_of(tasks: Sequence[Task]) -> list[Prompt]:
    """Gives the prompts of tasks, by their numbers."""
    return [Prompt(f"{number:05d}", task.prompt, task.line) for number, task in enumerate(tasks)]


def _task(
    content: Mapping[str, Any], line: str, classes: Collection[str] | None, colours: Collection[str] | None
) -> Task:
    values = _values(content, _KEYS, "it")
    _check_word(values["tag"], TAGS, "tag")
    include: list[Include] = []
    for index, item in enumerate(values["include"]):
        name = f"include {index}"
        found = _counted(item, _INCLUDE_KEYS, name, classes)
        _check_word(found["color"], colours, "color")
        if found["position"] is not None:
            relation, target = found["position"]
            _check_word(relation, RELATIONS, "relation")
            if not 0 <= target < index:
                raise ValueError(f"the position of {name} points at {target}, which is no earlier entry")
        include.append(Include(found["class"], found["count"], found["color"], found["position"]))
    exclude: list[Exclude] = []
    for index, item in enumerate(values["exclude"] or ()):
        found = _counted(item, _EXCLUDE_KEYS, f"exclude {index}", classes)
        exclude.append(Exclude(found["class"], found["count"]))
    if not values["prompt"].strip():
        raise ValueError("its prompt is empty")
    if not include and not exclude:
        raise ValueError("it asks for nothing: include is empty")
    return Task(values["tag"], values["prompt"], tuple(include), tuple(exclude), line)


def _counted(item: Any, keys: Mapping[str, Any], name: str, classes: Collection[str] | None) -> dict[str, Any]:
    values = _values(item, keys, name)
    _check_word(values["class"], classes, "class")
    if values["count"] < 1:
        raise ValueError(f"the count of {name} is {values['count']}, not 1 or more")
    return values


def _values(content: Any, keys: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The values of an object, each of its key's kind; None for an optional one that is not there."""
    if not isinstance(content, dict):
        raise ValueError(f"{name} is no object")
    if missing := [key for key in keys if key not in content and key not in _OPTIONAL]:
        raise ValueError(f"{name} has no {missing[0]!r}")
    if unknown := [key for key in content if key not in keys]:
        raise ValueError(f"{name} has a {unknown[0]!r}{did_you_mean(unknown[0], keys)}; its keys are {', '.join(keys)}")
    found = {
        key: json_file.fit(content[key], kind, f"{key!r} of {name}") for key, kind in keys.items() if key in content
    }
    return dict.fromkeys(keys) | found


def _check_word(word: str | None, known: Collection[str] | None, kind: str) -> None:
    if word is not None and known is not None and word not in known:
        raise ValueError(f"there is no {kind} {word!r}{did_you_mean(word, known) or '; they are ' + ', '.join(known)}")
