"""What a config may hold: every check that needs neither devices nor data, so that a mistake shows before anything is compiled.

`validate()` raises UserError with a message that names the key and the values that would do.
"""

import functools
import math
import re
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from ec_dit.config import FREE, default, fit, flatten, get, shown, unused
from ec_dit.core import rounding, seeds, topology
from ec_dit.core.errors import UserError, did_you_mean, shortened
from ec_dit.data import registry

_CHOICES = {
    "model.modulation": ("adaln", "adaln_single"),
    "model.attention": ("xla", "cudnn"),
    "model.position_fit": ("area", "sides"),
    "model.remat": ("none", "dots", "full"),
    "model.dtype": ("auto", "bfloat16", "float32"),
    "moe.routing": ("expert_choice", "token_choice", "dense"),
    "moe.combine": ("scatter", "one_hot"),
    "moe.gate": ("score", "normalized"),
    "text.encoder": ("cached", "tower"),
    "data.source": ("shapes", "emoji", "folder", "webdataset", "parquet", "coco", "tfds", "synthetic", ""),
    "data.space": ("pixels", "latents"),
    "data.normalize": ("channel", "none"),
    "data.posterior": ("sample", "mean"),
    "data.crop": ("center", "random"),
    "flow.path": ("rectified", "ddpm"),
    "flow.prediction": ("velocity", "data", "epsilon"),
    "optimizer.name": ("rmsprop", "adamw", "muon"),
    "optimizer.schedule": ("constant", "cosine"),
    "sample.sampler": ("euler", "heun", "ddim", "dpmpp_2m"),
    "sample.spacing": ("linspace", "leading", "trailing"),
}

_SIZE, _COUNT = 2**20, 2**31 - 1  # the largest width, length or number of parts; the largest number of anything


@dataclass(frozen=True)
class Bounds:
    """The numbers that some keys may have.

    Attributes:
        keys: separated by spaces.
        wanted: the same in words, for messages.
        low, high: the least and the largest.
        open_low, open_high: whether that one itself is out of bounds.
    """

    keys: str
    wanted: str
    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is inside."""
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)


_BOUNDS = (
    Bounds(
        "model.width model.num_blocks model.num_heads model.num_kv_heads model.head_dim model.ffn_factor model.patch moe.every "
        "text.width text.length text.tower_blocks text.tower_heads data.size data.channels sample.steps",
        f"must be at least 1, and at most {_SIZE:,}",
        1,
        _SIZE,
    ),
    Bounds("moe.num_experts moe.first", f"must not be negative, and at most {_SIZE:,}", 0, _SIZE),
    Bounds("data.workers", "must not be negative, and at most 1,024", 0, 1024),
    Bounds(
        "train.steps train.batch_size train.accumulate checkpoint.every checkpoint.keep log.every log.trace_steps "
        "sample.batch_size eval.images_per_task",
        f"must be at least 1, and at most {_COUNT:,}",
        1,
        _COUNT,
    ),
    Bounds(
        "optimizer.warmup_steps log.validate_every log.validate_images log.sample_every",
        f"must not be negative, and at most {_COUNT:,}",
        0,
        _COUNT,
    ),
    Bounds("seed", f"must be at least 0, and at most {seeds.LARGEST:,}", 0, seeds.LARGEST),
    Bounds(
        "moe.aux_weight optimizer.weight_decay optimizer.clip_norm sample.guidance",
        "must not be negative",
        0,
        math.inf,
    ),
    Bounds("sample.capacity_factor", f"must not be negative, and at most {_SIZE:,}", 0, _SIZE),
    Bounds("moe.capacity_factor", f"must be greater than 0, and at most {_SIZE:,}", 0, _SIZE, open_low=True),
    Bounds(
        "flow.mask_ratio flow.caption_dropout optimizer.momentum optimizer.decay optimizer.ema_decay",
        "must be at least 0 and less than 1",
        0,
        1,
        open_high=True,
    ),
    Bounds(
        "flow.time_std optimizer.learning_rate optimizer.adam_learning_rate optimizer.eps "
        "sample.time_shift model.position_scale",
        "must be greater than 0",
        0,
        math.inf,
        open_low=True,
    ),
)


def validate(config: ConfigDict) -> None:
    """Checks every value that can be checked without devices or data.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    check_keys(config)
    _validate_each(config)
    _validate_together(config)


