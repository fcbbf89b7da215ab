"""The feed-forward layer of a dense block, and the small two-layer perceptrons of the embeddings."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.core import sharding
from ec_dit.nn import cost, param
from ec_dit.nn.cost import Cost


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form, as DiT and PixArt-alpha use it.

    Only x is kept for the backward pass: what lies between would be six arrays of x's size.
    """
    return jax.nn.gelu(x, approximate=True)


class Mlp(nnx.Module):
    """act(x W_up) W_down, widths in -> hidden -> out."""

    def __init__(
        self,
        width: int,
        hidden: int,
        out: int | None = None,
        *,
        bias: bool = False,
        act: Callable[[jax.Array], jax.Array] = gelu,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.act, self.bias = dtype, act, bias
        out = width if out is None else out
        self.w_up_DF = param.matrix(rngs, (width, hidden), (None, "hidden"), "io")
        self.w_down_FD = param.matrix(rngs, (hidden, out), ("hidden", None), "io")
        if bias:
            self.b_up_F = param.table(jnp.zeros(hidden), ("hidden",))
            self.b_down_D = param.table(jnp.zeros(out), ("embed",))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        up = x_BSD.astype(self.dtype) @ param.gather(self.w_up_DF, self.dtype)
        up = self.act(up + param.gather(self.b_up_F, self.dtype) if self.bias else up)
        down = sharding.psum(up @ param.gather(self.w_down_FD, self.dtype), "hidden")
        return down + param.gather(self.b_down_D, self.dtype) if self.bias else down

    @staticmethod
    def cost(width: int, hidden: int, out: int | None = None, *, bias: bool = False, rows: int = 1) -> Cost:
        """Counts a layer of these sizes, for so many vectors of an image."""
        out = width if out is None else out
        return cost.linear(width, hidden, rows, bias=bias) + cost.linear(hidden, out, rows, bias=bias)
