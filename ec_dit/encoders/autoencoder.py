"""What turns images into the latents that a model denoises, and latents into images: a published autoencoder, or nothing."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ec_dit.core import hub, sharding
from ec_dit.core.errors import UserError
from ec_dit.core.padding import padded
from ec_dit.encoders import qwen_vae, vae, weights
from ec_dit.encoders.tiling import decode_tiled

_IMAGE = 3  # channels
_PIXELS_AT_ONCE = 128 * 128  # latent pixels a device works on: an image of 1024 pixels takes gigabytes in float32
_LEAST_TILE = 128  # images of 1024 pixels are decoded whole, whatever sample size is published: 256 in sd-vae-ft-mse


class Autoencoder:
    """A published KL autoencoder, run data-parallel over a mesh.

    Every process gives the same whole batch and gets the whole result, on the host. A batch is filled up to what the mesh
    divides; every new shape compiles once.

    Attributes:
        factor: pixels per latent pixel, along a side.
        channels: of a latent.
        tile: side in latent pixels above which `decode` works in tiles.
    """

    def __init__(self, spec: vae.VaeSpec, frozen: weights.Frozen, mesh: Mesh, dtype: jnp.dtype):
        self.factor, self.channels = spec.factor, spec.channels
        self.tile = max(_LEAST_TILE, spec.sample_size // spec.factor)
        self._params, self._mesh, self._dtype = frozen.params, mesh, dtype

        def compiled(method: Callable[[vae.Vae, jax.Array], Any]) -> Callable[..., Any]:
            def run(params: Any, array: jax.Array) -> Any:
                return method(nnx.merge(frozen.graphdef, params), array)

            return jax.jit(run, out_shardings=sharding.replicated(mesh))  # every process gets every image

        self._encode, self._decode = compiled(vae.Vae.encode), compiled(vae.Vae.decode)

    @classmethod
    def load(cls, path: str | Path, mesh: Mesh, dtype: jnp.dtype = jnp.float32) -> "Autoencoder":
        """The autoencoder of a folder in diffusers' layout, the `vae` of a published model.

        Args:
            dtype: of the weights in memory and of the computation: float32, or bfloat16 for half the memory at some loss of
                detail. Files may hold any.

        Raises:
            UserError: for float16, another model's folder, or missing or damaged files.
        """
        if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
            raise UserError(
                f"an autoencoder runs in float32 or bfloat16, not {jnp.dtype(dtype).name}: SDXL's leaves the range of float16."
            )
        files = hub.TensorFiles(path, vae.rename)
        of_videos = hub.config(hub.folder_of(files.path)).get("_class_name") == qwen_vae.CLASS
        spec = hub.described(files.path, qwen_vae.spec_of if of_videos else vae.VaeSpec.from_config)

        def make(rngs: nnx.Rngs) -> vae.Vae:
            return vae.Vae(spec, dtype=dtype, rngs=rngs)

        entries = functools.partial(qwen_vae.entries, spec=spec) if of_videos else vae.entries
        ignored = qwen_vae.unread(spec) if of_videos else ()
        return cls(spec, weights.load(make, entries, files, mesh, dtype, ignored), mesh, dtype)

    def encode(self, image_BYXZ: np.ndarray | jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the latents of images; mean + std * noise is a latent to train on.

        Args:
            image_BYXZ: (B, Y, X, 3), floats in -1..1, sides divisible by `factor`.

        Returns:
            Two float32 arrays (B, Y / factor, X / factor, `channels`), normalised.

        Raises:
            UserError: for another shape or kind of array, or a result that is not finite.
        """
        image_BYXZ = _checked(image_BYXZ, _IMAGE, "images", self.factor)
        pixels = image_BYXZ.shape[1] * image_BYXZ.shape[2] // self.factor**2
        out = self._run(self._encode, image_BYXZ, pixels)
        if not all(np.isfinite(array).all() for array in out):
            raise UserError(f"encoding images gave numbers that are not finite; {self._cause(image_BYXZ)}")
        return out

    def decode(self, latent_BYXZ: np.ndarray | jax.Array, tile: int | None = None) -> np.ndarray:
        """The images of normalised latents.

        Args:
            latent_BYXZ: (B, Y, X, `channels`).
            tile: side of tiles, in latent pixels, where a latent has a longer side than that. None: the model's own, the
                size of the images it was trained on but at least 64.

        Returns:
            (B, Y * factor, X * factor, 3) float32, -1..1 with small excesses that are for the caller to clip; not finite for
            latents that are not, or are far outside of what the model was trained on.

        Raises:
            UserError: for another shape or kind of array.
        """
        latent_BYXZ = _checked(latent_BYXZ, self.channels, "latents")
        tile = self.tile if tile is None else tile
        if max(latent_BYXZ.shape[1:3]) <= tile:
            return self._run(self._decode, latent_BYXZ, math.prod(latent_BYXZ.shape[1:3]))
        decode = functools.partial(self._run, self._decode, pixels=tile * tile)
        return decode_tiled(decode, latent_BYXZ, tile, self.factor, self._at_once(tile * tile))

    def _at_once(self, pixels: int) -> int:
        """How many images of so many latent pixels are worked on together: on every device one large one, or several."""
        return sharding.batch_ways(self._mesh) * max(1, _PIXELS_AT_ONCE // pixels)

    def _run(self, function: Callable[..., Any], array: np.ndarray, pixels: int) -> Any:
        """`function` of a batch of any size, a part at a time, on the host."""
        size = min(self._at_once(pixels), sharding.even_batch(len(array), self._mesh))
        outs = []
        for _, batch in padded(list(array), size, array[-1]):
            with jax.set_mesh(self._mesh):
                out = function(self._params, sharding.place(np.stack(batch), self._mesh))
            outs.append(jax.device_get(out))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(array)], *outs)

    def _cause(self, array: np.ndarray) -> str:
        if not np.isfinite(array).all():
            return "they were not finite themselves."
        if self._dtype != jnp.float32:
            return f"load the autoencoder with dtype float32 instead of {jnp.dtype(self._dtype).name}."
        return "the weights are damaged, or the input is far outside of what the model was trained on; look at both."


class Identity:
    """The interface of `Autoencoder` for models of pixels: a latent is the image itself.

    Attributes:
        factor, channels: 1, and those of the image.
    """

    factor = 1

    def __init__(self, channels: int = _IMAGE):
        self.channels = channels

    def encode(self, image_BYXZ: np.ndarray | jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """The images, and zeros."""
        image_BYXZ = _checked(image_BYXZ, self.channels, "images")
        return image_BYXZ, np.zeros_like(image_BYXZ)

    def decode(self, latent_BYXZ: np.ndarray | jax.Array, tile: int | None = None) -> np.ndarray:
        """The latents as they are."""
        return _checked(latent_BYXZ, self.channels, "latents")


def _checked(array: np.ndarray | jax.Array, channels: int, what: str, factor: int = 1) -> np.ndarray:
    """The array on the host, in float32.

    Raises:
        UserError: if it is no batch of floats with `channels` channels and sides that `factor` divides.
    """
    array = np.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{what} are {array.dtype}, not floats; a byte becomes -1..1 by x / 127.5 - 1.")
    if array.ndim != 4 or array.shape[-1] != channels or not array.size:
        raise UserError(f"{what} have shape {array.shape}, not (batch, rows, columns, {channels}).")
    if array.shape[1] % factor or array.shape[2] % factor:
        raise UserError(
            f"{what} of {array.shape[1]} x {array.shape[2]} pixels: both sides must be multiples of {factor}; crop or resize."
        )
    return array.astype(np.float32)
