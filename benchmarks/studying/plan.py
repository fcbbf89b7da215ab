"""What a study compares: a file of variants, each a config with a few keys changed, and what they must have in common."""

import functools
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy import special, stats

from ec_dit import config
from ec_dit.config import RunConfig, checks, overrides, specs
from ec_dit.core import json_file, settings
from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.evaluators import registry
from ec_dit.models import sizes

ROOT = Path(__file__).parents[2]
HEADLINE = "val_loss"  # label of the suite that every study scores
_MATCHES, _CAPACITIES = ("flops", "activated", "none"), ("fixed", "matched")
_COMMON = ("seed", "train.batch_size", "train.steps", "data.", "flow.")  # keys in which variants must not differ
_MIDDLES = ",".join(f"{(2 * level + 1) / 16:g}" for level in range(8))  # of eight noise levels


@dataclass(frozen=True)
class Variant:
    """One of the models that are compared.

    Attributes:
        name: of its folder.
        label: for readers.
        changes: keys of the config and their values.
        also: sampling capacities, 'fixed' or 'matched', to score its end with, beside the config's own.
    """

    name: str
    label: str
    changes: Mapping[str, Any]
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """How each variant's learning rate is chosen: shorter runs with a seed that is used for nothing else.

    Attributes:
        rates: times the config's learning rates.
        steps: of each run.
        seed: of all of them.
    """

    rates: tuple[float, ...] = (1.0,)
    steps: int = 0
    seed: int = 1000


@dataclass(frozen=True)
class Study:
    """A comparison.

    Attributes:
        name: of the study's folder and plots.
        title, question: for readers.
        config: file of the config that variants change.
        common: keys of the config that are changed in all of them.
        variants: by name, the reference among them.
        reference: the variant that the others are compared with.
        steps: of a run.
        score_every: steps between scores.
        save_every: steps between checkpoints; 0 = with every score.
        seeds: of the runs, the first ones first.
        match: what variants must agree in with the reference, within `within`: 'flops', 'activated' parameters, 'none'.
        suites: scored at every `score_every` steps and at the end; evaluators' names with options, `every` among them for others
            than the losses.
    """

    name: str
    title: str
    config: str
    variants: Mapping[str, Variant]
    reference: str
    steps: int
    score_every: int
    save_every: int = 0
    question: str = ""
    common: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1, 2, 3)
    match: str = "flops"
    within: float = 0.02
    sweep: Sweep = Sweep()
    suites: tuple[str, ...] = (f"val_loss:times=({_MIDDLES})", f"val_loss:routed=training,times=({_MIDDLES})")

    @functools.cached_property
    def losses(self) -> tuple[str, ...]:
        """Lists the suites that give losses, which are all that a sweep needs."""
        return tuple(suite for suite in self.suites if registry.parse(suite).name == HEADLINE)

    @functools.cached_property
    def others(self) -> list[str]:
        """Lists the labels of all suites that give no losses."""
        return [registry.parse(suite).label for suite in self.suites if suite not in self.losses]

    @functools.cached_property
    def weights(self) -> dict[str, float]:
        """Gives, by the names of their losses, how often training draws times nearest to each of the headline's."""
        times = sorted(next(suite for suite in registry.parse_all(self.suites) if suite.label == HEADLINE).times)
        flow = self.config_of(self.variants[self.reference]).flow
        edges = [0.0, *((a + b) / 2 for a, b in itertools.pairwise(times)), 1.0]
        if flow.path == "rectified":
            below = [stats.norm.cdf((special.logit(edge) - flow.time_mean) / flow.time_std) for edge in edges]
        else:
            below = edges
        return {f"t={t:g}": float(b - a) for t, (a, b) in zip(times, itertools.pairwise(below), strict=True)}

    @property
    def file(self) -> str:
        """Gives the config file, wherever the command is called."""
        return self.config if self.config.startswith("/") else f"{ROOT}/{self.config}"

    def config_of(self, variant: Variant) -> RunConfig:
        """Gives the config of a variant's runs."""
        changes = {**self.common, "train.steps": self.steps, **variant.changes}
        return settings.changed(overrides.read(self.file, []), {key: _plain(value) for key, value in changes.items()})


@dataclass(frozen=True)
class Size:
    """What a variant costs, by the formulas of `ec_dit.models.sizes`.

    Attributes:
        total, activated: parameters of the transformer.
        flops: of training, for an image.
    """

    total: int
    activated: int
    flops: int


