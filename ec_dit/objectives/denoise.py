"""The paper's loss: a network predicts, of pictures mixed with noise, the velocity, the data or the noise."""

import jax
import jax.numpy as jnp

from ec_dit.core import rounding
from ec_dit.data.batch import Batch, Text
from ec_dit.flow import loss as flow_loss
from ec_dit.flow.process import even_times
from ec_dit.models.dit import take_tokens
from ec_dit.models.text_to_image import TextToImage
from ec_dit.nn.embeddings import patchify
from ec_dit.nn.moe import RouterStats
from ec_dit.nn.routing import record
from ec_dit.objectives.base import Objective


class Denoise(Objective):
    """Implements `base.Objective`."""

    def loss(
        self, model: TextToImage, frozen: TextToImage | None, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the mean loss of a batch, plus the weighted load-balancing loss.

        Dropped tokens enter neither attention nor routing nor the loss.

        Args:
            key: of times, noise, dropped tokens and dropped captions.

        Returns:
            (loss, parts): 'loss' without the auxiliary term, 'level_sum' and 'level_count' (LEVELS,), and per sparse block (L,)
            'router/untaken', 'router/max_experts', 'router/gate_entropy', 'router/dropped', 'router/aux_loss', and those of the
            router's other losses that count, as 'router/z_loss'.
        """
        images, rows, columns, _ = batch.image_BYXZ.shape
        key_t, key_noise, key_keep, key_drop = jax.random.split(key, 4)
        t_B = self.process.draw_times(key_t, images)
        if self.group_times == "sorted":
            t_B = jnp.sort(t_B)  # independent of the images as before
        noise_BYXZ = jax.random.normal(key_noise, batch.image_BYXZ.shape)
        tokens = rows * columns // model.dit.spec.patch**2
        keep_BS = keep_tokens(key_keep, images, tokens, self.mask_ratio)
        text = drop_captions(key_drop, batch.text, self.null_text, self.caption_dropout)

        loss_B, stats = self.image_losses(model, batch.image_BYXZ, noise_BYXZ, t_B, text, keep_BS)
        level_sum, level_count = flow_loss.by_level(loss_B, t_B)
        parts = {"loss": loss_B.mean(), "level_sum": level_sum, "level_count": level_count} | router_metrics(stats)
        if stats is not None and model.dit.spec.sparse.record:
            parts |= record.measured(stats.experts_BS, t_B)  # of all blocks: (L, B, S)
        if stats is not None and stats.threshold_E is not None:
            parts[record.PASSED] = stats.threshold_E
        if stats is not None and stats.asked_E is not None:
            parts[record.ASKED] = stats.asked_E
        return parts["loss"] + self.router_loss(stats), parts

    def validation_loss(
        self, model: TextToImage, frozen: TextToImage | None, batch: Batch, times: jax.Array | None = None
    ) -> jax.Array:
        """Computes the loss of each image (B,) with every token, its own caption, and noise and time fixed by position_B alone.

        Positions count the images of the set, int32 from 0 on: consecutive ones cover all noise levels evenly, which record
        numbers, taken in strides, need not. Dropping and masking do not apply; the routing does.
        """
        position_B = batch.position_B
        t_B = self.process.nearest_time(even_times(position_B) if times is None else times[position_B % len(times)])
        keys = jax.vmap(lambda position: jax.random.fold_in(jax.random.key(0), position))(batch.position_B)
        noise_BYXZ = jax.vmap(lambda key: jax.random.normal(key, batch.image_BYXZ.shape[1:]))(keys)
        return self.image_losses(model, batch.image_BYXZ, noise_BYXZ, t_B, batch.text, None)[0]

    def image_losses(
        self,
        model: TextToImage,
        x0_BYXZ: jax.Array,
        noise_BYXZ: jax.Array,
        t_B: jax.Array,
        text: Text,
        keep_BS: jax.Array | None,
    ) -> tuple[jax.Array, RouterStats | None]:
        """Computes the squared error of each image (B,) at given times and noise, and the router's statistics.

        Args:
            text: captions as the model takes them, not encoded.
            keep_BS: tokens of each image that stay; None: all.
        """
        process, patch = self.process, model.dit.spec.patch
        text = model.encode(text)
        x_BYXZ = process.diffuse(x0_BYXZ, noise_BYXZ, t_B)
        target_BYXZ = process.target(self.prediction, x_BYXZ, x0_BYXZ, noise_BYXZ, t_B)
        out_BSP, stats = model.predict(x_BYXZ, t_B, text, self.routing, keep_BS)
        x_BSP, target_BSP = (patchify(image, patch) for image in (x_BYXZ, target_BYXZ))
        if keep_BS is not None:
            x_BSP, target_BSP = take_tokens(x_BSP, keep_BS), take_tokens(target_BSP, keep_BS)
        return flow_loss.squared_error(process.compared(self.prediction, x_BSP, out_BSP, t_B), target_BSP), stats


def keep_tokens(key: jax.Array, batch: int, tokens: int, mask_ratio: float) -> jax.Array | None:
    """Draws which tokens of each image stay in training: (B, S (1 - ratio)) sorted indices, or None when all do.

    Every image draws its own uniformly random subset, as MaskDiT does (2306.09305).
    """
    if not mask_ratio:
        return None
    order_BS = jnp.argsort(jax.random.uniform(key, (batch, tokens)), axis=1)
    return jnp.sort(order_BS[:, : rounding.kept_tokens(tokens, mask_ratio)], axis=1)


def drop_captions(key: jax.Array, text: Text, null_text: Text, rate: float) -> Text:
    """Replaces a share of the captions by the null caption."""
    if not rate:
        return text
    drop_B = jax.random.bernoulli(key, rate, (text.tokens.shape[0],))
    return jax.tree.map(lambda a, null: jnp.where(drop_B.reshape(-1, *(1,) * null.ndim), null, a), text, null_text)


_NO_SCALARS = ("experts_BS", "gate_BSE", "losses", "threshold_E", "asked_E")


def router_metrics(stats: RouterStats | None) -> dict[str, jax.Array]:
    """Gives the scalars of RouterStats, per sparse block."""
    if stats is None:
        return {}
    scalars = stats._asdict() | {f"{name}_loss": value for name, value in stats.losses.items()}
    return {f"router/{name}": value for name, value in scalars.items() if name not in _NO_SCALARS}
