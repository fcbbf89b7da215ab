"""Normalisation, always in float32: LayerNorm without parameters (AdaLN brings scale and shift) or with, and RMSNorm."""

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.nn import cost, param
from ec_dit.nn.cost import Cost


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Gives zero mean and unit variance over the last dimension; dtype kept."""
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """`layer_norm` with a scale and a shift for each of the `width` numbers."""

    def __init__(self, width: int, *, eps: float = 1e-6):
        self.eps = eps
        self.scale_D = param.table(jnp.ones(width), ("embed",))
        self.shift_D = param.table(jnp.zeros(width), ("embed",))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = layer_norm(x.astype(jnp.float32), self.eps)
        return (wide * param.gather(self.scale_D) + param.gather(self.shift_D)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last dimension, of size `head_dim`."""

    def __init__(self, head_dim: int, *, eps: float = 1e-6):
        self.eps = eps
        self.scale_K = param.table(jnp.ones(head_dim), ("head_dim",))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        return (wide * param.gather(self.scale_K)).astype(x.dtype)

    @staticmethod
    def cost(head_dim: int) -> Cost:
        """Counts a layer of this size."""
        return cost.always(head_dim)
