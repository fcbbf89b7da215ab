"""Multi-head attention with grouped key-value heads; to the sequence itself, across to a text, or to both at once."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.core import sharding
from ec_dit.nn import cost, param
from ec_dit.nn.cost import Cost
from ec_dit.nn.norms import RMSNorm
from ec_dit.nn.positions import Turn

AttentionKernel = Literal["xla", "cudnn"]


class KeysValues(nnx.Module):
    """What is attended to: its keys and values.

    Args:
        context_width: M, of what they are made of.
        kv_heads, head_dim: N, K.
        qk_norm: RMSNorm on each key.
        bias: on both projections.
        dtype: of the computation; parameters stay float32.
    """

    def __init__(
        self,
        context_width: int,
        kv_heads: int,
        head_dim: int,
        *,
        qk_norm: bool = False,
        bias: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.bias = dtype, bias
        self.w_k_MNK = param.matrix(rngs, (context_width, kv_heads, head_dim), ("embed", "heads", None), "ioo")
        self.w_v_MNK = param.matrix(rngs, (context_width, kv_heads, head_dim), ("embed", "heads", None), "ioo")
        self.norm_k = RMSNorm(head_dim) if qk_norm else None
        if bias:
            self.b_k_NK = param.table(jnp.zeros((kv_heads, head_dim)), ("heads", "head_dim"))
            self.b_v_NK = param.table(jnp.zeros((kv_heads, head_dim)), ("heads", "head_dim"))

    def keys_values(self, context_BTM: jax.Array, turn: Turn | None = None) -> tuple[jax.Array, jax.Array]:
        """Makes keys and values (B, T, N, K) of the context, which has this layer's dtype; `turn` turns keys."""
        k_BTNK = jnp.einsum("BTM,MNK->BTNK", context_BTM, param.gather(self.w_k_MNK, self.dtype))
        v_BTNK = jnp.einsum("BTM,MNK->BTNK", context_BTM, param.gather(self.w_v_MNK, self.dtype))
        if self.bias:
            k_BTNK += param.gather(self.b_k_NK, self.dtype)
            v_BTNK += param.gather(self.b_v_NK, self.dtype)
        k_BTNK = k_BTNK if self.norm_k is None else self.norm_k(k_BTNK)
        return (k_BTNK if turn is None else turn(k_BTNK)), v_BTNK

    @staticmethod
    def keys_cost(
        context_width: int, kv_heads: int, head_dim: int, *, qk_norm: bool = False, bias: bool = False, keys: int
    ) -> Cost:
        """Counts a layer of these sizes, for so many keys of an image; scores count where queries are."""
        norm = RMSNorm.cost(head_dim) if qk_norm else Cost()
        return cost.linear(context_width, kv_heads * head_dim, keys, bias=bias) * 2 + norm


