"""Prompts to pictures. An image depends on its prompt, seed, index and settings only.

Its noise is drawn from (seed, prompt, index); its routing groups hold no other image's tokens; and every batch is padded to
one fixed size, so that the same compiled program makes it whatever else is asked for.
"""

import copy
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ec_dit.core import sharding
from ec_dit.core.padding import padded
from ec_dit.data.batch import Text
from ec_dit.models.text_to_image import ReadText, TextToImage
from ec_dit.nn.embeddings import unpatchify
from ec_dit.nn.moe import RouterStats
from ec_dit.nn.routing.spec import RoutingSpec
from ec_dit.sampling.guidance import PredictFn, always, guide, interleave, token_lengths
from ec_dit.sampling.settings import SampleSettings

Watch = Callable[[jax.Array, RouterStats | None], None]  # (t_B, statistics of the sparse blocks), at every evaluation
Tell = Callable[
    [Any], None
]  # of the time of an evaluation, called on the host while the program runs, in no certain order


def telling(tell: Tell) -> Watch:
    """Makes what tells the time of every evaluation, for progress; it changes no number of the program."""

    def watch(t_B: jax.Array, _: RouterStats | None) -> None:
        jax.debug.callback(tell, t_B[0])

    return watch


def sample(
    graphdef: nnx.GraphDef,
    settings: SampleSettings,
    params: Any,
    noise: jax.Array,
    text: Text,
    null_text: Text,
    watch: Watch | None = None,
) -> jax.Array:
    """Noise (B, Y, X, Z) to clean latents; pure, to be jitted.

    Args:
        text: captions; null_text: the empty caption, leaves without B.
        watch: called at every evaluation of the network; a guided one has 2 B images, the captions' at even places.
    """
    conditions = read_captions(graphdef, settings, params, noise.shape[:3], text, null_text)
    predict = guided_prediction(graphdef, settings, params, conditions, watch)
    return settings.integrator(predict, settings.prediction, noise, settings.grid)


def read_captions(
    graphdef: nnx.GraphDef,
    settings: SampleSettings,
    params: Any,
    shape_BYX: tuple[int, ...],
    text: Text,
    null_text: Text,
) -> tuple[ReadText | None, ReadText | None]:
    """Makes of captions what every evaluation of the network reads, once for all of them.

    Args:
        shape_BYX: of the batch of latents.
        text, null_text: as `sample` has them.

    Returns:
        what is read of the captions alone, and of pairs with the empty one: (2 B, ...), the captions' at even places; None for
        what these settings never read.
    """
    model: TextToImage = nnx.merge(graphdef, params)
    batch, rows, columns = shape_BYX
    guided = settings.guidance != 1
    null_text = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape)), null_text)
    text, null_text = model.encode(text), model.encode(null_text)
    alone = None if guided and always(settings.guidance_interval) else model.read(text, rows, columns)
    return alone, model.read(interleave(text, null_text), rows, columns) if guided else None


def guided_prediction(
    graphdef: nnx.GraphDef,
    settings: SampleSettings,
    params: Any,
    conditions: tuple[ReadText | None, ReadText | None],
    watch: Watch | None = None,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(x, scalar t) -> the guided prediction.

    Args:
        conditions: of `read_captions`.
        watch: as `sample` has it.
    """
    model: TextToImage = nnx.merge(graphdef, params)
    shorten = functools.partial(token_lengths, patch=model.dit.spec.patch)
    return guide(
        predict_fn(model, settings.routing, watch),
        predict_fn(model, settings.paired_routing, watch),
        *conditions,
        settings.guidance,
        settings.guidance_interval,
        shorten if settings.guidance_norm == "token" else None,
    )


def predict_fn(model: TextToImage, routing: RoutingSpec, watch: Watch | None = None) -> PredictFn:
    """Gives the model's prediction over whole latents; the condition is an encoded or a read text."""

    def predict(x_BYXZ: jax.Array, t_B: jax.Array, text: Text | ReadText) -> jax.Array:
        patch = model.dit.spec.patch
        out_BSP, stats = model.predict(x_BYXZ, t_B, text, routing)
        if watch is not None:
            watch(t_B, stats)
        return unpatchify(out_BSP, patch, x_BYXZ.shape[1] // patch, x_BYXZ.shape[2] // patch)

    return predict


def image_noise(seed: int, prompt: str, index: int, shape_YXZ: tuple[int, ...]) -> np.ndarray:
    """The starting noise of image `index` of a prompt."""
    words = np.frombuffer(hashlib.sha256(prompt.encode()).digest()[:8], np.uint32)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *map(int, words), index])))
    return rng.standard_normal(shape_YXZ, dtype=np.float32)


