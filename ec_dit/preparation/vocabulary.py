"""A sentencepiece model trained on a data set's own captions, with the ids that data/tokenizer.py reads."""

import io
from collections.abc import Iterable
from typing import Any

import sentencepiece

from ec_dit.core.errors import UserError

_MAX_TRAINING_CAPTIONS = 1_000_000
_MAX_PIECES = 2**24
_SPECIAL_IDS: dict[str, Any] = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def train(captions: Iterable[str], vocab_size: int) -> bytes:
    """Trains a byte-pair model of at most `vocab_size` pieces, fewer where the captions do not give that many.

    Byte pairs, not a unigram model: on small sets of captions the latter spells out even common words in letters.

    The same captions in the same order give the same bytes: one thread, and no random subsampling.

    Raises:
        UserError: no text to train on, or `vocab_size` cannot hold even the characters of the captions.
    """
    if not 1 <= vocab_size <= _MAX_PIECES:
        raise UserError(f"vocab_size is {vocab_size}; it must be from 1 to {_MAX_PIECES:,}")
    captions = [caption for caption in captions if caption.strip()]
    if not captions:
        raise UserError("no captions to train a tokenizer on")
    captions = captions[:: -(-len(captions) // _MAX_TRAINING_CAPTIONS)]
    characters = len(set().union(*captions))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            # Small alphabets are kept whole; of large ones (web captions in many scripts) the rarest may go.
            character_coverage=1.0 if characters <= vocab_size // 4 else 0.9995,
            normalization_rule_name="nmt_nfkc_cf",
            max_sentence_length=65536,
            num_threads=1,
            minloglevel=2,
            **_SPECIAL_IDS,
        )
    except RuntimeError as error:
        raise UserError(
            f"sentencepiece could not train a tokenizer of vocab_size={vocab_size} on {len(captions)} captions with "
            f"{characters} different characters; raise vocab_size. It said: {error}"
        ) from error
    return model.getvalue()
