"""The `dsg` suite: Davidsonian scene graphs, yes-or-no questions about what a prompt says (Cho et al. 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass

from ec_dit.core.errors import UserError
from ec_dit.core.settings import key
from ec_dit.evaluators.asked import AskedEvaluator, AskedSuite
from ec_dit.evaluators.base import Evaluation, Evaluator, Figures, RunFacts
from ec_dit.judges import questions
from ec_dit.judges.answers import Answers
from ec_dit.judges.bootstrap import plus_minus, standard_error
from ec_dit.layouts.questions import category


@dataclass(frozen=True)
class Suite(AskedSuite):
    """Scores a picture of every prompt of DSG-1k; the headline is the mean over items, with dependencies."""

    layout: str = key("dsg", "of prompt file and pictures", choices=lambda: ("dsg",))

    def make(self, facts: RunFacts) -> Evaluator:
        """Reads the questions, and loads what answers them or their answers."""
        return DsgEvaluator(self, self.items())


class DsgEvaluator(AskedEvaluator):
    """Implements `AskedEvaluator`."""

    def judged(self, tiles: Sequence[Answers], where: str) -> Evaluation:
        """Scores as DSG does."""
        if len(tiles) != 1:
            raise UserError(
                f"{where}: DSG scores one picture of each prompt, and these answers are about {len(tiles)} tiles."
            )
        (answers,) = tiles
        found = questions.dsg(self._items, answers, where)
        scores = [questions.score_item(item, answers.get(item.id, {})).score for item in self._items]
        rows = [
            {"id": item.id, "prompt": item.prompt, "source": category(item.id), "value": score.with_dependency}
            for item, score in zip(self._items, scores, strict=True)
        ]
        error = standard_error([score.with_dependency for score in scores], [item.id for item in self._items])
        parts: Figures = {
            "without_dependency": found.total.without_dependency,
            "sources": {name: score.with_dependency for name, score in found.sources.items()},
            "categories": {name: score.with_dependency for name, score in found.categories.items()},
        }
        lines = [f"{'':<22} with  without dependency"]
        for name, score in {**found.sources, **found.categories}.items():
            lines.append(f"{name:<20} {score.with_dependency:.4f}  {score.without_dependency:.4f}")
        total = found.total
        lines.append(
            f"{'DSG':<20} {total.with_dependency:.4f}  {total.without_dependency:.4f}{plus_minus(error, '.4f')}"
        )
        if found.lacking:
            lines.append(f"counted 0, as the file lacks one of their questions: {', '.join(found.lacking)}")
        return Evaluation(total.with_dependency, parts, "\n".join(lines), error, len(rows), rows)
