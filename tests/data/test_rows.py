from collections import Counter

import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.data.rows import EncodedRows, PictureRows, choose
from tests import sets


def draws(rows, index, count, seed=0):
    rng = np.random.default_rng(seed)
    example = rows.read(index)
    return [rows.row(example, rng) for _ in range(count)]


@pytest.mark.parametrize(
    "weights", [(), (1.0, 1.0, 1.0), (0.2, 0.5, 0.3), (0.0, 7.0, 1.0), (0.0, 0.0, 1e-9), (2.0, 0.0, 0.0)]
)
def test_captions_are_chosen_as_often_as_their_weights_say(weights):
    rng = np.random.default_rng(0)
    counts = Counter(choose(weights, 3, rng) for _ in range(3000))
    share = np.array(weights or (1, 1, 1)) / sum(weights or (1, 1, 1))
    for caption, part in enumerate(share):
        assert abs(counts[caption] - 3000 * part) <= 4 * np.sqrt(3000 * part * (1 - part))  # exact where it is 0 or 1
    assert sum(counts.values()) == 3000 and set(counts) <= {0, 1, 2}


def test_every_choice_takes_one_number():
    left, right = np.random.default_rng(5), np.random.default_rng(5)
    for count, weights in ((1, ()), (4, ()), (2, (1.0, 3.0))):
        choose(weights, count, left)
        right.random()
        assert left.bit_generator.state == right.bit_generator.state


def record_at(mixed, *, flip, captions):
    """The index of a training record with so many captions, and that record as the source has it."""
    source = {record.id: record for record in sets.MixedSource().items}
    for index, record in enumerate(mixed["train"]):
        found = source[record.id]
        if found.flip == flip and len(found.captions) == captions:
            return index, found
    raise AssertionError("no such record")


def test_samples_have_the_mean_and_the_variance_of_the_posterior(mixed):
    index, source = record_at(mixed, flip=True, captions=1)
    count = 4000
    latents = np.stack([row.image_YXZ for row in draws(EncodedRows(mixed["train"]), index, count)])
    mean, std = (array.astype(np.float64) for array in sets.latents_of(source)[0])
    errors = (latents.mean(0) - mean) / (std / np.sqrt(count))
    assert np.abs(errors).max() < 4.5 and errors.std() < 1.6
    np.testing.assert_allclose(latents.var(0), std**2, rtol=5 * np.sqrt(2 / count))
    noise = (latents - mean) / std
    flat = noise.reshape(count, -1)
    correlations = np.corrcoef(flat, rowvar=False) - np.eye(flat.shape[1])
    assert np.abs(correlations).max() < 5 / np.sqrt(count)  # every number is drawn by itself
    assert abs((np.abs(flat) < 1).mean() - 0.6827) < 0.01  # of a normal distribution


def test_the_mean_is_the_same_every_time(mixed):
    index, source = record_at(mixed, flip=True, captions=3)
    for row in draws(EncodedRows(mixed["train"], posterior="mean"), index, 5):
        np.testing.assert_array_equal(row.image_YXZ, sets.latents_of(source)[0][0])


def test_without_chance_a_row_has_the_first_caption_and_no_mirror_image(mixed):
    rows = EncodedRows(mixed["train"], posterior="mean", flip=True)
    for index, record in enumerate(mixed["train"]):
        row = rows.row(rows.read(index), None)
        np.testing.assert_array_equal(row.image_YXZ, record.latents[0][0])
        text_BTM, mask_BT, _ = sets.BlockEncoders().texts([record.caption])
        np.testing.assert_array_equal(row.text.mask_BT, mask_BT[0])
        assert not row.text.tokens[~mask_BT[0]].any()
        np.testing.assert_array_equal(row.text.tokens[mask_BT[0]], text_BTM[0][mask_BT[0]].astype("bfloat16"))
        assert row.record == index


def test_rows_know_records_beyond_32_bits(mixed):
    (record,) = [mixed["train"][4]]
    row = EncodedRows(mixed["train"], posterior="mean").row((record, 3 * 2**32 + 4), None)
    assert row.record == 3 * 2**32 + 4


def test_without_chance_a_sample_is_always_the_same_one(mixed):
    rows = EncodedRows(mixed["train"], flip=True)
    noise = []
    for index, record in enumerate(mixed["train"]):
        first, again = (rows.row(rows.read(index), None).image_YXZ for _ in range(2))
        np.testing.assert_array_equal(first, again)
        mean, std = (array.astype(np.float32) for array in record.latents[0])
        noise.append(((first - mean) / std).ravel())
    assert len({values[0] for values in noise}) == 23  # another one for every record
    together = np.concatenate(noise)
    assert abs(together.mean()) < 4 / np.sqrt(together.size) and abs(together.std() - 1) < 4 / np.sqrt(
        2 * together.size
    )


