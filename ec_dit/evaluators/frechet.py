"""What the suites `fid` and `fd_dino` share: the Fréchet distance of features, with its standard error."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from ec_dit.core import processes
from ec_dit.encoders.features import Features
from ec_dit.evaluators.base import Evaluation, Evaluator, Wanted
from ec_dit.evaluators.compared import RealFeatures, check_can_write
from ec_dit.judges import distances, moments
from ec_dit.judges.bootstrap import plus_minus
from ec_dit.judges.moments import Sums


class Options(Protocol):
    """What it reads of a suite's options."""

    @property
    def bootstrap(self) -> int:
        """Counts the replicates for the standard error."""
        ...

    @property
    def write(self) -> str:
        """Names the file for the statistics of the reference; '' = none."""
        ...


class FrechetEvaluator(Evaluator):
    """Compares pictures with a reference by mean and covariance of features.

    Args:
        title: of the figure.
        choices: what it depends on.
    """

    wanted: Wanted

    def __init__(
        self,
        title: str,
        wanted: Wanted,
        features: Features,
        real: RealFeatures,
        choices: Mapping[str, Any],
        options: Options,
    ):
        self.wanted = wanted
        self._title, self._features, self._real = title, features, real
        self._choices, self._options = choices, options
        if options.write:
            check_can_write(options.write)

    def score(self, images: Iterator[np.ndarray]) -> Evaluation:
        """Computes the distance; memory does not grow with the number of pictures.

        The standard error is by a Poisson bootstrap: every replicate takes each prompt a number of times, drawn with mean 1, and
        the reference as it is.
        """
        real = self._real.moments(moments.moments)
        if self._options.write:
            with processes.told_by_first():
                if processes.is_first():
                    real.write(self._options.write)
        ids = [prompt.id for prompt in self.wanted.each]
        drawn, replicates = Sums(), [Sums() for _ in range(self._options.bootstrap)]
        weights = _Weights(len(replicates), ids)
        for features_BD in self._features(images):
            start = drawn.count
            drawn.add(features_BD)
            for i, replicate in enumerate(replicates):
                replicate.add(features_BD, weights(i, start, len(features_BD)))
        made = drawn.moments()
        root = distances.root(real.covariance_DD)
        value = distances.frechet(real, made, root)
        drawn_anew = [replicate for replicate in replicates if replicate.count > 1]  # of few prompts, perhaps none
        others = [distances.frechet(real, replicate.moments(), root) for replicate in drawn_anew]
        error = float(np.std(others, ddof=1)) if len(others) > 1 else float("nan")
        parts = {"mean_part": float(np.sum((real.mean_D - made.mean_D) ** 2))}
        counts = f"{drawn.count:,} pictures against {real.count or 'an unknown number of'}"
        lines = [f"{self._title} {value:.4f}{plus_minus(error, '.4f')} ({counts})"]
        if drawn.count <= len(real.mean_D):
            lines.append(
                f"warning: the covariance of {len(real.mean_D)} numbers is singular with {drawn.count} pictures: the figure is "
                "larger than with many, and compares with others of the same number only"
            )
        return Evaluation(value, parts, "\n".join(lines), error, drawn.count, choices=self._choices)


class _Weights:
    """How often each replicate takes each picture: those of a prompt alike.

    Args:
        ids: of the pictures' prompts; none where pictures are taken as they lie, each by itself.
    """

    def __init__(self, count: int, ids: list[str]):
        self._numbers = np.unique(ids, return_inverse=True)[1] if ids else None
        self._rngs = [np.random.default_rng([0, i]) for i in range(count)]
        self._drawn: list[np.ndarray] = []
        if self._numbers is not None:
            self._drawn = [rng.poisson(1, self._numbers.max() + 1) for rng in self._rngs]

    def __call__(self, replicate: int, start: int, count: int) -> np.ndarray:
        """Gives the weights of `count` pictures from `start` on."""
        if self._numbers is None:
            return self._rngs[replicate].poisson(1, count)
        drawn: np.ndarray = self._drawn[replicate][self._numbers[start : start + count]]
        return drawn
