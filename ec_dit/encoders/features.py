"""Features of pictures by a frozen network, batch by batch, over the devices of a mesh.

Every device takes batches of one fixed size, padded, so that the features of a picture are the same bits on however many devices
and in whichever company. Pictures are made ready on threads while the devices compute the batch before.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ec_dit.core import ahead, sharding
from ec_dit.encoders.weights import Frozen

BATCH = 32  # pictures of a device at a time

Prepare = Callable[[np.ndarray], np.ndarray]  # uint8 (Y, X, 3) -> float32, as a network reads it


class Features:
    """Computes features of pictures.

    Args:
        network: pictures as `prepare` makes them, batch first, -> features (B, D).
        prepare: called on threads.
        batch: pictures of a device at a time.
    """

    def __init__(self, network: Frozen, prepare: Prepare, mesh: Mesh, batch: int = BATCH):
        self._mesh, self._prepare, self._params = mesh, prepare, network.params
        self._size = batch * sharding.batch_ways(mesh)
        # Of the pictures of a batch, this process makes those ready that its devices take.
        parts = sharding.local_parts(mesh)
        self._rows = [row for part in parts for row in range(part * batch, (part + 1) * batch)]

        def features(params: object, image_BYXZ: jax.Array) -> jax.Array:
            return nnx.merge(network.graphdef, params)(image_BYXZ).astype(jnp.float32)

        self._program = jax.jit(features, out_shardings=sharding.replicated(mesh))

    def __call__(self, pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the features of pictures, uint8 (rows, columns, 3), in their order, as float32 arrays (B, D).

        All processes go over the same pictures, and get the features of all.
        """
        waiting: tuple[jax.Array, int] | None = None
        pictures = iter(pictures)
        with ThreadPoolExecutor(ahead.CORES) as pool:
            while batch := list(itertools.islice(pictures, self._size)):
                rows = [batch[row] if row < len(batch) else batch[0] for row in self._rows]
                ready = np.stack(list(pool.map(self._prepare, rows)))
                before, waiting = waiting, (self._run(ready), len(batch))
                if before is not None:
                    yield _fetched(*before)
        if waiting is not None:
            yield _fetched(*waiting)

    def _run(self, ready_BYXZ: np.ndarray) -> jax.Array:
        # In full float32: an accelerator's default would round the features, and move scores by more than tools differ.
        with jax.set_mesh(self._mesh), jax.default_matmul_precision("highest"):
            return self._program(self._params, sharding.place_parts(ready_BYXZ, self._mesh))


def _fetched(features_BD: jax.Array, count: int) -> np.ndarray:
    return np.asarray(jax.device_get(features_BD))[:count]