def check_keys(config: ConfigDict, source: str = "") -> None:
    """Refuses keys that do not exist, keys that are missing, and values of another kind.

    Args:
        source: what the message begins with.

    Raises:
        UserError: naming the key.
    """
    wanted = _defaults()
    found = {key: value for key, value in flatten(config).items() if not key.startswith(tuple(f"{f}." for f in FREE))}
    for key in found.keys() - wanted.keys() - set(FREE):
        raise UserError(f"{source}there is no key {key}{did_you_mean(key, wanted)}.")
    for key in [*wanted.keys() - found.keys(), *(f for f in FREE if not isinstance(_find(config, f), ConfigDict))]:
        raise UserError(f"{source}the config has no {key}: a config starts from ec_dit.config.default().")
    for key, value in found.items():
        try:
            fit(key, value, wanted[key])
        except ValueError as error:
            raise UserError(f"{source}--config.{error}.") from error


@functools.cache
def _defaults() -> dict[str, Any]:
    return flatten(default())


def check_use(config: ConfigDict, start: ConfigDict) -> None:
    """Refuses values that were changed and do nothing beside the others.

    Args:
        start: as the config was before.

    Raises:
        UserError: naming the key and what it is for.
    """
    for key, use in unused(config).items():
        value = get(config, key)
        if value != get(start, key):
            kinds = ", ".join(repr(v) for v in use.values)
            raise UserError(
                f"--config.{key}={shown(value)} has no effect with {use.other}={get(config, use.other)!r}: it is for "
                f"{use.other} {'other than ' if use.excluded else ''}{kinds}. Leave it at {get(start, key)!r}, or change "
                f"{use.other}."
            )


def _find(config: ConfigDict, key: str) -> Any:
    section, _, name = key.rpartition(".")
    holder = config.get(section) if section else config
    return holder.get(name) if isinstance(holder, ConfigDict) else None


def _check(config: ConfigDict, good: bool, key: str, wanted: str) -> None:
    if not good:
        raise UserError(f"--config.{key}={shown(get(config, key))}: {wanted}.")


