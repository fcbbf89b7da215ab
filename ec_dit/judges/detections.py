"""GenEval's rules: whether the objects that a detector found in a picture are those that a task asks for.

They are those of the official scorer (djghosh13/geneval, evaluation/evaluate_images.py and summary_scores.py), which knows
neither detector nor pictures: what finds objects (`Detector`) and what names their colours (`Colours`) comes from outside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ec_dit.layouts.geneval import RELATIONS, Include, Task

THRESHOLD, COUNTING_THRESHOLD = np.float32(0.3), np.float32(0.9)  # scores above them count; float32, as scores are
MOST_OBJECTS = 16  # of a class in one picture
_MARGIN = 0.1  # of the sizes of two objects: so far they may stand aside without a relation
_LEAST_OFFSET = 1e-3  # pixels
_LEAST_SHARE = 0.5  # of the distance that must lie along an axis


@dataclass(frozen=True, eq=False)
class Detection:
    """An object in a picture.

    Attributes:
        box: (left, top, right, bottom) in pixels; right and bottom are beyond the last column and row.
        score: from 0 to 1.
        mask: bool (Y, X) of the whole picture; None where the detector gives none.
    """

    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray | None = None


class Detector(Protocol):
    """Finds the objects in pictures."""

    @property
    def name(self) -> str:
        """Says which detector with which weights it is: figures of two detectors do not compare."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Names all it can find."""
        ...

    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, list[Detection]]]:
        """Finds all candidates in each picture, uint8 (Y, X, 3), by class, in any order and of any score."""
        ...


class Colours(Protocol):
    """Names the colours of objects."""

    def __call__(self, image: np.ndarray, detections: Sequence[Detection], class_name: str) -> list[str]:
        """Names one colour for each of the objects of a class in a picture, uint8 (Y, X, 3)."""
        ...


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows what its task asks for, and why not."""

    correct: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """What pictures amount to.

    Attributes:
        tasks: share of correct pictures by tag, of the tags that there are.
        overall: mean of these, however many pictures each has: GenEval's headline.
        images: share of correct pictures.
        prompts: share of the tasks that have at least one correct picture.
    """

    tasks: dict[str, float]
    overall: float
    images: float
    prompts: float


def kept(candidates: Mapping[str, Sequence[Detection]], tag: str) -> dict[str, list[Detection]]:
    """Keeps what counts as found in a task: by class, the best first; of equal scores, the later candidate.

    The official scorer reverses an argsort that is not stable: its order of equal scores is this one where a class has few
    candidates, and left to NumPy where it has many.
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    found = {}
    for name, detections in candidates.items():
        scores = np.array([detection.score for detection in detections], np.float32)
        best = [detections[i] for i in np.argsort(scores, kind="stable")[::-1] if scores[i] > threshold]
        if best:
            found[name] = best[:MOST_OBJECTS]
    return found


def relations(a: Detection, b: Detection) -> set[str]:
    """Tells how `a` stands to `b`, in words of RELATIONS: two of them where it stands aslant, none where too near.

    Along each axis the distance of the centres, less a tenth of both sizes, is compared with the whole distance.
    """
    corners = np.array([a.box, b.box], np.float32).reshape(2, 2, 2)
    first, second = corners.mean(axis=1)
    sizes = np.abs(corners[:, 1] - corners[:, 0])
    offset = first - second
    beyond = np.sign(offset) * np.maximum(np.abs(offset) - _MARGIN * (sizes[0] + sizes[1]), 0)
    if (np.abs(beyond) < _LEAST_OFFSET).all():  # centres that coincide among them
        return set()
    x, y = beyond / np.linalg.norm(offset)
    holds = (x < -_LEAST_SHARE, x > _LEAST_SHARE, y < -_LEAST_SHARE, y > _LEAST_SHARE)
    return {word for word, true in zip(RELATIONS, holds, strict=True) if true}


def check(task: Task, found: Mapping[str, Sequence[Detection]], image: np.ndarray, colours: Colours) -> Verdict:
    """Compares what was found in a picture with what its task asks for.

    Entries of `include` are independent: two of one class look at the same objects. Of more objects than an entry counts, the
    best alone have a colour and a position.

    Args:
        found: by class, the best first, as `kept` gives them.
        image: uint8 (Y, X, 3), for `colours`.
    """
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []  # of the entries so far: their objects, None where they failed
    for wanted in task.include:
        objects = found.get(wanted.class_name, ())[: wanted.count]
        reason = _number_or_colour(wanted, objects, image, colours) or _position(wanted, objects, groups)
        groups.append(None if reason else objects)
        reasons += [f"{wanted.class_name}: {reason}"] if reason else []
    for unwanted in task.exclude:
        number = len(found.get(unwanted.class_name, ()))
        if number >= unwanted.count:
            reasons.append(f"{unwanted.class_name}: found {number}, {unwanted.count - 1} at most")
    return Verdict(not reasons, tuple(reasons))


def _number_or_colour(wanted: Include, objects: Sequence[Detection], image: np.ndarray, colours: Colours) -> str | None:
    """What is wrong with the number of the objects or with their colours."""
    if len(objects) < wanted.count:
        return f"found {len(objects)} of {wanted.count}"
    if wanted.colour is None:
        return None
    seen = colours(image, objects, wanted.class_name)
    return None if seen.count(wanted.colour) >= wanted.count else f"{', '.join(seen)}, not {wanted.colour}"


def _position(
    wanted: Include, objects: Sequence[Detection], groups: Sequence[Sequence[Detection] | None]
) -> str | None:
    """What is wrong with where the objects stand."""
    if wanted.position is None:
        return None
    relation, index = wanted.position
    targets = groups[index]
    if targets is None:
        return f"nothing that it could be {relation}"
    for one in objects:
        for target in targets:
            there = relations(one, target)
            if relation not in there:
                return f"{' and '.join(sorted(there)) or 'in no direction'}, not {relation}"
    return None


def score(tasks: Sequence[Task], verdicts: Sequence[Verdict]) -> Score:
    """Sums up the verdicts on pictures.

    Args:
        tasks: of each picture: a task comes as often as it has pictures.
        verdicts: one for each.

    Raises:
        ValueError: there are none.
    """
    if not verdicts:
        raise ValueError("there are no pictures to score")
    by_tag: dict[str, list[bool]] = {}
    by_task: dict[Task, list[bool]] = {}
    for task, verdict in zip(tasks, verdicts, strict=True):
        by_tag.setdefault(task.tag, []).append(verdict.correct)
        by_task.setdefault(task, []).append(verdict.correct)
    means = {tag: float(np.mean(correct)) for tag, correct in by_tag.items()}
    return Score(
        tasks=means,
        overall=float(np.mean(list(means.values()))),
        images=float(np.mean([verdict.correct for verdict in verdicts])),
        prompts=float(np.mean([any(correct) for correct in by_task.values()])),
    )