def read(path: Path) -> Study:
    """Reads a study.

    Raises:
        UserError: naming what is wrong with it; configs are built, so that this is known before anything runs.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--study={path}: {error}") from error
    try:
        tables = {name: _variant(name, table) for name, table in found.pop("variants", {}).items()}
        study = json_file.fit({"name": path.stem, **found, "variants": tables}, Study, "the study")
        _check(study)
        for variant in study.variants.values():
            _check_variant(study, variant)
    except (UserError, ValueError, AttributeError) as error:
        raise UserError(f"--study={path}: {error}") from error
    return study


def size_of(study: Study, variant: Variant) -> Size:
    """Counts parameters and FLOPs."""
    c = study.config_of(variant)
    spec = specs.dit_spec(c)
    found = sizes.sizes(spec, c.moe.capacity_factor)
    factor = specs.computed_factor(c)
    flops = sizes.train_flops_per_image(spec, specs.kept_tokens(c), c.text.length, factor)
    return Size(found.total, found.activated, flops)


def mismatches(study: Study) -> dict[str, float]:
    """Gives the variants that cost more or less than the reference by more than the study allows, and by which share."""
    if study.match == "none":
        return {}
    costs = {name: getattr(size_of(study, variant), study.match) for name, variant in study.variants.items()}
    apart = {name: cost / costs[study.reference] - 1 for name, cost in costs.items()}
    return {name: share for name, share in apart.items() if abs(share) > study.within}


def _variant(name: str, table: Any) -> dict[str, Any]:
    own = {key: table[key] for key in ("label", "also") if key in table}
    return {"name": name, "label": name, **own, "changes": {key: v for key, v in table.items() if key not in own}}


def _check(study: Study) -> None:
    """Raises UserError for values that do not fit each other."""

    def check(good: bool, message: str) -> None:
        if not good:
            raise UserError(message)

    sweep, labels = study.sweep, [suite.label for suite in registry.parse_all(study.suites)]
    check(study.reference in study.variants, f"reference={study.reference!r} is none of {', '.join(study.variants)}")
    check(study.score_every > 0, "score_every must be at least 1")
    check(
        study.steps % max(1, study.score_every) == 0,
        f"score_every={study.score_every} does not divide steps={study.steps}",
    )
    check(study.match in _MATCHES, f"match={study.match!r}: give one of {', '.join(_MATCHES)}")
    check(HEADLINE in labels, f"suites: one of them must be {HEADLINE}")
    check(study.save_every >= 0, "save_every must be at least 0")
    for suite in study.suites:
        own = registry.parse(suite).every
        fits = not own or (suite not in study.losses and study.steps % own == 0)
        what = f"losses follow score_every, and of others it must divide steps={study.steps}"
        check(fits, f"suites: every={own} of {suite}: {what}")
    check(0 < len(study.seeds) == len(set(study.seeds)), "seeds: give each once")
    check(sweep.seed not in study.seeds, f"the sweep's seed {sweep.seed} is one of the seeds of the runs")
    named = {f"{rate:g}" for rate in sweep.rates}
    check(0 < len(named) == len(sweep.rates) and min(sweep.rates) > 0, "[sweep] rates: give some above 0, each once")
    steps = len(sweep.rates) < 2 or 0 < sweep.steps <= study.steps
    check(steps, f"[sweep] steps={sweep.steps} must be from 1 to {study.steps}")


def _check_variant(study: Study, variant: Variant) -> None:
    """Raises UserError unless its config can be trained and differs from the others in nothing but the model."""
    known = list(config.KEYS)
    for key in (*study.common, *variant.changes):
        if key not in config.KEYS and not key.startswith("data.options."):
            raise UserError(f"variant {variant.name}: there is no config key {key!r}{did_you_mean(key, known)}")
    for key in variant.changes:
        if key.startswith(_COMMON):
            raise UserError(f"variant {variant.name}: {key} must be the same for all: put it under [common]")
    for capacity in variant.also:
        if capacity not in _CAPACITIES:
            raise UserError(f"variant {variant.name}: also={capacity!r}: give {' or '.join(_CAPACITIES)}")
    try:
        c = study.config_of(variant)
        checks.validate(c)
        checks.check_use(c, overrides.read(study.file, []))
    except UserError as error:
        raise UserError(f"variant {variant.name}: {error}") from error


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
