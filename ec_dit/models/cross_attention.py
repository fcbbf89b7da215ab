"""The paper's block: self-attention, cross-attention to the text, then a dense or a sparse feed-forward layer.

As in PixArt-alpha the timestep modulates self-attention and feed-forward layer, not cross-attention. The router of a
sparse block therefore reads image, text and timestep (paper, section 3).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.models.block import (
    KEYS_VALUES,
    Block,
    Condition,
    Streams,
    feed_forward,
    feed_forward_cost,
    make_feed_forward,
)
from ec_dit.models.spec import DiTSpec
from ec_dit.models.stages import Kind
from ec_dit.nn import modulation
from ec_dit.nn.attention import Attention
from ec_dit.nn.cost import Cost, Load
from ec_dit.nn.modulation import VECTORS, adaptive_norm
from ec_dit.nn.moe import RouterContext, RouterStats
from ec_dit.nn.routing.spec import RoutingSpec


class CrossAttentionBlock(Block):
    """x + gate * attention, + cross-attention, + gate * feed-forward."""

    KEPT = KEYS_VALUES

    def __init__(self, spec: DiTSpec, kind: Kind, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        how: dict[str, Any] = {"qk_norm": spec.qk_norm, "bias": spec.bias, "kernel": spec.attention, **common}
        self.modulation = modulation.make(spec.modulation, spec.width, **common)
        self.attention = Attention(spec.width, spec.width, *spec.heads, **how)
        self.cross_attention = Attention(spec.width, spec.context_width, *spec.heads, zero_out=True, **how)
        self.ffn = make_feed_forward(spec, kind.sparse, **common)

    def read(self, condition: Condition) -> tuple[jax.Array, jax.Array]:
        """Makes keys and values of the text."""
        return self.cross_attention.keys_values(condition.text_BTM)

    def __call__(
        self, streams: Streams, condition: Condition, routing: RoutingSpec, kept: Any = None
    ) -> tuple[Streams, RouterStats | None]:
        """Computes one block, as `Block` has it."""
        tokens_BSD = start_BSD = streams.tokens_BSD
        modulation_BAD = self.modulation(condition.time)
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (modulation_BAD[:, a] for a in range(VECTORS))

        attended = self.attention(adaptive_norm(tokens_BSD, shift_a, scale_a), turn=condition.turn)
        tokens_BSD += (gate_a[:, None] * attended).astype(tokens_BSD.dtype)
        tokens_BSD += self.cross_attention(tokens_BSD, condition.text_BTM, condition.mask_BT, kept=kept)

        context = RouterContext(tokens_BSD, start_BSD, condition.time)
        out_BSD, stats = feed_forward(self.ffn, adaptive_norm(tokens_BSD, shift_f, scale_f), routing, context)
        tokens_BSD += (gate_f[:, None] * out_BSD).astype(tokens_BSD.dtype)
        return streams._replace(tokens_BSD=tokens_BSD), stats

    @staticmethod
    def cost(spec: DiTSpec, kind: Kind, load: Load) -> Cost:
        """Counts what the constructor makes and a call multiplies."""
        how: dict[str, Any] = {"qk_norm": spec.qk_norm, "bias": spec.bias, "queries": load.tokens}
        read, others = load.read_tokens, load.text_tokens - load.read_tokens
        return (
            modulation.cost(spec.modulation, spec.width)
            + Attention.cost(spec.width, spec.width, *spec.heads, keys=load.tokens, **how)
            + Attention.cost(spec.width, spec.context_width, *spec.heads, keys=read, others=others, **how)
            + feed_forward_cost(spec, kind.sparse, load)
        )
