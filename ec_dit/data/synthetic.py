"""Random latents and text embeddings, made on the spot: to measure a config's speed before its data exist."""

from collections.abc import Iterator, Sequence

import numpy as np

from ec_dit.data.loader import local_size


class SyntheticLoader:
    """Batches with the keys and shapes of cached data; every number follows from (seed, step).

    Args:
        shape_YXZ: of one latent.
        text_length, text_width: tokens of a caption, and numbers of a token.
        batch_size: examples per global batch; each process draws all of it and gets its block, as in Loader.
        seed: decides every number.
        process_index, process_count: which block of each global batch this process gets.

    Raises:
        UserError: a batch that the processes cannot share.
    """

    def __init__(
        self,
        shape_YXZ: tuple[int, int, int],
        text_length: int,
        text_width: int,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._shape_YXZ, self._text = shape_YXZ, (text_length, text_width)
        self._batch_size, self._seed = batch_size, seed
        local = local_size(batch_size, process_count)
        self._block = slice(process_index * local, (process_index + 1) * local)

    def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Endless batches from `start_step` on."""
        step, size = start_step, self._batch_size
        while True:
            rng = np.random.default_rng([self._seed, step])
            batch = {
                "latent_BYXZ": rng.standard_normal((size, *self._shape_YXZ), np.float32),
                "text_BTM": rng.standard_normal((size, *self._text), np.float32),
                "mask_BT": np.arange(self._text[0]) < rng.integers(1, self._text[0] + 1, (size, 1)),
                "record_B": np.arange(step * size, (step + 1) * size, dtype=np.int32),
            }
            yield {key: array[self._block] for key, array in batch.items()}
            step += 1

    def record_ids(self, record_B: Sequence[int]) -> list[str]:
        """Names for messages."""
        return [f"synthetic-{index}" for index in record_B]
