"""Qwen's tokenizer, pairs of bytes, from the tokenizer.json of a published folder.

Ids are those of transformers' fast tokenizer; a special token spelled out in a text is that token, as chats are written with
them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ec_dit.core import hub, json_file
from ec_dit.core.errors import UserError
from ec_dit.encoders import t5_tokenizer
from ec_dit.encoders.t5_tokenizer import CONFIG, JSON

FILES = (JSON, CONFIG)
_PAD = "<|endoftext|>"


class Qwen3Tokenizer:
    """Texts to ids, in the batch layout of `ec_dit.data.tokenizer.Tokenizer`.

    Raises:
        UserError: if tokenizer.json is missing, damaged, or another model's.
    """

    def __init__(self, folder: str | Path):
        path = hub.local(folder) / JSON
        found = hub.read_json(path)
        beside = hub.read_json(path.with_name(CONFIG)) if path.with_name(CONFIG).is_file() else {}
        with json_file.whole(str(path), hub.AGAIN):
            if found["model"]["type"] != "BPE":
                raise UserError(f"{path} is no tokenizer of Qwen: its model is {found['model']['type']!r}, not 'BPE'.")
        self._tokenizer = t5_tokenizer.read(path)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=0)
        with json_file.whole(str(path.with_name(CONFIG)), hub.AGAIN):
            self.pad_id = t5_tokenizer.token_id(self._tokenizer, beside.get("pad_token") or _PAD)

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
