"""The `hps` suite: Human Preference Score v2, a CLIP ViT-H/14 trained on people's choices (Wu et al. 2023)."""

from dataclasses import dataclass

import numpy as np

from ec_dit.evaluators.base import Evaluator, RunFacts
from ec_dit.evaluators.matched import MatchedEvaluator, MatchedSuite


@dataclass(frozen=True)
class Suite(MatchedSuite):
    """Averages 100 times the cosine, as HPSv2's benchmark prints it; of its own prompts, layout=hpsv2, by style too."""

    def make(self, facts: RunFacts) -> Evaluator:
        """Loads HPSv2 and reads the prompts."""
        pair = self.pair(facts, "HPSv2, its weights in the layout of transformers' CLIPModel,")
        groups = _style if self.layout == "hpsv2" else None
        wanted, choices = self.matched(facts)
        return MatchedEvaluator("HPSv2, 100 x cosine", wanted, pair, choices, value=_times_100, groups=groups)


def _times_100(cosine_B: np.ndarray) -> np.ndarray:
    return 100 * cosine_B


def _style(id_: str) -> str:
    return id_.partition("/")[0]
