import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from ec_dit.data import stored
from ec_dit.data.loader import spread
from ec_dit.data.records import Record
from ec_dit.data.stored import Codec, EncodedRecord

SHAPE, WIDTH, LENGTH = (2, 3, 4), 6, 11  # a mask of eleven tokens does not fill its bytes
MASKS = ("11100000000", "01001000001", "00000000000", "11111111111")  # a prefix, gaps, an empty text, a full one


def encoded(latents=1, masks=MASKS):
    rng = np.random.default_rng(latents)
    texts = []
    for bits in masks:
        mask_T = np.array([bit == "1" for bit in bits])
        scale = 10.0 ** rng.uniform(-3, 3, (mask_T.sum(), 1))  # tokens of very different sizes
        texts.append(((scale * rng.normal(size=(mask_T.sum(), WIDTH))).astype(np.float32), mask_T))
    pairs = tuple(tuple(rng.normal(size=(2, *SHAPE)).astype(np.float16)) for _ in range(latents))
    captions = tuple(f"caption {n} \u00e9" for n in range(len(masks)))
    weights = tuple(float(n + 1) for n in range(len(masks)))
    return EncodedRecord("one/\u00e9", captions, weights, pairs, tuple(texts), {"score": 0.5, "lang": "\u00e9"})


def there_and_back(record, text_type):
    codec = Codec(SHAPE, WIDTH, LENGTH, text_type)
    return codec.record(codec.fields(record))


@pytest.mark.parametrize("text_type", stored.TEXT_TYPES)
@pytest.mark.parametrize("latents", [1, 2])
def test_facts_latents_and_masks_come_back_as_they_were(text_type, latents):
    record = encoded(latents)
    found = there_and_back(record, text_type)
    for name in ("id", "captions", "weights", "meta", "caption"):
        assert getattr(found, name) == getattr(record, name)
    assert len(found.latents) == latents
    for pair, expected in zip(found.latents, record.latents, strict=True):
        for array, wanted in zip(pair, expected, strict=True):
            assert array.dtype == np.float16
            np.testing.assert_array_equal(array, wanted)
    for (tokens, mask_T), bits in zip(found.texts, MASKS, strict=True):
        assert "".join("01"[bit] for bit in mask_T.astype(int)) == bits
        assert tokens.shape == (bits.count("1"), WIDTH)


def test_bfloat16_texts_are_rounded_to_eight_bits():
    record = encoded()
    for (found, _), (tokens, _) in zip(there_and_back(record, "bfloat16").texts, record.texts, strict=True):
        assert (np.abs(found.astype(np.float32) - tokens) <= np.abs(tokens) * 2**-8).all()
    exact = dataclasses.replace(
        record, texts=tuple((text.astype(ml_dtypes.bfloat16), mask) for text, mask in record.texts)
    )
    for (found, _), (tokens, _) in zip(there_and_back(exact, "bfloat16").texts, exact.texts, strict=True):
        np.testing.assert_array_equal(found, tokens)


def test_int8_texts_are_off_by_a_254th_of_their_largest_number_at_most():
    record = encoded()
    errors = []
    for (found, _), (tokens, _) in zip(there_and_back(record, "int8").texts, record.texts, strict=True):
        assert found.dtype == np.float32
        largest = np.abs(tokens).max(1, initial=0, keepdims=True)
        errors.append((np.abs(found - tokens) / np.maximum(largest, 1e-30)).ravel())
        np.testing.assert_allclose(np.abs(found).max(1, initial=0, keepdims=True), largest, rtol=1e-6)
    errors = np.concatenate(errors)
    assert errors.max() <= 1 / 254 + 1e-6
    assert errors.max() > 0.9 / 254  # the bound is reached: nothing finer is claimed
    silence = np.zeros((3, WIDTH), np.float32), record.texts[0][1]
    silent = dataclasses.replace(record, captions=("",), weights=(), texts=(silence,))
    assert not there_and_back(silent, "int8").texts[0][0].any()


def test_int8_takes_half_of_the_bytes():
    fields = {kind: Codec(SHAPE, WIDTH, LENGTH, kind).fields(encoded()) for kind in stored.TEXT_TYPES}
    tokens = "".join(MASKS).count("1")
    assert len(fields["bfloat16"]["text"]) == 2 * WIDTH * tokens and fields["bfloat16"]["scale"] == b""
    assert len(fields["int8"]["text"]) == WIDTH * tokens and len(fields["int8"]["scale"]) == 4 * tokens


