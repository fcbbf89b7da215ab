"""The config of a run: the sections that the rooms below declare, and those that only runs read.

A config file starts from `default()`, an ml_collections ConfigDict of every key, and changes what differs; a command line changes
more (`overrides.py`). `typed` makes of it the dataclasses that everything else reads.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from ec_dit.config.data import DataSpec
from ec_dit.core import json_file, seeds, settings, topology
from ec_dit.core.differences import differences
from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.core.mesh import MeshSpec
from ec_dit.core.settings import COUNT, Use, key, section, shown
from ec_dit.evaluators.registry import EvalSpec
from ec_dit.flow.processes import FlowSpec
from ec_dit.models.sparse_spec import MEMORY, MoESpec
from ec_dit.models.spec import ModelSpec
from ec_dit.models.text_spec import TextSpec
from ec_dit.objectives.registry import ObjectiveSpec
from ec_dit.sampling.settings import SampleSpec
from ec_dit.train import trackers
from ec_dit.train.optimizer import OptimizerSpec

_ADVICE = "Bring it back as it was; the settings of a run also stand in its checkpoints."


def _texts(value: tuple[Any, ...]) -> str | None:
    good = all(isinstance(item, str) and item.strip() and _is_unicode(item) for item in value)
    return None if good else "give texts, such as ('a red circle', 'two squares')"


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _topology(value: str) -> None:
    if value:
        topology.parse(value, "--config.topology")


def _tpu_options(value: Mapping[str, Any]) -> str | None:
    good = all(isinstance(v, str) and re.fullmatch(r"xla_\w+", name) for name, v in value.items())
    return None if good else "give options of the TPU's compiler, xla_..., and their values as texts"


@dataclass(frozen=True)
class TrainSpec:
    """The `train` section."""

    steps: int = key(800_000, "of the whole training", at_least=1, at_most=COUNT, resumable=True)
    batch_size: int = key(
        4096,
        "images per step, over all devices",
        at_least=1,
        at_most=COUNT,
        because=f"it decides which images make a step; {MEMORY}",
    )
    accumulate: int = key(
        1,
        "micro-batches per step",
        at_least=1,
        at_most=COUNT,
        because=f"each micro-batch draws noise and forms routing groups of its own; {MEMORY}",
    )
    init_from: str = key(
        "",
        "workdir, of a run or of python -m ec_dit.convert, whose parameters a new run starts with; they are also the frozen "
        "reference of an objective that needs one, and read again when the run goes on",
        resumable=True,  # what is read there is compared with what the run started with
    )


@dataclass(frozen=True)
class CheckpointSpec:
    """The `checkpoint` section."""

    every: int = key(
        1000, "steps between checkpoints; the last step is always saved", at_least=1, at_most=COUNT, resumable=True
    )
    keep: int = key(3, "newest checkpoints kept", at_least=1, at_most=COUNT, resumable=True)
    asynchronous: bool = key(True, "training goes on while a checkpoint is written", resumable=True)


@dataclass(frozen=True)
class LogSpec:
    """The `log` section: what a run tells on the way."""

    every: int = key(50, "steps between progress lines and metrics", at_least=1, at_most=COUNT, resumable=True)
    validate_every: int = key(
        5000, "steps between validation losses; 0 = never", at_least=0, at_most=COUNT, resumable=True
    )
    validate_images: int = key(4096, "of each validation split", at_least=0, at_most=COUNT, resumable=True)
    sample_every: int = key(10_000, "steps between sample grids; 0 = never", at_least=0, at_most=COUNT, resumable=True)
    trace_steps: int = key(
        5,
        "steps of a profile, taken whenever a process of the run is sent SIGUSR1",
        at_least=1,
        at_most=COUNT,
        resumable=True,
    )
    trackers: tuple[str, ...] = key(
        (),
        "where figures and pictures go beside the workdir: wandb, mlflow",
        check=trackers.check_names,
        resumable=True,
    )
    project: str = key("ec_dit", "of the run at its trackers", resumable=True)
    maps: int = key(
        0,
        "pictures of each sample grid whose experts, where there are any, are drawn beside it (images/routes_STEP.png)",
        at_least=0,
        at_most=64,
        resumable=True,
    )
    prompts: tuple[str, ...] = key(
        (), "of the sample grids; () = captions of the validation split", check=_texts, resumable=True
    )


@dataclass(frozen=True)
class RunConfig:
    """Every setting of a run; the defaults are the paper's recipe (batch 4096, 800 k steps, RMSProp, 256 px latents)."""

    name: str = key("", "of the run, in logs and reports", resumable=True)
    seed: int = key(0, "of weights, data order, noise and dropping", at_least=0, at_most=seeds.LARGEST)
    model: ModelSpec = section(ModelSpec)
    moe: MoESpec = section(MoESpec)
    text: TextSpec = section(TextSpec)
    data: DataSpec = section(DataSpec)
    flow: FlowSpec = section(FlowSpec)
    objective: ObjectiveSpec = section(ObjectiveSpec)
    optimizer: OptimizerSpec = section(OptimizerSpec)
    train: TrainSpec = section(TrainSpec)
    mesh: MeshSpec = section(MeshSpec)
    tpu_options: Mapping[str, Any] = key(
        {}, "of the TPU's compiler: what runs beside what", check=_tpu_options, resumable=True
    )
    topology: str = key("", "TPU slice this config is meant for, e.g. v5p:8x8x8", check=_topology, resumable=True)
    checkpoint: CheckpointSpec = section(CheckpointSpec)
    log: LogSpec = section(LogSpec)
    sample: SampleSpec = section(SampleSpec)
    eval: EvalSpec = section(EvalSpec)


