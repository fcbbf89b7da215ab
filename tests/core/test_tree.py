"""Names, sizes, norms and fingerprints of small trees worked out by hand."""

import jax
import jax.numpy as jnp
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


def test_global_norm_is_3_4_12_13(example):
    assert tree.global_norm(example) == 13
    assert tree.global_norm({}) == 0


def test_global_norm_sums_in_float32():
    # 1024 ones in bfloat16: a bfloat16 sum stalls at 256.
    norm = tree.global_norm([jnp.ones(1, jnp.bfloat16)] * 1024)
    assert norm.dtype == jnp.float32
    assert norm == 32


def test_fingerprint_ignores_order_and_device(example):
    same = {"a": jnp.asarray(example["a"]), "b": [jnp.asarray(leaf) for leaf in example["b"]]}
    assert tree.fingerprint(example) == tree.fingerprint(same)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"a": np.array(13, np.int32)},
        lambda t: t | {"a": np.array(12, np.int64)},
        lambda t: {"c": t["a"], "b": t["b"]},
        lambda t: t | {"b": [t["b"][0], t["b"][1].T]},
        lambda t: t | {"b": [t["b"][0], np.array([[4.0, -0.0]], np.float32)]},
        lambda t: t | {"b": t["b"][::-1]},
    ],
    ids=["value", "dtype", "name", "shape", "sign of zero", "order"],
)
def test_fingerprint_sees_every_change(example, change):
    assert tree.fingerprint(example) != tree.fingerprint(change(example))