class Attention(KeysValues):
    """softmax(q k^T / sqrt(K)) v.

    `heads` query heads share `kv_heads` key-value heads; heads are never repeated in memory.

    Args:
        width: D, of the queries and the output.
        context_width: width of what keys and values read: D for self-attention, M for the text.
        heads, kv_heads, head_dim: H, N, K; kv_heads divides heads.
        qk_norm: RMSNorm on each query and key.
        bias: biases on all four projections.
        zero_out: start with an output of zero (cross-attention in PixArt-alpha).
        causal: a query sees no later key; for self-attention.
        scale: of the scores, instead of 1 / sqrt(K).
        kernel: 'xla' everywhere, or cuDNN's flash attention, 'cudnn', on GPUs in bfloat16.
        dtype: of the computation; parameters stay float32.
    """

    def __init__(
        self,
        width: int,
        context_width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        qk_norm: bool = False,
        bias: bool = False,
        zero_out: bool = False,
        causal: bool = False,
        scale: float | None = None,
        kernel: AttentionKernel = "xla",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.kernel, self.causal, self.scale = kernel, causal, scale
        self.w_q_DHK = param.matrix(rngs, (width, heads, head_dim), ("embed", "heads", None), "ioo")
        super().__init__(context_width, kv_heads, head_dim, qk_norm=qk_norm, bias=bias, dtype=dtype, rngs=rngs)
        self.w_o_HKD = param.matrix(rngs, (heads, head_dim, width), ("heads", None, "embed"), "iio", zero=zero_out)
        self.norm_q = RMSNorm(head_dim) if qk_norm else None
        if bias:
            self.b_q_HK = param.table(jnp.zeros((heads, head_dim)), ("heads", "head_dim"))
            self.b_o_D = param.table(jnp.zeros(width), ("embed",))

    def __call__(
        self,
        x_BSD: jax.Array,
        context_BTM: jax.Array | None = None,
        mask_BT: jax.Array | None = None,
        offset_HST: jax.Array | None = None,
        turn: Turn | None = None,
        kept: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Attends from x to the context (None: to x itself) where `mask_BT` is True (None: everywhere).

        `turn` turns queries and keys, which then stand at the same places. `offset_HST` is added to the scores
        of the heads (T5's relative positions). `kept`: keys and values that `keys_values` made of the context before.
        Every row of the mask needs at least one True: a query with nothing to look at would look at the padding.
        """
        x_BSD = x_BSD.astype(self.dtype)
        context_BTM = x_BSD if context_BTM is None else context_BTM.astype(self.dtype)
        k_BTNK, v_BTNK = kept or self.keys_values(context_BTM, turn)
        q_BSHK = self.queries(x_BSD, turn)
        mask = None if mask_BT is None else mask_BT[:, None, None, :]
        return self.output(self.attend(q_BSHK, k_BTNK, v_BTNK, mask, offset_HST))

    def queries(self, x_BSD: jax.Array, turn: Turn | None = None) -> jax.Array:
        """Makes queries (B, S, H, K) of x, which has this layer's dtype."""
        q_BSHK = jnp.einsum("BSD,DHK->BSHK", x_BSD, param.gather(self.w_q_DHK, self.dtype))
        if self.bias:
            q_BSHK += param.gather(self.b_q_HK, self.dtype)
        q_BSHK = q_BSHK if self.norm_q is None else self.norm_q(q_BSHK)
        return q_BSHK if turn is None else turn(q_BSHK)

    def attend(
        self,
        q_BSHK: jax.Array,
        k_BTNK: jax.Array,
        v_BTNK: jax.Array,
        mask: jax.Array | None = None,
        offset_HST: jax.Array | None = None,
    ) -> jax.Array:
        """Takes the weighted means of values (B, S, H, K), where a mask that broadcasts to (B, H, S, T) is True."""
        if self.causal:
            earlier = jnp.tri(q_BSHK.shape[1], k_BTNK.shape[1], dtype=bool)[None, None]
            mask = earlier if mask is None else earlier & mask
        offset = None if offset_HST is None else offset_HST[None]
        attend: Callable[..., jax.Array] = functools.partial(
            jax.nn.dot_product_attention, scale=self.scale, implementation=self.kernel
        )
        if self.kernel == "xla":
            # Scores are computed again in the backward pass, as flash attention does: cheaper than keeping them.
            attend = jax.checkpoint(attend, prevent_cse=False)
        elif mask is not None:  # cuDNN takes no mask of one row for all queries
            mask = jnp.broadcast_to(mask, (*mask.shape[:2], q_BSHK.shape[1], mask.shape[3]))
        return attend(q_BSHK, k_BTNK, v_BTNK, offset, mask)

    def output(self, out_BSHK: jax.Array) -> jax.Array:
        """Maps what the heads give back to the width (B, S, D)."""
        out_BSD = jnp.einsum("BSHK,HKD->BSD", out_BSHK, param.gather(self.w_o_HKD, self.dtype))
        out_BSD = sharding.psum(out_BSD, "heads")
        return out_BSD + param.gather(self.b_o_D, self.dtype) if self.bias else out_BSD

    @staticmethod
    def cost(
        width: int,
        context_width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        qk_norm: bool = False,
        bias: bool = False,
        queries: int,
        keys: int,
        others: int = 0,
    ) -> Cost:
        """Counts a layer of these sizes, for so many queries and keys of an image, and keys that others make."""
        inner = heads * head_dim
        of_queries = cost.linear(width, inner, queries, bias=bias) + cost.linear(inner, width, queries, bias=bias)
        of_keys = KeysValues.keys_cost(context_width, kv_heads, head_dim, qk_norm=qk_norm, bias=bias, keys=keys)
        scores = cost.always(0, 2 * 2 * queries * (keys + others) * inner)  # q k^T, and the weights times v
        return of_queries + of_keys + scores + (RMSNorm.cost(head_dim) if qk_norm else Cost())
