"""What a config may hold: every check that needs neither devices nor data, so that a mistake shows before anything is compiled.

What a key may be by itself stands where the key is declared; here is how keys must fit together.
"""

from ec_dit.config import KEYS, RunConfig, specs, unused
from ec_dit.config.data import SYNTHETIC
from ec_dit.core import rounding, settings
from ec_dit.core.errors import UserError
from ec_dit.core.settings import shown
from ec_dit.evaluators.registry import parse_all
from ec_dit.flow.processes import PROCESSES
from ec_dit.preparation import registry
from ec_dit.sampling.samplers import SAMPLERS


def validate(config: RunConfig) -> None:
    """Checks every value that can be checked without devices or data.

    Raises:
        UserError: naming the key, the value and what is allowed.
    """
    settings.check(config)
    if config.data.options and config.data.source not in ("", SYNTHETIC):
        registry.check_options(config.data.source, config.data.options)
    _validate_together(config)


def check_use(config: RunConfig, start: RunConfig) -> None:
    """Refuses values that were changed and do nothing beside the others.

    Args:
        start: as the config was before.

    Raises:
        UserError: naming the key and what it is for.
    """
    for key, use in unused(config).items():
        value, before = settings.get(config, key), settings.get(start, key)
        if value != before:
            kinds = ", ".join(repr(v) for v in use.values)
            raise UserError(
                f"--config.{key}={shown(value)} has no effect with {use.other}={settings.get(config, use.other)!r}: it is for "
                f"{use.other} {'other than ' if use.excluded else ''}{kinds}. Leave it at {before!r}, or change "
                f"{use.other}."
            )
    if config.sample.room != start.sample.room and not specs.by_threshold(config):
        raise UserError(
            f"--config.sample.room={config.sample.room:g} has no effect: it is for rules with a pool, and for "
            f"sample.capacity=matched. Leave it at {start.sample.room:g}."
        )


def _validate_together(config: RunConfig) -> None:
    """Checks values that must fit each other."""

    def check(good: bool, key: str, wanted: str) -> None:
        if not good:
            raise UserError(f"--config.{key}={shown(settings.get(config, key))}: {wanted}.")

    sparse, experts = config.moe.routing != "dense", config.moe.num_experts
    check(
        experts >= 2 if sparse else experts == 0,
        "moe.num_experts",
        f"routing '{config.moe.routing}' needs {'>= 2' if sparse else '0'}",
    )
    identity = config.moe.score == "identity"
    check(
        not (identity and (config.moe.gate == "normalized" or config.moe.routing == "top_k")),
        "moe.score",
        "logits may be negative: shares of them, and the balance of top_k, mean nothing; take moe.gate=score and expert_choice",
    )
    check(
        config.moe.router == "linear" or config.moe.router_input != "normed_time",
        "moe.router",
        "prototypes are compared with tokens alone: moe.router_input=modulated or start",
    )
    check(
        config.moe.routing != "top_k" or config.moe.top_k <= experts,
        "moe.top_k",
        f"there are {experts} experts",
    )
    check(
        config.sample.capacity == "fixed" or config.moe.record,
        "sample.capacity",
        "it goes by what training recorded: train with moe.record=True",
    )
    for key in ("moe.capacity_factor", "moe.capacity_until", "sample.capacity_factor"):
        check(
            not config.moe.capacity_factors or settings.get(config, key) == KEYS[key].default,
            key,
            "every sparse block has its own, moe.capacity_factors; leave this at its default",
        )
    path, process = config.flow.path, PROCESSES[config.flow.path]
    check(
        config.flow.prediction in process.predictions,
        "flow.prediction",
        f"flow.path '{path}' needs {' or '.join(process.predictions)}",
    )
    fitting = [name for name, sampler in SAMPLERS.items() if process.is_ode or not sampler.needs_ode]
    check(config.sample.sampler in fitting, "sample.sampler", f"flow.path '{path}' needs {' or '.join(fitting)}")
    most = process.max_steps
    check(most is None or config.sample.steps <= most, "sample.steps", f"{path} has {most} levels of noise")
    check(
        bool(config.train.init_from) or not config.objective.kind.needs_reference,
        "objective.name",
        "it compares the model with the parameters it started from: name their workdir with --config.train.init_from",
    )
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
    for key in ("fsdp", "expert", "tensor"):
        check(
            [config.mesh.data, config.mesh.fsdp, config.mesh.expert, config.mesh.tensor].count(-1) < 2
            or getattr(config.mesh, key) != -1,
            f"mesh.{key}",
            "only one axis may be -1, all that are left",
        )
    if config.data.source in registry.DRAWN:
        check(config.text.encoder == "tower", "text.encoder", f"data.source '{config.data.source}' needs 'tower'")
    for suite in parse_all(config.eval.suites):
        check(
            not suite.sources or config.data.source in ("", *suite.sources),
            "eval.suites",
            f"suite {suite.label} scores models trained on the {' or '.join(suite.sources)} data, not on data.source "
            f"{config.data.source!r}",
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


def check_data_is_named(config: RunConfig) -> None:
    """Refuses to train on nothing.

    Raises:
        UserError: if there is neither a data set nor synthetic data.
    """
    if config.data.source == SYNTHETIC or config.data.path:
        return
    how = "python -m ec_dit.prepare --source=... --out=DIR"
    if config.data.space == "latents":
        raise UserError(
            f"--config.data.path is empty: this config trains on cached latents and text embeddings; make them with {how} "
            "--vae=DIR --text_encoder=DIR. To measure its speed on random ones: --config.data.source=synthetic. A structure of "
            "the paper is tried on pictures with --config=xl_32e:smoke and the like."
        )
    raise UserError(f"--config.data.path is empty: give the folder of a data set made by {how}.")