def test_latents_are_normalised_channel_by_channel(mixed):
    mean_Z, std_Z = np.array([0.5, -1.0, 2.0], np.float32), np.array([2.0, 0.5, 3.0], np.float32)
    plain, normal = (
        draws(EncodedRows(mixed["train"], **norm), 4, 3) for norm in ({}, {"mean_Z": mean_Z, "std_Z": std_Z})
    )
    for left, right in zip(plain, normal, strict=True):
        assert right.image_YXZ.dtype == np.float32
        for z, (mean, std) in enumerate([(0.5, 2), (-1, 0.5), (2, 3)]):
            expected = (left.image_YXZ[..., z] - mean) / std
            np.testing.assert_allclose(right.image_YXZ[..., z], expected, rtol=1e-6, atol=1e-6)
    (scaled,) = draws(EncodedRows(mixed["train"], mean_Z=1.0, std_Z=2.0), 4, 1)
    np.testing.assert_allclose(scaled.image_YXZ, (plain[0].image_YXZ - 1) / 2, rtol=1e-6)


def test_training_latents_have_the_moments_of_the_encoding(mixed):
    """All records once, many times over: mean 0 and deviation 1 in each channel."""
    encoding = mixed.encoding
    rows = EncodedRows(mixed["train"], mean_Z=encoding.mean_Z, std_Z=encoding.std_Z)
    found = np.concatenate(
        [row.image_YXZ.reshape(-1, 3) for index in range(23) for row in draws(rows, index, 200, index)]
    )
    np.testing.assert_allclose(found.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(found.std(0), 1, atol=0.03)


def test_the_mirror_image_is_taken_half_of_the_time_where_it_is_stored(mixed):
    mirrored, source = record_at(mixed, flip=True, captions=1)
    (plain, _), (other, _) = sets.latents_of(source)
    assert not np.array_equal(plain, other)
    rows = EncodedRows(mixed["train"], posterior="mean", flip=True)
    found = [row.image_YXZ for row in draws(rows, mirrored, 400)]
    seen = [0 if np.array_equal(latent, plain) else 1 if np.array_equal(latent, other) else 2 for latent in found]
    assert set(seen) == {0, 1} and 160 < sum(seen) < 240
    single, source = record_at(mixed, flip=False, captions=1)
    for row in draws(rows, single, 20):
        np.testing.assert_array_equal(row.image_YXZ, sets.latents_of(source)[0][0])


def test_mirroring_changes_no_other_draw(mixed):
    """With and without `flip`, the same captions and the same noise."""
    index, source = record_at(mixed, flip=True, captions=3)
    (mean, std), (other_mean, other_std) = (
        tuple(np.float32(array) for array in pair) for pair in sets.latents_of(source)
    )
    turned = 0
    kept, flipped = (draws(EncodedRows(mixed["train"], flip=flip), index, 40) for flip in (False, True))
    for left, right in zip(kept, flipped, strict=True):
        np.testing.assert_array_equal(left.text.mask_BT, right.text.mask_BT)
        np.testing.assert_array_equal(left.text.tokens, right.text.tokens)
        if not np.array_equal(left.image_YXZ, right.image_YXZ):
            turned += 1
            noise = (left.image_YXZ - mean) / std
            np.testing.assert_allclose((right.image_YXZ - other_mean) / other_std, noise, atol=1e-4)
    assert 10 < turned < 30
    assert len({row.text.mask_BT.tobytes() + row.text.tokens.tobytes() for row in kept}) == 3  # every caption


def test_every_caption_of_a_record_is_drawn_by_weight(mixed):
    index, source = record_at(mixed, flip=False, captions=2)
    assert source.weights == (3.0, 1.0)
    text_BTM, mask_BT, _ = sets.BlockEncoders().texts(source.captions)
    wanted = [text_TM.tobytes() for text_TM in np.where(mask_BT[..., None], text_BTM, 0).astype("bfloat16")]
    drawn = [wanted.index(row.text.tokens.tobytes()) for row in draws(EncodedRows(mixed["train"]), index, 800)]
    assert abs(drawn.count(1) - 200) < 50


def test_mistakes(mixed, numbers, words):
    with pytest.raises(UserError, match=r"posterior is 'mode'; choose one of sample, mean"):
        EncodedRows(mixed["train"], posterior="mode")
    with pytest.raises(UserError, match=r"crop is 'middle'; choose one of center, random"):
        PictureRows(numbers["train"], words, image_size=8, text_length=10, crop="middle")
