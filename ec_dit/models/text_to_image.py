"""A text encoder, where one is trained along, and a DiT: everything that has parameters in one training run."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from ec_dit.models.dit import DiT
from ec_dit.models.spec import DiTSpec, TowerSpec
from ec_dit.models.text_tower import TextTower


class Text(NamedTuple):
    """Captions on their way into the model.

    Attributes:
        tokens: int32 ids (B, T) for a jointly trained tower, or float embeddings (B, T, M) of a frozen encoder.
        mask_BT: True where a token is real, at least one in each caption (an empty one still has its end of text).
    """

    tokens: Any  # jax.Array inside the model; NumPy arrays on the way there
    mask_BT: Any


class TextToImage(nnx.Module):
    """`encode` a caption once, then call `dit` as often as the sampler asks."""

    def __init__(self, dit: DiTSpec, tower: TowerSpec | None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.tower = None if tower is None else TextTower(tower, dtype=dtype, rngs=rngs)
        self.dit = DiT(dit, dtype=dtype, rngs=rngs)

    def encode(self, text: Text) -> Text:
        """Replaces token ids by embeddings; embeddings pass through."""
        return text if self.tower is None else Text(self.tower(text.tokens, text.mask_BT), text.mask_BT)
