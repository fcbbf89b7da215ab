"""Random latents and text embeddings, made on the spot: to measure a config's speed before its data exist."""

from collections.abc import Iterator, Sequence

import numpy as np

from ec_dit.data.loader import ALL, Share


class SyntheticLoader:
    """Batches with the keys and shapes of cached data; every number follows from (seed, step, row of the batch).

    Args:
        shape_YXZ: of one latent.
        text_length, text_width: tokens of a caption, and numbers of a token.
        batch_size: examples per global batch.
        seed: decides every number.
        share: which blocks of each global batch this process gets; only those are drawn.

    Raises:
        UserError: a batch that does not come out in blocks.
    """

    def __init__(
        self,
        shape_YXZ: tuple[int, int, int],
        text_length: int,
        text_width: int,
        *,
        batch_size: int,
        seed: int,
        share: Share = ALL,
    ):
        self._shape_YXZ, self._text = shape_YXZ, (text_length, text_width)
        self._batch_size, self._seed = batch_size, seed
        self._rows = share.rows(batch_size)

    def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Endless batches from `start_step` on."""
        step = start_step
        while True:
            rows = [self._row(step, row) for row in self._rows]
            yield {key: np.stack([row[key] for row in rows]) for key in rows[0]}
            step += 1

    def _row(self, step: int, row: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self._seed, step, row])
        return {
            "latent_BYXZ": rng.standard_normal(self._shape_YXZ, np.float32),
            "text_BTM": rng.standard_normal(self._text, np.float32),
            "mask_BT": np.arange(self._text[0]) < rng.integers(1, self._text[0] + 1),
            "record_B": np.array(step * self._batch_size + row, np.int64),
        }

    def record_ids(self, record_B: Sequence[int]) -> list[str]:
        """Names for messages."""
        return [f"synthetic-{index}" for index in record_B]
