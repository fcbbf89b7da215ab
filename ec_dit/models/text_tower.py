"""A small bidirectional transformer over caption tokens, trained jointly: the text side of the small configs."""

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.models.text_spec import TowerSpec
from ec_dit.nn import param
from ec_dit.nn.attention import Attention
from ec_dit.nn.cost import Cost, always
from ec_dit.nn.mlp import Mlp
from ec_dit.nn.norms import layer_norm
from ec_dit.nn.stack import Stack


class TowerBlock(nnx.Module):
    """Pre-norm attention and feed-forward layer."""

    def __init__(self, spec: TowerSpec, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, heads = spec.width, spec.num_heads
        self.attention = Attention(width, width, heads, heads, width // heads, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, 4 * width, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTM: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """One block; what the mask hides is not attended to."""
        x_BTM += self.attention(layer_norm(x_BTM), mask_BT=mask_BT)
        return x_BTM + self.mlp(layer_norm(x_BTM))

    @staticmethod
    def cost(spec: TowerSpec, tokens: int) -> Cost:
        """Counts a block, for a caption of so many tokens."""
        width, heads = spec.width, spec.num_heads
        attention = Attention.cost(width, width, heads, heads, width // heads, queries=tokens, keys=tokens)
        return attention + Mlp.cost(width, 4 * width, rows=tokens)


class TextTower(nnx.Module):
    """Token ids (B, T) -> embeddings (B, T, M), unit variance."""

    def __init__(self, spec: TowerSpec, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.spec, self.dtype = spec, dtype
        key = rngs.params()
        self.token_VM = param.table(jax.random.normal(key, (spec.vocab_size, spec.width)) * 0.5, (None, "embed"))
        key = rngs.params()
        self.position_TM = param.table(jax.random.normal(key, (spec.length, spec.width)) * 0.5, (None, "embed"))
        self.stack = Stack(
            lambda key: TowerBlock(spec, dtype=dtype, rngs=nnx.Rngs(key)),
            jax.random.split(rngs.params(), spec.num_blocks),
        )

    def __call__(self, ids_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Embeds captions of at most `spec.length` tokens; what `mask_BT` hides is not attended to."""
        run = param.per_device(
            self,
            TextTower._forward,
            (("batch", None), ("batch", None)),
            ("batch", None, None),
            name="captions of the batch",
        )
        return run(ids_BT, mask_BT)

    def _forward(self, ids_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """The captions of one device."""
        x_BTM = param.gather(self.token_VM)[ids_BT] + param.gather(self.position_TM)[: ids_BT.shape[1]]
        x_BTM, _ = self.stack(x_BTM.astype(self.dtype), lambda block, x: (block(x, mask_BT), None))
        return layer_norm(x_BTM)

    @staticmethod
    def cost(spec: TowerSpec, tokens: int) -> Cost:
        """Counts the tower, for a caption of so many tokens."""
        return always((spec.vocab_size + spec.length) * spec.width) + TowerBlock.cost(spec, tokens) * spec.num_blocks
