"""How the timestep enters a block: shift, scale and gate for its attention and for its feed-forward layer.

`adaln` (DiT, the paper's size): every block maps the time embedding to its own six vectors, 6 D^2 parameters a block.
`adaln_single` (PixArt-alpha): one map for the whole model; a block adds a table of 6 D numbers to its output.
Gates start at zero, so that every block starts as the identity.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.core import sharding
from ec_dit.nn import cost as costs
from ec_dit.nn import param
from ec_dit.nn.cost import Cost
from ec_dit.nn.norms import layer_norm

ModulationKind = Literal["adaln", "adaln_single"]
VECTORS = 6  # shift, scale, gate of attention; shift, scale, gate of the feed-forward layer
_GATES = (2, 5)


class TimeModulation(nnx.Module):
    """silu(time) W + b: (B, D) -> (B, A, D) in float32, starting at zero.

    The 6 D^2 weights of a block serve one vector an image. So vectors travel, not weights: every device computes its own columns
    for the images of all that hold the others, and gets all columns for its own images in exchange.
    """

    def __init__(self, width: int, vectors: int = VECTORS, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.w_IAD = param.matrix(rngs, (width, vectors, width), (None, None, "embed"), "ibo", zero=True)
        self.b_AD = param.table(jnp.zeros((vectors, width)), (None, "embed"))

    def __call__(self, time_BD: jax.Array) -> jax.Array:
        cond_BI = jax.nn.silu(time_BD.astype(self.dtype))
        w_IAD = sharding.vary(self.w_IAD[...], self.w_IAD.axes).astype(self.dtype)
        b_AD = sharding.vary(self.b_AD[...], self.b_AD.axes)
        columns = sharding.mesh_axes("embed")
        if columns:
            cond_BI = jax.lax.all_gather(cond_BI, columns, axis=0, tiled=True)
        out_BAD = jnp.einsum("BI,IAD->BAD", cond_BI, w_IAD, preferred_element_type=jnp.float32) + b_AD
        return jax.lax.all_to_all(out_BAD, columns, 0, 2, tiled=True) if columns else out_BAD

    @staticmethod
    def cost(width: int, vectors: int = VECTORS) -> Cost:
        """Counts a layer of these sizes."""
        return costs.linear(width, vectors * width, bias=True)


class ModulationTable(nnx.Module):
    """The shared modulation plus this block's (or the output layer's) own offsets."""

    def __init__(self, width: int, vectors: int = VECTORS, *, rngs: nnx.Rngs):
        offsets_AD = jax.random.normal(rngs.params(), (vectors, width)) / width**0.5
        if vectors == VECTORS:
            offsets_AD = offsets_AD.at[jnp.array(_GATES)].set(0)
        self.b_AD = param.table(offsets_AD, (None, "embed"))

    def __call__(self, shared_BAD: jax.Array) -> jax.Array:
        return shared_BAD.astype(jnp.float32) + param.gather(self.b_AD)

    @staticmethod
    def cost(width: int, vectors: int = VECTORS) -> Cost:
        """Counts a layer of these sizes."""
        return costs.always(vectors * width)


def make(
    kind: ModulationKind, width: int, vectors: int = VECTORS, *, dtype: jnp.dtype, rngs: nnx.Rngs
) -> TimeModulation | ModulationTable:
    """Makes the modulation of a block, or of the output layer."""
    if kind == "adaln":
        return TimeModulation(width, vectors, dtype=dtype, rngs=rngs)
    return ModulationTable(width, vectors, rngs=rngs)


def cost(kind: ModulationKind, width: int, vectors: int = VECTORS) -> Cost:
    """Counts what `make` makes."""
    return (TimeModulation if kind == "adaln" else ModulationTable).cost(width, vectors)


@functools.partial(jax.checkpoint, prevent_cse=False)  # keeps x as it came, not its copies in float32
def adaptive_norm(x_BSD: jax.Array, shift_BD: jax.Array, scale_BD: jax.Array) -> jax.Array:
    """Computes LayerNorm(x) (1 + scale) + shift, all in float32 and rounded once: in bfloat16, 1 + a small scale would be 1."""
    return modulate(layer_norm(x_BSD.astype(jnp.float32)), shift_BD, scale_BD).astype(x_BSD.dtype)


def modulate(x_BSD: jax.Array, shift_BD: jax.Array, scale_BD: jax.Array) -> jax.Array:
    """Computes x (1 + scale) + shift, the same for every token of an image."""
    return x_BSD * (1 + scale_BD[:, None]) + shift_BD[:, None]
