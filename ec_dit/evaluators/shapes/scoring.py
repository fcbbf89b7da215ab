"""Alignment of generated `shapes` images with their captions: accuracies of six tasks, and their mean.

An image counts where the objects found are exactly the ones the caption asks for: each class as often as asked, in the
named colour, in the named relation, and nothing else. The tasks have the names of GenEval's, but prompts and scorer are
others: GenEval scores photographs with a detector and lets other classes stand beside; here they fail.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ec_dit.evaluators.shapes.vision import Found, find_objects
from ec_dit.preparation.drawing.shapes_draw import OUTLINES, PALETTE
from ec_dit.preparation.drawing.shapes_scene import stands


def agrees(found: Sequence[Found], requirement: Mapping[str, Any]) -> bool:
    """Whether the objects found are the ones required (see preparation/drawing/shapes_scene.py for the form of a requirement)."""
    left = list(found)
    matched: list[Found] = []
    for item in requirement["include"]:
        fitting = [f for f in left if f.shape == item["shape"] and f.color and item["color"] in (None, f.color)]
        if len(fitting) != item["count"]:
            return False
        matched.append(fitting[0])
        left = [f for f in left if f not in fitting]
    if left:
        return False
    relation = requirement["relation"]
    return relation is None or stands(relation, matched[0].centre(), matched[1].centre())


def check(
    image: np.ndarray,
    requirement: Mapping[str, Any],
    shapes: Sequence[str] = tuple(OUTLINES),
    colors: Sequence[str] = tuple(PALETTE),
) -> bool:
    """Whether an RGB image, uint8 [Y, X, 3], shows what is required; `shapes` and `colors` bound what it may hold."""
    return agrees(find_objects(image, shapes, colors), requirement)


def score(
    images: Sequence[np.ndarray],
    requirements: Sequence[Mapping[str, Any]],
    shapes: Sequence[str] = tuple(OUTLINES),
    colors: Sequence[str] = tuple(PALETTE),
) -> dict[str, Any]:
    """Scores images against their requirements.

    Returns:
        `tasks`: accuracy of each task present, `mean`: the mean of these, `n`: number of images, `correct`: one bool
        per image in order.
    """
    correct = [check(image, want, shapes, colors) for image, want in zip(images, requirements, strict=True)]
    by_task: dict[str, list[bool]] = {}
    for right, requirement in zip(correct, requirements, strict=True):
        by_task.setdefault(requirement["task"], []).append(right)
    tasks = {task: float(np.mean(rights)) for task, rights in by_task.items()}
    return {"mean": float(np.mean(list(tasks.values()))), "tasks": tasks, "n": len(correct), "correct": correct}
