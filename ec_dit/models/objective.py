"""Where the model meets the flow: the training loss, and the prediction that a sampler goes by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.flow import ddpm, path
from ec_dit.flow import loss as flow_loss
from ec_dit.flow.guidance import PredictFn
from ec_dit.flow.path import PathKind, Prediction
from ec_dit.models.dit import take_tokens
from ec_dit.models.spec import DiTSpec
from ec_dit.models.text_to_image import Text, TextToImage
from ec_dit.nn.embeddings import patchify, unpatchify
from ec_dit.nn.moe import RouterStats
from ec_dit.nn.routing import RoutingSpec

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Objective:
    """Training of a TextToImage model.

    Attributes:
        path: from data to noise.
        prediction: what the network's output means.
        time_mean, time_std: of the logit-normal t of rectified flow.
        mask_ratio: share of image tokens dropped; they enter neither attention nor routing nor the loss.
        caption_dropout: share of captions replaced by the null caption.
        aux_weight: of the load-balancing loss.
        routing: of the sparse blocks.
    """

    path: PathKind
    prediction: Prediction
    time_mean: float
    time_std: float
    mask_ratio: float
    caption_dropout: float
    aux_weight: float
    routing: RoutingSpec


def loss_fn(
    graphdef: nnx.GraphDef,
    objective: Objective,
    params: Params,
    x0_BYXZ: jax.Array,
    text: Text,
    null_text: Text,
    key: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean loss of a batch, plus the weighted load-balancing loss.

    Args:
        x0_BYXZ: clean latents or pixels, float32.
        text: captions; null_text: the empty caption, leaves without B.
        key: of times, noise, dropped tokens and dropped captions.

    Returns:
        (loss, parts): 'loss' without the auxiliary term, 'level_sum' and 'level_count' (LEVELS,), and per sparse block (L,)
        'router/untaken', 'router/max_experts', 'router/gate_entropy', 'router/dropped', 'router/aux_loss'.
    """
    model: TextToImage = nnx.merge(graphdef, params)
    batch = x0_BYXZ.shape[0]
    key_t, key_noise, key_keep, key_drop = jax.random.split(key, 4)
    if objective.path == "ddpm":
        t_B = ddpm.sample_times(key_t, batch)
    else:
        t_B = path.sample_times(key_t, batch, objective.time_mean, objective.time_std)
    noise_BYXZ = jax.random.normal(key_noise, x0_BYXZ.shape)
    keep_BS = path.keep_tokens(key_keep, batch, _num_tokens(model, x0_BYXZ), objective.mask_ratio)
    text = drop_captions(key_drop, text, null_text, objective.caption_dropout)

    loss_B, stats = _loss(model, objective, x0_BYXZ, noise_BYXZ, t_B, text, keep_BS)
    level_sum, level_count = flow_loss.by_level(loss_B, t_B)
    parts = {"loss": loss_B.mean(), "level_sum": level_sum, "level_count": level_count} | router_metrics(stats)
    aux = 0.0 if stats is None else objective.aux_weight * stats.aux_loss.sum()
    return parts["loss"] + aux, parts


def validation_loss(
    graphdef: nnx.GraphDef,
    objective: Objective,
    params: Params,
    x0_BYXZ: jax.Array,
    text: Text,
    position_B: jax.Array,
) -> jax.Array:
    """Loss of each image (B,) with every token, its own caption, and noise and time fixed by `position_B` alone.

    Positions count the images of the set, int32 from 0 on: consecutive ones cover all noise levels evenly, which record
    numbers, taken in strides, need not. The objective's dropping and masking do not apply; its routing does.
    """
    model: TextToImage = nnx.merge(graphdef, params)
    t_B = path.even_times(position_B)
    t_B = ddpm.nearest_level(t_B) if objective.path == "ddpm" else t_B
    keys = jax.vmap(lambda position: jax.random.fold_in(jax.random.key(0), position))(position_B)
    noise_BYXZ = jax.vmap(lambda key: jax.random.normal(key, x0_BYXZ.shape[1:]))(keys)
    return _loss(model, objective, x0_BYXZ, noise_BYXZ, t_B, text, None)[0]


def predict_fn(model: TextToImage, routing: RoutingSpec) -> PredictFn:
    """The model's prediction over whole latents; the condition is an encoded `Text`."""

    def predict(x_BYXZ: jax.Array, t_B: jax.Array, text: Text) -> jax.Array:
        patch = model.dit.spec.patch
        out_BSP, _ = model.dit(x_BYXZ, t_B, text.tokens, text.mask_BT, routing=routing)
        out_BSP = without_variance(out_BSP, model.dit.spec)
        return unpatchify(out_BSP, patch, x_BYXZ.shape[1] // patch, x_BYXZ.shape[2] // patch)

    return predict


def without_variance(out_BSP: jax.Array, spec: DiTSpec) -> jax.Array:
    """The patches without the channels beyond the input's: a learned variance, which nothing here uses."""
    if spec.out_channels == spec.channels:
        return out_BSP
    pixels = out_BSP.reshape(*out_BSP.shape[:2], -1, spec.out_channels)
    return pixels[..., : spec.channels].reshape(*out_BSP.shape[:2], -1)


def drop_captions(key: jax.Array, text: Text, null_text: Text, rate: float) -> Text:
    """Replaces a share of the captions by the null caption."""
    if not rate:
        return text
    drop_B = jax.random.bernoulli(key, rate, (text.tokens.shape[0],))
    return jax.tree.map(lambda a, null: jnp.where(drop_B.reshape(-1, *(1,) * null.ndim), null, a), text, null_text)


def router_metrics(stats: RouterStats | None) -> dict[str, jax.Array]:
    """The scalars of RouterStats, per sparse block."""
    if stats is None:
        return {}
    return {f"router/{name}": value for name, value in stats._asdict().items() if name != "experts_BS"}


def _num_tokens(model: TextToImage, x_BYXZ: jax.Array) -> int:
    return x_BYXZ.shape[1] * x_BYXZ.shape[2] // model.dit.spec.patch**2


def _loss(
    model: TextToImage,
    objective: Objective,
    x0_BYXZ: jax.Array,
    noise_BYXZ: jax.Array,
    t_B: jax.Array,
    text: Text,
    keep_BS: jax.Array | None,
) -> tuple[jax.Array, RouterStats | None]:
    text = model.encode(text)
    if objective.path == "ddpm":
        x_BYXZ, target_BYXZ = ddpm.diffuse(x0_BYXZ, noise_BYXZ, t_B), noise_BYXZ
    else:
        x_BYXZ, target_BYXZ = path.interpolate(x0_BYXZ, noise_BYXZ, t_B), path.velocity_target(x0_BYXZ, noise_BYXZ)
    out_BSP, stats = model.dit(x_BYXZ, t_B, text.tokens, text.mask_BT, routing=objective.routing, keep_BS=keep_BS)
    out_BSP = without_variance(out_BSP, model.dit.spec)
    as_velocity = objective.prediction == "data"
    if as_velocity:
        target_BYXZ = path.velocity_from_data(x_BYXZ, x0_BYXZ, t_B, path.LOSS_FLOOR)
    x_BSP, target_BSP = (patchify(image, model.dit.spec.patch) for image in (x_BYXZ, target_BYXZ))
    if keep_BS is not None:
        x_BSP, target_BSP = take_tokens(x_BSP, keep_BS), take_tokens(target_BSP, keep_BS)
    if as_velocity:
        out_BSP = path.velocity_from_data(x_BSP, out_BSP, t_B, path.LOSS_FLOOR)
    return flow_loss.squared_error(out_BSP, target_BSP), stats
