"""A whole CLIP: how well pictures and texts go together."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ec_dit.core import hub, sharding
from ec_dit.core.errors import UserError
from ec_dit.core.padding import padded
from ec_dit.encoders import clip_vision, pixels
from ec_dit.encoders.features import BATCH, Features
from ec_dit.encoders.text import TextEncoder


class ClipPair:
    """The two towers of a CLIP, from a folder as transformers publishes CLIPModel: OpenAI's, HPSv2's, PickScore's.

    Args:
        path: of the folder, or a name.
        batch: pictures, or texts, of a device at a time.

    Attributes:
        images: computes the projected embeddings of pictures.
        width: of an embedding.

    Raises:
        UserError: it is no whole CLIP, or damaged.
    """

    def __init__(self, path: str | Path, mesh: Mesh, batch: int = BATCH):
        spec, network = clip_vision.load(path, mesh, jnp.float32)
        self._texts = TextEncoder(path, mesh)
        if spec.projection is None or spec.projection != self._texts.pooled_width or self._texts.limit is None:
            raise UserError(
                f"{hub.local(path)} is no whole CLIP: its towers for texts and for pictures are not projected to one width."
            )
        self.width, self._length = spec.projection, self._texts.limit
        self.processor = pixels.Processor.load(path, replace(pixels.CLIP, shorter=spec.size, crop=spec.size))
        self.images = Features(network, self.processor, mesh, batch)
        self._batch = batch * sharding.batch_ways(mesh)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Computes the projected embeddings of texts, float32 (B, D), cut where they are longer than CLIP reads."""
        found = []
        for part, batch in padded(texts, self._batch, ""):
            with jax.default_matmul_precision("highest"):  # as for pictures
                pooled_BM = self._texts.encode(batch, self._length, "none").pooled_BM
            assert pooled_BM is not None
            found.append(pooled_BM[: part.stop - part.start])
        return np.concatenate(found)


def unit(features_BD: np.ndarray) -> np.ndarray:
    """Brings embeddings to length 1."""
    length_B = np.linalg.norm(features_BD, axis=1, keepdims=True)
    return features_BD / np.maximum(length_B, np.finfo(np.float32).tiny)
