"""The `kid` suite: kernel distance of Inception features between drawn and real pictures (Binkowski et al. 2018)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ec_dit.core.settings import COUNT, key
from ec_dit.encoders.features import Features
from ec_dit.encoders.inception import WIDTH
from ec_dit.evaluators import compared
from ec_dit.evaluators.base import Evaluation, Evaluator, RunFacts, Wanted
from ec_dit.judges import distances
from ec_dit.judges.bootstrap import plus_minus

_SEED = 0  # of the subsets; one for everybody


@dataclass(frozen=True)
class Suite(compared.ComparedSuite):
    """Averages over random subsets, as clean-fid does; the figure does not depend on the number of pictures."""

    inception: str = key("", "FID's Inception: a safetensors file in pytorch-fid's layout")
    resize: Literal["clean", "pytorch_fid"] = key("clean", "the tool whose way of resizing is used")
    subsets: int = key(distances.KID_SUBSETS, "random subsets", at_least=1, at_most=COUNT)
    subset_size: int = key(distances.KID_SIZE, "pictures of a subset, at most", at_least=2, at_most=COUNT)

    def make(self, facts: RunFacts) -> Evaluator:
        """Loads the network and finds the reference."""
        features = compared.inception_features(self.inception, self.resize, facts, self.batch_size)
        reference = self.real(facts)
        wanted = self.wanted_or_captions(facts, reference)
        choices: dict[str, Any] = {"inception": compared.network_facts(self.inception), "resize": self.resize}
        choices |= {"subsets": self.subsets, "subset_size": self.subset_size, "reference": reference.facts}
        real = compared.RealFeatures(reference, features, WIDTH)
        real.check_pictures()
        return KidEvaluator(wanted, features, real, choices, self.subsets, self.subset_size)


class KidEvaluator(Evaluator):
    """Holds the features of all pictures, 8 KB each."""

    def __init__(
        self,
        wanted: Wanted,
        features: Features,
        real: compared.RealFeatures,
        choices: Mapping[str, Any],
        subsets: int,
        subset_size: int,
    ):
        self.wanted = wanted
        self._features, self._real, self._choices = features, real, choices
        self._subsets, self._size = subsets, subset_size

    def score(self, images: Iterator[np.ndarray]) -> Evaluation:
        """Computes the distance, and its standard error over the subsets."""
        real_BD, made_BD = self._real.all(), np.concatenate(list(self._features(images)))
        rng = np.random.default_rng(_SEED)
        value, error = distances.kid(real_BD, made_BD, rng, self._subsets, self._size)
        counts = f"{len(made_BD):,} pictures against {len(real_BD):,}"
        parts = {"times_1000": 1000 * value}
        table = f"KID {value:.6f}{plus_minus(error, '.6f')} (x 1000: {1000 * value:.3f}; {counts})"
        return Evaluation(value, parts, table, error, len(made_BD), choices=self._choices)
