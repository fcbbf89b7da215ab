"""Tools for comparing streams of batches: whole ones, and those of several processes that share them."""

import itertools

import numpy as np

from ec_dit.data import loader

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


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key])
