"""How compute is spread over a picture: figures of the number of experts on each token, by sparse block and evaluation.

Letters beside the legend's: N pictures, U evaluations of the network in their order, L sparse blocks; Y and X count patches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

EDGE = 0.5  # of a patch: with a larger share of objects it belongs to one
FIGURES = {
    "experts": "experts on a token, the mean",
    "untaken": "share of tokens that no expert took",
    "most": "experts on the token that has the most",
    "evenness": "entropy of the tokens' shares of compute over that of equal shares: 1 = all get the same",
    "concentration": "Gini coefficient of experts over tokens: 0 = all get the same",
    "object": "experts on a token of an object, the mean",
    "ground": "experts on a token of the ground, the mean",
    "object_over_ground": "their ratio",
}


@dataclass(frozen=True)
class Spread:
    """A figure by sparse block and evaluation, over pictures.

    Attributes:
        mean_LU: over the pictures that have it; NaN where none does.
        standard_error_LU: of that mean; NaN of fewer than two pictures.
        pictures: that have it anywhere.
    """

    mean_LU: np.ndarray
    standard_error_LU: np.ndarray
    pictures: int


def of_picture(count_LUYX: np.ndarray, object_YX: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Computes all figures of one picture, (L, U) each, by the names of FIGURES.

    Args:
        count_LUYX: experts that took each token.
        object_YX: share of each patch that an object covers; None: unknown, and there are no figures of objects. They are NaN
            where a picture has no token of an object, or none of the ground.
    """
    count_LUS = count_LUYX.reshape(*count_LUYX.shape[:2], -1).astype(np.float64)
    tokens, total_LU = count_LUS.shape[-1], count_LUS.sum(-1)
    share_LUS = count_LUS / np.maximum(total_LU, 1)[..., None]
    entropy_LU = -np.sum(share_LUS * np.log(np.where(share_LUS > 0, share_LUS, 1)), -1)
    ranked_LUS = np.sort(share_LUS, -1)
    gini_LU = np.sum((2 * np.arange(1, tokens + 1) - tokens - 1) * ranked_LUS, -1) / tokens
    found = {
        "experts": total_LU / tokens,
        "untaken": np.mean(count_LUS == 0, -1),
        "most": count_LUS.max(-1),
        "evenness": np.where(total_LU > 0, entropy_LU / max(np.log(tokens), 1e-12), np.nan),
        "concentration": np.where(total_LU > 0, gini_LU, np.nan),
    }
    if object_YX is not None:
        is_object_S = object_YX.ravel() > EDGE
        on, off = (
            count_LUS[..., where].mean(-1) if where.any() else np.full(total_LU.shape, np.nan)
            for where in (is_object_S, object_YX.ravel() == 0)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(off > 0, on / off, np.nan)
        found |= {"object": on, "ground": off, "object_over_ground": ratio}
    return found


def over_pictures(found: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Spread]:
    """Averages the figures of pictures; each is an average over those that have it."""
    spreads = {}
    for name in FIGURES:
        own = [figures[name] for figures in found if name in figures]
        if not own:
            continue
        value_NLU = np.stack(own)
        known_NLU = ~np.isnan(value_NLU)
        count_LU = known_NLU.sum(0)
        filled_NLU = np.where(known_NLU, value_NLU, 0)
        mean_LU = np.where(count_LU > 0, filled_NLU.sum(0) / np.maximum(count_LU, 1), np.nan)
        off_NLU = np.where(known_NLU, value_NLU - mean_LU, 0)
        variance_LU = np.square(off_NLU).sum(0) / np.maximum(count_LU - 1, 1)
        error_LU = np.where(count_LU > 1, np.sqrt(variance_LU / np.maximum(count_LU, 1)), np.nan)
        spreads[name] = Spread(mean_LU, error_LU, int(known_NLU.any((1, 2)).sum()))
    return spreads


@dataclass(frozen=True)
class Lift:
    """How much more of an expert's work is in pictures whose caption has a word.

    Attributes:
        block: of the expert, among all blocks of the model.
        lift: the expert's share of all gates there, over its share in all pictures.
        z: standard errors between the two.
        pictures: with the word.
    """

    block: int
    expert: int
    word: str
    lift: float
    z: float
    pictures: int


def words(
    gate_NLE: np.ndarray, block_L: Sequence[int], captions: Sequence[str], least: int = 5, top: int = 3
) -> list[Lift]:
    """Finds the words whose pictures an expert has the most to do with.

    Args:
        gate_NLE: the sum of every expert's gates over a picture's tokens and evaluations.
        least: pictures that a word must be in, and must not be in.
        top: words of an expert, those furthest from chance first.
    """
    share_NLE = gate_NLE / np.maximum(gate_NLE.sum(-1, keepdims=True), 1e-12)
    sets = [set(caption.lower().replace(",", " ").split()) for caption in captions]
    found: list[Lift] = []
    for word in sorted(set().union(*sets)):
        has_N = np.array([word in words for words in sets])
        if not least <= has_N.sum() <= len(sets) - least:
            continue
        inside, outside = share_NLE[has_N], share_NLE[~has_N]
        error_LE = np.sqrt(inside.var(0, ddof=1) / len(inside) + outside.var(0, ddof=1) / len(outside))
        apart_LE = inside.mean(0) - outside.mean(0)
        z_LE = apart_LE / np.maximum(error_LE, 1e-12)
        lift_LE = inside.mean(0) / np.maximum(share_NLE.mean(0), 1e-12)
        found += [
            Lift(int(block_L[layer]), expert, word, float(lift_LE[layer, expert]), float(z), int(has_N.sum()))
            for (layer, expert), z in np.ndenumerate(z_LE)
            if z > 0
        ]
    best = dict[tuple[int, int], list[Lift]]()
    for each in sorted(found, key=lambda lift: -lift.z):
        own = best.setdefault((each.block, each.expert), [])
        if len(own) < top:
            own.append(each)
    return [lift for _, own in sorted(best.items()) for lift in own]
