"""Names and sizes of small trees worked out by hand."""

import jax
import numpy as np
import pytest

from ec_dit.core import tree


@pytest.fixture
def example():
    return {"b": [np.array([3.0], np.float32), np.array([[4.0, 0.0]], np.float32)], "a": np.array(12, np.int32)}


def test_named_leaves(example):
    assert [(name, leaf.shape) for name, leaf in tree.named_leaves(example)] == [
        ("a", ()),
        ("b/0", (1,)),
        ("b/1", (1, 2)),
    ]


def test_num_params(example):
    assert tree.num_params(example) == 4
    assert tree.num_params(jax.eval_shape(lambda: example)) == 4
