"""The `check` suite: no score, but whether a folder has every picture that an official scorer looks for, and nothing else."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ec_dit.data.sheet import contact_sheet
from ec_dit.evaluators.base import Evaluation, Evaluator, RunFacts, Wanted
from ec_dit.evaluators.compared import needed
from ec_dit.evaluators.prompted import PromptedSuite

_SHOWN = 64  # pictures on the sheet


@dataclass(frozen=True)
class Suite(PromptedSuite):
    """Draws the pictures of a prompt file as a tool wants them, or opens those of a folder; the score is their number."""

    def make(self, facts: RunFacts) -> Evaluator:
        """Reads the prompts."""
        needed(self.prompts, "prompts", "the tool's prompt file")
        return CheckEvaluator(self.wanted())


class CheckEvaluator(Evaluator):
    """Opens every picture."""

    wanted: Wanted

    def __init__(self, wanted: Wanted):
        self.wanted = wanted

    def score(self, images: Iterator[np.ndarray]) -> Evaluation:
        """Counts pictures, by size."""
        sizes = Counter[str]()
        shown: list[np.ndarray] = []
        for image in images:
            sizes[f"{image.shape[1]}x{image.shape[0]}"] += 1
            if len(shown) < _SHOWN:
                shown.append(image)
        count = sizes.total()
        assert self.wanted.prompts is not None
        told = f"{count:,} pictures of {len(self.wanted.prompts):,} prompts, {', '.join(sizes)} pixels: all there, nothing else"
        captions = [prompt.text for prompt in self.wanted.each[: len(shown)]]
        sheet = contact_sheet(shown, captions, columns=8, smooth=True)
        return Evaluation(float(count), {"sizes": dict(sizes)}, told, count=count, sheet=sheet)
