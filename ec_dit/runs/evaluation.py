"""Scores a model by a suite: makes it ready for the run, draws its pictures, and leaves figures and pictures in the workdir."""

import collections
import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ec_dit.config import specs
from ec_dit.core import processes
from ec_dit.core.errors import UserError
from ec_dit.core.stopping import StopSignal
from ec_dit.core.terminal import Progress
from ec_dit.data import images
from ec_dit.evaluators.base import Evaluator, Figures, RunFacts, Suite
from ec_dit.runs.pictures import describe
from ec_dit.runs.references import References


class Scorer:
    """Scores the parameters of a run by one suite, as often as it is called.

    Args:
        references: of the run.
        say: prints a line for people.
        stop: asked between the batches of pictures; None: nobody stops it.

    Raises:
        UserError: the suite does not fit the run or its data, or what draws cannot be loaded.
    """

    def __init__(
        self,
        suite: Suite,
        references: References,
        say: Callable[[str], None],
        stop: StopSignal | None = None,
    ):
        self.suite = suite
        self._say, self._stop = say, stop
        self._system, self._workdir = references.system, references.workdir
        self._evaluator = _make(suite, references)
        references.read(self._evaluator.prompts)
        self._settings = specs.sample_settings(self._system.config)
        self._generator = references.painter.generator(self._settings)

    def __call__(self, params: Any, step: int, *, seed: int = 0, ema: bool = True) -> Figures:
        """Draws, scores, prints the table, and writes eval_<label>.json and eval_<label>.png; every process calls it.

        Returns:
            the figures; 'mean' is the headline.

        Raises:
            Stopped: between two batches, where `stop` says so; nothing is written then.
        """
        settings, generator, label = self._settings, self._generator, self.suite.label
        self._say(
            f"suite {label}: step {step}, {settings.sampler}, {settings.steps} steps, guidance {settings.guidance:g}, "
            f"NFE {settings.evaluations}"
        )
        generator.made = generator.broken = 0
        with contextlib.closing(self._draw(params, seed)) as drawn:  # of which a suite may leave the last ones
            outcome = self._evaluator.score(drawn)
        figures: Figures = {"mean": outcome.mean, **outcome.figures}
        facts: dict[str, Any] = {"step": step, "seed": seed, "weights": "ema" if ema else "params"}
        facts |= {"images_not_finite": generator.broken, **describe(self._system, settings)}
        picture = self._workdir.path / f"eval_{label}.png"
        if processes.is_first():
            self._workdir.write_eval(label, {**figures, **facts})
            picture.write_bytes(images.encode_png(outcome.sheet))
        self._say(outcome.table)
        if generator.warning:
            self._say(generator.warning)
        self._say(f"contact sheet: {picture}")
        return figures

    def _draw(self, params: Any, seed: int) -> Generator[np.ndarray, None, None]:
        """Yields the pictures of the prompts."""
        prompts = self._evaluator.prompts
        batches = self._generator.batches(params, prompts, list(_repeats(prompts)), seed)
        with Progress(f"suite {self.suite.label}", None, "images", shown=processes.is_first()) as progress:
            for part, batch in batches if self._stop is None else self._stop.between(batches):
                progress.reach(part.stop, len(prompts))
                yield from batch


def _make(suite: Suite, facts: RunFacts) -> Evaluator:
    if suite.sources and facts.source not in suite.sources:
        raise UserError(
            f"suite {suite.label} scores models trained on the {' or '.join(suite.sources)} data, not on {facts.source}."
        )
    return suite.make(facts)


def _repeats(prompts: Sequence[str]) -> Iterator[int]:
    """Yields how often each prompt came before, so that one that comes again gives another picture."""
    seen = collections.Counter[str]()
    for prompt in prompts:
        yield seen[prompt]
        seen[prompt] += 1


def metrics(figures: Figures, prefix: str) -> dict[str, float]:
    """Names figures among a run's metrics: those of a group by PREFIX/GROUP/NAME."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        found |= metrics(value, f"{prefix}/{name}") if isinstance(value, Mapping) else {f"{prefix}/{name}": value}
    return found
