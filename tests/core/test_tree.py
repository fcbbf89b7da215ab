"""Names, sizes and fingerprints of small trees worked out by hand."""

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


def test_a_fingerprint_of_each_leaf_sees_every_bit_of_it():
    rng = np.random.default_rng(0)
    leaves = {
        "f": rng.standard_normal((2, 3), np.float32),
        "b": rng.standard_normal(6).astype(jnp.bfloat16),
        "i": np.array([1, -2], np.int32),
        "flag": np.array([True, False]),
        "key": jax.random.key(3),
        "one": np.float32(2.5),
    }
    before = tree.leaf_fingerprints(leaves)
    assert before.keys() == leaves.keys()
    assert before["f"].keys() == {"float32", "bfloat16"} and before["b"].keys() == {"bfloat16"}
    flat = leaves["f"].view(np.uint32).reshape(-1)
    for element in range(flat.size):
        for bit in range(32):
            flat[element] ^= np.uint32(1) << np.uint32(bit)
            after = tree.leaf_fingerprints({"f": leaves["f"]})["f"]
            assert after["float32"] != before["f"]["float32"]
            flat[element] ^= np.uint32(1) << np.uint32(bit)
    assert tree.leaf_fingerprints(leaves) == before


def test_a_leaf_has_one_fingerprint_however_it_lies(monkeypatch):
    """On the host, on a device, and over several of them."""
    array = np.random.default_rng(1).standard_normal((8, 16), np.float32)
    host, whole = tree.leaf_fingerprints([array]), tree.fingerprint([array])
    monkeypatch.setattr(tree, "_SMALL", 0)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for axes in ((None, None), ("b", "a")):
        laid = jax.device_put(array, jax.NamedSharding(mesh, jax.P(*axes)))
        assert tree.leaf_fingerprints([laid]) == host
        assert tree.fingerprint([laid]) == whole
    for other in (np.float32(2.5), np.array([True, False]), jax.random.key(3), np.ones(3, jnp.bfloat16)):
        compiled = tree.leaf_fingerprints([other])
        with monkeypatch.context() as patch:
            patch.setattr(tree, "_SMALL", 2)
            assert tree.leaf_fingerprints([other]) == compiled


def test_a_float32_leaf_knows_the_bfloat16_it_rounds_to():
    """Against the rounding of ml_dtypes: ties, denormals, infinities and numbers that are none included."""
    rng = np.random.default_rng(2)
    words = rng.integers(0, 2**32, 4000, np.uint32)
    words[:1000] = words[:1000] & 0xFFFF0000 | 0x8000  # ties
    words[1000:1500] &= 0x807FFFFF  # denormal
    words[1500:1600] |= 0x7F800000  # infinite, or no number
    words[1600:1602] = 0x7F800000, 0xFF800000
    array = words.view(np.float32)
    with np.errstate(invalid="ignore"):
        rounded = array.astype(jnp.bfloat16)
    expected = tree.leaf_fingerprints([rounded])["0"]
    assert tree.leaf_fingerprints([array])["0"]["bfloat16"] == expected["bfloat16"]
