"""What suites share that score how well each picture goes with its prompt, by a CLIP."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ec_dit.core.settings import COUNT, key
from ec_dit.data.sheet import contact_sheet
from ec_dit.encoders.clip_pair import ClipPair, unit
from ec_dit.encoders.features import BATCH
from ec_dit.evaluators.base import Evaluation, Evaluator, RunFacts, Wanted
from ec_dit.evaluators.compared import needed, network_facts
from ec_dit.evaluators.prompted import PromptedSuite
from ec_dit.judges.bootstrap import plus_minus, standard_error

_EXTREMES = 8  # pictures on the sheet, of the best and of the worst each

Figures = Callable[[np.ndarray], Mapping[str, float]]  # of cosines (B,): the headline first


@dataclass(frozen=True)
class MatchedSuite(PromptedSuite):
    """Scores pictures against their prompts; without a prompt file, against captions of the reference."""

    reference: str = key("", "whose captions are drawn: as of fid; '' = the run's validation split")
    reference_most: int = key(0, "captions at most, the first ones; 0 = all", at_least=0, at_most=COUNT)
    clip: str = key("", "the CLIP: a folder as transformers publishes it, or a name OWNER/NAME@REVISION")
    batch_size: int = key(BATCH, "pictures that a device reads at a time", at_least=1, at_most=100_000)

    def pair(self, facts: RunFacts, what: str) -> ClipPair:
        """Loads the CLIP. Raises UserError where none is given, or it is none; `what` says what is wanted."""
        return ClipPair(needed(self.clip, "clip", what), facts.mesh, self.batch_size)

    def matched(self, facts: RunFacts) -> tuple[Wanted, dict[str, Any]]:
        """Reads the prompts, and lists what the figures depend on. Raises UserError where there are none."""
        choices: dict[str, Any] = {"clip": network_facts(self.clip)}
        if self.prompts or not facts.draws:
            needed(self.prompts, "prompts", "a file of prompts")
            return self.wanted(), {**choices, "prompts": self.prompts}
        reference = facts.reference(self.reference, self.reference_most)
        return self.wanted_or_captions(facts, reference), {**choices, "prompts": {"captions of": dict(reference.facts)}}


class MatchedEvaluator(Evaluator):
    """Computes the cosine of each picture's embedding and its prompt's.

    Args:
        value: of a cosine, which is averaged.
        figures: the other ones, by name, of all cosines (B,).
        groups: of the prompts, by their ids; each has a mean of its own.
    """

    wanted: Wanted

    def __init__(
        self,
        title: str,
        wanted: Wanted,
        pair: ClipPair,
        choices: Mapping[str, Any],
        *,
        value: Callable[[np.ndarray], np.ndarray] = lambda cosine_B: cosine_B,
        figures: Figures = lambda _: {},
        groups: Callable[[str], str] | None = None,
    ):
        self.wanted = wanted
        self._title, self._pair, self._choices = title, pair, choices
        self._value, self._figures, self._groups = value, figures, groups

    def score(self, images: Iterator[np.ndarray]) -> Evaluation:
        """Scores the pictures; the extremes are on the sheet."""
        each = self.wanted.each
        assert self.wanted.prompts is not None
        texts = list(dict.fromkeys(prompt.text for prompt in self.wanted.prompts))
        texts_BD = dict(zip(texts, unit(self._pair.texts(texts)), strict=True))
        extremes = _Extremes(_EXTREMES)
        cosines: list[float] = []
        held: list[np.ndarray] = []  # pictures whose features are still to come

        def watched() -> Iterator[np.ndarray]:
            for image in images:
                held.append(image)
                yield image

        for features_BD in self._pair.images(watched()):
            for feature_D in unit(features_BD):
                number = len(cosines)
                cosines.append(float(feature_D @ texts_BD[each[number].text]))
                extremes.add(cosines[-1], number, held.pop(0))
        cosine_B = np.array(cosines)
        value_B = self._value(cosine_B)
        ids = [prompt.id for prompt in each]
        score, error = float(value_B.mean()), standard_error(value_B, ids)
        parts: dict[str, Any] = dict(self._figures(cosine_B))
        lines = [f"{self._title} {score:.4f}{plus_minus(error, '.4f')} ({len(value_B):,} pictures)"]
        lines += [f"  {name} {figure:.4f}" for name, figure in parts.items()]
        if self._groups is not None:
            groups = [self._groups(id_) for id_ in ids]
            means = {name: float(value_B[np.array(groups) == name].mean()) for name in dict.fromkeys(groups)}
            parts["groups"] = means
            lines += [f"  {name:<16} {mean:.4f}" for name, mean in means.items()]
        rows = [
            {"id": prompt.id, "prompt": prompt.text, "value": float(value)}
            for prompt, value in zip(each, value_B, strict=True)
        ]
        shown = extremes.best_and_worst()
        captions = [f"{each[number].text} [{value_B[number]:.3f}]" for number, _ in shown]
        sheet = contact_sheet([picture for _, picture in shown], captions, columns=_EXTREMES, smooth=True)
        return Evaluation(score, parts, "\n".join(lines), error, len(value_B), rows, self._choices, sheet)


class _Extremes:
    """The pictures with the largest and smallest values, so many of each."""

    def __init__(self, count: int):
        self._count = count
        self._best: list[tuple[float, int, np.ndarray]] = []
        self._worst: list[tuple[float, int, np.ndarray]] = []

    def add(self, value: float, number: int, picture: np.ndarray) -> None:
        """Looks at one more."""
        item = (value, number, picture)
        self._best = sorted([*self._best, item], key=lambda item: (-item[0], item[1]))[: self._count]
        self._worst = sorted([*self._worst, item], key=lambda item: item[:2])[: self._count]

    def best_and_worst(self) -> Sequence[tuple[int, np.ndarray]]:
        """Lists (number, picture): the best first, then those of the worst that are not among them."""
        numbers = {number for _, number, _ in self._best}
        rest = [item for item in reversed(self._worst) if item[1] not in numbers]
        return [(number, picture) for _, number, picture in [*self._best, *rest]]
