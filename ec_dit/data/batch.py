"""One training example as a row, and many as a batch: what a loader makes, and what every loss takes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Text(NamedTuple):
    """Captions on their way into the model; of a single caption the leaves have no B.

    Attributes:
        tokens: int32 ids (B, T) for a jointly trained tower, or float embeddings (B, T, M) of a frozen encoder.
        mask_BT: True where a token is real, at least one in each caption (an empty one still has its end of text).
        pooled_BM: one vector of a whole caption, float; None where the model reads none.
    """

    tokens: Any  # jax.Array inside the model; NumPy arrays on the way there
    mask_BT: Any
    pooled_BM: Any = None


class Row(NamedTuple):
    """One example.

    Attributes:
        image_YXZ: a picture, float32 in [-1, 1], or a latent, float32.
        text: its caption.
        record: its index within the split.
        rejected_YXZ: of a pair, the other picture of the same caption, which people liked less.
    """

    image_YXZ: np.ndarray
    text: Text
    record: int
    rejected_YXZ: np.ndarray | None = None


class Batch(NamedTuple):
    """Examples of one shape; on the devices as global arrays laid over the mesh.

    Attributes:
        image_BYXZ: clean pictures or latents, float32; of pairs the ones that people preferred.
        text: their captions.
        record_B: int64 index of each within the split; stays on the host.
        position_B: of an evaluation, int32 place of each in the set, from 0 on; -1 for one that fills the batch up.
        rejected_BYXZ: of pairs, the other picture of each caption; None of single pictures.
    """

    image_BYXZ: Any  # as of Text
    text: Text
    record_B: np.ndarray | None = None
    position_B: Any = None
    rejected_BYXZ: Any = None


def stack_texts(texts: Sequence[Text]) -> Text:
    """Makes one text of captions without B, which all have a pooled vector or none."""
    pooled = None if texts[0].pooled_BM is None else np.stack([text.pooled_BM for text in texts])
    return Text(np.stack([text.tokens for text in texts]), np.stack([text.mask_BT for text in texts]), pooled)


def stack(rows: Sequence[Row]) -> Batch:
    """Makes a batch of rows, which have one shape and are all pairs or none."""
    images, texts, records, rejected = zip(*rows, strict=True)
    others = None if rejected[0] is None else np.stack(rejected)
    return Batch(np.stack(images), stack_texts(texts), np.array(records, np.int64), rejected_BYXZ=others)
