"""Tools for comparing streams of batches: whole ones, and those of several processes that share them."""

import itertools

import jax
import numpy as np

from ec_dit.core.tree import named_leaves
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

    def join(*arrays):
        blocks = {}
        for array, share in zip(arrays, shares, strict=True):
            blocks |= dict(zip(share.blocks, np.split(array, len(share.blocks)), strict=True))
        return np.concatenate([blocks[i] for i in range(len(blocks))])

    return jax.tree.map(join, *parts)


def kinds(batch):
    """Name -> (shape, type) of every array of a batch."""
    return {name: (array.shape, array.dtype.name) for name, array in named_leaves(batch)}


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)
