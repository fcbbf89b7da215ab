"""CLIP's tokenizer: byte pairs within words of lower-cased text, from the files of a published folder.

Ids are those of transformers' CLIPTokenizer. As there, a special token spelled out in a caption is that token: with the
files of OpenCLIP bigG, which pad with '!', every exclamation mark is id 0.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from ec_dit.core import hub
from ec_dit.core.errors import UserError

JSON, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
_CONFIG, _SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
FILES = (JSON, VOCAB, MERGES, _CONFIG, _SPECIAL)  # any that are there
_WORD_END = "</w>"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_ROLES = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}  # where files do not tell
# One token each: special tokens, English endings, words of letters, single digits, runs of other signs.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """Captions to CLIP's ids, in the batch layout of `ec_dit.data.tokenizer.Tokenizer`."""

    def __init__(self, serialized: str, roles: Mapping[str, str]):
        """Reads what `load` put together: a tokenizer of the tokenizers library as JSON, and the token of each role."""
        self._serialized, self._roles = serialized, dict(roles)
        self._tokenizer = Tokenizer.from_str(serialized)
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.bos_id, self.eos_id, self.pad_id = (self._id(role) for role in ("bos_token", "eos_token", "pad_token"))

    @classmethod
    def load(cls, folder: str | Path) -> "ClipTokenizer":
        """Reads tokenizer.json, or else vocab.json and merges.txt, and which tokens are special from the files beside them.

        Raises:
            UserError: if files are missing or damaged; it names those that may be.
        """
        folder = hub.local(folder)
        config = _optional(folder / _CONFIG)
        try:
            vocab, merges, added = _pieces(folder)
            if "added_tokens_decoder" in config:
                added = list(config["added_tokens_decoder"].values())
            else:  # of files that do not list them, this one names the special tokens
                config |= _optional(folder / _SPECIAL)
            named = {role: config.get(role) or default for role, default in _ROLES.items()}
            roles = {role: token if isinstance(token, str) else token["content"] for role, token in named.items()}
            special = _special(added, named)
            _check_merges(vocab, merges, {token.content for token in special})
            tokenizer = _assemble(vocab, merges, roles["unk_token"])
            tokenizer.add_tokens(special)
            made = cls(tokenizer.to_str(), roles)
        except (UserError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises Exception itself, and panics past it
            used = (JSON, _CONFIG, _SPECIAL) if (folder / JSON).is_file() else FILES
            names = ", ".join(name for name in used if (folder / name).is_file())
            raise UserError(
                f"{folder} holds no tokenizer of CLIP: {str(error)[:200]}. Download {names} again."
            ) from error
        return made

    def __reduce__(self) -> tuple[type["ClipTokenizer"], tuple[str, dict[str, str]]]:
        return ClipTokenizer, (self._serialized, self._roles)

    def encode(self, captions: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Encodes captions to fixed length.

        Args:
            captions: B texts. An empty one becomes the tokens that start and end a text.
            length: T, tokens per row including these two; longer captions are cut before the end-of-text token.

        Returns:
            ids_BT int32, padded with `pad_id`, and mask_BT bool, True up to the end-of-text token.
        """
        if length < 2:
            raise ValueError(f"length must be at least 2, got {length}")
        ids_BT = np.full((len(captions), length), self.pad_id, np.int32)
        mask_BT = np.zeros((len(captions), length), bool)
        for row, caption in enumerate(captions):
            ids = [self.bos_id, *self._encode(caption)[: length - 2], self.eos_id]
            ids_BT[row, : len(ids)] = ids
            mask_BT[row, : len(ids)] = True
        return ids_BT, mask_BT

    def length(self, caption: str) -> int:
        """Tokens of a caption, those that start and end it included, however many there are."""
        return len(self._encode(caption)) + 2

    def _encode(self, caption: str) -> list[int]:
        return self._tokenizer.encode(caption, add_special_tokens=False).ids

    def _id(self, role: str) -> int:
        found = self._tokenizer.token_to_id(self._roles[role])
        if found is None:
            raise ValueError(f"the {role} {self._roles[role]!r} is not in the tokenizer's vocabulary")
        return found


def _pieces(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], list[dict[str, Any]]]:
    """(piece -> id, the merges in their order, tokens added to them) from a folder's files."""
    if (folder / JSON).is_file():
        whole = hub.read_json(folder / JSON)
        model = whole["model"]
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return model["vocab"], [(left, right) for left, right in pairs], whole.get("added_tokens", [])
    for name in (VOCAB, MERGES):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} holds no tokenizer of CLIP: neither {JSON} nor {VOCAB} with {MERGES}; download them."
            )
    vocab, merges = BPE.read_file(str(folder / VOCAB), str(folder / MERGES))
    return vocab, merges, []


def _check_merges(vocab: Collection[str], merges: Sequence[tuple[str, str]], special: set[str]) -> None:
    """Every piece of several letters has to come of a merge: of fewer, captions would be spelled out without a word."""
    known = {left + right for left, right in merges} | special
    lost = [piece for piece in vocab if piece not in known and len(piece.removesuffix(_WORD_END)) > 1]
    if lost:
        raise ValueError(
            f"{len(lost)} pieces of the tokenizer's vocabulary, such as {lost[0]!r}, come of no merge; its list of merges is cut"
        )


def _assemble(vocab: dict[str, int], merges: list[tuple[str, str]], unknown: str) -> Tokenizer:
    """The library's tokenizer with CLIP's normalisation and words."""
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token=unknown, end_of_word_suffix=_WORD_END))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def _special(added: Sequence[Mapping[str, Any]], named: Mapping[str, Any]) -> list[AddedToken]:
    """The tokens that are found in a text before it is cut into words: those `added`, and those of a role."""
    listed = {token["content"]: dict(token) for token in added}
    tokens = dict(listed)
    for token in named.values():  # of one that is given several times, the last says how it is found
        given = {"content": token} if isinstance(token, str) else dict(token)
        content = given["content"]
        tokens[content] = listed.get(content, given) | {"special": True}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return [
        AddedToken(content, **{flag: token[flag] for flag in flags if flag in token})
        for content, token in tokens.items()
    ]


def _optional(path: Path) -> dict[str, Any]:
    return hub.read_json(path) if path.is_file() else {}
