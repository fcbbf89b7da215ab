"""Which experts the tokens of an image go to while it is drawn.

The program that draws for this is one of its own, so that drawing alone keeps nothing of what routers decide.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ec_dit.core import sharding
from ec_dit.core.errors import UserError
from ec_dit.core.padding import padded
from ec_dit.data.batch import Text
from ec_dit.nn.moe import RouterStats
from ec_dit.sampling.generator import Generator, Tell, image_noise, sample, telling
from ec_dit.sampling.settings import SampleSettings


@dataclass(frozen=True)
class Routes:
    """The way of one image's tokens through the experts, NumPy arrays.

    L counts the sparse blocks; U the evaluations of the network in their order, of which euler, ddim and dpmpp_2m make one a step
    and heun two, but one in the last; Y and X rows and columns of patches, one token each; E experts.

    Attributes:
        image_YXZ: uint8, the picture that was drawn.
        block_L: int, the index of each sparse block among all blocks.
        time_U: float32, of each evaluation; 1 = noise, 0 = data.
        gate_LUYXE: float32, the weight of each expert's output for a token; 0 where it did not take the token.
        taken_LUYXE: bool, whether the expert took the token. By expert choice a token may have any number of experts.
    """

    image_YXZ: np.ndarray
    block_L: np.ndarray
    time_U: np.ndarray
    gate_LUYXE: np.ndarray
    taken_LUYXE: np.ndarray


def without_gates(routes: Routes) -> Routes:
    """Leaves out the weights, which are most of the memory of many pictures; who took what stays."""
    return replace(routes, gate_LUYXE=np.zeros((0,) * routes.taken_LUYXE.ndim, np.float32))


class RouteTracer:
    """Draws images, and tells their routes.

    Under guidance a group may hold an image and its unconditional copy (`sample.group_size` pair); the routes are the image's.

    Args:
        batch_size: of images at once; rounded up, so that devices share a batch evenly.
        tell: called with the time of every evaluation, while images are drawn.

    Raises:
        UserError: for a model without experts.
    """

    def __init__(self, generator: Generator, batch_size: int = 1, tell: Tell | None = None):
        if generator.settings.routing.routing == "dense":
            raise UserError("this model is dense: it has no experts, and tokens no routes.")
        self._generator = generator
        self._batch_size = sharding.even_batch(batch_size, generator.mesh)
        self._trace = generator.compile(functools.partial(trace, tell=tell))

    def __call__(self, params: Any, prompt: str, index: int, seed: int) -> Routes:
        """Draws image `index` of a prompt as the generator does, to a rounding."""
        (routes,) = self.all(params, [prompt], [index], seed)
        return routes

    def all(self, params: Any, prompts: Sequence[str], indices: Sequence[int], seed: int) -> Iterator[Routes]:
        """Yields the routes of every image, in order, batch by batch."""
        generator = self._generator
        spec = nnx.merge(generator.graphdef, params).dit.spec
        rows, columns = (side // spec.patch for side in generator.shape_YXZ[:2])
        block_L = np.flatnonzero([kind.sparse for kind in spec.kinds()])
        for part, batch in padded(list(zip(prompts, indices, strict=True)), self._batch_size, ("", 0)):
            noise_BYXZ = np.stack([image_noise(seed, prompt, index, generator.shape_YXZ) for prompt, index in batch])
            traced = self._trace(params, noise_BYXZ, [prompt for prompt, _ in batch])
            x_BYXZ, time_U, gate_ULBSE = jax.device_get(traced)
            image_BYXZ = generator.decode(x_BYXZ)[0]
            for place in range(part.stop - part.start):
                gate_LUSE = gate_ULBSE[:, :, place].swapaxes(0, 1)
                gate_LUYXE = gate_LUSE.reshape(*gate_LUSE.shape[:2], rows, columns, -1)
                taken_LUYXE = ~np.isnan(gate_LUYXE)
                yield Routes(
                    image_YXZ=image_BYXZ[place],
                    block_L=block_L,
                    time_U=time_U,
                    gate_LUYXE=np.where(taken_LUYXE, gate_LUYXE, 0),
                    taken_LUYXE=taken_LUYXE,
                )


def trace(
    graphdef: nnx.GraphDef,
    settings: SampleSettings,
    params: Any,
    noise: jax.Array,
    text: Text,
    null_text: Text,
    tell: Tell | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Does what `sample` does, and keeps every gate; pure, to be jitted, but for what it tells.

    Returns:
        the latents (B, Y, X, Z), the time of every evaluation (U,) and their gates (U, L, B, S, E), NaN where an expert did not
        take a token.
    """
    settings = replace(
        settings,
        routing=replace(settings.routing, report_gates=True),
        paired_routing=replace(settings.paired_routing, report_gates=True),
    )
    spec, images = nnx.merge(graphdef, params).dit.spec, noise.shape[0]
    evaluations = settings.integrator.evaluations(settings.grid.times).size
    tokens = noise.shape[1] * noise.shape[2] // spec.patch**2
    kept = (evaluations, spec.num_sparse, images, tokens, spec.sparse.num_experts)
    # References, as samplers know nothing of what is kept of an evaluation in the midst of their loops.
    done, times, gates = (jax.new_ref(jnp.zeros(*of)) for of in (((), jnp.int32), (evaluations,), (kept,)))

    told = None if tell is None else telling(tell)

    def watch(t_B: jax.Array, stats: RouterStats | None) -> None:
        if told is not None:
            told(t_B, stats)
        assert stats is not None and stats.gate_BSE is not None
        gate_LBSE, now = stats.gate_BSE, done[...]
        times[now] = t_B[0]
        gates[now] = gate_LBSE[:, :: gate_LBSE.shape[1] // images]  # of a pair the first, which has the caption
        done[...] = now + 1

    x = sample(graphdef, settings, params, noise, text, null_text, watch)
    return x, times[...], gates[...]
