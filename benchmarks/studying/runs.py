"""The runs of a study: which there are, where each is kept, what is known of it, and the commands that make it."""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ec_dit.config import checks
from ec_dit.core.errors import UserError
from ec_dit.evaluators import registry
from ec_dit.train.metrics import read_metrics
from studying.plan import HEADLINE, Study, Variant

_NOTE = "study.json"


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        rate: times the config's learning rates.
        folder: its workdir.
        study: that it belongs to.
        suites: what scores it.
    """

    study: Study
    variant: Variant
    seed: int
    rate: float
    steps: int
    folder: Path
    suites: tuple[str, ...]

    @property
    def label(self) -> str:
        """Names it in a line of progress."""
        return f"{self.variant.name}, seed {self.seed}, rate x {self.rate:g}"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Gives its figures, step by step, with a `headline` where the losses are there that it is made of."""
        if not (self.folder / "metrics.jsonl").exists():
            return []
        found, weights = [], self.study.weights
        for row in read_metrics(str(self.folder)):
            made = {}
            for suffix in ("", "_in_groups"):
                losses = {f"eval/{HEADLINE}{suffix}/times/{t}": weight for t, weight in weights.items()}
                if losses.keys() <= row.keys():
                    made[f"headline{suffix}"] = sum(weight * row[key] for key, weight in losses.items())
            found.append({**row, **made})
        return found

    def curve(self, name: str = "headline") -> dict[int, float]:
        """Gives a figure by step, as far as the run has come."""
        return {int(row["step"]): float(row[name]) for row in self.rows if name in row}

    @property
    def rise(self) -> float:
        """Gives by which share its training loss stood above the least before it, at most: near 0 where it learns steadily."""
        losses = [row["loss"] for row in self.rows if "loss" in row]
        lowest = itertools.accumulate(losses, min)
        return max([0.0, *(loss / low - 1 for loss, low in zip(losses[1:], lowest, strict=False))])

    @property
    def is_done(self) -> bool:
        """Tells whether it has come to its end, which is its last step, and has all scores there."""
        rows = self.rows
        names = [f"eval/{suite.label}/score" for suite in registry.parse_all(self.suites)]
        last = [max((row["step"] for row in rows if name in row), default=0) for name in names]
        return all(step == self.steps for step in last)

    @property
    def note(self) -> Mapping[str, Any]:
        """Gives what was written when it was begun: its arguments, the machine, whether it diverged."""
        path = self.folder / _NOTE
        return json.loads(path.read_text()) if path.exists() else {}

    def put_note(self, **facts: Any) -> None:
        """Adds to the note."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _NOTE).write_text(json.dumps({**self.note, **facts}, indent=2) + "\n")

    def score_of(self, capacity: str) -> Path:
        """Names the folder of its end's scores with another capacity in sampling."""
        return self.folder / f"scored_{capacity}"

    @property
    def missing(self) -> list[str]:
        """Lists the capacities that its end was not yet scored with."""
        return [each for each in self.variant.also if not list(self.score_of(each).glob("eval_*.json"))]


def sweep_of(study: Study, folder: Path) -> list[Run]:
    """Lists the runs that learning rates are chosen by; none where there is no choice."""
    if len(study.sweep.rates) < 2:
        return []
    sweep = study.sweep
    return [
        Run(study, variant, sweep.seed, rate, sweep.steps, folder / "sweep" / f"{variant.name}_{rate:g}", study.losses)
        for rate in sweep.rates
        for variant in study.variants.values()
    ]


def rates_of(study: Study, folder: Path) -> dict[str, float]:
    """Gives the learning rate of every variant whose sweep is finished: that of the least loss at its end.

    Raises:
        UserError: where no rate of a variant leads to a finite loss.
    """
    runs = sweep_of(study, folder)
    if not runs:
        return dict.fromkeys(study.variants, study.sweep.rates[0])
    found = {}
    for name in study.variants:
        own = [run for run in runs if run.variant.name == name]
        if not all(run.is_done or run.note.get("diverged") for run in own):
            continue
        losses = {run.rate: run.curve()[run.steps] for run in own if run.is_done}
        finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
        if not finite:
            raise UserError(f"{name} diverges at every learning rate of the sweep: give lower ones")
        found[name] = min(finite, key=lambda rate: finite[rate])
    return found


