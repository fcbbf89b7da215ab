"""What came out of a study, in figures: means over seeds with confidence, differences by pairs of seeds, steps to a loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: the mean; NaN of none.
        half: half the width of its confidence interval by Student's t; NaN of fewer than two.
        count: seeds.
    """

    value: float
    half: float
    count: int

    def __str__(self) -> str:
        if not self.count:
            return ""
        return f"{self.value:.4f}" + ("" if math.isnan(self.half) else f" +- {self.half:.4f}")


def mean(values: Sequence[float]) -> Mean:
    """Averages figures of several seeds."""
    count = len(values)
    if not count:
        return Mean(math.nan, math.nan, 0)
    if count == 1:
        return Mean(float(values[0]), math.nan, 1)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
    return Mean(float(np.mean(values)), float(half), count)


@dataclass(frozen=True)
class Difference:
    """How a variant differs from the reference, seed by seed: relative, negative where its figure is lower.

    Attributes:
        mean: over seeds.
        p: of a paired t-test, two-sided, by itself; NaN of fewer than two seeds.
    """

    mean: Mean
    p: float

    def __str__(self) -> str:
        if not self.mean.count:
            return ""
        half = "" if math.isnan(self.mean.half) else f" +- {100 * self.mean.half:.1f}"
        return f"{100 * self.mean.value:+.1f}{half} %"


def difference(own: Mapping[int, float], reference: Mapping[int, float]) -> Difference:
    """Compares figures by seed, of the seeds that both have."""
    seeds = sorted(own.keys() & reference.keys())
    apart = [own[seed] / reference[seed] - 1 for seed in seeds]
    p = math.nan
    if len(seeds) > 1 and np.std(apart) > 0:
        p = float(stats.ttest_1samp(apart, 0).pvalue)
    return Difference(mean(apart), p)


def first_below(curve: Mapping[int, float], goal: float) -> float:
    """Gives the step at which a falling curve reaches `goal`, on straight lines between scores; infinity where it does not."""
    before: tuple[int, float] | None = None
    for step, value in sorted(curve.items()):
        if value <= goal:
            if before is None or value == before[1]:
                return float(step)
            share = (before[1] - goal) / (before[1] - value)
            return before[0] + share * (step - before[0])
        before = step, value
    return math.inf


def holm(values: Sequence[float]) -> list[float]:
    """Raises p values of several tests of one table as Holm does, so that chance is told from all of them; NaN stay."""
    order = sorted((i for i, p in enumerate(values) if not math.isnan(p)), key=lambda i: values[i])
    found, least = list(values), 0.0
    for place, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - place) * values[i]))
        found[i] = least
    return found
