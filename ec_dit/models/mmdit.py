"""Stable Diffusion 3's block, MM-DiT (2403.03206): a stream of image tokens and one of text tokens with one attention over both.

Each stream has modulation, projections and a feed-forward layer of its own; that of the image may be sparse, that of the text is
dense (as in HiDream). The text of the last block serves its keys and values, and goes nowhere. SD3.5's first blocks have
attention among image tokens beside the joint one.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.models.block import Block, Condition, Streams, feed_forward, feed_forward_cost, make_feed_forward
from ec_dit.models.spec import DiTSpec
from ec_dit.models.stages import Kind
from ec_dit.nn.attention import Attention, KeysValues
from ec_dit.nn.cost import Cost, Load
from ec_dit.nn.modulation import VECTORS, TimeModulation, adaptive_norm
from ec_dit.nn.moe import RouterContext, RouterStats
from ec_dit.nn.routing.spec import RoutingSpec

_DUAL = 3  # shift, scale and gate of the attention among image tokens
_LAST = 2  # shift and scale of text that goes nowhere


class MMDiTBlock(Block):
    """For either stream: x + gate * its share of the joint attention, + gate * feed-forward."""

    CHANGES_TEXT = True

    def __init__(self, spec: DiTSpec, kind: Kind, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, common = spec.width, dict[str, Any](dtype=dtype, rngs=rngs)
        how: dict[str, Any] = {"qk_norm": spec.qk_norm, "bias": spec.bias, **common}

        def attention() -> Attention:
            return Attention(width, width, *spec.heads, kernel=spec.attention, **how)

        self.modulation = TimeModulation(width, VECTORS + (_DUAL if kind.dual else 0), **common)
        self.attention = attention()
        self.dual_attention = attention() if kind.dual else None
        self.text_modulation = TimeModulation(width, _LAST if kind.last else VECTORS, **common)
        self.text_attention: KeysValues = (
            KeysValues(width, spec.num_kv_heads, spec.head_dim, **how) if kind.last else attention()
        )
        self.text_ffn = None if kind.last else make_feed_forward(spec, False, **common)
        self.ffn = make_feed_forward(spec, kind.sparse, **common)  # last: all else begins alike, dense or sparse

    def __call__(
        self, streams: Streams, condition: Condition, routing: RoutingSpec, kept: Any = None
    ) -> tuple[Streams, RouterStats | None]:
        """Computes one block, as `Block` has it."""
        tokens_BSD = start_BSD = streams.tokens_BSD
        text_BTD = streams.text_BTM
        assert text_BTD is not None
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f, *dual = self.modulation(condition.time).swapaxes(0, 1)
        text_shift, text_scale, *text_rest = self.text_modulation(condition.time).swapaxes(0, 1)
        x_BSD = adaptive_norm(tokens_BSD, shift_a, scale_a)
        attended_BSD, text_attended_BTD = self._attend(
            x_BSD, adaptive_norm(text_BTD, text_shift, text_scale), condition
        )
        tokens_BSD += (gate_a[:, None] * attended_BSD).astype(tokens_BSD.dtype)
        if self.dual_attention is not None:
            shift_d, scale_d, gate_d = dual
            alone_BSD = self.dual_attention(adaptive_norm(start_BSD, shift_d, scale_d), turn=condition.turn)
            tokens_BSD += (gate_d[:, None] * alone_BSD).astype(tokens_BSD.dtype)

        context = RouterContext(tokens_BSD, start_BSD, condition.time)
        out_BSD, stats = feed_forward(self.ffn, adaptive_norm(tokens_BSD, shift_f, scale_f), routing, context)
        tokens_BSD += (gate_f[:, None] * out_BSD).astype(tokens_BSD.dtype)

        if self.text_ffn is not None and text_attended_BTD is not None:
            gate_a, shift_f, scale_f, gate_f = text_rest
            text_BTD += (gate_a[:, None] * text_attended_BTD).astype(text_BTD.dtype)
            text_out_BTD, _ = feed_forward(self.text_ffn, adaptive_norm(text_BTD, shift_f, scale_f), routing, context)
            text_BTD += (gate_f[:, None] * text_out_BTD).astype(text_BTD.dtype)
        return Streams(tokens_BSD, text_BTD), stats

    def _attend(
        self, x_BSD: jax.Array, text_BTD: jax.Array, condition: Condition
    ) -> tuple[jax.Array, jax.Array | None]:
        """What image tokens, and text tokens that go on, take of both; keys of the image stand before those of the text."""
        tokens, mask = x_BSD.shape[1], condition.joint_mask(x_BSD.shape[1])
        image = self.attention.keys_values(x_BSD, condition.turn)
        text = self.text_attention.keys_values(text_BTD, condition.text_turn)
        k_BTNK, v_BTNK = (jnp.concatenate(pair, axis=1) for pair in zip(image, text, strict=True))
        q_BSHK = self.attention.queries(x_BSD, condition.turn)
        if not isinstance(self.text_attention, Attention):
            return self.attention.output(self.attention.attend(q_BSHK, k_BTNK, v_BTNK, mask)), None
        q_BSHK = jnp.concatenate([q_BSHK, self.text_attention.queries(text_BTD, condition.text_turn)], axis=1)
        out_BSHK = self.attention.attend(q_BSHK, k_BTNK, v_BTNK, mask)
        return self.attention.output(out_BSHK[:, :tokens]), self.text_attention.output(out_BSHK[:, tokens:])

    @staticmethod
    def cost(spec: DiTSpec, kind: Kind, load: Load) -> Cost:
        """Counts what the constructor makes and a call multiplies."""
        width, image, text = spec.width, load.tokens, load.text_tokens
        how: dict[str, Any] = {"qk_norm": spec.qk_norm, "bias": spec.bias}

        def attention(own: int, others: int) -> Cost:
            return Attention.cost(width, width, *spec.heads, queries=own, keys=own, others=others, **how)

        of_image = (
            TimeModulation.cost(width, VECTORS + (_DUAL if kind.dual else 0))
            + attention(image, text)
            + (attention(image, 0) if kind.dual else Cost())
            + feed_forward_cost(spec, kind.sparse, load)
        )
        if kind.last:
            keys = KeysValues.keys_cost(width, spec.num_kv_heads, spec.head_dim, keys=text, **how)
            return of_image + TimeModulation.cost(width, _LAST) + keys
        dense = feed_forward_cost(spec, False, replace(load, tokens=text))
        return of_image + TimeModulation.cost(width, VECTORS) + attention(text, image) + dense
