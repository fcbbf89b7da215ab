"""The table from logical to mesh axes: layouts worked out by hand, refusals, and what becomes of a sparse block."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from ec_dit.core import tree
from ec_dit.core.errors import UserError
from ec_dit.core.mesh import make_mesh
from ec_dit.core.sharding import batch_ways, constrain, named_sharding, partition_spec, replicated
from ec_dit.models.dit import DiT
from ec_dit.models.sparse_spec import SparseSpec
from ec_dit.models.spec import DiTSpec
from ec_dit.nn import param


@pytest.mark.parametrize(
    ("mesh_shape", "axes", "shape", "expected"),
    [
        ((2, 2, 2, 1), ("batch", None), (8, 3), (("data", "fsdp", "expert"), None)),
        ((8, 1, 1, 1), ("batch", None), (8, 3), (("data",), None)),
        ((1, 1, 8, 1), ("expert", "expert_embed", "ffn"), (8, 6, 5), (("expert",), None, None)),
        ((1, 2, 2, 2), ("expert", "expert_embed", "ffn"), (4, 6, 8), (("expert",), ("fsdp",), ("tensor",))),
        ((1, 2, 2, 2), ("layers", "embed", "heads"), (3, 4, 2), (None, ("expert",), ("tensor",))),
        ((1, 2, 2, 2), (None, "hidden"), (4, 8), (None, ("tensor", "expert"))),
        ((2, 4, 1, 1), (None, "hidden"), (4, 8), (None, ("fsdp",))),
        ((2, 4, 1, 1), ("embed", "heads"), (8, 3), (("fsdp",), None)),
        ((2, 2, 2, 1), ("expert", "expert_embed", None), (2, 4, 3), (("expert",), ("fsdp",), None)),
    ],
)
def test_partition_spec(mesh_shape, axes, shape, expected):
    mesh = make_mesh(mesh_shape)
    assert partition_spec(axes, shape, mesh) == PartitionSpec(*expected)
    assert named_sharding(axes, shape, mesh).spec == PartitionSpec(*expected)


def test_an_indivisible_dimension_is_refused():
    with pytest.raises(
        UserError, match=r"w_up: dimension 'hidden' of size 6 is not divisible by 4 \(mesh tensor=2 x expert=2\)"
    ):
        partition_spec((None, "hidden"), (8, 6), make_mesh((1, 2, 2, 2)), "w_up")


def test_a_mesh_axis_shards_only_one_dimension():
    mesh = make_mesh((1, 2, 4, 1))
    with pytest.raises(UserError, match=r"w \('expert', 'embed'\): mesh axis \['expert'\]"):
        partition_spec(("expert", "embed"), (4, 8), mesh, "w")
    # On a mesh without that axis the same words do not collide.
    assert partition_spec(("expert", "embed"), (4, 8), make_mesh((4, 2, 1, 1))) == PartitionSpec(None, ("fsdp",))


def test_an_unknown_word_is_refused():
    with pytest.raises(KeyError, match="sequence"):
        partition_spec(("sequence",), (8,), make_mesh((8, 1, 1, 1)))


def test_axes_and_shape_must_agree_in_number():
    with pytest.raises(ValueError, match="2 logical axes"):
        partition_spec(("embed", None), (8,), make_mesh((8, 1, 1, 1)))


def test_batch_ways_and_replicated():
    mesh = make_mesh((2, 1, 2, 2))
    assert batch_ways(mesh) == 4
    assert replicated(mesh).is_fully_replicated


def test_constrain_without_a_mesh_is_the_identity():
    x = jnp.arange(6.0).reshape(2, 3)
    assert constrain(x, "batch", None) is x
    with jax.set_mesh(make_mesh((1, 1, 1, 1), jax.devices()[:1])):
        assert constrain(x, "batch", None) is x


def test_constrain_lays_out_and_keeps_values():
    x = np.arange(32, dtype=np.float32).reshape(8, 4)
    mesh = make_mesh((2, 2, 2, 1))
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: constrain(x, "batch", None))(x)
        with pytest.raises(UserError, match="'batch' of size 4"):
            jax.jit(lambda x: constrain(x, "batch", None))(x[:4])
    np.testing.assert_array_equal(y, x)
    assert {shard.data.shape for shard in y.addressable_shards} == {(1, 4)}


def leaves_and_infos(**changes):
    """(name, shape, logical axes) of every parameter of a small model with sparse blocks."""
    sizes = {"width": 32, "num_blocks": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "text_width": 16}
    spec = DiTSpec(**sizes, qk_norm=True, sparse=SparseSpec(8), **changes)
    _, params, infos = param.split(nnx.eval_shape(lambda: DiT(spec, rngs=nnx.Rngs(0))))
    both = zip(tree.named_leaves(params), tree.named_leaves(infos), strict=True)
    return [(name, leaf.shape, info.axes) for (name, leaf), (_, info) in both]


@pytest.mark.parametrize("bias", [False, True])
def test_every_parameter_of_a_sparse_block_is_sharded_over_the_experts(bias):
    mesh = make_mesh((1, 1, 8, 1))
    sparse = [leaf for leaf in leaves_and_infos(bias=bias) if leaf[0].startswith("stages/0/blocks/1/")]
    assert any("ffn/w_up_EDF" in name for name, _, _ in sparse)
    for name, shape, axes in sparse:
        shard = named_sharding(axes, shape, mesh, name).shard_shape(shape)
        assert 8 * math.prod(shard) == math.prod(shape), f"{name} is replicated over the expert axis"


def test_each_device_holds_one_expert():
    leaves = [leaf for leaf in leaves_and_infos() if leaf[0].endswith("ffn/w_up_EDF")]
    ((name, shape, axes),) = leaves
    assert shape == (2, 8, 32, 128)
    assert named_sharding(axes, shape, make_mesh((1, 1, 8, 1)), name).shard_shape(shape) == (2, 1, 32, 128)
    assert named_sharding(axes, shape, make_mesh((1, 2, 2, 2)), name).shard_shape(shape) == (2, 4, 16, 64)


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (2, 2, 2, 1), (1, 1, 8, 1), (1, 2, 2, 2), (1, 4, 1, 2)])
@pytest.mark.parametrize("modulation", ["adaln", "adaln_single"])
def test_every_parameter_has_a_place_on_every_mesh(modulation, shape):
    mesh = make_mesh(shape)
    for name, size, axes in leaves_and_infos(modulation=modulation, bias=True, text_projection=True):
        assert len(partition_spec(axes, size, mesh, name)) == len(size)
