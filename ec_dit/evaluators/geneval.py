"""The `geneval` suite: GenEval's six tasks by a detector of objects and a namer of colours (Ghosh et al. 2023)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ec_dit.core.mesh import make_mesh
from ec_dit.core.settings import key
from ec_dit.data.sheet import contact_sheet
from ec_dit.encoders.clip_pair import ClipPair
from ec_dit.evaluators.base import Evaluation, Evaluator, Figures, RunFacts, Wanted
from ec_dit.evaluators.compared import needed, network_facts
from ec_dit.evaluators.prompted import PromptedSuite
from ec_dit.evaluators.shapes.detector import ShapesDetector, task_lines
from ec_dit.judges import detections
from ec_dit.judges.bootstrap import plus_minus, standard_error
from ec_dit.judges.clip_colours import ClipColours
from ec_dit.judges.detections import Colours, Detector, Verdict
from ec_dit.layouts import geneval
from ec_dit.preparation.drawing.shapes_draw import OUTLINES, PALETTE
from ec_dit.preparation.drawing.shapes_scene import ShapesOptions

DRAWN = "shapes"  # in place of a detector's path: classical vision, for pictures of the shapes world
_PER_TASK, _SEED = 40, 20_000  # of prompts for drawn shapes; one list for everybody, so that figures compare
_CROPS = 4  # objects at a time whose colours are looked for
_SHOWN = 4  # pictures on the sheet, of the right and of the wrong of each task


@dataclass(frozen=True)
class Suite(PromptedSuite):
    """Scores four pictures of every prompt; the headline is the mean of the six tasks' shares of right pictures."""

    layout: str = key("geneval", "of prompt file and pictures", choices=lambda: ("geneval",))
    detector: str = key(
        "",
        "Mask2Former of COCO's instances: a folder or a name; 'shapes' = classical vision, for pictures of that world",
    )
    clip: str = key("", "CLIP that names colours, OpenAI's ViT-L/14 in GenEval: a folder or a name")

    def make(self, facts: RunFacts) -> Evaluator:
        """Loads the networks and reads the prompts."""
        needed(self.detector, "detector", "a detector, such as facebook/mask2former-swin-small-coco-instance,")
        if self.detector == DRAWN:
            return self._of_shapes(facts)
        from ec_dit.judges.mask2former import Mask2Former

        path = needed(self.prompts, "prompts", "GenEval's evaluation_metadata.jsonl")
        tasks = geneval.read(path, geneval.CLASSES)
        # On a device of its own: processes may find other objects, and must not wait for each other's.
        alone = make_mesh((1, 1, 1, 1), jax.local_devices()[:1])
        pair = ClipPair(needed(self.clip, "clip", "a CLIP, such as openai/clip-vit-large-patch14,"), alone, _CROPS)
        detector = Mask2Former(self.detector)
        found = {"name": detector.name, **network_facts(self.detector)}
        choices = {"detector": found, "clip": network_facts(self.clip)}

        def embed(pictures: Sequence[np.ndarray]) -> np.ndarray:
            return np.concatenate(list(pair.images(pictures)))

        return GenevalEvaluator(self.wanted(), tasks, detector, ClipColours(embed, pair.texts), choices)

    def _of_shapes(self, facts: RunFacts) -> Evaluator:
        """Looks for drawn shapes; of a run on them, the prompts may be made here."""
        detector = ShapesDetector(tuple(OUTLINES), tuple(PALETTE))
        choices = {"detector": detector.name}
        if self.prompts or not facts.draws:
            path = needed(self.prompts, "prompts", "a file in the form of GenEval's evaluation_metadata.jsonl")
            tasks = geneval.read(path, detector.classes, tuple(PALETTE))
            return GenevalEvaluator(self.wanted(), tasks, detector, detector.colours, choices)
        lines = task_lines(facts.source_options(ShapesOptions), _PER_TASK, _SEED)
        tasks = geneval.parse(lines.encode(), "the prompts", detector.classes, tuple(PALETTE))
        wanted = self.chosen(f"{DRAWN}-geneval", geneval.prompts_of(tasks))
        return GenevalEvaluator(wanted, tasks, detector, detector.colours, choices)


class GenevalEvaluator(Evaluator):
    """Judges pictures one by one.

    Args:
        tasks: of the prompts, as the file has them; those that are wanted are the first.
        choices: what the figures depend on.
    """

    wanted: Wanted

    def __init__(
        self,
        wanted: Wanted,
        tasks: Sequence[geneval.Task],
        detector: Detector,
        colours: Colours,
        choices: Mapping[str, Any],
    ):
        assert wanted.prompts is not None
        self.wanted = wanted
        self._tasks = [task for task in tasks[: len(wanted.prompts)] for _ in range(wanted.num)]
        self._detector, self._colours, self._choices = detector, colours, choices

    def score(self, images: Iterator[np.ndarray]) -> Evaluation:
        """Scores the pictures; the first right and wrong ones of each task are on the sheet."""
        verdicts: list[Verdict] = []
        shown: dict[tuple[str, bool], list[tuple[str, np.ndarray]]] = {}
        for task, image in zip(self._tasks, images, strict=True):
            (candidates,) = self._detector([image])
            verdict = detections.check(task, detections.kept(candidates, task.tag), image, self._colours)
            verdicts.append(verdict)
            same = shown.setdefault((task.tag, verdict.correct), [])
            if len(same) < _SHOWN:
                same.append((f"{task.prompt} [{'; '.join(verdict.reasons) or 'right'}]", image))
        found = detections.score(self._tasks, verdicts)
        each = self.wanted.each
        values, tags = [float(verdict.correct) for verdict in verdicts], [task.tag for task in self._tasks]
        error = standard_error(values, [prompt.id for prompt in each], tags)
        lines = [f"{'task':<14} {'images':>6}  right"]
        lines += [f"{tag:<14} {tags.count(tag):>6}  {share:.4f}" for tag, share in found.tasks.items()]
        lines.append(f"{'GenEval':<14} {len(verdicts):>6}  {found.overall:.4f}{plus_minus(error, '.4f')}")
        missing = [tag for tag in geneval.TAGS if tag not in found.tasks]
        if missing:
            lines.append(
                f"warning: the mean of {len(found.tasks)} tasks, without {', '.join(missing)}, is not GenEval's"
            )
        rows = [
            {"id": prompt.id, "prompt": prompt.text, "group": tag, "value": value, "reasons": list(verdict.reasons)}
            for prompt, tag, value, verdict in zip(each, tags, values, verdicts, strict=True)
        ]
        pictures = [item for tag in geneval.TAGS for right in (True, False) for item in shown.get((tag, right), [])]
        sheet = contact_sheet([p for _, p in pictures], [text for text, _ in pictures], columns=2 * _SHOWN, smooth=True)
        parts: Figures = {"tasks": found.tasks, "images_right": found.images, "prompts_with_one_right": found.prompts}
        table = "\n".join(lines)
        return Evaluation(found.overall, parts, table, error, len(verdicts), rows, self._choices, sheet)
