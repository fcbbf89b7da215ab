import itertools
import multiprocessing
import time
from collections import Counter
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.core.errors import TryAgain, UserError
from ec_dit.data import dataset, loader
from ec_dit.data.batch import Row, Text
from ec_dit.data.images import to_uint8
from ec_dit.data.loader import Loader, fixed_batches
from ec_dit.data.records import Record
from ec_dit.data.rows import PictureRows
from ec_dit.data.tokenizer import Tokenizer
from ec_dit.flow.process import even_times
from ec_dit.preparation import filters, writing
from tests import sets
from tests.data.batches import SHARES, assert_same, joined, kinds, shares_of, take

pytestmark = pytest.mark.slow


def rows_of(numbers, words, split="train", **options):
    return PictureRows(numbers[split], words, **{"image_size": 8, "text_length": 10} | options)


def make(numbers, words, *, batch_size=4, seed=1, workers=0, share=loader.ALL, **options):
    rows = rows_of(numbers, words, **{"flip": True, "crop": "random"} | options)
    return Loader(rows, batch_size=batch_size, seed=seed, workers=workers, share=share)


def test_batches_hold_the_records_they_name(numbers, words):
    stream = make(numbers, words)
    for batch in take(stream.batches(), 12):
        assert kinds(batch) == {
            "image_BYXZ": ((4, 8, 8, 3), "float32"),
            "text/tokens": ((4, 10), "int32"),
            "text/mask_BT": ((4, 10), "bool"),
            "record_B": ((4,), "int64"),
        }
        records = [numbers["train"][int(index)] for index in batch.record_B]
        assert stream.record_ids(batch.record_B) == [record.id for record in records]
        ids_BT, mask_BT = words.encode([record.caption for record in records], 10)
        np.testing.assert_array_equal(batch.text.tokens, ids_BT)
        np.testing.assert_array_equal(batch.text.mask_BT, mask_BT)
        for record, pixels_YXZ in zip(records, to_uint8(batch.image_BYXZ), strict=True):
            assert (pixels_YXZ[..., 0] == record.meta["index"]).all()
            steps = np.diff(pixels_YXZ[0, :, 1].astype(int))
            assert (steps == 10).all() or (record.flip and (steps == -10).all())  # An intact window, perhaps mirrored.


def test_augmentation_varies_and_obeys_the_record(numbers, words):
    seen = Counter()
    allows = [record.flip for record in numbers["train"]]
    for batch in take(make(numbers, words).batches(), 100):
        for index, pixels_YXZ in zip(batch.record_B, to_uint8(batch.image_BYXZ), strict=True):
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
        pixels_BYXZ = to_uint8(batch.image_BYXZ)
        np.testing.assert_array_equal(pixels_BYXZ[:, 0, :, 1], np.tile(np.arange(20, 100, 10), (4, 1)))


def test_epochs_are_whole_and_differ(numbers, words):
    batches = take(make(numbers, words, batch_size=23).batches(), 3)
    orders = [batch.record_B.tolist() for batch in batches]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    (other,) = take(make(numbers, words, batch_size=23, seed=2).batches(), 1)
    assert other.record_B.tolist() not in orders


@pytest.mark.parametrize("blocks", SHARES)
def test_the_blocks_of_the_processes_are_the_global_batches(numbers, words, blocks):
    whole = take(make(numbers, words).batches(), 14)  # Beyond two epochs, which do not divide into batches.
    shares = shares_of(blocks)
    loaders = [make(numbers, words, share=share) for share in shares]
    for expected, *parts in zip(whole, *(take(each.batches(), 14) for each in loaders), strict=True):
        assert all(len(part.record_B) == 4 // len(blocks) for part in parts)
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


def test_a_worker_that_is_killed_is_missed_at_the_next_batch(numbers, words):
    """Though both hold batches that are ready."""
    others = set(multiprocessing.active_children())
    batches = make(numbers, words, workers=2).batches()
    take(batches, 2)
    time.sleep(1)  # they make more
    workers = set(multiprocessing.active_children()) - others
    one, _ = workers
    one.kill()
    one.join()
    with pytest.raises(TryAgain, match=r"a process that loads data ended with exit code -9\."):
        next(batches)
    assert not workers & set(multiprocessing.active_children())


@pytest.mark.parametrize("weights", [(5.0, 0.0, 3.0, 2.0), ()])
def test_captions_are_drawn_as_often_as_their_weights_say(tmp_path, weights):
    captions = ("one", "two", "three", "four")
    image = sets.record("train", 0).image
    items = [Record(str(n), image, captions, weights) for n in range(40)]
    sets.write(sets.Listed(items), tmp_path / "set")
    opened = dataset.open(tmp_path / "set")
    words = Tokenizer.load(opened.tokenizer_path)
    of_ids = {
        tuple(ids): caption for caption, ids in zip(captions, words.encode(captions, 10)[0].tolist(), strict=True)
    }
    rows = PictureRows(opened["train"], words, image_size=8, text_length=10)
    counts = Counter()
    for batch in take(Loader(rows, batch_size=50, seed=3).batches(), 40):
        counts.update(of_ids[tuple(ids)] for ids in batch.text.tokens.tolist())
    total = 40 * 50
    share = np.array(weights or [1.0] * 4) / sum(weights or [1.0] * 4)
    expected = {caption: total * part for caption, part in zip(captions, share, strict=True) if part}
    assert set(counts) == set(expected)
    assert sum((counts[caption] - wanted) ** 2 / wanted for caption, wanted in expected.items()) < 16  # p < 0.0015
    evaluated = next(fixed_batches(rows, batch_size=2))
    assert of_ids[tuple(evaluated.text.tokens[0].tolist())] == "one"


def test_fixed_batches_are_the_split_once(numbers, words):
    rows = rows_of(numbers, words, "validation", crop="random", flip=True)
    batches = list(fixed_batches(rows, batch_size=4))
    assert [batch.record_B.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 0]]
    assert [batch.position_B.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, -1]]
    for batch in batches:
        for index, pixels_YXZ in zip(batch.record_B, to_uint8(batch.image_BYXZ), strict=True):
            assert (pixels_YXZ[..., 0] == numbers["validation"][int(index)].meta["index"]).all()
            np.testing.assert_array_equal(pixels_YXZ[0, :, 1], np.arange(20, 100, 10))
    for blocks in SHARES:
        shares = shares_of(blocks)
        each = [list(fixed_batches(rows, batch_size=4, share=share)) for share in shares]
        for whole, *parts in zip(batches, *each, strict=True):
            assert_same(joined(parts, shares), whole)


