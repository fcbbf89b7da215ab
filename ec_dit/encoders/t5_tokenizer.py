"""T5's tokenizer from the tokenizer.json of a published folder, for folders that lack the sentencepiece model it was made from.

Ids are those of transformers' T5Tokenizer. As there, a special token spelled out in a caption is that token.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ec_dit.core import hub, json_file
from ec_dit.core.errors import UserError

JSON, CONFIG = "tokenizer.json", "tokenizer_config.json"
FILES = (JSON, CONFIG)


class T5JsonTokenizer:
    """Captions to T5's ids, in the batch layout of `ec_dit.data.tokenizer.Tokenizer`."""

    def __init__(self, folder: str | Path):
        """Reads tokenizer.json, and from the file beside it which tokens end and fill up a text.

        Raises:
            UserError: if it is missing, damaged, or another model's.
        """
        path = hub.local(folder) / JSON
        found = hub.read_json(path)
        beside = hub.read_json(path.with_name(CONFIG)) if path.with_name(CONFIG).is_file() else {}
        with json_file.whole(str(path), hub.AGAIN):
            if found["model"]["type"] != "Unigram":
                raise UserError(
                    f"{path} is no tokenizer of T5: its model is {found['model']['type']!r}, not 'Unigram'."
                )
        self._tokenizer = read(path)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=0)
        roles = {"eos_token": "</s>", "pad_token": "<pad>"}
        with json_file.whole(str(path.with_name(CONFIG)), hub.AGAIN):
            self.eos_id, self.pad_id = (
                token_id(self._tokenizer, beside.get(role) or token) for role, token in roles.items()
            )

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


def token_id(tokenizer: Tokenizer, token: str | Mapping[str, Any]) -> int:
    """Gives the id of a token as a tokenizer_config.json names it. Raises ValueError where there is none."""
    word = token if isinstance(token, str) else token["content"]
    found = tokenizer.token_to_id(word)
    if found is None:
        raise ValueError(f"the token {word!r} is not in the vocabulary of {JSON}")
    return int(found)


def read(path: Path) -> Tokenizer:
    """The library's tokenizer of a tokenizer.json, which works.

    Raises:
        DamageError: the library cannot make one of it.
    """
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        tokenizer.encode("a cat", add_special_tokens=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library panics past Exception
        raise json_file.damaged(str(path), f"it holds no tokenizer: {str(error)[:200]}", hub.AGAIN) from error
    return tokenizer
