"""A config as the dataclasses that the rooms below take, with what depends on several of its sections."""

import math
from collections.abc import Sequence
from dataclasses import replace

from jax.sharding import AbstractMesh, Mesh

from ec_dit.config import RunConfig
from ec_dit.core import rounding, settings, sharding
from ec_dit.core.errors import UserError
from ec_dit.core.settings import narrow
from ec_dit.data.batch import Text
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.flow.processes import make_process
from ec_dit.models.sparse_spec import SparseSpec
from ec_dit.models.spec import DiTSpec
from ec_dit.models.text_spec import TowerSpec
from ec_dit.nn.routing.rules import RULES, has_thresholds, is_by_tokens
from ec_dit.nn.routing.spec import IMAGE, RoutingSpec, check_capacity, group_tokens
from ec_dit.objectives.base import Objective
from ec_dit.sampling.settings import PAIR, SampleSettings

_MOST_RISE = 10.0  # of the logarithm of time_shift: far beyond any scheduler's, and far from overflow
Shape = tuple[int, int]  # rows and columns of what the model denoises: latent pixels, or pixels


def dit_spec(config: RunConfig) -> DiTSpec:
    """Gives the transformer's structure."""
    return narrow(
        DiTSpec,
        config.model,
        latent_size=config.data.size,
        channels=config.data.channels,
        text_width=config.text.width,
        pooled_width=config.text.pooled,
        sparse=narrow(SparseSpec, config.moe, **_needs(config)),
    )


def _needs(config: RunConfig) -> dict[str, bool]:
    """What the rule needs of a sparse layer."""
    rule = RULES.get(config.moe.routing)
    if rule is None:
        return {}
    thresholds = has_thresholds(narrow(RoutingSpec, config.moe))
    return {"thresholds": thresholds, "predictor": rule.predicts, "biases": config.moe.bias_rate > 0}


def tower_spec(config: RunConfig, tokenizer: Tokenizer | None) -> TowerSpec | None:
    """Gives the jointly trained text tower's structure, None where text comes from a cache."""
    if config.text.encoder == "cached":
        return None
    t = config.text
    if tokenizer is None:
        raise UserError("text.encoder=tower needs a tokenizer: prepare a data set first (python -m ec_dit.prepare).")
    return TowerSpec(tokenizer.vocab_size, t.width, t.tower_blocks, t.tower_heads, t.length)


def square(config: RunConfig) -> Shape:
    """The shape of data.size, which every function here takes where it is given none."""
    return config.data.size, config.data.size


