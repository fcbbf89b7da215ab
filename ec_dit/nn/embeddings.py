"""How an image, a position and a time become vectors. Conventions are PixArt-alpha's, so that its weights fit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ec_dit.core.errors import UserError
from ec_dit.nn import param
from ec_dit.nn.mlp import Mlp


def patchify(x_BYXZ: jax.Array, patch: int) -> jax.Array:
    """(B, Y, X, Z) -> (B, S, P): row-major patches, each flattened as (row, column, channel)."""
    b, y, x, z = x_BYXZ.shape
    if y % patch or x % patch:
        raise UserError(f"a {y} x {x} image or latent does not divide into patches of {patch} x {patch}.")
    grid = x_BYXZ.reshape(b, y // patch, patch, x // patch, patch, z).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(b, (y // patch) * (x // patch), patch * patch * z)


def unpatchify(patches_BSP: jax.Array, patch: int, rows: int, columns: int) -> jax.Array:
    """The inverse of `patchify` for a grid of rows x columns patches."""
    b, _, p = patches_BSP.shape
    z = p // (patch * patch)
    grid = patches_BSP.reshape(b, rows, columns, patch, patch, z).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(b, rows * patch, columns * patch, z)


def sincos_2d(rows: int, columns: int, width: int, base: int, scale: float = 1.0) -> np.ndarray:
    """Fixed sine-cosine positions (S, D) of a rows x columns grid, for any grid.

    Half of the width encodes the column, half the row, as in PixArt-alpha. A grid of another size than the `base` x `base`
    one is stretched to cover the same area, so that a square model meets no position beyond those it was trained on when
    the resolution rises. Both directions stretch equally: unlike PixArt-alpha's, wide images are not squeezed, and their
    long side reaches beyond `base`.

    Args:
        base: patches per side of the square grid that positions count in.
        scale: PixArt-alpha's interpolation scale; positions are divided by it.
    """
    stretch = base / math.sqrt(rows * columns) / scale
    y, x = np.meshgrid(np.arange(rows) * stretch, np.arange(columns) * stretch, indexing="ij")
    return np.concatenate([_sincos_1d(x, width // 2), _sincos_1d(y, width // 2)], axis=1).astype(np.float32)


def _sincos_1d(positions: np.ndarray, width: int) -> np.ndarray:
    angles = np.outer(positions.reshape(-1), 1 / 10000 ** (np.arange(width // 2) / (width / 2)))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sinusoid(t_B: jax.Array, width: int) -> jax.Array:
    """(B, width) cosines then sines of 1000 t: DiT's timestep features, t in [0, 1]."""
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
    angles = 1000 * t_B.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


class TimeEmbed(nnx.Module):
    """t in [0, 1] -> (B, D): sinusoid of 256 numbers, then a two-layer perceptron with SiLU."""

    FEATURES = 256

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.mlp = Mlp(self.FEATURES, width, width, bias=True, act=jax.nn.silu, dtype=dtype, rngs=rngs)

    def __call__(self, t_B: jax.Array) -> jax.Array:
        return self.mlp(sinusoid(t_B, self.FEATURES))


class PatchEmbed(nnx.Module):
    """A linear map from patches (B, S, P) to tokens (B, S, D)."""

    def __init__(self, patch_numbers: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.w_PD = param.matrix(rngs, (patch_numbers, width), (None, "embed"), "io", hidden=False)
        self.b_D = param.table(jnp.zeros(width), ("embed",))

    def __call__(self, patches_BSP: jax.Array) -> jax.Array:
        return patches_BSP.astype(self.dtype) @ param.use(self.w_PD, self.dtype) + param.use(self.b_D, self.dtype)
