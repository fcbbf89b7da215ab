"""Where the model meets the flow: the training loss, and the velocity that a sampler integrates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.flow import loss as flow_loss
from ec_dit.flow import path
from ec_dit.flow.guidance import VelocityFn
from ec_dit.models.dit import take_tokens
from ec_dit.models.text_to_image import Text, TextToImage
from ec_dit.nn.embeddings import patchify, unpatchify
from ec_dit.nn.moe import RouterStats
from ec_dit.nn.routing import RoutingSpec

Params = Mapping[str, Any]
Prediction = Literal["velocity", "data"]


@dataclass(frozen=True)
class Objective:
    """Rectified-flow training of a TextToImage model.

    Attributes:
        prediction: what the network's output means.
        time_mean, time_std: of the logit-normal t.
        mask_ratio: share of image tokens dropped; they enter neither attention nor routing nor the loss.
        caption_dropout: share of captions replaced by the null caption.
        aux_weight: of the load-balancing loss.
        routing: of the sparse blocks.
    """

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
    """Mean velocity loss of a batch, plus the weighted load-balancing loss.

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
    t_B = path.sample_times(key_t, batch, objective.time_mean, objective.time_std)
    noise_BYXZ = jax.random.normal(key_noise, x0_BYXZ.shape)
    keep_BS = path.keep_tokens(key_keep, batch, _num_tokens(model, x0_BYXZ), objective.mask_ratio)
    text = drop_captions(key_drop, text, null_text, objective.caption_dropout)

    loss_B, stats = _velocity_loss(
        model, x0_BYXZ, noise_BYXZ, t_B, text, keep_BS, objective.prediction, objective.routing
    )
    level_sum, level_count = flow_loss.by_level(loss_B, t_B)
    parts = {"loss": loss_B.mean(), "level_sum": level_sum, "level_count": level_count} | router_metrics(stats)
    aux = 0.0 if stats is None else objective.aux_weight * stats.aux_loss.sum()
    return parts["loss"] + aux, parts


def validation_loss(
    graphdef: nnx.GraphDef,
    prediction: Prediction,
    routing: RoutingSpec,
    params: Params,
    x0_BYXZ: jax.Array,
    text: Text,
    seed_B: jax.Array,
) -> jax.Array:
    """Loss of each image (B,) with every token, its own caption, and noise and time fixed by `seed_B` alone.

    Times are the stratified quantiles of a uniform t, so that a small set covers all noise levels evenly.
    """
    model: TextToImage = nnx.merge(graphdef, params)
    t_B = ((seed_B * 0.6180339887498949 + 0.5) % 1.0).astype(jnp.float32)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(seed_B)
    noise_BYXZ = jax.vmap(lambda key: jax.random.normal(key, x0_BYXZ.shape[1:]))(keys)
    return _velocity_loss(model, x0_BYXZ, noise_BYXZ, t_B, text, None, prediction, routing)[0]


def velocity_fn(model: TextToImage, prediction: Prediction, routing: RoutingSpec) -> VelocityFn:
    """The model as dx/dt over whole latents; the condition is an encoded `Text`."""

    def velocity(x_BYXZ: jax.Array, t_B: jax.Array, text: Text) -> jax.Array:
        patch = model.dit.spec.patch
        out_BSP, _ = model.dit(x_BYXZ, t_B, text.tokens, text.mask_BT, routing=routing)
        out_BYXZ = unpatchify(out_BSP, patch, x_BYXZ.shape[1] // patch, x_BYXZ.shape[2] // patch)
        return out_BYXZ if prediction == "velocity" else path.velocity_from_data(x_BYXZ, out_BYXZ, t_B, floor=0.0)

    return velocity


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


def _velocity_loss(
    model: TextToImage,
    x0_BYXZ: jax.Array,
    noise_BYXZ: jax.Array,
    t_B: jax.Array,
    text: Text,
    keep_BS: jax.Array | None,
    prediction: Prediction,
    routing: RoutingSpec,
) -> tuple[jax.Array, RouterStats | None]:
    text = model.encode(text)
    x_BYXZ = path.interpolate(x0_BYXZ, noise_BYXZ, t_B)
    out_BSP, stats = model.dit(x_BYXZ, t_B, text.tokens, text.mask_BT, routing=routing, keep_BS=keep_BS)
    target_BYXZ = path.velocity_target(x0_BYXZ, noise_BYXZ)
    if prediction == "data":
        target_BYXZ = path.velocity_from_data(x_BYXZ, x0_BYXZ, t_B, path.LOSS_FLOOR)
    x_BSP, target_BSP = (patchify(image, model.dit.spec.patch) for image in (x_BYXZ, target_BYXZ))
    if keep_BS is not None:
        x_BSP, target_BSP = take_tokens(x_BSP, keep_BS), take_tokens(target_BSP, keep_BS)
    if prediction == "data":
        out_BSP = path.velocity_from_data(x_BSP, out_BSP, t_B, path.LOSS_FLOOR)
    return flow_loss.velocity_loss(out_BSP, target_BSP), stats