class Generator:
    """Makes images in batches of one fixed size.

    Args:
        shape_YXZ: of one latent.
        encode: captions -> Text of NumPy arrays (B, T, ...).
        decode: clean latents (B, Y, X, Z) -> uint8 images (B, rows, columns, 3), and finite_B, whether their numbers are.
        null_text: the empty caption, leaves without B.
        as_computed: makes of parameters what programs take.

    Attributes:
        made, broken: images so far, and how many of them came out with numbers that are not finite.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        settings: SampleSettings,
        mesh: Mesh,
        shape_YXZ: tuple[int, int, int],
        encode: Callable[[Sequence[str]], Text],
        decode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        null_text: Text,
        compiler_options: dict[str, str] | None = None,
        as_computed: Callable[[Any], Any] = lambda params: params,
    ):
        self.graphdef, self.settings, self.mesh, self.shape_YXZ = graphdef, settings, mesh, shape_YXZ
        self._batch_size = sharding.even_batch(settings.batch_size, mesh)
        self._encode, self.decode = encode, decode
        self._null_text, self._compiler_options = null_text, compiler_options
        self._as_computed = as_computed
        self.made = self.broken = 0
        self._sample = self.compile(sample)

    def batches(
        self, params: Any, prompts: Sequence[str], indices: Sequence[int], seed: int
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields (which of the prompts, their uint8 images) as batches finish."""
        pairs = list(zip(prompts, indices, strict=True))
        for part, batch in padded(pairs, self._batch_size, ("", 0)):
            noise = np.stack([image_noise(seed, prompt, index, self.shape_YXZ) for prompt, index in batch])
            x = self._sample(params, noise, [prompt for prompt, _ in batch])
            image_BYXZ, finite_B = (array[: part.stop - part.start] for array in self.decode(jax.device_get(x)))
            self.made += len(image_BYXZ)
            self.broken += int(np.count_nonzero(~finite_B))
            yield part, image_BYXZ

    def compile(self, function: Callable[..., Any]) -> Callable[[Any, np.ndarray, Sequence[str]], Any]:
        """Makes of a function like `sample` one of (parameters, noise, prompts) that runs on the mesh.

        Its batch is one that `sharding.batch_ways` of the mesh divides; every process gets all of its results.
        """
        program = jax.jit(
            lambda params, *args: function(self.graphdef, self.settings, params, *args),
            out_shardings=sharding.replicated(self.mesh),
            compiler_options=self._compiler_options,
        )

        def run(params: Any, noise_BYXZ: np.ndarray, prompts: Sequence[str]) -> Any:
            with jax.set_mesh(self.mesh):
                given = sharding.place((noise_BYXZ, self._encode(prompts)), self.mesh)
                return program(self._as_computed(params), *given, self._null_text)

        return run

    def telling(self, tell: Tell) -> "Generator":
        """Gives one that draws the same, in a program of its own, and tells the time of every evaluation."""
        other = copy.copy(self)
        other._sample = self.compile(functools.partial(sample, watch=telling(tell)))  # noqa: SLF001 - of its own kind
        return other

    def __call__(self, params: Any, prompts: Sequence[str], indices: Sequence[int], seed: int) -> np.ndarray:
        """All images at once, uint8 (N, rows, columns, 3), in the order of the prompts."""
        return np.concatenate([images for _, images in self.batches(params, prompts, indices, seed)])

    @property
    def warning(self) -> str:
        """What people should know of the images so far; '' if all is well."""
        return warning(self.broken, self.made)


def warning(broken: int, made: int) -> str:
    """Tells people how many images are not finite; '' if all are."""
    if not broken:
        return ""
    return (
        f"{broken} of {made} images came out with numbers that are not finite and are plain grey: the model has "
        f"diverged (an earlier checkpoint may be sound), or its guidance is too strong."
    )
