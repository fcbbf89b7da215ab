"""T5's tokenizer from the tokenizer.json of a published folder, for folders that lack the sentencepiece model it was made from.

Ids are those of transformers' T5Tokenizer. As there, a special token spelled out in a caption is that token.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ec_dit.encoders import json_tokenizer


class T5JsonTokenizer:
    """Captions to T5's ids, in the batch layout of `ec_dit.data.tokenizer.Tokenizer`."""

    def __init__(self, folder: str | Path):
        """Reads tokenizer.json, and from the file beside it which tokens end and fill up a text.

        Raises:
            UserError: if it is missing, damaged, or another model's.
        """
        roles = {"eos_token": "</s>", "pad_token": "<pad>"}
        self._tokenizer, (self.eos_id, self.pad_id) = json_tokenizer.load(folder, "Unigram", "T5", roles)
        self.vocab_size = json_tokenizer.vocab_size(self._tokenizer)

    def encode(self, captions: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Encodes captions to fixed length.

        Args:
            captions: B texts. An empty one becomes the end-of-text token alone.
            length: T, tokens per row including the end-of-text token; longer captions are cut before it.

        Returns:
            ids_BT int32, padded with `pad_id`, and mask_BT bool, True up to the end-of-text token.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        ids_BT = np.full((len(captions), length), self.pad_id, np.int32)
        mask_BT = np.zeros((len(captions), length), bool)
        for row, caption in enumerate(captions):
            ids = [*self._encode(caption)[: length - 1], self.eos_id]
            ids_BT[row, : len(ids)] = ids
            mask_BT[row, : len(ids)] = True
        return ids_BT, mask_BT

    def length(self, caption: str) -> int:
        """Tokens of a caption, the end-of-text token included, however many there are."""
        return len(self._encode(caption)) + 1

    def _encode(self, caption: str) -> list[int]:
        return self._tokenizer.encode(caption, add_special_tokens=False).ids
