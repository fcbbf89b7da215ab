"""The tokenizers of published folders: ids of transformers' tokenizers on awkward texts, and where we differ on purpose."""

import json
import pickle

import numpy as np
import pytest
import sentencepiece

from ec_dit.core.errors import UserError
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.encoders.clip_tokenizer import ClipTokenizer
from ec_dit.encoders.t5_tokenizer import T5JsonTokenizer
from tests.encoders.text_folders import (
    AWKWARD,
    CAPTIONS,
    CLIP_SPELLED_OUT,
    COMPOSED,
    END,
    SPELLED_OUT,
    START,
    write_clip_tokenizer,
    write_t5_json,
    write_t5_tokenizer,
)

LENGTHS = (20, 77)


def theirs(tokenizer, texts, length):
    """(ids_BT, mask_BT) as a pipeline of diffusers asks transformers for them."""
    out = tokenizer(texts, padding="max_length", max_length=length, truncation=True)
    return np.array(out["input_ids"]), np.array(out["attention_mask"]).astype(bool)


@pytest.mark.extra("conformance")
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("pad", [END, "!"], ids=["L", "bigG"])
@pytest.mark.parametrize("files", ["vocab.json", "added", "tokenizer.json"])
def test_clip_ids_equal_transformers(files, pad, length, tmp_path):
    from transformers import CLIPTokenizer

    write_clip_tokenizer(tmp_path, pad, files)
    texts = AWKWARD + COMPOSED + CLIP_SPELLED_OUT
    ids_BT, mask_BT = ClipTokenizer.load(tmp_path).encode(texts, length)
    wanted_ids_BT, wanted_mask_BT = theirs(CLIPTokenizer.from_pretrained(tmp_path), texts, length)
    np.testing.assert_array_equal(ids_BT, wanted_ids_BT)
    np.testing.assert_array_equal(mask_BT, wanted_mask_BT)


@pytest.mark.extra("conformance")
@pytest.mark.parametrize("length", LENGTHS)
def test_t5_ids_equal_transformers(length, tmp_path):
    from transformers import T5Tokenizer

    write_t5_tokenizer(tmp_path)
    ids_BT, mask_BT = Tokenizer.load(tmp_path / "spiece.model").encode(AWKWARD, length)
    wanted_ids_BT, wanted_mask_BT = theirs(T5Tokenizer.from_pretrained(tmp_path), AWKWARD, length)
    np.testing.assert_array_equal(ids_BT, wanted_ids_BT)
    np.testing.assert_array_equal(mask_BT, wanted_mask_BT)


@pytest.mark.extra("conformance")
def test_where_t5_ids_are_those_of_sentencepiece_not_of_transformers(tmp_path):
    """Where the two differ, T5 was trained with sentencepiece's.

    A caption is text: '</s>' in it ends nothing. And of characters that NFKC composes of three, or replaces in front of an
    accent, transformers drops a part or makes unknown ones.
    """
    from transformers import T5Tokenizer

    write_t5_tokenizer(tmp_path)
    tokenizer, transformers = Tokenizer.load(tmp_path / "spiece.model"), T5Tokenizer.from_pretrained(tmp_path)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    for text in SPELLED_OUT + COMPOSED:
        ids_BT, mask_BT = tokenizer.encode([text], 32)
        assert ids_BT[0, mask_BT[0]].tolist() != transformers(text)["input_ids"], text
        assert ids_BT[0, mask_BT[0]].tolist() == [*pieces.encode(text), 1]
        assert (ids_BT[0, : mask_BT[0].sum() - 1] > 1).all()
    np.testing.assert_array_equal(tokenizer.encode(["\u1112\u1161\u11ab"], 9)[0], tokenizer.encode(["\ud55c"], 9)[0])


def test_clip_layout(tmp_path):
    tokenizer = ClipTokenizer.load(write_clip_tokenizer(tmp_path))
    ids_BT, mask_BT = tokenizer.encode(CAPTIONS, 9)
    assert ids_BT.shape == mask_BT.shape == (4, 9) and ids_BT.dtype == np.int32 and mask_BT.dtype == bool
    for ids, mask in zip(ids_BT, mask_BT, strict=True):
        length = mask.sum()
        assert mask[:length].all() and ids[0] == tokenizer.bos_id and ids[length - 1] == tokenizer.eos_id
        assert tokenizer.eos_id not in ids[: length - 1] and (ids[length:] == tokenizer.pad_id).all()
    assert mask_BT.sum(1).tolist() == [4, 9, 2, 9]
    assert [min(tokenizer.length(caption), 9) for caption in CAPTIONS] == [4, 9, 2, 9]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (tokenizer.vocab_size - 2, tokenizer.vocab_size - 1)
    with pytest.raises(ValueError, match=r"at least 2"):
        tokenizer.encode(["a cat"], 1)


