import itertools
from operator import itemgetter

import jax
import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.data.loader import Share
from ec_dit.data.synthetic import SyntheticLoader
from tests.data.batches import assert_same, kinds


def take(start, count, **options):
    loader = SyntheticLoader((2, 3, 4), 5, 6, **({"batch_size": 8, "seed": 1} | options))
    return list(itertools.islice(loader.batches(start), count))


def test_batches_have_the_keys_and_shapes_of_cached_data():
    (batch,) = take(3, 1)
    assert kinds(batch) == {
        "image_BYXZ": ((8, 2, 3, 4), "float32"),
        "text/tokens": ((8, 5, 6), "float32"),
        "text/mask_BT": ((8, 5), "bool"),
        "record_B": ((8,), "int64"),
    }
    assert batch.text.mask_BT[:, 0].all()
    assert batch.record_B.tolist() == list(range(24, 32))
    assert SyntheticLoader((1, 1, 1), 1, 1, batch_size=1, seed=0).record_ids([4]) == ["synthetic-4"]


def test_records_are_numbered_as_far_as_the_paper_trains():
    (batch,) = take(799_999, 1, batch_size=4096, share=Share((511,), 512))
    assert batch.record_B.tolist() == list(range(800_000 * 4096 - 8, 800_000 * 4096))


def test_numbers_follow_from_seed_and_step():
    first, second = take(0, 2)
    assert (take(1, 1)[0].image_BYXZ == second.image_BYXZ).all()
    for other in (second, take(0, 1, seed=2)[0]):
        assert not np.isin(other.image_BYXZ, first.image_BYXZ).any()


@pytest.mark.parametrize("blocks", [[(0,), (1,)], [(1, 2), (0, 3)]])
def test_the_blocks_of_the_processes_are_the_global_batches(blocks):
    ways = sum(map(len, blocks))
    shares = [Share(part, ways) for part in blocks]
    for whole, *parts in zip(take(2, 3), *(take(2, 3, share=share) for share in shares), strict=True):
        for share, part in zip(shares, parts, strict=True):
            assert_same(part, jax.tree.map(itemgetter(share.rows(8)), whole))


def test_a_pair_is_the_same_example_with_a_second_latent():
    for single, pair in zip(take(2, 3), take(2, 3, pairs=True), strict=True):
        assert pair.rejected_BYXZ.shape == pair.image_BYXZ.shape and pair.rejected_BYXZ.dtype == np.float32
        assert not np.isin(pair.rejected_BYXZ, pair.image_BYXZ).any()
        assert_same(pair._replace(rejected_BYXZ=None), single)


def test_a_batch_that_does_not_come_out_in_blocks():
    with pytest.raises(UserError, match=r"batch_size is 8; .* 3 blocks"):
        SyntheticLoader((1, 1, 1), 1, 1, batch_size=8, seed=0, share=Share((0,), 3))
