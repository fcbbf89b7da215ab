"""The layers of the KL autoencoder: convolutions, GroupNorm, resnets, and attention over all pixels of the smallest level.

Images and latents are (B, Y, X, channels). Weights are replicated; every device computes its own images.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from ec_dit.nn import param

_QUERIES = 1024  # pixels that look at all others at a time, so that scores take memory in proportion to the image


class Conv(nnx.Module):
    """A convolution, 3 x 3 or as `kernel` says, that keeps rows and columns; or halves them, where it looks down and right only.

    Args:
        width_in, width: I and D.
        dtype: of the computation.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        *,
        kernel: int = 3,
        halve: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.halve = dtype, halve
        self.w_YXID = param.matrix(rngs, (kernel, kernel, width_in, width), (None,) * 4, "iiio")
        self.b_D = param.table(jnp.zeros(width), (None,))

    def __call__(self, x_BYXI: jax.Array) -> jax.Array:
        """(B, Y, X, D), or (B, Y / 2, X / 2, D)."""
        x_BYXD = jax.lax.conv_general_dilated(
            x_BYXI.astype(self.dtype),
            param.gather(self.w_YXID, self.dtype),
            window_strides=(2, 2) if self.halve else (1, 1),
            padding=((0, 1), (0, 1)) if self.halve else "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x_BYXD + param.gather(self.b_D, self.dtype)


class Linear(nnx.Module):
    """x W + b."""

    def __init__(self, width_in: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.w_ID = param.matrix(rngs, (width_in, width), (None, None), "io")
        self.b_D = param.table(jnp.zeros(width), (None,))

    def __call__(self, x_BSI: jax.Array) -> jax.Array:
        """(B, S, D)."""
        return x_BSI.astype(self.dtype) @ param.gather(self.w_ID, self.dtype) + param.gather(self.b_D, self.dtype)


class GroupNorm(nnx.Module):
    """Zero mean, unit variance over an image's pixels and one group of neighbouring channels; then scale and shift.

    In float32, dtype kept.
    """

    def __init__(self, width: int, groups: int, *, eps: float = 1e-6):
        self.groups, self.eps = groups, eps
        self.scale_D = param.table(jnp.ones(width), (None,))
        self.shift_D = param.table(jnp.zeros(width), (None,))

    def __call__(self, x_BYXD: jax.Array) -> jax.Array:
        """(B, Y, X, D)."""
        b, y, x, d = x_BYXD.shape
        grouped = x_BYXD.astype(jnp.float32).reshape(b, y * x, self.groups, d // self.groups)
        grouped = grouped - grouped.mean((1, 3), keepdims=True)
        grouped = grouped * jax.lax.rsqrt(jnp.square(grouped).mean((1, 3), keepdims=True) + self.eps)
        wide_BYXD = grouped.reshape(b, y, x, d) * param.gather(self.scale_D) + param.gather(self.shift_D)
        return wide_BYXD.astype(x_BYXD.dtype)


class ChannelNorm(nnx.Module):
    """x / rms(x) over the channels of each pixel, times a scale; in float32, dtype kept."""

    def __init__(self, width: int):
        self.scale_D = param.table(jnp.ones(width), (None,))

    def __call__(self, x_BYXD: jax.Array) -> jax.Array:
        """(B, Y, X, D)."""
        wide_BYXD = x_BYXD.astype(jnp.float32)
        length = jnp.linalg.norm(wide_BYXD, axis=-1, keepdims=True)
        wide_BYXD = wide_BYXD / jnp.maximum(length, 1e-12) * math.sqrt(wide_BYXD.shape[-1])
        return (wide_BYXD * param.gather(self.scale_D)).astype(x_BYXD.dtype)


def norm(width: int, groups: int) -> GroupNorm | ChannelNorm:
    """Makes the norm of a layer: GroupNorm, or ChannelNorm where there are no groups."""
    return GroupNorm(width, groups) if groups else ChannelNorm(width)


class Resnet(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), where x goes through a matrix if the width changes."""

    def __init__(self, width_in: int, width: int, groups: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1 = norm(width_in, groups)
        self.conv1 = Conv(width_in, width, dtype=dtype, rngs=rngs)
        self.norm2 = norm(width, groups)
        self.conv2 = Conv(width, width, dtype=dtype, rngs=rngs)
        self.shortcut = Conv(width_in, width, kernel=1, dtype=dtype, rngs=rngs) if width_in != width else None

    def __call__(self, x_BYXI: jax.Array) -> jax.Array:
        """(B, Y, X, D)."""
        x_BYXD = self.conv1(jax.nn.silu(self.norm1(x_BYXI)))
        x_BYXD = self.conv2(jax.nn.silu(self.norm2(x_BYXD)))
        return x_BYXD + (x_BYXI if self.shortcut is None else self.shortcut(x_BYXI))


class PixelAttention(nnx.Module):
    """x + softmax(q k^T / sqrt(D)) v of all pixels, with one head of the full width."""

    def __init__(self, width: int, groups: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = norm(width, groups)
        self.q, self.k, self.v, self.out = (Linear(width, width, dtype=dtype, rngs=rngs) for _ in range(4))

    def __call__(self, x_BYXD: jax.Array) -> jax.Array:
        """(B, Y, X, D)."""
        b, y, x, d = x_BYXD.shape
        x_BSD = self.norm(x_BYXD).reshape(b, y * x, d)
        q_BSD, k_BSD, v_BSD = self.q(x_BSD), self.k(x_BSD), self.v(x_BSD)

        def attend(q_BD: jax.Array) -> jax.Array:
            scores_BS = jnp.einsum("bd,bsd->bs", q_BD, k_BSD, preferred_element_type=jnp.float32)
            shares_BS = jax.nn.softmax(scores_BS / math.sqrt(d)).astype(v_BSD.dtype)
            return jnp.einsum("bs,bsd->bd", shares_BS, v_BSD)

        out_SBD = jax.lax.map(attend, q_BSD.swapaxes(0, 1), batch_size=min(y * x, _QUERIES))
        return x_BYXD + self.out(out_SBD.swapaxes(0, 1)).reshape(b, y, x, d)


class Middle(nnx.Module):
    """A resnet, attention where the model has it, a resnet: of the smallest level."""

    def __init__(self, width: int, groups: int, attention: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.resnets = nnx.List(Resnet(width, width, groups, dtype=dtype, rngs=rngs) for _ in range(2))
        self.attention = PixelAttention(width, groups, dtype=dtype, rngs=rngs) if attention else None

    def __call__(self, x_BYXD: jax.Array) -> jax.Array:
        """(B, Y, X, D)."""
        before, after = self.resnets
        x_BYXD = before(x_BYXD)
        return after(x_BYXD if self.attention is None else self.attention(x_BYXD))


class Level(nnx.Module):
    """The resnets of one resolution, then a convolution that halves or doubles it unless the level is the last.

    Args:
        resize: 'halve', 'double' or None.
        width_out: of what doubles; None: as before.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        depth: int,
        groups: int,
        resize: str | None,
        *,
        width_out: int | None = None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        widths = [width_in] + [width] * depth
        self.resnets = nnx.List(Resnet(i, d, groups, dtype=dtype, rngs=rngs) for i, d in itertools.pairwise(widths))
        self.halve = Conv(width, width, halve=True, dtype=dtype, rngs=rngs) if resize == "halve" else None
        self.double = Conv(width, width_out or width, dtype=dtype, rngs=rngs) if resize == "double" else None

    def __call__(self, x_BYXI: jax.Array) -> jax.Array:
        """(B, Y, X, D) of the next resolution."""
        x_BYXD = x_BYXI
        for resnet in self.resnets:
            x_BYXD = resnet(x_BYXD)
        if self.halve is not None:
            return self.halve(x_BYXD)
        return x_BYXD if self.double is None else self.double(_twice(x_BYXD))


def _twice(x_BYXD: jax.Array) -> jax.Array:
    """(B, 2 Y, 2 X, D): every pixel as a square of four."""
    b, y, x, d = x_BYXD.shape
    return jnp.broadcast_to(x_BYXD[:, :, None, :, None], (b, y, 2, x, 2, d)).reshape(b, 2 * y, 2 * x, d)
