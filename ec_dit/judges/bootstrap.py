"""How sure a mean is: standard errors by drawing the prompts anew, for one run and for the difference of two."""

import math
from collections.abc import Sequence

import numpy as np

REPLICATES = 1000
_SEED = 0  # one for everybody, so that the same values have the same error


def standard_error(
    values: Sequence[float] | np.ndarray, prompts: Sequence[str], groups: Sequence[str] | None = None
) -> float:
    """Estimates the standard error of a mean over pictures, or of the mean of the means of groups of them.

    Prompts are drawn with replacement, each with all of its pictures; where there are groups, within each by itself.

    Args:
        values: one a picture.
        prompts: of the pictures.
        groups: of the pictures, such as tasks; None: all are one.

    Returns:
        NaN where a single prompt tells nothing of how others would do.
    """
    values_B = np.asarray(values, np.float64)
    labels = np.zeros(len(values_B), int) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    rng = np.random.default_rng(_SEED)
    means = [
        _drawn_means(values_B[labels == label], np.asarray(prompts)[labels == label], rng) for label in set(labels)
    ]
    return float(np.std(np.mean(means, axis=0), ddof=1)) if means else float("nan")


def plus_minus(error: float, form: str) -> str:
    """Gives the standard error as it stands behind a figure in a table; '' where it is not known (NaN)."""
    return "" if math.isnan(error) else f" +- {error:{form}}"


def _drawn_means(values_B: np.ndarray, prompts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means over the pictures of prompts that are drawn anew, as often as there are REPLICATES."""
    names, which_B = np.unique(prompts, return_inverse=True)
    if len(names) < 2:
        return np.full(REPLICATES, np.nan)
    sums, counts = np.bincount(which_B, values_B), np.bincount(which_B)
    means = np.empty(REPLICATES)
    for i in range(REPLICATES):  # one by one: all at once would be a matrix of replicates x prompts
        drawn = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        means[i] = drawn @ sums / (drawn @ counts)
    return means
