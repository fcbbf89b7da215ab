"""The `pick_score` suite: PickScore, a CLIP ViT-H/14 trained on people's choices (Kirstain et al. 2023)."""

from dataclasses import dataclass

import numpy as np

from ec_dit.encoders import clip_tower
from ec_dit.evaluators.base import Evaluator, RunFacts
from ec_dit.evaluators.matched import MatchedEvaluator, MatchedSuite


@dataclass(frozen=True)
class Suite(MatchedSuite):
    """Averages exp(logit_scale) times the cosine, as PickScore's own code gives it, about 20; `cosine` is without the factor."""

    def make(self, facts: RunFacts) -> Evaluator:
        """Loads PickScore and reads the prompts."""
        pair = self.pair(facts, "PickScore, such as yuvalkirstain/PickScore_v1,")
        scale = clip_tower.logit_scale(self.clip)
        wanted, choices = self.matched(facts)
        choices |= {"logit_scale": scale}

        def value(cosine_B: np.ndarray) -> np.ndarray:
            return scale * cosine_B

        return MatchedEvaluator("PickScore", wanted, pair, choices, value=value, figures=_cosine)


def _cosine(cosine_B: np.ndarray) -> dict[str, float]:
    return {"cosine": float(cosine_B.mean())}
