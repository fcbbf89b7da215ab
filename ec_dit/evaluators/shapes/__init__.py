"""The `shapes` suite: prompts of the embedded data set's six tasks, scored by classical vision."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ec_dit.core.settings import COUNT, key
from ec_dit.data.sheet import contact_sheet
from ec_dit.evaluators import base
from ec_dit.evaluators.base import Evaluation, Evaluator, RunFacts, Wanted
from ec_dit.evaluators.shapes.scoring import score
from ec_dit.judges.bootstrap import standard_error
from ec_dit.preparation.drawing.shapes_scene import ShapesOptions, eval_prompts

_PROMPT_SEED = 20_000  # of the prompts; one list for everybody, so that figures compare
_SHEET_PER_TASK = 8


@dataclass(frozen=True)
class Suite(base.Suite):
    """Draws pictures for each of the six tasks and checks them against their captions."""

    sources = ("shapes",)

    images_per_task: int = key(40, "pictures for each task", at_least=1, at_most=COUNT)
    novel: bool = key(
        False, "prompts with the colour-shape pairs kept out of training, for the tasks that name colours"
    )

    @property
    def variant(self) -> str:
        """Keeps figures of novel prompts apart."""
        return "novel" if self.novel else ""

    def make(self, facts: RunFacts) -> "ShapesEvaluator":
        """Makes the prompts from the options of the run's data set."""
        return ShapesEvaluator(facts.source_options(ShapesOptions), self.images_per_task, self.novel)


class ShapesEvaluator(Evaluator):
    """Scores pictures of the tasks' prompts.

    Args:
        options: of the data set the model was trained on.
        per_task: pictures for each task.
        novel: as `Suite` has it.
    """

    wanted: Wanted

    def __init__(self, options: ShapesOptions, per_task: int, novel: bool = False):
        self._tasks, prompts, self._asked = zip(*eval_prompts(options, per_task, _PROMPT_SEED, novel), strict=True)
        self.wanted = Wanted.of(f"shapes{'_novel' if novel else ''}-{len(prompts)}", prompts)
        self._options = options

    def score(self, images: Iterator[np.ndarray]) -> Evaluation:
        """Scores one picture a prompt; see `evaluators.base.Evaluator`."""
        made = list(images)
        result = score(made, self._asked, self._options.shapes, self._options.colors)
        correct, mean, names = result["correct"], result["mean"], list(result["tasks"])
        prompts = self.wanted.each
        error = standard_error(correct, [prompt.id for prompt in prompts], self._tasks)
        rows = [(name, self._tasks.count(name), result["tasks"][name]) for name in names] + [("mean", len(made), mean)]
        table = "\n".join(
            [
                f"{'task':<14} {'images':>6}  accuracy",
                *(f"{name:<14} {count:>6}  {value:8.3f}" for name, count, value in rows),
                *([f"standard error {error:.3f}"] if not math.isnan(error) else ()),
            ]
        )
        shown = [i for name in names for i in _first(self._tasks, name, _SHEET_PER_TASK)]
        captions = [f"{prompts[i].text} [{'right' if correct[i] else 'wrong'}]" for i in shown]
        sheet = contact_sheet([made[i] for i in shown], captions, columns=_SHEET_PER_TASK, smooth=True)
        found = zip(prompts, self._tasks, correct, strict=True)
        told = [{"id": p.id, "prompt": p.text, "group": task, "value": float(right)} for p, task, right in found]
        return Evaluation(mean, {"tasks": result["tasks"]}, table, error, len(made), told, sheet=sheet)


def _first(tasks: tuple[str, ...], name: str, count: int) -> list[int]:
    return [i for i, task in enumerate(tasks) if task == name][:count]
