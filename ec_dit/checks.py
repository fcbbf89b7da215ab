"""What a config may hold: every check that needs neither devices nor data, so that a mistake shows before anything is compiled.

`validate()` raises UserError with a message that names the key and the values that would do.
"""

import functools
import math

from ml_collections import ConfigDict

from ec_dit.config import flatten, get
from ec_dit.core.errors import UserError, did_you_mean

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

_AT_LEAST_ONE = (
    "model.width model.num_blocks model.num_heads model.num_kv_heads model.head_dim model.ffn_factor model.patch moe.every "
    "text.width text.length text.tower_blocks text.tower_heads data.size data.channels train.steps train.batch_size "
    "train.accumulate checkpoint.every checkpoint.keep log.every log.trace_steps sample.steps sample.batch_size "
    "eval.images_per_task"
).split()

_AT_LEAST_ZERO = (
    "moe.num_experts moe.first moe.aux_weight data.workers optimizer.warmup_steps optimizer.weight_decay optimizer.clip_norm "
    "log.validate_every log.validate_images log.sample_every sample.guidance sample.capacity_factor"
).split()

_SHARES = ("flow.mask_ratio", "flow.caption_dropout", "optimizer.momentum", "optimizer.decay", "optimizer.ema_decay")

_POSITIVE = (
    "moe.capacity_factor",
    "flow.time_std",
    "optimizer.learning_rate",
    "optimizer.eps",
    "sample.time_shift",
    "model.position_scale",
)


def validate(config: ConfigDict) -> None:
    """Checks every value that can be checked without devices or data.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    _validate_each(config)
    _validate_together(config)


def _check(config: ConfigDict, good: bool, key: str, wanted: str) -> None:
    if not good:
        raise UserError(f"--config.{key}={get(config, key)!r}: {wanted}.")


def _validate_each(config: ConfigDict) -> None:
    """Values that are good or bad by themselves."""
    check = functools.partial(_check, config)
    for key, choices in _CHOICES.items():
        hint = did_you_mean(str(get(config, key)), choices)
        check(get(config, key) in choices, key, f"choose one of {', '.join(c or repr('') for c in choices)}{hint}")
    for key, value in flatten(config).items():
        check(not isinstance(value, float) or math.isfinite(value), key, "must be a finite number")
    for key in _AT_LEAST_ONE:
        check(get(config, key) >= 1, key, "must be at least 1")
    for key in _AT_LEAST_ZERO:
        check(get(config, key) >= 0, key, "must not be negative")
    for key in _SHARES:
        check(0 <= get(config, key) < 1, key, "must be at least 0 and less than 1")
    for key in _POSITIVE:
        check(get(config, key) > 0, key, "must be greater than 0")
    for key in ("moe.group_size", "sample.group_size"):
        words = ("image", "pair") if key.startswith("sample") else ("image",)
        value = str(get(config, key))
        check(
            value in words or (value.isdigit() and int(value) > 0),
            key,
            f"give a number of tokens, or {' or '.join(words)}",
        )
    interval = config.sample.guidance_interval
    check(
        isinstance(interval, tuple | list) and len(interval) == 2 and 0 <= interval[0] < interval[1] <= 1,
        "sample.guidance_interval",
        "give two times, 0 <= low < high <= 1",
    )


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
            f"suite {suite!r} does not fit data.source {config.data.source!r}; there is 'shapes', for the shapes data",
        )
    tokens = (size // patch) ** 2 * (1 - config.flow.mask_ratio)
    check(
        tokens >= 1 and tokens == int(tokens),
        "flow.mask_ratio",
        f"keeps {tokens:g} of {(size // patch) ** 2} tokens; keep a whole number",
    )
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