def test_some_fixed_batches_are_from_all_over_the_split(numbers, words):
    rows = rows_of(numbers, words)

    def found(count):
        return [batch.record_B.tolist() for batch in fixed_batches(rows, batch_size=4, max_batches=count)]

    assert found(1) == [[0, 5, 11, 17]]
    two = [*itertools.chain(*found(2))]
    assert len(set(two)) == 8 and max(np.diff([*two, 23])) == 3 and min(np.diff(two)) == 2
    assert (
        found(6)
        == found(100)
        == found(None)
        == [list(range(n, min(n + 4, 23))) + [0] * (n == 20) for n in range(0, 23, 4)]
    )


class Numbered:
    """Rows of records that are numbers alone, of two shapes."""

    def __init__(self, total):
        parts = [SimpleNamespace(start=0, size=3 * total // 4), SimpleNamespace(start=3 * total // 4, size=total // 4)]

        class Records:
            def __len__(self):
                return total

        self.records = Records()
        self.records.parts = parts

    def read(self, index):
        return index

    def row(self, example, rng):
        return Row(np.zeros(1), Text(np.zeros(1), np.ones(1, bool)), example)


# 1,024 images of 12 million records, of the paper's 1.2 billion, and of strides that meet the period of 32-bit words.
@pytest.mark.parametrize("stride", [1, 11_719, 1_171_875, 2**20, 2**32, 2**32 - 1, 2**40])
def test_validation_times_are_even_whatever_the_stride_of_the_records(stride):
    batches = list(fixed_batches(Numbered(1024 * stride), batch_size=256, max_batches=4))
    records = np.concatenate([batch.record_B for batch in batches])
    positions = np.concatenate([batch.position_B for batch in batches])
    np.testing.assert_array_equal(records, stride * np.arange(1024))
    times = np.sort(even_times(jnp.asarray(positions)))
    np.testing.assert_array_equal(np.bincount((4 * times).astype(int)) // 10, [25] * 4)  # 250 to 259 in each quarter
    assert np.abs(times - (np.arange(1024) + 0.5) / 1024).max() < 4 / 1024


def test_positions_go_on_from_one_shape_to_the_next_and_leave_out_what_fills_up():
    batches = list(fixed_batches(Numbered(40), batch_size=8, max_batches=None))
    assert [batch.position_B.tolist() for batch in batches] == [
        *(list(range(start, start + 8)) for start in (0, 8, 16)),
        *([24, 25, 26, 27, 28, 29, -1, -1], [30, 31, 32, 33, 34, 35, 36, 37], [38, 39, *[-1] * 6]),
    ]
    assert batches[3].record_B.tolist() == [24, 25, 26, 27, 28, 29, 0, 1]


def test_a_damaged_image_is_named(tmp_path, words, monkeypatch):
    record = sets.record("train", 0)
    broken = Record("broken", record.image[:-30], record.captions)
    look = filters.look
    monkeypatch.setattr(
        writing.filters,
        "look",
        lambda item, chosen: filters.Picture(item, None) if item is broken else look(item, chosen),
    )
    sets.write(sets.Listed([broken]), tmp_path / "set")
    with pytest.raises(UserError, match=r"set: record 'broken': damaged image: [^\n]*$"):
        next(make(dataset.open(tmp_path / "set"), words).batches())


def test_mistakes(numbers, words):
    with pytest.raises(UserError, match=r"batch_size is 4; .* 3 blocks"):
        make(numbers, words, share=loader.Share((0,), 3))
    with pytest.raises(UserError, match=r"batch_size is 0"):
        make(numbers, words, batch_size=0)
    with pytest.raises(UserError, match=r"no split 'tran'"):
        rows_of(numbers, words, "tran")
