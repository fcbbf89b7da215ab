import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.data import dataset, loader
from ec_dit.data.images import to_uint8


def make(numbers, words, **options):
    settings = {"batch_size": 4, "image_size": 8, "text_length": 10, "seed": 1, "flip": True, "crop": "random"}
    return loader.Loader(numbers, "train", words, **settings | options)


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key])


def test_batches_hold_the_records_they_name(numbers, words):
    stream = make(numbers, words)
    for batch in take(stream.batches(), 12):
        assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
            "image_BYXZ": ((4, 8, 8, 3), "float32"),
            "ids_BT": ((4, 10), "int32"),
            "mask_BT": ((4, 10), "bool"),
            "record_B": ((4,), "int32"),
        }
        records = [numbers["train"][int(index)] for index in batch["record_B"]]
        assert stream.record_ids(batch["record_B"]) == [record.id for record in records]
        ids_BT, mask_BT = words.encode([record.caption for record in records], 10)
        np.testing.assert_array_equal(batch["ids_BT"], ids_BT)
        np.testing.assert_array_equal(batch["mask_BT"], mask_BT)
        for record, pixels_YXZ in zip(records, to_uint8(batch["image_BYXZ"]), strict=True):
            assert (pixels_YXZ[..., 0] == record.meta["index"]).all()
            steps = np.diff(pixels_YXZ[0, :, 1].astype(int))
            assert (steps == 10).all() or (record.flip and (steps == -10).all())  # An intact window, perhaps mirrored.


def test_augmentation_varies_and_obeys_the_record(numbers, words):
    seen = Counter()
    allows = [record.flip for record in numbers["train"]]
    for batch in take(make(numbers, words).batches(), 100):
        for index, pixels_YXZ in zip(batch["record_B"], to_uint8(batch["image_BYXZ"]), strict=True):
            mirrored = bool(pixels_YXZ[0, 0, 1] > pixels_YXZ[0, -1, 1])
            seen[allows[int(index)], mirrored, int(pixels_YXZ[0, :, 1].min())] += 1
    lefts = {left for _, _, left in seen}
    assert lefts == {0, 10, 20, 30, 40}  # 12 - 8 + 1 windows.
    mirrored = {
        allowed: sum(n for (flip, m, _), n in seen.items() if flip == allowed and m) for allowed in (True, False)
    }
    allowed = sum(n for (flip, _, _), n in seen.items() if flip)
    assert mirrored[False] == 0 and 0.35 < mirrored[True] / allowed < 0.65

    for batch in take(make(numbers, words, flip=False, crop="center").batches(), 20):
        pixels_BYXZ = to_uint8(batch["image_BYXZ"])
        np.testing.assert_array_equal(pixels_BYXZ[:, 0, :, 1], np.tile(np.arange(20, 100, 10), (4, 1)))


def test_epochs_are_whole_and_differ(numbers, words):
    batches = take(make(numbers, words, batch_size=23).batches(), 3)
    orders = [batch["record_B"].tolist() for batch in batches]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    (other,) = take(make(numbers, words, batch_size=23, seed=2).batches(), 1)
    assert other["record_B"].tolist() not in orders


SHARES = [
    [(0,)],
    [(0,), (1,)],
    [(1, 2), (0, 3)],
    [(3,), (0,), (2,), (1,)],
]  # blocks of each process, of four where four


def shares_of(blocks_of_each):
    ways = sum(map(len, blocks_of_each))
    return [loader.Share(blocks, ways) for blocks in blocks_of_each]


def joined(parts, shares):
    """One batch of the blocks of all processes, each at its place."""
    batch = {}
    for key in parts[0]:
        blocks = {}
        for part, share in zip(parts, shares, strict=True):
            blocks |= dict(zip(share.blocks, np.split(part[key], len(share.blocks)), strict=True))
        batch[key] = np.concatenate([blocks[i] for i in range(len(blocks))])
    return batch


