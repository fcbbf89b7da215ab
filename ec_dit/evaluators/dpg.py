"""The `dpg` suite: DPG-Bench, yes-or-no questions about long prompts (Hu et al. 2024, ELLA)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ec_dit.core.settings import key
from ec_dit.evaluators.asked import AskedEvaluator, AskedSuite
from ec_dit.evaluators.base import Evaluation, Evaluator, Figures, RunFacts
from ec_dit.judges import questions
from ec_dit.judges.answers import Answers
from ec_dit.judges.bootstrap import plus_minus, standard_error
from ec_dit.layouts.questions import Item


@dataclass(frozen=True)
class Suite(AskedSuite):
    """Scores four pictures of every prompt, of 0 to 100; beside ours stand the figures that the official script would print."""

    layout: str = key("dpg", "of prompt file and pictures", choices=lambda: ("dpg",))

    def make(self, facts: RunFacts) -> Evaluator:
        """Reads the questions, and loads what answers them or their answers."""
        return DpgEvaluator(self, self.items())


class DpgEvaluator(AskedEvaluator):
    """Implements `AskedEvaluator`."""

    def judged(self, tiles: Sequence[Answers], where: str) -> Evaluation:
        """Scores as DPG-Bench does."""
        found = questions.dpg(self._items, tiles, where)
        values = [100 * _over_tiles(item, tiles) for item in self._items]
        rows = [
            {"id": item.id, "prompt": item.prompt, "value": value}
            for item, value in zip(self._items, values, strict=True)
        ]
        error = standard_error(values, [item.id for item in self._items])
        ours, official = found.ours, found.official
        parts: Figures = {
            "level_1": dict(ours.level_1),
            "level_2": dict(ours.level_2),
            "official_total": official.total,
            "official_level_1": dict(official.level_1),
            "official_level_2": dict(official.level_2),
        }
        lines = [f"{'':<24} {'ours':>7}  official script"]
        lines += [
            f"{name:<24} {value:7.2f}  {official.level_1.get(name, math.nan):7.2f}"
            for name, value in ours.level_1.items()
        ]
        lines.append(f"{'DPG-Bench':<24} {ours.total:7.2f}  {official.total:7.2f}{plus_minus(error, '.2f')}")
        if found.lost:
            lines.append(f"the official script passes over {', '.join(found.lost)}")
        return Evaluation(ours.total, parts, "\n".join(lines), error, len(rows), rows)


def _over_tiles(item: Item, tiles: Sequence[Answers]) -> float:
    """An item's mean over the tiles of its picture."""
    scores = [questions.score_item(item, answers.get(item.id, {}), "dpg").score for answers in tiles]
    return sum(score.with_dependency for score in scores) / len(scores)
