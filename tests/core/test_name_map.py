"""Name maps: the ways between their tensors and ours, parts of them for every layout, and files that do not fit."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ec_dit.core import export, hub, name_map
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import MESH_AXES, make_mesh
from ec_dit.core.name_map import CONV, FLAT, LINEAR, LINEAR_INTO, SAME, Entry, patches

pytestmark = pytest.mark.slow

WAYS = {
    "same": (SAME, (4, 8), (4, 8)),
    "flat": (FLAT, (8, 4, 2), (64,)),
    "linear": (LINEAR, (8, 4, 2), (8, 8)),
    "linear_into": (LINEAR_INTO, (4, 2, 8), (8, 8)),
    "conv": (CONV, (2, 2, 4, 8), (8, 4, 2, 2)),
    "patches": (patches(2), (16, 8), (8, 4, 2, 2)),
}


@pytest.mark.parametrize("name", WAYS)
def test_there_and_back(name):
    way, ours_shape, their_shape = WAYS[name]
    ours = np.random.default_rng(0).normal(size=ours_shape)
    assert way.their_shape(ours_shape) == their_shape == way.to_theirs(ours).shape
    np.testing.assert_array_equal(way.to_ours(way.to_theirs(ours), ours_shape), ours)


def test_the_ways_are_those_of_torch():
    rng = np.random.default_rng(0)
    x_BI, theirs_OI = rng.normal(size=(3, 6)), rng.normal(size=(8, 6))  # y = x W^T
    heads = LINEAR.to_ours(theirs_OI, (6, 4, 2))
    np.testing.assert_allclose(np.einsum("bi,ihk->bhk", x_BI, heads).reshape(3, 8), x_BI @ theirs_OI.T)
    from_heads = LINEAR_INTO.to_ours(theirs_OI.T, (4, 2, 6))  # from 8, in heads, to 6
    y_BO = rng.normal(size=(3, 8))
    np.testing.assert_allclose(np.einsum("bhk,hki->bi", y_BO.reshape(3, 4, 2), from_heads), y_BO @ theirs_OI)
    conv = rng.normal(size=(5, 3, 2, 2))  # out, in, row, column
    np.testing.assert_array_equal(CONV.to_ours(conv, (2, 2, 3, 5)), conv.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(patches(2).to_ours(conv, (12, 5)), conv.transpose(2, 3, 1, 0).reshape(12, 5))


def layouts(shape, mesh):
    """Every PartitionSpec over one or two axes of the mesh for each dimension that they divide."""
    axes = [axis for axis in MESH_AXES if mesh.shape[axis] > 1]
    entries = [(), *((axis,) for axis in axes), *itertools.permutations(axes, 2)]
    for spec in itertools.product(entries, repeat=len(shape)):
        used = [axis for entry in spec for axis in entry]
        if len(used) != len(set(used)):
            continue
        ways = [int(np.prod([mesh.shape[axis] for axis in entry], dtype=int)) for entry in spec]
        if all(n % over == 0 for n, over in zip(shape, ways, strict=True)):
            yield PartitionSpec(*(entry or None for entry in spec))


@pytest.mark.parametrize("mesh_shape", [(1, 2, 2, 2), (2, 4, 1, 1), (1, 1, 8, 1)])
@pytest.mark.parametrize("name", WAYS)
def test_every_layout_reads_the_whole(name, mesh_shape, tmp_path):
    way, shape, _ = WAYS[name]
    layers = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    entries = {"plain": Entry(("one",), way, stacked=False), "stack": Entry(("one", "two"), way, stacked=True)}
    theirs = {"one": way.to_theirs(layers[0]), "two": way.to_theirs(layers[1])}
    export.write(tmp_path, "model", theirs.items())
    files, mesh = hub.TensorFiles(tmp_path), make_mesh(mesh_shape)
    count = 0
    for spec in layouts(shape, mesh):
        abstract = {
            "plain": jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, spec)),
            "stack": jax.ShapeDtypeStruct(
                (2, *shape), np.float32, sharding=NamedSharding(mesh, PartitionSpec(None, *spec))
            ),
        }
        tree = name_map.load(files, entries, abstract)
        assert tree["plain"].sharding.spec == spec
        np.testing.assert_array_equal(tree["plain"], layers[0])
        np.testing.assert_array_equal(tree["stack"], layers)
        count += 1
    assert count > 1
    # And from the last layout back into files.
    back = dict(name_map.tensors(tree | {"plain": tree["plain"] + 1}, entries | {"plain": Entry(("0",), way, False)}))
    np.testing.assert_array_equal(back.pop("0"), way.to_theirs(layers[0] + 1))
    for tensor, array in theirs.items():
        np.testing.assert_array_equal(back.pop(tensor), array)
    assert not back


def test_only_what_a_device_holds_is_read(tmp_path, monkeypatch):
    export.write(tmp_path, "model", [("w", np.zeros((64, 32), np.float32))])
    files, mesh, asked = hub.TensorFiles(tmp_path), make_mesh((1, 1, 8, 1)), []
    read = files.read
    monkeypatch.setattr(files, "read", lambda name, index: asked.append(read(name, index).size) or read(name, index))
    for spec in (PartitionSpec("expert"), PartitionSpec(None, "expert")):
        like = jax.ShapeDtypeStruct((32, 64), np.float32, sharding=NamedSharding(mesh, spec))
        name_map.load(files, {"w": Entry(("w",), LINEAR, stacked=False)}, {"w": like})
    assert asked == [64 * 32 // 8] * 16


@pytest.mark.parametrize(("stored", "wanted"), [(np.float32, jnp.bfloat16), (ml_dtypes.bfloat16, np.float32)])
def test_values_are_cast(stored, wanted, tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 8)).astype(stored)
    export.write(tmp_path, "model", [("w", values)])
    like = jax.ShapeDtypeStruct((8, 4), wanted, sharding=NamedSharding(make_mesh((1, 2, 2, 2)), PartitionSpec("fsdp")))
    tree = name_map.load(hub.TensorFiles(tmp_path), {"w": Entry(("w",), LINEAR, stacked=False)}, {"w": like})
    assert tree["w"].dtype == wanted
    np.testing.assert_array_equal(tree["w"], values.T.astype(wanted))


def test_table():
    names = ["embed", "stack/blocks/w", "stack/blocks/b"]
    stack = {"w": ("layer.{i}.weight", LINEAR), "b": ("layer.{i}.bias", SAME), "unused": ("x", SAME)}
    found = name_map.table(names, {"embed": ("table", SAME)}, {"stack/blocks/": ((0, 2), stack)})
    assert found == {
        "embed": Entry(("table",), SAME, stacked=False),
        "stack/blocks/w": Entry(("layer.0.weight", "layer.2.weight"), LINEAR, stacked=True),
        "stack/blocks/b": Entry(("layer.0.bias", "layer.2.bias"), SAME, stacked=True),
    }


ENTRIES = {"w": Entry(("a.0", "a.1"), LINEAR, stacked=True), "b": Entry(("b",), SAME, stacked=False)}
FITTING = {"a.0": np.zeros((3, 4)), "a.1": np.zeros((3, 4)), "b": np.zeros(3)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"a.1": None},
            r": 1 of 3 tensors are missing: a.1\. Are these the weights of another model\? Check config.json",
        ),
        ({"a.0": None, "a.1": None, "b": None}, r"3 of 3 tensors are missing: a.0, a.1, b\. Are these"),
        (
            {"c": np.zeros(1)},
            r"model.safetensors: 1 tensors that nothing here uses: c\. Are these the weights of another",
        ),
        ({f"c.{i}": np.zeros(1) for i in range(5)}, r"5 tensors that nothing here uses: c.0, c.1, c.2 and 2 more"),
        (
            {"a.1": np.zeros((4, 3))},
            r"model.safetensors: tensor a.1 has shape \(4, 3\), but config.json says \(3, 4\)\. Are",
        ),
        ({"a.0": np.zeros((3, 4), np.int8)}, r"tensor a.0 is stored as I8; supported are F32, F16, BF16, F64"),
        (
            {"b": np.array([1, np.nan, 2], np.float32)},
            r"model.safetensors: tensor b holds numbers that are not finite in",
        ),
        ({"b": np.zeros((3, 1))}, r"tensor b has shape \(3, 1\), but config.json says \(3,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes, message, tmp_path):
    tensors = {name: array for name, array in (FITTING | changes).items() if array is not None}
    export.write(tmp_path, "model", [*tensors.items(), ("decoder.w", np.zeros(1))])
    where = NamedSharding(make_mesh((8, 1, 1, 1)), PartitionSpec())
    abstract = {
        "w": jax.ShapeDtypeStruct((2, 4, 3), np.float32, sharding=where),
        "b": jax.ShapeDtypeStruct((3,), np.float32, sharding=where),
    }
    with pytest.raises(UserError, match=message):
        name_map.load(hub.TensorFiles(tmp_path), ENTRIES, abstract, ignored=("decoder.", "other."))


def test_what_is_ignored_is_not_missed(tmp_path):
    where = NamedSharding(make_mesh((8, 1, 1, 1)), PartitionSpec())
    export.write(tmp_path, "model", [("b", np.ones(3)), ("decoder.b", np.zeros(7))])
    like = {"b": jax.ShapeDtypeStruct((3,), np.float32, sharding=where)}
    entries = {"b": Entry(("b",), SAME, stacked=False)}
    assert name_map.load(hub.TensorFiles(tmp_path), entries, like, ["decoder."])["b"].sum() == 3
    with pytest.raises(UserError, match=r"1 tensors that nothing here uses: decoder.b"):
        name_map.load(hub.TensorFiles(tmp_path), entries, like)
