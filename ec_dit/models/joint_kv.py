"""Nucleus-Image's block (2604.12163): image tokens attend to image and text at once, and the text has no stream of its own.

The text is the same in every block and at every time: a block makes keys and values of it. So routing groups hold image tokens
alone. The time brings scales and gates, no shifts; gates are kept within +-2, then tanh.
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
from ec_dit.nn.attention import Attention, KeysValues
from ec_dit.nn.cost import Cost, Load
from ec_dit.nn.embeddings import TextEmbed
from ec_dit.nn.modulation import TimeModulation, adaptive_norm
from ec_dit.nn.moe import RouterContext, RouterStats
from ec_dit.nn.routing.spec import RoutingSpec

_VECTORS = 4  # scale and gate of attention, scale and gate of the feed-forward layer
_MOST = 2.0  # of a gate before tanh


class JointKVBlock(Block):
    """x + tanh(gate) * attention to image and text, + tanh(gate) * feed-forward."""

    OUT_BIAS = False
    KEPT = KEYS_VALUES

    def __init__(self, spec: DiTSpec, kind: Kind, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        how: dict[str, Any] = {"qk_norm": spec.qk_norm, "bias": spec.bias, **common}
        self.modulation = TimeModulation(spec.width, _VECTORS, **common)
        self.attention = Attention(spec.width, spec.width, *spec.heads, kernel=spec.attention, **how)
        self.text_embed = TextEmbed(spec.context_width, spec.width, **common)
        self.text_attention = KeysValues(spec.width, spec.num_kv_heads, spec.head_dim, **how)
        self.ffn = make_feed_forward(spec, kind.sparse, **common)

    def read(self, condition: Condition) -> tuple[jax.Array, jax.Array]:
        """Makes keys and values of the text."""
        return self.text_attention.keys_values(self.text_embed(condition.text_BTM), condition.text_turn)

    def __call__(
        self, streams: Streams, condition: Condition, routing: RoutingSpec, kept: Any = None
    ) -> tuple[Streams, RouterStats | None]:
        """Computes one block, as `Block` has it."""
        tokens_BSD = start_BSD = streams.tokens_BSD
        scale_a, gate_a, scale_f, gate_f = self.modulation(condition.time).swapaxes(0, 1)
        none = jnp.zeros_like(scale_a)

        attended = self._attend(adaptive_norm(tokens_BSD, none, scale_a), condition, kept or self.read(condition))
        tokens_BSD += (_gate(gate_a) * attended).astype(tokens_BSD.dtype)

        context = RouterContext(tokens_BSD, start_BSD, condition.time)
        out_BSD, stats = feed_forward(self.ffn, adaptive_norm(tokens_BSD, none, scale_f), routing, context)
        tokens_BSD += (_gate(gate_f) * out_BSD).astype(tokens_BSD.dtype)
        return streams._replace(tokens_BSD=tokens_BSD), stats

    def _attend(self, x_BSD: jax.Array, condition: Condition, text: tuple[jax.Array, jax.Array]) -> jax.Array:
        q_BSHK = self.attention.queries(x_BSD, condition.turn)
        image = self.attention.keys_values(x_BSD, condition.turn)
        k_BTNK, v_BTNK = (jnp.concatenate(pair, axis=1) for pair in zip(image, text, strict=True))
        mask = condition.joint_mask(x_BSD.shape[1])
        return self.attention.output(self.attention.attend(q_BSHK, k_BTNK, v_BTNK, mask))

    @staticmethod
    def cost(spec: DiTSpec, kind: Kind, load: Load) -> Cost:
        """Counts what the constructor makes and a call multiplies."""
        how: dict[str, Any] = {"qk_norm": spec.qk_norm, "bias": spec.bias}
        image, text = load.tokens, load.text_tokens
        return (
            TimeModulation.cost(spec.width, _VECTORS)
            + Attention.cost(spec.width, spec.width, *spec.heads, queries=image, keys=image, others=text, **how)
            + TextEmbed.cost(spec.context_width, spec.width, load.read_tokens)
            + KeysValues.keys_cost(spec.width, spec.num_kv_heads, spec.head_dim, keys=load.read_tokens, **how)
            + feed_forward_cost(spec, kind.sparse, load)
        )


def _gate(gate_BD: jax.Array) -> jax.Array:
    """What multiplies the output of a layer, for every token."""
    return jnp.tanh(jnp.clip(gate_BD, -_MOST, _MOST))[:, None]