KEYS = settings.keys(RunConfig)
FREE = tuple(name for name, known in KEYS.items() if known.kind is dict)  # sections of which a config may hold any keys


def default() -> ConfigDict:
    """Gives every key with its default, for a config file to change: the paper's recipe, without a model size."""
    return to_dict(RunConfig())


def to_dict(config: RunConfig) -> ConfigDict:
    """Gives a config as a config file has it."""
    found = ConfigDict()
    for name, value in settings.flatten(config).items():
        *sections, last = name.split(".")
        place = found
        for part in sections:
            if part not in place:
                place[part] = ConfigDict()
            place = place[part]
        place[last] = ConfigDict(value) if name in FREE else value
    return found


def typed(config: ConfigDict, source: str = "") -> RunConfig:
    """Makes the dataclasses of what a config file returns; values are checked by `checks.validate`.

    Args:
        source: what messages begin with.

    Raises:
        UserError: naming a key that does not exist, is missing, or has a value of another kind.
    """
    found = _leaves(config)
    for name in found.keys() - KEYS.keys():
        raise UserError(f"{source}there is no key {name}{did_you_mean(name, KEYS)}.")
    for name in KEYS.keys() - found.keys():
        raise UserError(f"{source}the config has no {name}: a config starts from ec_dit.config.default().")
    try:
        return settings.assemble(RunConfig, {name: KEYS[name].fit(value) for name, value in found.items()})
    except ValueError as error:
        raise UserError(f"{source}--config.{error}.") from error


def _leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of what is no section; keys of FREE sections as one."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        is_section = isinstance(value, ConfigDict | dict) and prefix + name not in FREE
        if is_section:
            found |= _leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value.to_dict() if isinstance(value, ConfigDict) else value
    return found


def unused(config: RunConfig) -> dict[str, Use]:
    """Keys that do nothing beside the other values of a config, with what they are for."""
    found = {}
    for name, known in KEYS.items():
        use = known.facts.use
        if use is not None and (settings.get(config, use.other) in use.values) == use.excluded:
            found[name] = use
    return found


def to_json(config: RunConfig) -> str:
    """All keys, sorted, as JSON."""
    return json.dumps(to_tree(config), indent=2, sort_keys=True)


def to_tree(config: RunConfig) -> dict[str, Any]:
    """All keys by section, as JSON has them: lists for tuples."""
    tree: dict[str, Any] = json.loads(json.dumps(to_dict(config).to_dict()))
    return tree


def from_json(text: str | bytes, source: str = "the saved config", advice: str = _ADVICE) -> RunConfig:
    """Reads what `to_json` wrote; keys that a newer version added take their defaults.

    Args:
        source: the file that it stood in, for messages.
        advice: what to do about a damaged one.

    Raises:
        DamageError: if the text is no such JSON; names the key.
    """
    saved = json_file.parse(text if isinstance(text, bytes) else text.encode(), source, advice)
    with json_file.whole(source, advice):
        return from_tree(saved)


def from_tree(saved: Mapping[str, Any]) -> RunConfig:
    """The inverse of `to_tree`; ValueError where it holds anything else."""
    values = {name: known.default for name, known in KEYS.items()}
    sections = {name.rpartition(".")[0] for name in KEYS}

    def fill(tree: Mapping[str, Any], prefix: str) -> None:
        for name, value in tree.items():
            if (whole := f"{prefix}{name}") in KEYS:
                values[whole] = KEYS[whole].fit(value)
            elif whole not in sections:
                raise ValueError(f"there is no key {whole} in this version{did_you_mean(whole, KEYS)}")
            elif isinstance(value, dict):
                fill(value, f"{whole}.")
            else:
                raise ValueError(f"{whole} is {shown(value)}, but must be a section of keys")

    fill(_renewed(saved), "")
    return settings.assemble(RunConfig, values)


def _renewed(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Gives what an older version saved in the keys of this one: the pictures of a task were a key, and are a suite's option."""
    part = saved.get("eval")
    if not isinstance(part, Mapping) or "images_per_task" not in part:
        return saved
    kept = {name: value for name, value in part.items() if name != "images_per_task"}
    if part.get("suites") == ["shapes"]:
        kept["suites"] = [f"shapes:images_per_task={part['images_per_task']}"]
    return {**saved, "eval": kept}


def difference(old: RunConfig, new: RunConfig, *params: settings.Params) -> list[str]:
    """Gives lines 'key: old -> new' for every key that must not change within one workdir but did, if it does anything in either.

    Args:
        params: which keys, by what parameters have to do with them; none: all.
    """
    idle = unused(old).keys() & unused(new).keys()
    lines = []
    for each in differences(listed(old), listed(new)):
        known = KEYS[each.name if each.name in KEYS else each.name.rpartition(".")[0]]
        fixed = not known.facts.resumable or (each.name == "train.steps" and new.optimizer.schedule != "constant")
        if fixed and known.name not in idle and (not params or known.facts.params in params):
            lines.append(f"{each} ({known.facts.because})" if known.facts.because else str(each))
    return lines


def listed(config: RunConfig) -> dict[str, Any]:
    """Gives every key by its dotted name, with its value as JSON has it; of FREE sections the keys that are there."""
    found = json.loads(json.dumps(settings.flatten(config)))
    for free in FREE:
        found |= settings.prefixed(free, found.pop(free))
    return found
