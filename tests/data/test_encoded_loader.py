"""The stream of encoded batches: records of three shapes, of which every batch has one."""

import itertools

import numpy as np
import pytest

from ec_dit.data import dataset, loader
from ec_dit.data.loader import Loader, fixed_batches
from ec_dit.data.rows import EncodedRows
from tests import sets
from tests.data.batches import SHARES, assert_same, joined, kinds, shares_of, take

pytestmark = pytest.mark.slow

SIZES = {(2, 2): 13, (2, 3): 7, (3, 2): 3}


def encoded(mixed, *, batch_size=4, seed=1, workers=0, share=loader.ALL, **options):
    rows = EncodedRows(mixed["train"], **{"flip": True} | options)
    return Loader(rows, batch_size=batch_size, seed=seed, workers=workers, share=share)


def shape_of(batch):
    return batch.image_BYXZ.shape[1:3]


def test_encoded_batches_hold_the_records_they_name(mixed):
    source = {record.id: record for record in sets.MixedSource().items}
    stream = encoded(mixed, posterior="mean", flip=False)
    seen = set()
    for batch in take(stream.batches(), 90):
        rows, columns = shape_of(batch)
        assert kinds(batch) == {
            "image_BYXZ": ((4, rows, columns, 3), "float32"),
            "text/tokens": ((4, 5, 6), "bfloat16"),
            "text/mask_BT": ((4, 5), "bool"),
            "record_B": ((4,), "int64"),
        }
        for row, id_ in enumerate(stream.record_ids(batch.record_B)):
            np.testing.assert_array_equal(batch.image_BYXZ[row], sets.latents_of(source[id_])[0][0])
            texts, masks, _ = sets.BlockEncoders().texts(source[id_].captions)
            texts = np.where(masks[..., None], texts, 0).astype("bfloat16")
            caption = next(n for n, text in enumerate(texts) if np.array_equal(text, batch.text.tokens[row]))
            np.testing.assert_array_equal(batch.text.mask_BT[row], masks[caption])
            seen.add((id_, caption))
    assert {id_ for id_, _ in seen} == {id_ for id_ in source if id_.startswith("train")}
    assert len(seen) > 40  # of 45 captions: not only the first ones


def test_pooled_vectors_of_the_drawn_captions(tmp_path):
    """Stored where encoders give them, and read where a model wants them: each beside the tokens of its own caption."""
    source = sets.MixedSource()
    encoders = sets.BlockEncoders(pooled_width=3)
    sets.write(source, tmp_path / "set", encoding=sets.plan(encoders))
    found = dataset.open(tmp_path / "set")
    null = encoders.texts([""])
    np.testing.assert_array_equal(found.encoding.null_pooled_M, null.pooled_BM[0])
    captions = [caption for item in source.items for caption in item.captions]
    tokens, masks, pooled = encoders.texts(captions)
    stored = [
        np.where(mask_T[:, None], text_TM, 0).astype("bfloat16") for text_TM, mask_T in zip(tokens, masks, strict=True)
    ]
    known = {text_TM.tobytes(): pooled_M for text_TM, pooled_M in zip(stored, pooled, strict=True)}
    for pooled_too in (True, False):
        rows = EncodedRows(found["train"], pooled=pooled_too)
        batch = next(iter(Loader(rows, batch_size=4, seed=0).batches()))
        assert (batch.text.pooled_BM is None) != pooled_too
        for row in range(4 if pooled_too else 0):
            expected = known[batch.text.tokens[row].tobytes()].astype("bfloat16").astype(np.float32)
            np.testing.assert_array_equal(batch.text.pooled_BM[row], expected)


def test_every_batch_has_one_shape_and_shapes_take_turns_in_proportion(mixed):
    shapes = [shape_of(batch) for batch in take(encoded(mixed).batches(), 46)]
    for step in range(1, 47):
        for shape, size in SIZES.items():
            assert abs(shapes[:step].count(shape) - step * size / 23) < 1.5
    assert [shape_of(batch) for batch in take(encoded(mixed, seed=7, batch_size=2).batches(), 46)] == shapes


