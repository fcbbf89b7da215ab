"""The `val_loss` suite: the loss of held-out examples at fixed times, by noise level, as MLPerf compares training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ec_dit.core.errors import UserError
from ec_dit.core.settings import COUNT, key
from ec_dit.evaluators import base
from ec_dit.evaluators.base import Evaluation, Losses, LossEvaluator, RunFacts
from ec_dit.judges.bootstrap import plus_minus
from ec_dit.nn.routing.spec import Routed

MLPERF_TIMES = tuple(i / 8 for i in range(8))


def _problem(times: tuple[object, ...]) -> str | None:
    good = times and all(isinstance(t, int | float) and not isinstance(t, bool) and 0 <= t <= 1 for t in times)
    return None if good else "give times from 0, data, to 1, noise, such as (0.25, 0.75)"


@dataclass(frozen=True)
class Suite(base.Suite):
    """Takes example i at times[i mod their number]; the score is the mean of the times' means."""

    split: str = key("validation", "of the run's data set")
    most: int = key(0, "examples at most, taken from all over the split; 0 = all", at_least=0, at_most=COUNT)
    times: tuple[float, ...] = key(MLPERF_TIMES, "t, 0 = data; MLPerf's eight", check=_problem)
    routed: Routed = key("sampling", "sparse models: as an image is that is drawn, or in training's groups of several")

    @property
    def variant(self) -> str:
        """Tells losses of training's groups from the others."""
        return "" if self.routed == "sampling" else "in_groups"

    def make(self, facts: RunFacts) -> "TimedLoss":
        """Looks for the split, and counts its examples."""
        if not facts.draws:
            raise UserError(f"suite {self.label} needs the model itself: give --workdir=DIR.")
        self.check_split(self.split, facts)
        count = min(self.most or COUNT, facts.size(self.split))
        if count < len(self.times):
            raise UserError(
                f"suite {self.label}: there are {count} examples of split {self.split}, fewer than the {len(self.times)} times: "
                "give fewer times."
            )
        return TimedLoss(self.split, count, self.times, self.routed)


class TimedLoss(LossEvaluator):
    """Averages losses; arguments as the suite's options."""

    def __init__(self, split: str, most: int, times: Sequence[float], routed: Routed = "sampling"):
        self._split, self._most, self._times, self._routed = split, most, times, routed

    def measure(self, losses: Losses) -> Evaluation:
        """Computes the mean of the per-time means, and its standard error by the spread within each time."""
        loss_B = losses(self._split, self._most, self._times, self._routed)
        by_time = [loss_B[i :: len(self._times)] for i in range(len(self._times))]
        means = [float(part.mean()) for part in by_time]
        score = float(np.mean(means))
        variances = [part.var(ddof=1) / len(part) if len(part) > 1 else np.nan for part in by_time]
        error = float(np.sqrt(np.sum(variances)) / len(variances))
        parts = {f"t={t:g}": mean for t, mean in zip(self._times, means, strict=True)}
        lines = [f"{'t':>6} {'examples':>9}  loss"]
        lines += [
            f"{t:6g} {len(part):>9}  {mean:.5f}" for t, part, mean in zip(self._times, by_time, means, strict=True)
        ]
        lines.append(f"{'mean':>6} {len(loss_B):>9}  {score:.5f}{plus_minus(error, '.5f')}")
        rows = [{"id": str(i), "value": float(loss)} for i, loss in enumerate(loss_B)]
        choices = {"split": self._split, "times": list(self._times), "routed": self._routed}
        return Evaluation(score, {"times": parts}, "\n".join(lines), error, len(loss_B), rows, choices)
