import pickle

import numpy as np
import pytest
import sentencepiece

from ec_dit.core.errors import UserError
from ec_dit.data import tokenizer
from ec_dit.preparation import vocabulary

CAPTIONS = [
    f"{n} {color} {shape}"
    for n in "two three".split()
    for color in "red blue".split()
    for shape in "discs cubes".split()
]


@pytest.fixture(scope="module")
def small():
    return tokenizer.Tokenizer(vocabulary.train(CAPTIONS * 20, 200))


def texts(tokens, ids_BT, mask_BT):
    """What the model behind the tokenizer makes of each row, without the end-of-text token."""
    model = sentencepiece.SentencePieceProcessor(model_proto=tokens.model)
    return [model.decode(ids[mask][:-1].tolist()) for ids, mask in zip(ids_BT, mask_BT, strict=True)]


def test_layout(small):
    ids_BT, mask_BT = small.encode(["two red discs", "", "blue"], 16)
    assert ids_BT.shape == mask_BT.shape == (3, 16) and ids_BT.dtype == np.int32 and mask_BT.dtype == bool
    for ids, mask in zip(ids_BT, mask_BT, strict=True):
        length = mask.sum()
        assert mask[:length].all() and not mask[length:].any()
        assert (
            ids[length - 1] == small.eos_id and (ids[: length - 1] > 2).all() and (ids[length:] == small.pad_id).all()
        )
    assert mask_BT[1].sum() == 1
    assert texts(small, ids_BT, mask_BT) == ["two red discs", "", "blue"]
    assert (ids_BT < small.vocab_size).all()


def test_long_captions_keep_their_end(small):
    full_BT, _ = small.encode(["two red discs three blue cubes"], 64)
    cut_BT, mask_BT = small.encode(["two red discs three blue cubes"], 4)
    np.testing.assert_array_equal(cut_BT[0], [*full_BT[0, :3], small.eos_id])
    assert mask_BT.all()
    np.testing.assert_array_equal(small.encode(["two"], 1)[0], [[small.eos_id]])
    with pytest.raises(ValueError, match=r"at least 1"):
        small.encode(["two"], 0)


def test_case_is_folded(small):
    np.testing.assert_array_equal(small.encode(["TWO Red discs"], 12)[0], small.encode(["two red discs"], 12)[0])


def test_unknown_characters_are_marked(small):
    assert 2 in small.encode(["☃"], 8)[0]


def test_training_is_deterministic_and_shrinks():
    assert vocabulary.train(CAPTIONS, 200) == vocabulary.train(iter(CAPTIONS), 200)
    for captions in (["a"], ["a a a"], ["日本語 été"], CAPTIONS):
        model = tokenizer.Tokenizer(vocabulary.train(captions, 5000))
        assert 3 < model.vocab_size < 5000
        ids_BT, mask_BT = model.encode(captions, 64)
        assert texts(model, ids_BT, mask_BT) == captions


def test_survives_pickling(small):
    copy = pickle.loads(pickle.dumps(small))  # noqa: S301
    np.testing.assert_array_equal(copy.encode(["two red"], 9)[0], small.encode(["two red"], 9)[0])


def test_mistakes_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no captions"):
        vocabulary.train(["", "  "], 100)
    with pytest.raises(UserError, match=r"vocab_size=8 .* raise vocab_size"):
        vocabulary.train(CAPTIONS, 8)
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*none.model: No such file"):
        tokenizer.Tokenizer.load(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"bad.model: not a sentencepiece model"):
        tokenizer.Tokenizer.load(tmp_path / "bad.model")


def test_words_of_a_small_corpus_are_whole_pieces():
    captions = [f"a {color} circle and a {other} square" for color in ("red", "purple") for other in ("green", "blue")]
    model = tokenizer.Tokenizer(vocabulary.train(captions * 5, 4096))
    assert [model.length(caption) for caption in captions] == [8] * 4  # seven words and the end
    assert model.length("") == 1