def main_runs(study: Study, folder: Path, rates: Mapping[str, float], seeds: Sequence[int]) -> list[Run]:
    """Lists the runs that count, all variants of one seed before those of the next."""
    return [
        Run(
            study,
            variant,
            seed,
            rates[variant.name],
            study.steps,
            folder / "runs" / f"{variant.name}_seed{seed}",
            study.suites,
        )
        for seed in seeds
        for variant in study.variants.values()
        if variant.name in rates
    ]


def check(runs: Sequence[Run]) -> None:
    """Raises UserError where the folder of a run has one of other settings."""
    for run in runs:
        before, now = run.note.get("arguments"), training(run)
        if before is not None and before != now:
            apart = [each for each in now if each not in before] or ["fewer settings"]
            raise UserError(
                f"{run.folder} was begun with other settings than the study has now ({', '.join(apart)}): give another --out, or "
                "remove that folder"
            )


def training(run: Run) -> list[str]:
    """Gives the arguments of a training run, without its folder."""
    study = run.study
    every = min(study.score_every, run.steps)
    config = study.config_of(run.variant)
    optimizer = config.optimizer
    changes: dict[str, Any] = {
        **study.common,
        **run.variant.changes,
        "seed": run.seed,
        "train.steps": run.steps,
        "optimizer.learning_rate": run.rate * optimizer.learning_rate,
        "log.validate_every": every,
        "log.sample_every": 0,
        "checkpoint.every": min(study.save_every or every, run.steps),
        "eval.suites": tuple(_scored(suite, every) for suite in run.suites),
    }
    if "optimizer.adam_learning_rate" not in checks.unused(config):
        changes["optimizer.adam_learning_rate"] = run.rate * optimizer.adam_learning_rate
    return [f"--config={study.config}", *(f"--config.{key}={_written(value)}" for key, value in changes.items())]


def compiled(study: Study, folder: Path) -> dict[str, float]:
    """Gives, of the variants that were compiled, the FLOPs of the training step over those of the formulas."""
    paths = {name: path for name, (path, _) in compilations(study, folder).items() if path.exists()}
    found = {name: json.loads(path.read_text()) for name, path in paths.items()}
    return {name: each["compiled_flops_per_chip"] / each["model_flops_per_chip"] for name, each in found.items()}


def compilations(study: Study, folder: Path) -> dict[str, tuple[Path, list[str]]]:
    """Gives the file of each variant's compiled figures, which has another name for other settings, and the settings."""
    found = {}
    for name, variant in study.variants.items():
        settings = [f"--config.{key}={_written(value)}" for key, value in {**study.common, **variant.changes}.items()]
        digest = hashlib.sha256("\n".join([study.config, *settings]).encode()).hexdigest()[:8]
        found[name] = folder / f"{name}-{digest}.json", settings
    return found


def scoring(run: Run, capacity: str) -> list[str]:
    """Gives the arguments that score a run's end with another capacity in sampling."""
    return [
        f"--workdir={run.folder}",
        "--suite=" + ",".join(suite for suite in run.suites if "routed" not in suite),
        f"--capacity={capacity}",
        f"--out={run.score_of(capacity)}",
    ]


def facts(run: Run) -> dict[str, Any]:
    """Gives what a run that is done says of itself: its last figures, and the `CAPACITY/headline` of scores beside them."""
    found: dict[str, Any] = {}
    for row in run.rows:
        found |= row
    for capacity in run.variant.also:
        paths = {label: run.score_of(capacity) / f"eval_{label}.json" for label in (HEADLINE, *run.study.others)}
        told = {label: json.loads(path.read_text()) for label, path in paths.items() if path.exists()}
        if HEADLINE in told:
            by_time = told[HEADLINE]["parts"]["times"]
            found[f"{capacity}/headline"] = sum(weight * by_time[t] for t, weight in run.study.weights.items())
        found |= {f"{capacity}/{label}": told[label]["score"] for label in run.study.others if label in told}
    return found


def _scored(suite: str, every: int) -> str:
    """A suite as the config has it: scored at every so many steps, unless it says itself at which."""
    return suite if registry.parse(suite).every else f"{suite}{',' if ':' in suite else ':'}every={every}"


def _written(value: Any) -> str:
    return repr(value) if isinstance(value, tuple | list) else str(value)
