"""Qwen's tokenizer, pairs of bytes, from the tokenizer.json of a published folder.

Ids are those of transformers' fast tokenizer; a special token spelled out in a text is that token, as chats are written with
them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ec_dit.encoders import json_tokenizer


class Qwen3Tokenizer:
    """Texts to ids, in the batch layout of `ec_dit.data.tokenizer.Tokenizer`.

    Raises:
        UserError: if tokenizer.json is missing, damaged, or another model's.
    """

    def __init__(self, folder: str | Path):
        self._tokenizer, (self.pad_id,) = json_tokenizer.load(folder, "BPE", "Qwen", {"pad_token": "<|endoftext|>"})
        self.vocab_size = json_tokenizer.vocab_size(self._tokenizer)

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts to fixed length.

        Args:
            texts: B of them. An empty one becomes one token that fills up.
            length: T, tokens per row; longer texts are cut.

        Returns:
            ids_BT int32, filled up with `pad_id` behind, and mask_BT bool, True on a text's own tokens.
        """
        ids_BT = np.full((len(texts), length), self.pad_id, np.int32)
        mask_BT = np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            ids = self._encode(text)[:length] or [self.pad_id]
            ids_BT[row, : len(ids)] = ids
            mask_BT[row, : len(ids)] = True
        return ids_BT, mask_BT

    def length(self, text: str) -> int:
        """Tokens of a text, however many there are."""
        return len(self._encode(text)) or 1

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids
