"""The `nearest` suite: whether a drawn picture lies nearer to the one that was asked for than to any other of its split.

For data in which a caption means one picture, such as icons and emoji. No network judges; chance is one in as many pictures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ec_dit.core.errors import UserError
from ec_dit.core.settings import COUNT, key
from ec_dit.data.sheet import contact_sheet
from ec_dit.evaluators import base
from ec_dit.evaluators.base import Evaluation, Evaluator, Example, RunFacts, Wanted
from ec_dit.judges.bootstrap import plus_minus, standard_error

_SHOWN = 16
_FIRST = 5  # of the ranking, for a second figure


@dataclass(frozen=True)
class Suite(base.Suite):
    """Draws the captions of a split, and ranks its pictures by their distance from what was drawn."""

    sources: ClassVar[tuple[str, ...]] = ("icons", "emoji")
    split: str = key("validation", "whose captions are drawn, and whose pictures are compared with")
    most: int = key(
        0, "captions at most, the first ones; 0 = all; all pictures are compared with", at_least=0, at_most=COUNT
    )

    def make(self, facts: RunFacts) -> "Nearest":
        """Reads the split.

        Raises:
            UserError: the run has no such split, or it holds fewer than two pictures.
        """
        self.check_split(self.split, facts)
        examples = facts.examples(self.split, facts.size(self.split))
        if len(examples) < 2:
            raise UserError(f"suite {self.label}: split {self.split} has no two pictures to choose from.")
        return Nearest(self.split, examples, self.most or len(examples))


class Nearest(Evaluator):
    """Ranks pictures by the mean square of the differences of pixels; arguments as the suite's."""

    wanted: Wanted

    def __init__(self, split: str, examples: Sequence[Example], most: int):
        self._split, self._examples = split, examples
        self.wanted = Wanted.of(f"{split}-nearest", [example.caption for example in examples[:most]])

    def score(self, images: Iterator[np.ndarray]) -> Evaluation:
        """Counts the pictures that no other real one is nearer to than the one asked for; a tie counts as one that is nearer."""
        real_NP = np.stack([_flat(example.image) for example in self._examples])
        each, ranks, distances, shown = self.wanted.each, list[int](), list[float](), list[np.ndarray]()
        for number, image in enumerate(images):
            distance_N = np.square(real_NP - _flat(image)).mean(1)
            own = distance_N[number]
            ranks.append(int((distance_N <= own).sum()) - 1)
            distances.append(float(own))
            if number < _SHOWN:
                shown += [image, self._examples[number].image]
        rank_B = np.array(ranks)
        hit_B, ids = (rank_B == 0).astype(float), [prompt.id for prompt in each]
        score, error = float(hit_B.mean()), standard_error(hit_B, ids)
        parts = {
            f"first_{_FIRST}": float((rank_B < _FIRST).mean()),
            "rank": float(np.median(rank_B)),
            "distance": float(np.mean(distances)),
            "chance": 1 / len(real_NP),
        }
        lines = [f"nearest {score:.4f}{plus_minus(error, '.4f')} ({len(ranks):,} pictures, of {len(real_NP):,})"]
        lines += [f"  {name} {value:.4f}" for name, value in parts.items()]
        rows = [
            {"id": prompt.id, "prompt": prompt.text, "value": hit, "rank": rank}
            for prompt, hit, rank in zip(each, hit_B.tolist(), ranks, strict=True)
        ]
        titles = [
            title for prompt, rank in zip(each, ranks, strict=True) for title in (f"{prompt.text} [{rank}]", "real")
        ]
        sheet = contact_sheet(shown, titles[: len(shown)], columns=8, smooth=False)
        choices = {"split": self._split, "compared": len(real_NP)}
        return Evaluation(score, parts, "\n".join(lines), error, len(ranks), rows, choices, sheet)


def _flat(image: np.ndarray) -> np.ndarray:
    return image.reshape(-1).astype(np.float32) / 255
