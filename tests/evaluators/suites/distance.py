"""A suite for tests, found beside those of the package: mean colour of drawn pictures against that of held-out ones."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ec_dit.core.errors import UserError
from ec_dit.core.settings import key
from ec_dit.evaluators import base


@dataclass(frozen=True)
class Suite(base.Suite):
    """Draws the captions of a split."""

    images: int = key(4, "pictures drawn", at_least=1)
    weights: tuple[float, ...] = key((1.0, 1.0, 1.0), "of red, green and blue")
    split: str = key("validation", "which they are compared with")

    @property
    def variant(self):
        return "" if self.split == "validation" else self.split

    def make(self, facts):
        if self.split not in facts.splits:
            raise UserError(f"suite distance: the data of source {facts.source} have no split {self.split!r}.")
        return Distance(facts.examples(self.split, self.images), np.array(self.weights))


class Distance(base.Evaluator):
    def __init__(self, examples, weights):
        self._weights = weights
        self.wanted = base.Wanted.of(f"distance-{len(examples)}", [example.caption for example in examples])
        self._real = np.array([example.image.mean((0, 1)) for example in examples])

    def score(self, images):
        distances = [
            np.linalg.norm(self._weights * (real - image.mean((0, 1))))
            for real, image in zip(self._real, images, strict=True)
        ]
        mean, groups = float(np.mean(distances)), {"far": float(np.max(distances)), "near": float(np.min(distances))}
        sheet = Image.new("RGB", (4, 4))
        return base.Evaluation(mean, {"extremes": groups}, f"distance {mean:.2f}", count=len(distances), sheet=sheet)