def test_epochs_of_each_shape_are_whole(mixed):
    orders = {shape: [] for shape in SIZES}
    for batch in take(encoded(mixed).batches(), 69):
        orders[shape_of(batch)] += batch.record_B.tolist()
    start = 0
    for shape, size in SIZES.items():
        epochs = [orders[shape][i : i + size] for i in range(0, len(orders[shape]) - size + 1, size)]
        assert len(epochs) >= 10
        assert all(sorted(epoch) == list(range(start, start + size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > (5 if size > 3 else 2)
        start += size


def test_encoded_streams_go_on_at_any_step(mixed):
    unbroken = take(encoded(mixed).batches(), 32)
    assert len({shape_of(batch) for batch in unbroken[:12]}) == 3
    for start in range(30):
        for left, right in zip(take(encoded(mixed).batches(start), 2), unbroken[start:], strict=False):
            assert_same(left, right)
    far = take(encoded(mixed).batches(10**9), 2)
    assert_same(far[1], take(encoded(mixed).batches(10**9 + 1), 1)[0])


@pytest.mark.parametrize("blocks", SHARES)
def test_the_blocks_of_encoded_batches(mixed, blocks):
    whole = take(encoded(mixed).batches(), 14)
    shares = shares_of(blocks)
    loaders = [encoded(mixed, share=share) for share in shares]
    for expected, *parts in zip(whole, *(take(each.batches(), 14) for each in loaders), strict=True):
        assert_same(joined(parts, shares), expected)
    late = [take(each.batches(9), 2) for each in loaders]
    assert_same(joined([part[1] for part in late], shares), whole[10])


def test_workers_give_the_same_encoded_batches(mixed):
    expected = take(encoded(mixed).batches(), 12)
    for left, right in zip(take(encoded(mixed, workers=2).batches(1), 11), expected[1:], strict=True):
        assert_same(left, right)
    share = loader.Share((1,), 2)
    expected = take(encoded(mixed, share=share).batches(), 6)
    for left, right in zip(take(encoded(mixed, share=share, workers=1).batches(3), 3), expected[3:], strict=True):
        assert_same(left, right)


def test_other_seeds_give_other_batches(mixed):
    first, other = (take(encoded(mixed, seed=seed).batches(), 23) for seed in (1, 2))
    assert [batch.record_B.tolist() for batch in first] != [batch.record_B.tolist() for batch in other]
    assert not any(np.isin(a.image_BYXZ, b.image_BYXZ).any() for a, b in zip(first, other, strict=True))


def test_fixed_encoded_batches_cover_each_record_once(mixed):
    rows = EncodedRows(mixed["train"], flip=True, posterior="mean")
    batches = list(fixed_batches(rows, batch_size=4))
    assert [batch.record_B.tolist() for batch in batches] == [
        *([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 0, 1, 2]),
        *([13, 14, 15, 16], [17, 18, 19, 13]),
        [20, 21, 22, 20],
    ]
    latents = [record.latents[0][0] for record in mixed["train"]]
    shown = [*range(4), *range(4, 8), *range(8, 12), 12, 0, 1, 2, *range(13, 17), 17, 18, 19, 13, 20, 21, 22, 20]
    for index, latent_YXZ in zip(shown, itertools.chain(*(batch.image_BYXZ for batch in batches)), strict=True):
        np.testing.assert_array_equal(latent_YXZ, latents[index])


@pytest.mark.parametrize("posterior", ["sample", "mean"])
def test_fixed_encoded_batches_are_the_same_every_time(mixed, posterior):
    rows = EncodedRows(mixed["train"], flip=True, posterior=posterior)
    batches = list(fixed_batches(rows, batch_size=4))
    for again, batch in zip(fixed_batches(rows, batch_size=4), batches, strict=True):
        assert_same(again, batch)
    for blocks in SHARES:
        shares = shares_of(blocks)
        each = [list(fixed_batches(rows, batch_size=4, share=share)) for share in shares]
        for whole, *parts in zip(batches, *each, strict=True):
            assert_same(joined(parts, shares), whole)


def test_some_fixed_encoded_batches_are_of_every_shape(mixed):
    rows = EncodedRows(mixed["train"])
    batches = list(fixed_batches(rows, batch_size=4, max_batches=2))
    kept = [i for batch in batches for i in batch.record_B[batch.position_B >= 0].tolist()]
    assert kept == [0, 2, 5, 7, 10, 13, 15, 17, 20, 21]  # 8 x 13/23, 8 x 7/23 and 8 x 3/23, rounded up
