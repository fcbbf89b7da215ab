"""A text encoder, where one is trained along, and a DiT: everything that has parameters in one training run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.data.batch import Text
from ec_dit.models.dit import DiT
from ec_dit.models.spec import DiTSpec
from ec_dit.models.text_spec import TowerSpec
from ec_dit.models.text_tower import TextTower
from ec_dit.nn.moe import RouterStats
from ec_dit.nn.routing.spec import RoutingSpec


class ReadText(NamedTuple):
    """Captions of which everything is made that no time changes; the first three as of `Text`.

    Attributes:
        kept: what the blocks keep of them, such as keys and values, with a leading L.
    """

    tokens: jax.Array
    mask_BT: jax.Array
    pooled_BM: jax.Array | None
    kept: Any


class TextToImage(nnx.Module):
    """`encode` a caption once, then call `predict` as often as the sampler asks."""

    def __init__(self, dit: DiTSpec, tower: TowerSpec | None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.tower = None if tower is None else TextTower(tower, dtype=dtype, rngs=rngs)
        self.dit = DiT(dit, dtype=dtype, rngs=rngs)

    def encode(self, text: Text) -> Text:
        """Replaces token ids by embeddings; embeddings pass through."""
        return text if self.tower is None else text._replace(tokens=self.tower(text.tokens, text.mask_BT))

    def read(self, text: Text, rows: int, columns: int) -> "ReadText":
        """Makes of encoded captions what no time changes, for every prediction of latents of so many rows and columns."""
        patch = self.dit.spec.patch
        tokens, kept = self.dit.read(text.tokens, text.mask_BT, rows // patch, columns // patch)
        return ReadText(tokens, text.mask_BT, text.pooled_BM, kept)

    def predict(
        self,
        x_BYXZ: jax.Array,
        t_B: jax.Array,
        text: "Text | ReadText",
        routing: RoutingSpec,
        keep_BS: jax.Array | None = None,
    ) -> tuple[jax.Array, RouterStats | None]:
        """Predicts patches (B, S, P) without the channels of a learned variance, which nothing uses; else as `DiT` does.

        Args:
            text: encoded captions, or what `read` made of them.
        """
        kept = text.kept if isinstance(text, ReadText) else None
        how: dict[str, Any] = {"routing": routing, "keep_BS": keep_BS, "pooled_BM": text.pooled_BM, "kept": kept}
        out_BSP, stats = self.dit(x_BYXZ, t_B, text.tokens, text.mask_BT, **how)
        return without_variance(out_BSP, self.dit.spec), stats


def without_variance(out_BSP: jax.Array, spec: DiTSpec) -> jax.Array:
    """Takes the channels beyond the input's away from patches: a learned variance."""
    if spec.out_channels == spec.channels:
        return out_BSP
    pixels = out_BSP.reshape(*out_BSP.shape[:2], -1, spec.out_channels)
    return pixels[..., : spec.channels].reshape(*out_BSP.shape[:2], -1)