def test_the_pad_token_is_the_published_one(tmp_path):
    large = ClipTokenizer.load(write_clip_tokenizer(tmp_path / "large"))
    big_g = ClipTokenizer.load(write_clip_tokenizer(tmp_path / "big_g", "!"))
    assert large.pad_id == large.eos_id and big_g.pad_id == 0
    # As in transformers, an exclamation mark is then the padding's id, and no longer an end of a word.
    assert big_g.encode(["a!"], 6)[0][0, 2] == 0 != large.encode(["a!"], 6)[0][0, 2]


def test_clip_tokenizer_survives_pickling(tmp_path):
    tokenizer = ClipTokenizer.load(write_clip_tokenizer(tmp_path, "!"))
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
    np.testing.assert_array_equal(copy.encode(AWKWARD, 20)[0], tokenizer.encode(AWKWARD, 20)[0])
    assert copy.pad_id == 0


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no file or folder .*none"):
        ClipTokenizer.load(tmp_path / "none")
    with pytest.raises(UserError, match=r"neither tokenizer.json nor vocab.json with merges.txt; download them"):
        ClipTokenizer.load(tmp_path)
    write_clip_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nthis is no merge\n")
    with pytest.raises(UserError, match=r"holds no tokenizer of CLIP: .* Download vocab.json, merges.txt, .* again"):
        ClipTokenizer.load(tmp_path)
    write_clip_tokenizer(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({p: i for p, i in vocab.items() if p not in (START, END)})[:-40])
    with pytest.raises(UserError, match=r"holds no tokenizer of CLIP"):
        ClipTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": []}}')
    with pytest.raises(UserError, match=r"holds no tokenizer of CLIP: 'merges'"):
        ClipTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer.json is damaged: it is no JSON"):
        ClipTokenizer.load(tmp_path)


@pytest.mark.extra("conformance")
@pytest.mark.parametrize("length", LENGTHS)
def test_t5_ids_of_a_tokenizer_json_equal_transformers(length, tmp_path):
    """A folder as transformers 5 writes it, without spiece.model."""
    from transformers import T5Tokenizer

    wanted = T5Tokenizer.from_pretrained(write_t5_tokenizer(tmp_path / "spiece"))
    wanted.save_pretrained(tmp_path / "json")
    assert not (tmp_path / "json" / "spiece.model").exists()
    tokenizer, texts = T5JsonTokenizer(tmp_path / "json"), AWKWARD + COMPOSED + SPELLED_OUT
    for ours, expected in zip(tokenizer.encode(texts, length), theirs(wanted, texts, length), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert [tokenizer.length(text) for text in texts] == [len(wanted(text)["input_ids"]) for text in texts]
    assert (tokenizer.eos_id, tokenizer.pad_id) == (wanted.eos_token_id, wanted.pad_token_id)


def test_both_files_of_t5_give_the_same_ids_of_plain_captions(tmp_path):
    ours = T5JsonTokenizer(write_t5_json(tmp_path / "json"))
    sentencepieces = Tokenizer.load(write_t5_tokenizer(tmp_path / "spiece") / "spiece.model")
    for made, expected in zip(ours.encode(CAPTIONS, 40), sentencepieces.encode(CAPTIONS, 40), strict=True):
        np.testing.assert_array_equal(made, expected)
    assert [ours.length(text) for text in CAPTIONS] == [
        len(sentencepieces._processor.encode(text)) + 1 for text in CAPTIONS
    ]
    with pytest.raises(ValueError, match=r"at least 1"):
        ours.encode([""], 0)


def test_the_tokenizer_json_of_another_model_is_refused(tmp_path):
    write_clip_tokenizer(tmp_path, END, "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer.json is no tokenizer of T5: its model is 'BPE', not 'Unigram'"):
        T5JsonTokenizer(tmp_path)


def test_a_list_of_merges_that_is_cut_is_refused(tmp_path):
    """At the end of a line, where every line is sound."""
    write_clip_tokenizer(tmp_path)
    lines = (tmp_path / "merges.txt").read_text().splitlines(keepends=True)
    (tmp_path / "merges.txt").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"1 pieces of the tokenizer's vocabulary, such as .*, come of no merge"):
        ClipTokenizer.load(tmp_path)
