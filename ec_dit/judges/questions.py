"""Scores of pictures from answers to questions about them, by the rules of DSG-1k and of DPG-Bench.

A question is right where its answer is yes, and valid where the questions that it depends on are. It counts as 1 where it is
right and valid, and as 0 otherwise; an item scores the mean of its questions. The two official tools differ in what a parent is
asked for. DSG looks at a parent's own answer. DPG-Bench walks through the questions in the file's order and takes away what is
not valid on the way, so that the child of a question that lost its point loses its own, if the file has it later.

Both tools compare an answer with 'yes' as it is. Here blanks around it and capitals do not matter; all released answers score
the same either way. 'yes, it is' is no yes. Sources: dsg/vqa_utils.py and dsg/data_utils.py of https://github.com/j-min/DSG,
dpg_bench/compute_dpg_bench.py of https://github.com/TencentQQGYLab/ELLA.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from ec_dit.judges.answers import Answers, check
from ec_dit.layouts.questions import Item, Question, category

Rule = Literal["dsg", "dpg"]


class Score(NamedTuple):
    """A mean, of 0 to 1, with what depends on a wrong answer counted as wrong, and without."""

    with_dependency: float
    without_dependency: float


@dataclass(frozen=True)
class ItemScore:
    """The score of an item, and what it is made of.

    Attributes:
        score: the mean of its questions; 0 of an item that lacks a question (`Item.lacking`).
        right: question -> whether its own answer is yes.
        valid: question -> whether those that it depends on let it count.
    """

    score: Score
    right: Mapping[int, bool]
    valid: Mapping[int, bool]

    def counts(self, question: int) -> bool:
        """Says whether a question is right and valid."""
        return self.right[question] and self.valid[question]


@dataclass(frozen=True)
class DsgScores:
    """DSG's scores, of 0 to 1.

    Attributes:
        total: the mean over items.
        sources: the same by the items' source, such as 'real_user'.
        categories: the means over all questions of a broad category; 'other' belongs to 'attribute'.
        lacking: the items that count 0 whatever is answered, since the file lacks one of their questions; no category has them.
    """

    total: Score
    sources: Mapping[str, Score]
    categories: Mapping[str, Score]
    lacking: tuple[str, ...]


@dataclass(frozen=True)
class DpgScores:
    """DPG-Bench's scores, of 0 to 100.

    Attributes:
        total: the mean over images of the mean over their tiles.
        level_1: the means of the questions of a coarse category, such as 'attribute'.
        level_2: of a finer one, such as 'attribute - color'.
    """

    total: float
    level_1: Mapping[str, float]
    level_2: Mapping[str, float]


@dataclass(frozen=True)
class Dpg:
    """DPG-Bench's scores as they are meant, and as the official script gives them.

    Attributes:
        ours: of all questions; categories over all tiles and with dependencies, as the total is.
        official: without the file's first question, which the script passes over, and without `lost`; categories of the last
            tile alone, before dependencies. So on one process; on several, the script mixes up the categories.
        lost: the images that the script passes over, since a question asks for one that is not there: the first item, where
            others depend on its first question.
    """

    ours: DpgScores
    official: DpgScores
    lost: tuple[str, ...]


def is_yes(answer: str) -> bool:
    """Says whether an answer is yes, blanks around it and capitals aside."""
    return answer.strip().lower() == "yes"


def score_item(item: Item, answers: Mapping[int, str], rule: Rule = "dsg") -> ItemScore:
    """Scores the answers to an item's questions.

    Args:
        answers: question -> answer, of all its questions; those of an item that lacks one are not looked at.
        rule: what a parent is asked for: 'dsg', its own answer; 'dpg', whether it still counts when the walk comes by.
    """
    if item.lacking:
        nothing = dict.fromkeys((question.id for question in item.questions), False)
        return ItemScore(Score(0.0, 0.0), nothing, nothing)
    right = {question.id: is_yes(answers[question.id]) for question in item.questions}
    valid = _valid(item.questions, right, rule)
    counted = [right[question] and valid[question] for question in right]
    return ItemScore(Score(_mean(counted), _mean(right.values())), right, valid)


def dsg(items: Sequence[Item], answers: Answers, where: str = "the answers") -> DsgScores:
    """Scores answers as DSG does.

    Raises:
        UserError: as `answers.check`.
    """
    check(items, answers, where)
    scores = {item.id: score_item(item, answers.get(item.id, {})) for item in items}
    sources: dict[str, list[Score]] = {}
    categories: dict[str, list[Score]] = {}
    for item in items:
        score = scores[item.id]
        if source := category(item.id):
            sources.setdefault(source, []).append(score.score)
        for question in () if item.lacking else item.questions:
            its = Score(score.counts(question.id), score.right[question.id])
            categories.setdefault("attribute" if question.broad == "other" else question.broad, []).append(its)
    return DsgScores(
        _mean_score(score.score for score in scores.values()),
        {source: _mean_score(its) for source, its in sources.items()},
        {name: _mean_score(its) for name, its in categories.items()},
        tuple(item.id for item in items if item.lacking),
    )


def dpg(items: Sequence[Item], tiles: Sequence[Answers], where: str = "the answers") -> Dpg:
    """Scores answers as DPG-Bench does.

    Args:
        tiles: the answers about each tile of the pictures: 1, or the 4 of a 2 x 2 grid in reading order.

    Raises:
        UserError: as `answers.check`, for the answers of each tile.
    """
    for number, answers in enumerate(tiles, 1):
        check(items, answers, f"{where}, tile {number}")
    totals: list[float] = []
    counted: list[tuple[Question, bool]] = []
    for item in items:
        scores = [score_item(item, answers.get(item.id, {}), "dpg") for answers in tiles]
        totals.append(_mean([score.score.with_dependency for score in scores]))
        counted += [(question, score.counts(question.id)) for score in scores for question in item.questions]
    official, lost = _official_dpg(items, tiles)
    return Dpg(_dpg_scores(totals, counted), official, lost)


def _official_dpg(items: Sequence[Item], tiles: Sequence[Answers]) -> tuple[DpgScores, tuple[str, ...]]:
    totals: list[float] = []
    own: list[tuple[Question, bool]] = []
    lost = []
    for item in (replace(items[0], questions=items[0].questions[1:]), *items[1:]):
        right: dict[int, bool] = {}
        scores = []
        try:
            for answers in tiles:
                right = {question.id: is_yes(answers[item.id][question.id]) for question in item.questions}
                valid = _valid(item.questions, right, "dpg")
                scores.append(sum(right[question] and valid[question] for question in right) / len(right))
        except (KeyError, ZeroDivisionError):  # a parent that is not there; no question is left
            lost.append(item.id)
            continue
        totals.append(_mean(scores))
        own += [(question, right[question.id]) for question in item.questions]
    return _dpg_scores(totals, own), tuple(lost)


def _valid(questions: Sequence[Question], right: Mapping[int, bool], rule: Rule) -> dict[int, bool]:
    counted, valid = dict(right), dict[int, bool]()
    for question in questions:
        valid[question.id] = all(counted[parent] for parent in question.parents)
        if rule == "dpg":
            counted[question.id] = counted[question.id] and valid[question.id]
    return valid


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return sum(every) / len(every) if every else math.nan


def _mean_score(scores: Iterable[Score]) -> Score:
    with_dependency, without = zip(*scores, strict=True)
    return Score(_mean(with_dependency), _mean(without))


def _dpg_scores(totals: Sequence[float], questions: Iterable[tuple[Question, bool]]) -> DpgScores:
    level_1: dict[str, list[bool]] = {}
    level_2: dict[str, list[bool]] = {}
    for question, value in questions:
        level_1.setdefault(question.level_1, []).append(value)
        level_2.setdefault(question.level_2, []).append(value)
    coarse, fine = ({name: 100 * _mean(its) for name, its in level.items()} for level in (level_1, level_2))
    return DpgScores(100 * _mean(totals), coarse, fine)