def _validate_each(config: ConfigDict) -> None:
    """Values that are good or bad by themselves."""
    check = functools.partial(_check, config)
    for key, choices in _CHOICES.items():
        if get(config, key) not in choices:
            hint = did_you_mean(shortened(get(config, key)), choices)
            check(False, key, f"choose one of {', '.join(c or repr('') for c in choices)}{hint}")
    for key, value in flatten(config).items():
        check(not isinstance(value, float) or math.isfinite(value), key, "must be a finite number")
        check(not isinstance(value, str) or "\0" not in value, key, "holds a character that no text has, \\0")
    for bounds in _BOUNDS:
        for key in bounds.keys.split():
            check(bounds.holds(get(config, key)), key, bounds.wanted)
    first = next((key for key in config.mesh if config.mesh[key] == -1), None)
    for key in config.mesh:
        check(config.mesh[key] == -1 or 1 <= config.mesh[key] <= _SIZE, f"mesh.{key}", "must be at least 1, or -1")
        check(config.mesh[key] != -1 or first == key, f"mesh.{key}", "only one axis may be -1, all that are left")
    for key in ("moe.group_size", "sample.group_size"):
        words, value = ("image", "pair") if key.startswith("sample") else ("image",), get(config, key)
        number = int(value) if value.isascii() and value.isdigit() and len(value) < 12 else 0
        check(value in words or 1 <= number <= _COUNT, key, f"give a number of tokens, or {' or '.join(words)}")
    for key in ("log.prompts", "eval.suites"):
        good = all(isinstance(item, str) and item.strip() and _is_unicode(item) for item in get(config, key))
        check(good, key, "give texts, such as ('a red circle', 'two squares')")
    interval = config.sample.guidance_interval
    good = len(interval) == 2 and all(isinstance(t, int | float) and not isinstance(t, bool) for t in interval)
    check(
        good and 0 <= interval[0] < interval[1] <= 1, "sample.guidance_interval", "give two times, 0 <= low < high <= 1"
    )
    if config.topology:
        topology.parse(config.topology, "--config.topology")
    for name, value in config.tpu_options.items():
        good = isinstance(value, str) and re.fullmatch(r"xla_\w+", name) is not None
        check(good, f"tpu_options.{name}", "give an option of the TPU's compiler, xla_..., and its value as text")
    if config.data.options and config.data.source not in ("", "synthetic"):
        registry.check_options(config.data.source, config.data.options)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _validate_together(config: ConfigDict) -> None:
    """Values that must fit each other."""
    check = functools.partial(_check, config)
    sparse, experts = config.moe.routing != "dense", config.moe.num_experts
    check(
        experts >= 2 if sparse else experts == 0,
        "moe.num_experts",
        f"routing '{config.moe.routing}' needs {'>= 2' if sparse else '0'}",
    )
    ddpm = config.flow.path == "ddpm"
    check(
        (config.flow.prediction == "epsilon") == ddpm,
        "flow.prediction",
        f"flow.path '{config.flow.path}' needs {'epsilon' if ddpm else 'velocity or data'}",
    )
    if ddpm:
        check(
            config.sample.sampler in ("ddim", "dpmpp_2m"), "sample.sampler", "flow.path 'ddpm' needs ddim or dpmpp_2m"
        )
        check(config.sample.time_shift == 1, "sample.time_shift", "is of rectified flow; flow.path 'ddpm' needs 1")
        check(config.sample.steps <= 1000, "sample.steps", "ddpm has 1000 levels of noise")
    size, patch = config.data.size, config.model.patch
    check(size % patch == 0, "data.size", f"model.patch {patch} must divide it")
    check(
        config.model.num_heads % config.model.num_kv_heads == 0,
        "model.num_kv_heads",
        f"must divide num_heads {config.model.num_heads}",
    )
    check(
        config.train.batch_size % config.train.accumulate == 0,
        "train.accumulate",
        f"must divide train.batch_size {config.train.batch_size}",
    )
    if config.data.source in ("shapes", "emoji"):
        check(config.text.encoder == "tower", "text.encoder", f"data.source '{config.data.source}' needs 'tower'")
    for suite in config.eval.suites:
        check(
            suite == config.data.source == "shapes",
            "eval.suites",
            f"suite {shown(suite)} does not fit data.source {config.data.source!r}; there is 'shapes', for the shapes data",
        )
    rounding.kept_tokens((size // patch) ** 2, config.flow.mask_ratio)
    if config.text.encoder == "tower":
        check(
            config.text.width % config.text.tower_heads == 0,
            "text.tower_heads",
            f"must divide text.width {config.text.width}",
        )
    if config.data.space == "pixels":
        check(config.data.channels == 3, "data.channels", "pixels have 3 channels")


def check_data_is_named(config: ConfigDict) -> None:
    """Refuses to train on nothing.

    Raises:
        UserError: if there is neither a data set nor synthetic data.
    """
    if config.data.source == "synthetic" or config.data.path:
        return
    how = "python -m ec_dit.prepare --source=... --out=DIR"
    if config.data.space == "latents":
        raise UserError(
            f"--config.data.path is empty: this config trains on cached latents and text embeddings; make them with {how} "
            "--vae=DIR --text_encoder=DIR. To measure its speed on random ones: --config.data.source=synthetic. A structure of "
            "the paper is tried on pictures with --config=configs/xl_32e.py:smoke and the like."
        )
    raise UserError(f"--config.data.path is empty: give the folder of a data set made by {how}.")
