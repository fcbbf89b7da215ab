"""Fingerprints of small trees: every change is seen, no layout is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.core import fingerprints, processes
from ec_dit.core.fingerprints import fingerprint, leaf_fingerprints


@pytest.fixture
def example():
    return {"b": [np.array([3.0], np.float32), np.array([[4.0, 0.0]], np.float32)], "a": np.array(12, np.int32)}


def test_fingerprint_ignores_order_and_device(example):
    same = {"a": jnp.asarray(example["a"]), "b": [jnp.asarray(leaf) for leaf in example["b"]]}
    assert fingerprint(example) == fingerprint(same)


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
    assert fingerprint(example) != fingerprint(change(example))


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
    before = leaf_fingerprints(leaves)
    assert before.keys() == leaves.keys()
    assert before["f"].keys() == {"float32", "bfloat16"} and before["b"].keys() == {"bfloat16"}
    flat = leaves["f"].view(np.uint32).reshape(-1)
    for element in range(flat.size):
        for bit in range(32):
            flat[element] ^= np.uint32(1) << np.uint32(bit)
            after = leaf_fingerprints({"f": leaves["f"]})["f"]
            assert after["float32"] != before["f"]["float32"]
            flat[element] ^= np.uint32(1) << np.uint32(bit)
    assert leaf_fingerprints(leaves) == before


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


@pytest.mark.parametrize("small", [0, 20, 10**6], ids=["compiled", "by parts", "whole"])
@pytest.mark.parametrize("axes", [(), (None, None), ("b", "a"), (("a", "b"),), (None, ("b", "a"))])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_an_array_has_one_fingerprint_however_it_lies(monkeypatch, mesh, small, axes, dtype):
    """On the host, and over devices."""
    array = np.random.default_rng(1).standard_normal((8, 16), np.float32).astype(dtype)
    host, whole = leaf_fingerprints([array]), fingerprint([array])
    monkeypatch.setattr(fingerprints, "_SMALL", small)
    laid = jax.device_put(array, jax.NamedSharding(mesh, jax.P(*axes)))
    assert leaf_fingerprints([laid]) == host
    assert fingerprint([laid]) == whole
    with jax.set_mesh(mesh):  # as where a step is saved
        assert leaf_fingerprints([laid, array]) == {"0": host["0"], "1": host["0"]}
        assert fingerprint([laid]) == whole


@pytest.mark.parametrize(
    "leaf", [np.float32(2.5), np.array([True, False]), jax.random.key(3), np.ones(3, jnp.bfloat16)]
)
def test_a_leaf_has_one_fingerprint_on_the_host_and_on_a_device(monkeypatch, leaf):
    host = leaf_fingerprints([leaf])
    monkeypatch.setattr(fingerprints, "_SMALL", 0)
    assert leaf_fingerprints([leaf]) == host


def test_what_adds_up_on_devices_is_no_word_between_them(mesh):
    array = jax.device_put(np.zeros((8, 16), np.float32), jax.NamedSharding(mesh, jax.P("b", "a")))
    text = fingerprints._compiled_sums.lower(array, array.sharding).compile().as_text()
    assert "xor" in text
    assert "all-" not in text and "collective" not in text


def test_processes_add_what_each_has_of_an_array(monkeypatch, mesh):
    """As if this process had half of the devices, and another the rest."""
    array = np.random.default_rng(1).standard_normal((8, 16), np.float32)
    expected = leaf_fingerprints([array])
    laid = jax.device_put(array, jax.NamedSharding(mesh, jax.P("b")))  # in four copies
    words = []
    monkeypatch.setattr(fingerprints, "_SMALL", 20)
    monkeypatch.setattr(type(laid), "is_fully_addressable", False)
    monkeypatch.setattr(processes, "add_words", lambda mine: words.append(mine) or sum(words))
    whole = fingerprints._own
    for mine in (0, 1):
        monkeypatch.setattr(fingerprints, "_own", lambda a, mine=mine: whole(a)[mine::2])
        found = leaf_fingerprints([laid])
    assert found == expected and len(words) == 2 and (words[0] != words[1]).all()


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
    expected = leaf_fingerprints([rounded])["0"]
    assert leaf_fingerprints([array])["0"]["bfloat16"] == expected["bfloat16"]


def test_fingerprints_are_those_of_earlier_checkpoints():
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, -2], np.int32)}
    assert fingerprint(tree) == "da443c3de4af61f50ae1009603afb83801452469b68e4333e654b25fc2ef7892"
