"""Scores a model, or pictures, by a suite: makes it ready, hands it what it scores, and leaves figures and pictures behind."""

import importlib.metadata
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from etils import epath

from ec_dit.core import digests, processes
from ec_dit.core.errors import UserError
from ec_dit.data import images
from ec_dit.evaluators.base import Evaluation, Evaluator, Figures, LossEvaluator, RunFacts, Suite
from ec_dit.runs.subjects import Say, Scored, Subject

_VERSIONS = ("ec-dit", "jax", "numpy", "pillow", "scipy")


class Scorer:
    """Scores by one suite, as often as it is called.

    Args:
        subject: what is scored.
        folder: for the files that are left: eval_<label>.json, its rows, and its contact sheet.
        say: prints a line for people.

    Raises:
        UserError: the suite does not fit the subject or its data, or what draws cannot be loaded.
    """

    def __init__(self, suite: Suite, subject: Subject, folder: epath.Path, say: Say):
        self.suite = suite
        self._say, self._folder = say, folder
        self._evaluator = _make(suite, subject.facts)
        if isinstance(self._evaluator, LossEvaluator):
            subject.check_losses()
        elif self._evaluator.wanted is not None:
            subject.prepare(self._evaluator.wanted)

    def __call__(self, scored: Scored) -> Figures:
        """Scores, prints the table, and writes eval_<label>.json, .jsonl and .png; every process calls it.

        Returns:
            the figures; 'score' is the headline.

        Raises:
            Stopped: between two batches, where the run is told to stop; nothing is written then.
        """
        label, start = self.suite.label, time.monotonic()
        if isinstance(self._evaluator, LossEvaluator):
            outcome = self._evaluator.measure(scored.losses)
        elif self._evaluator.wanted is None:
            outcome = self._evaluator.score(iter(()))
        else:
            outcome = self._evaluator.score(scored.images(self._evaluator.wanted))
            outcome = replace(outcome, choices={**outcome.choices, "pictures": self._evaluator.wanted.facts})
        figures: Figures = {"score": outcome.score, **outcome.parts}
        seconds = round(time.monotonic() - start, 1)
        drew = isinstance(self._evaluator, LossEvaluator) or self._evaluator.wanted is not None
        choices = scored.choices if drew else {}
        with processes.told_by_first():
            if processes.is_first():
                write(self._folder, label, outcome, choices, seconds)
        self._say(f"suite {label}{_of(choices)}")
        self._say(outcome.table)
        if scored.warning:
            self._say(scored.warning)
        self._say(f"figures: {self._folder / f'eval_{label}.json'}")
        return figures


def write(
    folder: epath.Path,
    label: str,
    outcome: Evaluation,
    choices: Mapping[str, Any],
    seconds: float,
) -> None:
    """Writes the files of a score; those of an earlier one are replaced.

    Args:
        choices: what the figures depend on, beside what the outcome has.
        seconds: that the scoring took; the last line of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = {
        "suite": label,
        "score": outcome.score,
        "standard_error": outcome.error,
        "n": outcome.count,
        "parts": outcome.parts,
        "choices": {**outcome.choices, **choices},
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        "seconds": seconds,
    }
    rows = "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in outcome.rows).encode()
    sheet = b"" if outcome.sheet is None else images.encode_png(outcome.sheet)
    for suffix, data in (("jsonl", rows), ("png", sheet)):
        (folder / f"eval_{label}.{suffix}").unlink(missing_ok=True)
        if data:
            digests.replace(folder / f"eval_{label}.{suffix}", data)
    text = json.dumps(_finite(whole), indent=2, allow_nan=False) + "\n"
    digests.replace(folder / f"eval_{label}.json", text.encode())


def _finite(content: Any) -> Any:
    """JSON's content with null for numbers that are not finite, which JSON does not have."""
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _of(choices: Mapping[str, Any]) -> str:
    """What people should know beside a table."""
    if "step" not in choices:
        return f": {choices['images']}" if "images" in choices else ""
    told = f": step {choices['step']}, {choices['weights']}"
    if "sampler" not in choices:
        return told
    return f"{told}, {choices['sampler']}, {choices['steps']} steps, guidance {choices['guidance']:g}, NFE {choices['nfe']}"


def _make(suite: Suite, facts: RunFacts) -> Evaluator | LossEvaluator:
    if suite.sources and facts.source not in suite.sources:
        raise UserError(
            f"suite {suite.label} scores models trained on the {' or '.join(suite.sources)} data, not on {facts.source}."
        )
    return suite.make(facts)


def metrics(figures: Figures, prefix: str) -> dict[str, float]:
    """Names figures among a run's metrics: those of a group by PREFIX/GROUP/NAME."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        found |= metrics(value, f"{prefix}/{name}") if isinstance(value, Mapping) else {f"{prefix}/{name}": value}
    return found
