"""GenEval's rules on drawn pictures: its six tasks in the words of the `shapes` world, and classical vision as the detector.

Unlike the `shapes` suite's own scorer, the rules let other objects stand beside those that are asked for.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ec_dit.evaluators.shapes.vision import find_objects
from ec_dit.judges.detections import Detection
from ec_dit.layouts.geneval import RELATIONS as WORDS
from ec_dit.preparation.drawing import shapes_scene
from ec_dit.preparation.drawing.shapes_scene import ShapesOptions

_WORDS = dict(zip(shapes_scene.RELATIONS, WORDS, strict=True))  # left -> left of


@dataclass(frozen=True, eq=False)
class Drawn(Detection):
    """An object of a drawn picture, with its colour; '' where it is like none known."""

    colour: str = ""


class ShapesDetector:
    """Finds drawn objects by classical vision, each with the score 1; see `judges.detections.Detector`.

    Args:
        shapes: the classes it tells apart.
        colors: of the palette.
    """

    name = "classical vision"

    def __init__(self, shapes: Sequence[str], colors: Sequence[str]):
        self.classes: Sequence[str] = tuple(shapes)
        self._colors = tuple(colors)

    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, list[Detection]]]:
        """Finds the objects in pictures, uint8 (Y, X, 3), leaving out those like no known shape."""
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> dict[str, list[Detection]]:
        found: dict[str, list[Detection]] = {}
        for item in find_objects(image, self.classes, self._colors):
            if item.shape is not None:
                found.setdefault(item.shape, []).append(Drawn(item.box, 1.0, colour=item.color or ""))
        return found

    def colours(self, image: np.ndarray, detections: Sequence[Detection], class_name: str) -> list[str]:
        """Names the colours of objects that it found; see `judges.detections.Colours`."""
        return [detection.colour for detection in detections if isinstance(detection, Drawn)]


def task_line(requirement: Mapping[str, Any], prompt: str) -> str:
    """Writes a requirement (preparation/drawing/shapes_scene.py) as a line of GenEval's prompt file, without its end."""
    include = [
        {"class": item["shape"], "count": item["count"]} | ({"color": item["color"]} if item["color"] else {})
        for item in requirement["include"]
    ]
    if requirement["relation"]:  # of the first to the second; in GenEval, of a later entry to an earlier one
        include.reverse()
        include[1]["position"] = [_WORDS[requirement["relation"]], 0]
    task = {"tag": requirement["task"], "include": include}
    if requirement["task"] == "counting":
        task["exclude"] = [{"class": item["shape"], "count": item["count"] + 1} for item in requirement["include"]]
    return json.dumps(task | {"prompt": prompt})


def task_lines(options: ShapesOptions, per_task: int, seed: int, novel: bool = False) -> str:
    """Writes prompts of the six tasks as lines that `layouts.geneval.parse` reads, with `classes=options.shapes`.

    Args:
        per_task: prompts drawn for each task; those drawn twice stand once, so that tasks with few prompts have fewer.
        seed: of the prompts.
        novel: those of `shapes_scene.eval_prompts`.
    """
    prompts = shapes_scene.eval_prompts(options, per_task, seed, novel)
    lines = dict.fromkeys(task_line(requirement, prompt) for _, prompt, requirement in prompts)
    return "".join(f"{line}\n" for line in lines)
