"""One transformer block: self-attention, cross-attention to the text, then a dense or a sparse feed-forward layer.

As in PixArt-alpha the timestep modulates self-attention and feed-forward layer, not cross-attention. The router of a
sparse block therefore reads image, text and timestep (paper, section 3).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.models.spec import DiTSpec
from ec_dit.nn.attention import Attention
from ec_dit.nn.mlp import Mlp
from ec_dit.nn.modulation import ModulationTable, TimeModulation, adaptive_norm
from ec_dit.nn.moe import MoE, RouterStats
from ec_dit.nn.routing import RoutingSpec


class Condition(NamedTuple):
    """What every block reads beside the tokens.

    Attributes:
        time: (B, D) embedding for `adaln`, (B, A, D) shared modulation for `adaln_single`.
        text_BTM: text embeddings.
        mask_BT: True where a text token is real.
    """

    time: jax.Array
    text_BTM: jax.Array
    mask_BT: jax.Array


class Block(nnx.Module):
    """x + gate * attention, + cross-attention, + gate * feed-forward."""

    def __init__(self, spec: DiTSpec, sparse: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, hidden = spec.width, spec.ffn_factor * spec.width
        heads = (spec.num_heads, spec.num_kv_heads, spec.head_dim)
        common: dict[str, Any] = {"bias": spec.bias, "dtype": dtype, "rngs": rngs}
        how: dict[str, Any] = {"qk_norm": spec.qk_norm, "kernel": spec.attention, **common}
        text_width = width if spec.text_projection else spec.text_width
        self.modulation = (
            TimeModulation(width, dtype=dtype, rngs=rngs)
            if spec.modulation == "adaln"
            else ModulationTable(width, rngs=rngs)
        )
        self.attention = Attention(width, width, *heads, **how)
        self.cross_attention = Attention(width, text_width, *heads, zero_out=True, **how)
        experts = spec.sparse.num_experts
        self.ffn = MoE(width, hidden, experts, **common) if sparse else Mlp(width, hidden, **common)

    def __call__(
        self, tokens_BSD: jax.Array, condition: Condition, routing: RoutingSpec
    ) -> tuple[jax.Array, RouterStats | None]:
        """One block; the second result is None for a dense one."""
        modulation_BAD = self.modulation(condition.time)
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (modulation_BAD[:, a] for a in range(6))

        attended = self.attention(adaptive_norm(tokens_BSD, shift_a, scale_a))
        tokens_BSD += (gate_a[:, None] * attended).astype(tokens_BSD.dtype)
        tokens_BSD += self.cross_attention(tokens_BSD, condition.text_BTM, condition.mask_BT)

        x_BSD = adaptive_norm(tokens_BSD, shift_f, scale_f)
        out_BSD, stats = self.ffn(x_BSD, routing) if isinstance(self.ffn, MoE) else (self.ffn(x_BSD), None)
        return tokens_BSD + (gate_f[:, None] * out_BSD).astype(tokens_BSD.dtype), stats
