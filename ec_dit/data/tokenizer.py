"""Captions to token ids by a sentencepiece model.

Ids follow T5's layout: 0 pads, 1 ends a text, 2 stands for characters the model does not know. Our own models fold
case, so that a prompt may be written either way.
"""

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import sentencepiece

from ec_dit.core import paths
from ec_dit.core.errors import UserError


class Tokenizer:
    """A sentencepiece model with the batch layout the text towers take."""

    def __init__(self, model: bytes):
        """Reads a serialised sentencepiece model; UserError if it is none, or has no end-of-text piece."""
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocab_size: int = self._processor.vocab_size()
        except Exception as error:
            raise UserError(f"not a sentencepiece model: {error}") from error
        self.eos_id: int = self._processor.eos_id()
        if self.eos_id < 0:
            raise UserError("this sentencepiece model has no end-of-text piece (eos_id); give another one")
        self.pad_id: int = max(0, self._processor.pad_id())

    @classmethod
    def load(cls, path: str | PurePath) -> "Tokenizer":
        """Reads a `.model` file; UserError if it is missing or damaged."""
        try:
            model = paths.at(path).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from error
        try:
            return cls(model)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return Tokenizer, (self.model,)

    def encode(self, captions: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Encodes captions to fixed length.

        Args:
            captions: B texts. An empty one becomes the end-of-text token alone.
            length: T, tokens per row including the end-of-text token; longer captions are cut before it.

        Returns:
            ids_BT int32, padded with `pad_id`, and mask_BT bool, True on real tokens.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        ids_BT = np.full((len(captions), length), self.pad_id, np.int32)
        mask_BT = np.zeros((len(captions), length), bool)
        for row, caption in enumerate(captions):  # One by one: a batch call starts a thread pool, which costs more.
            pieces = [*self._processor.encode(caption)[: length - 1], self.eos_id]
            ids_BT[row, : len(pieces)] = pieces
            mask_BT[row, : len(pieces)] = True
        return ids_BT, mask_BT

    def length(self, caption: str) -> int:
        """Tokens of a caption, the end-of-text token included, however many there are."""
        return len(self._processor.encode(caption)) + 1
