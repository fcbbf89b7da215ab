"""The `shapes` suite: prompts of the embedded data set's six tasks, scored by classical vision."""

from collections.abc import Callable

import numpy as np

from ec_dit.data.sheet import contact_sheet
from ec_dit.evaluators.base import Evaluation, Generate
from ec_dit.evaluators.shapes.scoring import score
from ec_dit.preparation.drawing.shapes_scene import ShapesOptions, eval_prompts

_PROMPT_SEED = 20_000  # of the prompts; one list for everybody, so that figures compare
_SHEET_PER_TASK = 8


class ShapesEvaluator:
    """Generates `per_task` images for each of the six tasks and checks them against their captions.

    Args:
        options: of the data set the model was trained on.
        per_task: images per task.
        novel: prompts with the colour-shape pairs kept out of training; only tasks that name colours have such.
    """

    name = "shapes"

    def __init__(self, options: ShapesOptions, per_task: int, novel: bool = False):
        tasks, self._captions, self._wanted = zip(*eval_prompts(options, per_task, _PROMPT_SEED, novel), strict=True)
        self._tasks = tasks
        self._options = options

    def run(self, generate: Generate, progress: Callable[[int, int], None]) -> Evaluation:
        """Scores one image per prompt; see `evaluators.base.Evaluator`."""
        total = len(self._captions)
        made: list[np.ndarray] = []
        seen: dict[str, int] = {}
        for part, batch in generate(self._captions, _count_repeats(self._captions, seen)):
            made.extend(batch)
            progress(part.stop, total)
        result = score(made, self._wanted, self._options.shapes, self._options.colors)
        correct = result.pop("correct")
        names = list(result["tasks"])
        rows = [(name, self._tasks.count(name), result["tasks"][name]) for name in names] + [
            ("mean", total, result["mean"])
        ]
        table = "\n".join(
            [
                f"{'task':<14} {'images':>6}  accuracy",
                *(f"{name:<14} {count:>6}  {value:8.3f}" for name, count, value in rows),
            ]
        )
        shown = [i for name in names for i in _first(self._tasks, name, _SHEET_PER_TASK)]
        captions = [f"{self._captions[i]} [{'right' if correct[i] else 'wrong'}]" for i in shown]
        sheet = contact_sheet([made[i] for i in shown], captions, columns=_SHEET_PER_TASK, smooth=True)
        return Evaluation(result, table, sheet)


def _count_repeats(captions: tuple[str, ...], seen: dict[str, int]) -> list[int]:
    """The how-manieth image of its caption each one is, so that a repeated caption gives another image."""
    indices = []
    for caption in captions:
        indices.append(seen.get(caption, 0))
        seen[caption] = indices[-1] + 1
    return indices


def _first(tasks: tuple[str, ...], name: str, count: int) -> list[int]:
    return [i for i, task in enumerate(tasks) if task == name][:count]