def image_tokens(config: RunConfig, shape: Shape | None = None) -> int:
    """Tokens of one image.

    Raises:
        UserError: if the patch does not divide both sides.
    """
    (rows, columns), patch = shape or square(config), config.model.patch
    if min(rows, columns) < 1 or rows % patch or columns % patch:
        raise UserError(
            f"an image of {_named(config, shape)} does not divide into patches of {patch} x {patch}: make both sides multiples "
            f"of {patch} (config key model.patch)."
        )
    return (rows // patch) * (columns // patch)


def kept_tokens(config: RunConfig, shape: Shape | None = None) -> int:
    """Tokens of one image that training sees.

    Raises:
        UserError: if the patch does not divide the shape, or the mask keeps no whole number of its tokens.
    """
    return rounding.kept_tokens(
        image_tokens(config, shape), config.flow.mask_ratio, f"an image of {_named(config, shape)}"
    )


def _named(config: RunConfig, shape: Shape | None) -> str:
    rows, columns = shape or square(config)
    return f"{rows} x {columns} {'pixels' if config.data.space == 'pixels' else 'latent pixels'}"


def train_routing(config: RunConfig) -> RoutingSpec:
    """How training routes, at any shape; checks that groups and capacity come out whole at the square.

    Raises:
        UserError: naming the numbers that do not fit.
    """
    tokens = kept_tokens(config)
    spec = narrow(RoutingSpec, config.moe)
    if config.moe.routing != "dense":
        micro_batch = config.train.batch_size // config.train.accumulate
        group = group_tokens(micro_batch * tokens, tokens, spec.group_size)
        for factor in config.moe.capacity_factors or (spec.capacity_factor, *config.moe.capacity_until[1::2]):
            check_capacity(group, config.moe.num_experts, factor)
    return spec


def capacity_at(config: RunConfig, step: int) -> float:
    """Gives the capacity factor with which a step is trained, numbered from 0."""
    until = config.moe.capacity_until
    pairs = zip(until[::2], until[1::2], strict=True)
    return next((factor for end, factor in pairs if step < end), config.moe.capacity_factor)


def with_capacity(config: RunConfig, factor: float) -> RunConfig:
    """Gives the config with one capacity factor, and no schedule of it."""
    return settings.changed(config, {"moe.capacity_factor": factor, "moe.capacity_until": ()})


def largest(config: RunConfig) -> RunConfig:
    """Gives the config of the largest training step, which says what memory a run takes."""
    return with_capacity(config, max((config.moe.capacity_factor, *config.moe.capacity_until[1::2])))


def by_threshold(config: RunConfig) -> bool:
    """Tells whether an image alone is routed by thresholds of training."""
    pools = config.moe.routing != "dense" and RULES[config.moe.routing].pools
    return pools or config.sample.capacity == "matched"


def computed_factor(config: RunConfig, *, sampling_on: Mesh | AbstractMesh | None = None) -> float:
    """Gives the slots of a token that are computed, filled or not, in training or in sampling.

    More than f_c where thresholds decide how many of an expert's are filled, unless a device has all experts.

    Args:
        sampling_on: the mesh that sampling is on; None: in training.
    """
    factor = (sampling_on is not None and config.sample.capacity_factor) or config.moe.capacity_factor
    if sampling_on is not None and by_threshold(config):
        return factor * (config.sample.room if sharding.ways(sampling_on, "expert") > 1 else 1)
    return factor * config.moe.most if config.moe.routing == "expert_race" else factor


def sample_settings(config: RunConfig, shape: Shape | None = None) -> SampleSettings:
    """How sampling integrates and routes images of one shape.

    Raises:
        UserError: if the patch does not divide the shape, a routing group would span images, or a capacity of the square does
            not come out whole; at other shapes it is rounded up.
    """
    s, tokens = config.sample, image_tokens(config, shape)
    base = replace(
        train_routing(config),
        capacity_factor=s.capacity_factor or config.moe.capacity_factor,
        by_threshold=by_threshold(config),
        combine=config.moe.combine if s.combine == "auto" else s.combine,
        chunks=s.chunks,
        most=s.room if by_threshold(config) else config.moe.most,
    )
    sizes = {PAIR: 2 * tokens, IMAGE: tokens}
    size = sizes.get(s.group_size) or int(s.group_size)
    if size > 2 * tokens or (2 * tokens) % size:
        raise UserError(
            f"--config.sample.group_size={size}: an image has {tokens} tokens ({_named(config, shape)}), with its unconditional "
            f"copy {2 * tokens}; a group must divide that, so that no image depends on another. Use pair, image or a divisor of "
            f"{2 * tokens}."
        )
    alone = min(size, tokens)
    if tokens % alone:
        raise UserError(
            f"--config.sample.group_size={size}: an image alone has {tokens} tokens ({_named(config, shape)}), which groups "
            f"of {size} do not divide; one would hold tokens of two images. Use pair, image or a divisor of {tokens}."
        )
    if config.moe.routing != "dense" and shape in (None, square(config)):
        for group in {size, alone} if s.guidance != 1 else {alone}:
            for factor in config.moe.capacity_factors or (base.capacity_factor,):
                check_capacity(group, config.moe.num_experts, factor)
    if s.time_shift_rise:
        rise = s.time_shift_rise * (tokens - image_tokens(config))
        if abs(rise) > _MOST_RISE:
            raise UserError(
                f"--config.sample.time_shift_rise={s.time_shift_rise:g}: for {tokens} tokens ({_named(config, shape)}) "
                f"time_shift would be e^{rise:.1f} times that of the config's {image_tokens(config)}. Lower it."
            )
        s = replace(s, time_shift=s.time_shift * math.exp(rise))
    return narrow(
        SampleSettings,
        s,
        process=make_process(config.flow, s),
        prediction=config.flow.prediction,
        routing=replace(base, group_size=alone),
        paired_routing=replace(base, group_size=size),
    )


def check_batch(config: RunConfig, mesh: Mesh | AbstractMesh, shapes: Sequence[Shape] | None = None) -> None:
    """Batch and routing groups of training must split evenly over the mesh, and validation must route every image alone.

    Args:
        shapes: of the batches; None: the square alone.

    Raises:
        UserError: naming the numbers and the shape.
    """
    ways, micro_batch = sharding.batch_ways(mesh), config.train.batch_size // config.train.accumulate
    over = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if axis != "tensor")
    if micro_batch % ways:
        raise UserError(
            f"--config.train.batch_size={config.train.batch_size} / accumulate {config.train.accumulate} = {micro_batch} images "
            f"do not split over {ways} devices ({over}). Choose a multiple of {ways * config.train.accumulate}; where the batch "
            f"must stay, as in a run that goes on: {_other_mesh(micro_batch, ways, mesh)}."
        )
    routing = train_routing(config)
    for shape in shapes or [square(config)]:
        sample_settings(config, shape)
        tokens = kept_tokens(config, shape)
        if config.moe.routing == "dense":
            continue
        try:
            size = group_tokens(micro_batch * tokens, tokens, routing.group_size)
        except UserError as error:
            raise UserError(f"batches of {_named(config, shape)}: {error}") from error
        groups = micro_batch * tokens // size
        if groups % ways:
            raise UserError(
                f"a batch of {micro_batch} images ({_named(config, shape)}) x {tokens} tokens makes {groups} routing groups of "
                f"{size} tokens, which do not split over {ways} devices ({over}). Raise train.batch_size or lower "
                f"moe.group_size; where they must stay, as in a run that goes on: {_other_mesh(groups, ways, mesh)}."
            )


def _other_mesh(parts: int, ways: int, mesh: Mesh | AbstractMesh) -> str:
    """A mesh, or a number of devices, over which so many images or groups split."""
    most = math.gcd(parts, ways)
    tensor = mesh.shape["tensor"] * (ways // most)
    return f"give --config.mesh.tensor={tensor}, with {most} devices over the other axes, or take {most} devices"


def training_objective(config: RunConfig, null_text: Text) -> Objective:
    """Gives the config's objective.

    Args:
        null_text: the empty caption, leaves without B.
    """
    weight = config.moe.aux_weight if is_by_tokens(config.moe.routing) else 0.0
    routing = train_routing(config)
    return narrow(
        config.objective.kind,
        config.flow,
        config.objective,
        aux_weight=weight,
        group_times=config.moe.group_times,
        routing=routing,
        null_text=null_text,
    )