def test_the_bytes_are_as_the_features_say():
    record = encoded(2, MASKS[:2])
    fields = Codec(SHAPE, WIDTH, LENGTH, "bfloat16").fields(record)
    latent = np.frombuffer(fields["latent"], "<f2").reshape(2, 2, *SHAPE)
    np.testing.assert_array_equal(latent[1, 0], record.latents[1][0])
    np.testing.assert_array_equal(latent[0, 1], record.latents[0][1])
    assert fields["mask"] == bytes([0b11100000, 0b00000000, 0b01001000, 0b00100000])
    upper_halves = np.frombuffer(fields["text"], "<u2").astype("<u4") << 16  # a bfloat16 is half of a float32
    np.testing.assert_array_equal(
        upper_halves.view("<f4").reshape(-1, WIDTH)[:3],
        record.texts[0][0].astype(ml_dtypes.bfloat16).astype(np.float32),
    )
    assert json.loads(fields["captions"]) == list(record.captions)


@pytest.mark.parametrize("text_type", stored.TEXT_TYPES)
def test_pooled_vectors_come_back_in_bfloat16(text_type):
    vectors = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    record = dataclasses.replace(encoded(), pooled=tuple(vectors))
    codec = Codec(SHAPE, WIDTH, LENGTH, text_type, 5)
    fields = codec.fields(record)
    np.testing.assert_array_equal(codec.record(fields).pooled, vectors.astype(ml_dtypes.bfloat16))
    assert len(fields["pooled"]) == 4 * 5 * 2
    with pytest.raises(ValueError, match="reshape"):
        codec.record(fields | {"pooled": fields["pooled"][:-2]})
    plain = Codec(SHAPE, WIDTH, LENGTH, text_type)  # of a set that was prepared before there were any
    assert (
        plain.record({name: value for name, value in plain.fields(encoded()).items() if name != "pooled"}).pooled == ()
    )


@pytest.mark.parametrize("text_type", stored.TEXT_TYPES)
def test_damaged_bytes_are_an_error(text_type):
    codec = Codec(SHAPE, WIDTH, LENGTH, text_type)
    fields = codec.fields(encoded())
    damages = [(key, fields[key][:-1]) for key in ("latent", "text", "mask", "captions", "weights", "meta")]
    damages += [(key, b"") for key in ("latent", "text", "mask", "captions")]
    damages.append(("latent", fields["latent"][: len(fields["latent"]) // 2]))  # a mean without its deviation
    damages.append(("latent", 3 * fields["latent"]))
    damages.append(("text", fields["text"] + bytes(2 * WIDTH)))  # a token too many
    damages.append(("mask", bytes([fields["mask"][0] ^ 1]) + fields["mask"][1:]))
    if text_type == "int8":
        damages += [("scale", fields["scale"][:-4]), ("scale", fields["scale"][:4]), ("scale", b"")]
    for key, data in damages:
        with pytest.raises(ValueError):  # noqa: PT011 - NumPy's own words
            pytest.fail(f"{key} of {len(data)} bytes: {codec.record(dict(fields) | {key: data})}")
    assert codec.record(fields).id == "one/\u00e9"


def test_pictures_come_back_as_they_were():
    record = Record("a/\u00e9", b"\x89PNG", ("one", "two \u00e9"), (0.5, 2.0), "validation", True, {"b": [1, "\u00e9"]})
    fields = stored.picture_fields(record)
    assert stored.picture_record(fields, "validation") == record
    assert stored.picture_fields(dataclasses.replace(record, meta={"b": 1, "a": 2})) == stored.picture_fields(
        dataclasses.replace(record, meta={"a": 2, "b": 1})
    )


@pytest.mark.parametrize(("total", "count"), [(10, 3), (10, 10), (10, 15), (7, 1), (1000, 999), (1000, 7)])
def test_spread_is_even_and_without_repeats(total, count):
    chosen = list(spread(total, count))
    assert len(chosen) == len(set(chosen)) == min(total, count)
    assert chosen == sorted(chosen) and chosen[0] >= 0 and chosen[-1] < total
    steps = np.diff([*chosen, chosen[0] + total])
    assert steps.max() - steps.min() <= 1
