"""How an image, a text and a time become vectors. Conventions are PixArt-alpha's, so that its weights fit."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.core.errors import UserError
from ec_dit.nn import cost, param
from ec_dit.nn.cost import Cost
from ec_dit.nn.mlp import Mlp
from ec_dit.nn.norms import RMSNorm

TimeKind = Literal["dit", "wide"]
LATENT_PIXEL = 8  # pixels per side of a latent pixel, in every autoencoder that PixArt and the paper use


def patchify(x_BYXZ: jax.Array, patch: int) -> jax.Array:
    """Cuts images (B, Y, X, Z) into patches (B, S, P): row-major, each flattened as (row, column, channel)."""
    b, y, x, z = x_BYXZ.shape
    if y % patch or x % patch:
        raise UserError(f"a {y} x {x} image or latent does not divide into patches of {patch} x {patch}.")
    patches = x_BYXZ.reshape(b, y // patch, patch, x // patch, patch, z).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(b, (y // patch) * (x // patch), patch * patch * z)


def unpatchify(patches_BSP: jax.Array, patch: int, rows: int, columns: int) -> jax.Array:
    """Puts patches together again, the inverse of `patchify`, for a grid of rows x columns patches."""
    b, _, p = patches_BSP.shape
    z = p // (patch * patch)
    pixels = patches_BSP.reshape(b, rows, columns, patch, patch, z).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(b, rows * patch, columns * patch, z)


def sinusoid(t_B: jax.Array, width: int) -> jax.Array:
    """Computes (B, width) cosines, then sines, of 1000 t: DiT's timestep features, t in [0, 1]."""
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
    angles = 1000 * t_B.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


class TimeEmbed(nnx.Module):
    """t in [0, 1] -> (B, D): sinusoid, then a two-layer perceptron with SiLU.

    Args:
        kind: 'dit': of 256 numbers, D inside; 'wide', Nucleus-Image's: of D numbers, 4 D inside, RMSNorm behind it.
    """

    FEATURES = 256

    def __init__(self, width: int, *, kind: TimeKind = "dit", dtype: jnp.dtype, rngs: nnx.Rngs):
        self.features, hidden = self._sizes(width, kind)
        self.mlp = Mlp(self.features, hidden, width, bias=True, act=jax.nn.silu, dtype=dtype, rngs=rngs)
        self.norm = RMSNorm(width) if kind == "wide" else None

    def __call__(self, t_B: jax.Array) -> jax.Array:
        time_BD = self.mlp(sinusoid(t_B, self.features))
        return time_BD if self.norm is None else self.norm(time_BD)

    @classmethod
    def cost(cls, width: int, *, kind: TimeKind = "dit") -> Cost:
        """Counts a layer of this size."""
        features, hidden = cls._sizes(width, kind)
        norm = RMSNorm.cost(width) if kind == "wide" else Cost()
        return Mlp.cost(features, hidden, width, bias=True) + norm

    @classmethod
    def _sizes(cls, width: int, kind: TimeKind) -> tuple[int, int]:
        """Sinusoids, and the inner width of the perceptron."""
        return (width, 4 * width) if kind == "wide" else (cls.FEATURES, width)


class SizeEmbed(nnx.Module):
    """Rows and columns of the picture in pixels, and rows / columns -> (D,): PixArt-alpha's further conditions."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        third = width // 3
        self.sides = Mlp(TimeEmbed.FEATURES, third, third, bias=True, act=jax.nn.silu, dtype=dtype, rngs=rngs)
        self.ratio = Mlp(TimeEmbed.FEATURES, third, third, bias=True, act=jax.nn.silu, dtype=dtype, rngs=rngs)

    def __call__(self, rows: int, columns: int) -> jax.Array:
        # `sinusoid` takes thousandths, since times reach from 0 to 1.
        sides_BD = self.sides(sinusoid(jnp.array([rows, columns]) / 1000, TimeEmbed.FEATURES))
        ratio_BD = self.ratio(sinusoid(jnp.array([rows / columns]) / 1000, TimeEmbed.FEATURES))
        return jnp.concatenate([sides_BD, ratio_BD]).reshape(-1)

    @staticmethod
    def cost(width: int) -> Cost:
        """Counts a layer of this size; it runs once for a whole batch, so that it costs an image no FLOPs."""
        third = width // 3
        return cost.always(2 * Mlp.cost(TimeEmbed.FEATURES, third, third, bias=True).params)


class PatchEmbed(nnx.Module):
    """A linear map from patches (B, S, P) to tokens (B, S, D)."""

    def __init__(self, patch_numbers: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.w_PD = param.matrix(rngs, (patch_numbers, width), (None, "embed"), "io", hidden=False)
        self.b_D = param.table(jnp.zeros(width), ("embed",))

    def __call__(self, patches_BSP: jax.Array) -> jax.Array:
        return patches_BSP.astype(self.dtype) @ param.gather(self.w_PD, self.dtype) + param.gather(self.b_D, self.dtype)

    @staticmethod
    def cost(patch_numbers: int, width: int, rows: int) -> Cost:
        """Counts a layer of these sizes, for so many patches of an image."""
        return cost.linear(patch_numbers, width, rows, bias=True)


class TextEmbed(nnx.Module):
    """A linear map from text embeddings (B, T, M) to the model's width."""

    def __init__(self, text_width: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.w_MD = param.matrix(rngs, (text_width, width), (None, "embed"), "io")
        self.b_D = param.table(jnp.zeros(width), ("embed",))

    def __call__(self, text_BTM: jax.Array) -> jax.Array:
        return text_BTM.astype(self.dtype) @ param.gather(self.w_MD, self.dtype) + param.gather(self.b_D, self.dtype)

    @staticmethod
    def cost(text_width: int, width: int, rows: int) -> Cost:
        """Counts a layer of these sizes, for so many text tokens."""
        return cost.linear(text_width, width, rows, bias=True)
