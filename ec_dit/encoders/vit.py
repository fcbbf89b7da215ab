"""What vision transformers begin with: a picture as tokens, and learned positions for a grid of any size."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ec_dit.encoders.pixels import centres
from ec_dit.nn import param
from ec_dit.nn.embeddings import patchify

CHANNELS = 3


class PictureTokens(nnx.Module):
    """Pixels (B, Y, X, Z) -> float32 (B, 1 + S, D): a class token and the patches row by row, with their positions.

    Args:
        patch: pixels of a patch's side.
        grid: patches of a side of the square that the positions were learned for; for other pictures they are resized.
        bias: of the patches.
    """

    def __init__(self, width: int, patch: int, grid: int, *, bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.patch, self.grid, self.bias, self.dtype = patch, grid, bias, dtype
        self.w_PD = param.matrix(rngs, (CHANNELS * patch**2, width), (None, "embed"), "io", hidden=False)
        if bias:
            self.b_D = param.table(jnp.zeros(width), ("embed",))
        self.class_D = param.table(jax.random.normal(rngs.params(), (width,)) * 0.02, ("embed",))
        self.position_SD = param.table(jax.random.normal(rngs.params(), (1 + grid**2, width)) * 0.02, (None, "embed"))

    def __call__(self, pixels_BYXZ: jax.Array) -> jax.Array:
        """Embeds pictures, already normalised, of sides that `patch` divides."""
        b, y, x, _ = pixels_BYXZ.shape
        patches_BSP = patchify(pixels_BYXZ.astype(self.dtype), self.patch)
        x_BSD = (patches_BSP @ param.gather(self.w_PD, self.dtype)).astype(jnp.float32)
        if self.bias:
            x_BSD += param.gather(self.b_D)
        class_D = param.gather(self.class_D)
        class_BSD = jnp.broadcast_to(class_D, (b, 1, class_D.size))
        return jnp.concatenate([class_BSD, x_BSD], axis=1) + self._positions(y // self.patch, x // self.patch)

    def _positions(self, rows: int, columns: int) -> jax.Array:
        position_SD = param.gather(self.position_SD)
        if (rows, columns) == (self.grid, self.grid):
            return position_SD
        learned_YXD = position_SD[1:].reshape(self.grid, self.grid, -1)
        # Small letters: of the learned grid. TPUs would round to bfloat16 what they multiply.
        highest = jax.lax.Precision.HIGHEST
        ways = bicubic(self.grid, rows), bicubic(self.grid, columns)
        resized_YXD = jnp.einsum("Yy,Xx,yxD->YXD", *ways, learned_YXD, precision=highest)
        return jnp.concatenate([position_SD[:1], resized_YXD.reshape(rows * columns, -1)])


def bicubic(length: int, target: int) -> np.ndarray:
    """Computes the matrix (target, length), float32, that resizes as torch's F.interpolate does in mode 'bicubic'.

    Its convolution has a = -0.75, half-pixel centres, edges repeated, and no antialiasing.
    """
    at = centres(length, target).astype(np.float64)
    low = np.floor(at).astype(int)
    weights = np.zeros((target, length))
    for tap in range(-1, 3):
        near = np.clip(low + tap, 0, length - 1)
        np.add.at(weights, (np.arange(target), near), _cubic(np.abs(at - low - tap)))
    return weights.astype(np.float32)


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' kernel, of distances up to 2."""
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, far)
