"""The feed-forward layer of a dense block, and the small two-layer perceptrons of the embeddings."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.core import sharding
from ec_dit.nn import cost, param
from ec_dit.nn.cost import Cost

Activation = Literal["gelu", "swiglu"]


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form, as DiT and PixArt-alpha use it.

    Only x is kept for the backward pass: what lies between would be six arrays of x's size.
    """
    return jax.nn.gelu(x, approximate=True)


@functools.partial(jax.checkpoint, prevent_cse=False)
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """SwiGLU (2002.05202): silu(gate) * up, of two products of one input; only these are kept for the backward pass."""
    return jax.nn.silu(gate) * up


def is_gated(activation: Activation) -> bool:
    """Tells whether a layer has a second product of its input, its gate."""
    return activation == "swiglu"


class Mlp(nnx.Module):
    """act(x W_up) W_down, or (silu(x W_gate) * x W_up) W_down where it is gated; widths in -> hidden -> out."""

    def __init__(
        self,
        width: int,
        hidden: int,
        out: int | None = None,
        *,
        bias: bool = False,
        act: Callable[[jax.Array], jax.Array] = gelu,
        gated: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.act, self.bias, self.gated = dtype, act, bias, gated
        out = width if out is None else out
        self.w_up_DF = param.matrix(rngs, (width, hidden), (None, "hidden"), "io")
        if gated:
            self.w_gate_DF = param.matrix(rngs, (width, hidden), (None, "hidden"), "io")
        self.w_down_FD = param.matrix(rngs, (hidden, out), ("hidden", None), "io")
        if bias:
            self.b_up_F = param.table(jnp.zeros(hidden), ("hidden",))
            if gated:
                self.b_gate_F = param.table(jnp.zeros(hidden), ("hidden",))
            self.b_down_D = param.table(jnp.zeros(out), ("embed",))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        x_BSD = x_BSD.astype(self.dtype)
        up = x_BSD @ param.gather(self.w_up_DF, self.dtype)
        up = up + param.gather(self.b_up_F, self.dtype) if self.bias else up
        if self.gated:
            gate = x_BSD @ param.gather(self.w_gate_DF, self.dtype)
            up = swiglu(gate + param.gather(self.b_gate_F, self.dtype) if self.bias else gate, up)
        else:
            up = self.act(up)
        down = sharding.psum(up @ param.gather(self.w_down_FD, self.dtype), "hidden")
        return down + param.gather(self.b_down_D, self.dtype) if self.bias else down

    @staticmethod
    def cost(
        width: int, hidden: int, out: int | None = None, *, bias: bool = False, gated: bool = False, rows: int = 1
    ) -> Cost:
        """Counts a layer of these sizes, for so many vectors of an image."""
        out = width if out is None else out
        into = cost.linear(width, hidden, rows, bias=bias) * (2 if gated else 1)
        return into + cost.linear(hidden, out, rows, bias=bias)