@pytest.mark.parametrize("blocks", SHARES)
def test_the_blocks_of_the_processes_are_the_global_batches(numbers, words, blocks):
    whole = take(make(numbers, words).batches(), 14)  # Beyond two epochs, which do not divide into batches.
    shares = shares_of(blocks)
    loaders = [make(numbers, words, share=share) for share in shares]
    for expected, *parts in zip(whole, *(take(each.batches(), 14) for each in loaders), strict=True):
        assert all(len(part["record_B"]) == 4 // len(blocks) for part in parts)
        assert_same(joined(parts, shares), expected)
    late = [take(each.batches(9), 2) for each in loaders]
    assert_same(joined([part[1] for part in late], shares), whole[10])


def test_a_restart_continues_the_stream(numbers, words):
    unbroken = take(make(numbers, words).batches(), 15)
    for start in (1, 6, 13):
        resumed = take(make(numbers, words).batches(start), 2)
        assert_same(resumed[0], unbroken[start])
        assert_same(resumed[1], unbroken[start + 1])
    share = make(numbers, words, share=loader.Share((1,), 2))
    assert_same(take(share.batches(9), 1)[0], take(share.batches(), 10)[9])


def test_caching_changes_nothing(numbers, words):
    one_image = 8 * 12 * 3
    plain = take(make(numbers, words, cache_bytes=0).batches(), 13)
    for cache_bytes in (5 * one_image, 2**20):
        stream = make(numbers, words, cache_bytes=cache_bytes)
        for left, right in zip(take(stream.batches(), 13), plain, strict=True):
            assert_same(left, right)


def test_workers_give_the_same_batches(numbers, words):
    expected = take(make(numbers, words).batches(), 9)
    for left, right in zip(take(make(numbers, words, workers=2).batches(2), 7), expected[2:], strict=True):
        assert_same(left, right)
    shares = shares_of([(0,), (1,)])
    loaders = [make(numbers, words, workers=1, share=share) for share in shares]
    for *parts, right in zip(*(take(each.batches(2), 7) for each in loaders), expected[2:], strict=True):
        assert_same(joined(parts, shares), right)


def test_fixed_batches_are_the_split_once(numbers, words):
    settings = {"batch_size": 4, "image_size": 8, "text_length": 10}
    batches = list(loader.fixed_batches(numbers, "validation", words, **settings))
    assert [batch["record_B"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, -1]]
    for batch in batches:
        for index, pixels_YXZ in zip(batch["record_B"], to_uint8(batch["image_BYXZ"]), strict=True):
            assert (pixels_YXZ[..., 0] == numbers["validation"][max(int(index), 0)].meta["index"]).all()
            np.testing.assert_array_equal(pixels_YXZ[0, :, 1], np.arange(20, 100, 10))
    for blocks in SHARES:
        shares = shares_of(blocks)
        each = [list(loader.fixed_batches(numbers, "validation", words, **settings, share=share)) for share in shares]
        for whole, *parts in zip(batches, *each, strict=True):
            assert_same(joined(parts, shares), whole)
    assert len(list(loader.fixed_batches(numbers, "validation", words, **settings, max_batches=1))) == 1


def test_a_damaged_image_is_named(tmp_path, counting, words):
    class Broken(type(counting())):
        def records(self, split):
            return (replace(record, image=record.image[:-30]) for record in super().records(split))

    dataset.write(Broken(counting(train=1).options), tmp_path / "set", vocab_size=64, progress=False)
    with pytest.raises(UserError, match=r"set: record 'train-0': damaged image: [^\n]*$"):
        next(make(dataset.open(tmp_path / "set"), words).batches())


def test_mistakes(numbers, words):
    with pytest.raises(UserError, match=r"batch_size is 4; .* 3 blocks"):
        make(numbers, words, share=loader.Share((0,), 3))
    with pytest.raises(UserError, match=r"batch_size is 0"):
        make(numbers, words, batch_size=0)
    with pytest.raises(UserError, match=r"crop is 'middle'; choose one of center, random"):
        make(numbers, words, crop="middle")
    with pytest.raises(UserError, match=r"no split 'tran'"):
        loader.Loader(numbers, "tran", words, batch_size=4, image_size=8, text_length=10, seed=0)
