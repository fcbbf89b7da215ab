"""The `clip_score` suite: cosine of CLIP's embeddings of a picture and of its prompt (Hessel et al. 2021; paper, section 4)."""

from dataclasses import dataclass

import numpy as np

from ec_dit.evaluators.base import Evaluator, RunFacts
from ec_dit.evaluators.matched import MatchedEvaluator, MatchedSuite


@dataclass(frozen=True)
class Suite(MatchedSuite):
    """Averages the plain cosine, as the paper has it; `times_100` is torchmetrics' 100 max(cos, 0)."""

    def make(self, facts: RunFacts) -> Evaluator:
        """Loads the CLIP and reads the prompts."""
        pair = self.pair(facts, "a CLIP, such as openai/clip-vit-large-patch14,")
        wanted, choices = self.matched(facts)
        return MatchedEvaluator("CLIP score, cosine", wanted, pair, choices, figures=_times_100)


def _times_100(cosine_B: np.ndarray) -> dict[str, float]:
    return {"times_100": float(100 * np.maximum(cosine_B, 0).mean())}
