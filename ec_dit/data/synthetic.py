"""Random latents and text embeddings, made on the spot: to measure a config's speed before its data exist."""

from collections.abc import Iterator, Sequence

import numpy as np

from ec_dit.data.batch import Batch, Row, Text, stack
from ec_dit.data.loader import ALL, Share


class SyntheticLoader:
    """Batches with the shapes of cached data; every number follows from (seed, step, row of the batch).

    Args:
        shape_YXZ: of one latent.
        text_length, text_width: tokens of a caption, and numbers of a token.
        batch_size: examples per global batch.
        seed: decides every number.
        share: which blocks of each global batch this process gets; only those are drawn.
        pairs: whether each caption has a second latent, which is to count as the worse one.

    Raises:
        UserError: a batch that does not come out in blocks.
    """

    def __init__(
        self,
        shape_YXZ: tuple[int, int, int],
        text_length: int,
        text_width: int,
        pooled_width: int = 0,
        *,
        batch_size: int,
        seed: int,
        share: Share = ALL,
        pairs: bool = False,
    ):
        self._shape_YXZ, self._text, self._pooled = shape_YXZ, (text_length, text_width), pooled_width
        self._batch_size, self._seed, self._pairs = batch_size, seed, pairs
        self._rows = share.rows(batch_size)

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Yields endless batches from `start_step` on."""
        step = start_step
        while True:
            yield stack([self._row(step, row) for row in self._rows])
            step += 1

    def _row(self, step: int, row: int) -> Row:
        rng = np.random.default_rng([self._seed, step, row])
        latent_YXZ = rng.standard_normal(self._shape_YXZ, np.float32)
        text_TM = rng.standard_normal(self._text, np.float32)
        text = Text(text_TM, np.arange(self._text[0]) < rng.integers(1, self._text[0] + 1))
        if self._pooled:
            text = text._replace(pooled_BM=rng.standard_normal(self._pooled, np.float32))
        rejected_YXZ = rng.standard_normal(self._shape_YXZ, np.float32) if self._pairs else None
        return Row(latent_YXZ, text, step * self._batch_size + row, rejected_YXZ)

    def record_ids(self, record_B: Sequence[int]) -> list[str]:
        """Gives names for messages."""
        return [f"synthetic-{index}" for index in record_B]
