"""How a model lies where it is drawn with: the same pictures on every layout, no weight that is gathered, and the choice."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from ec_dit.config import specs
from ec_dit.core import sharding
from ec_dit.core.errors import UserError
from ec_dit.core.tree import named_leaves
from ec_dit.nn import moe
from ec_dit.planning import hlo
from ec_dit.planning.collectives import collectives
from ec_dit.planning.compile import sample_step
from ec_dit.system import layout
from ec_dit.system.painter import Painter
from tests import helpers
from tests.test_generate import POOLED, random_params

SOME = ["abc", "fed", "aaa"]
TRAINED = {"mesh__fsdp": 2, "mesh__expert": 4, "mesh__data": 1}


def laid_out(wanted, routing="expert_choice", memory=1e12, monkeypatch=None, **changes):
    """The tiny system, trained on fsdp 2 x expert 4, as it lies on eight devices to be drawn with."""
    if monkeypatch:
        monkeypatch.setattr(layout, "_memory", lambda devices: memory)
    c = helpers.tiny_config(routing, **(TRAINED if routing != "dense" else {}) | changes, sample__layout=wanted)
    return layout.for_sampling(helpers.make_system(c))


def on(parts, fsdp=1, axis="moe"):
    return {"data": 8 // parts // fsdp, "fsdp": fsdp, axis: parts, "tensor": 1}


def drawn(system, params):
    """Pictures as floats, by parameters that lie anywhere."""
    draw = Painter(system).generator()
    draw.decode = lambda images: (images, np.isfinite(images).all((1, 2, 3)))
    return draw(layout.laid_out(params, system), SOME, [0] * len(SOME), seed=5)


@cache
def of_one_device(name):
    routing, changes = KINDS[name]
    system = helpers.make_system(helpers.tiny_config(routing, **changes), jax.devices()[:1])
    params = random_params(system)
    return params, drawn(system, params)


KINDS = {"paper": ("expert_choice", {}), "token_choice": ("token_choice", {}), "dense": ("dense", {}), **POOLED}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        *(("copied", name) for name in ("paper", "token_choice", "dense", "matched")),
        *(("fsdp", name) for name in ("paper", "matched")),
        *(pytest.param("copied", name, marks=pytest.mark.exhaustive) for name in POOLED if name != "matched"),
    ],
)
def test_pictures_are_those_of_one_device(wanted, name):
    routing, changes = KINDS[name]
    params, expected = of_one_device(name)
    system = laid_out(wanted, routing, **changes)
    assert system.mesh.size == 8
    np.testing.assert_allclose(drawn(system, params), expected, atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 8])
def test_pictures_are_those_of_one_device_with_experts_elsewhere(parts, monkeypatch):
    """Of copied layouts the one with so many parts of the experts."""
    params, expected = of_one_device("paper")
    seconds = lambda system, shapes, mesh: float(mesh.shape["moe"] != parts)  # noqa: E731
    monkeypatch.setattr(layout, "_seconds", seconds)
    system = laid_out("copied")
    assert dict(system.mesh.shape) == on(parts)
    np.testing.assert_allclose(drawn(system, params), expected, atol=1e-4)


def test_copied_weights_are_whole_but_for_experts(monkeypatch):
    monkeypatch.setattr(layout, "_seconds", lambda system, shapes, mesh: -mesh.shape["moe"])
    system = laid_out("copied")
    assert dict(system.mesh.shape) == on(8)
    of = dict(named_leaves(system.infos))
    for name, leaf in named_leaves(system.abstract_params()):
        split = jax.tree.leaves(tuple(leaf.sharding.spec))
        assert split == (["moe"] if "expert" in of[name].axes else []), name


def test_parameters_move_from_trainings_mesh_as_they_are(monkeypatch):
    """Their values, in the dtype of sampling, where sampling wants them."""
    trained = helpers.make_system(helpers.tiny_config(**TRAINED, model__dtype="bfloat16"))
    params = random_params(trained)
    there = jax.device_put(params, jax.tree.map(lambda a: a.sharding, trained.abstract_params()))
    monkeypatch.setattr(layout, "_seconds", lambda system, shapes, mesh: -mesh.shape["moe"])
    system = layout.for_sampling(trained)
    assert dict(system.mesh.shape) == on(8)
    moved = layout.laid_out(there, system)
    wanted = system.sampling_params(system.abstract_params())
    for (name, leaf), (_, like), (_, value) in zip(*map(named_leaves, (moved, wanted, params)), strict=True):
        assert (leaf.dtype, leaf.sharding) == (like.dtype, like.sharding), name
        np.testing.assert_array_equal(leaf, jnp.asarray(value, like.dtype), err_msg=name)
    assert {str(leaf.dtype) for _, leaf in named_leaves(moved)} == {"bfloat16", "float32"}


def test_auto_copies_while_there_is_memory_and_splits_experts_before_it_splits_everything(monkeypatch):
    whole = laid_out("auto", monkeypatch=monkeypatch)
    assert dict(whole.mesh.shape) == on(1)
    pairs = zip(named_leaves(whole.sampling_params(whole.shapes())), named_leaves(whole.infos), strict=True)
    size = {True: 0, False: 0}
    for (_, leaf), (_, info) in pairs:
        size["expert" in info.axes] += leaf.size * leaf.dtype.itemsize
    for parts, fits in ((1, 1), (2, 2), (4, 4), (8, 8)):
        memory = 2 * (size[False] + size[True] / fits)  # of which weights may take the half
        assert dict(laid_out("auto", memory=memory, monkeypatch=monkeypatch).mesh.shape) == on(parts)
        less = dict(laid_out("auto", memory=memory - 2, monkeypatch=monkeypatch).mesh.shape)
        assert less == (on(2 * parts) if parts < 8 else on(8, axis="expert"))


def test_a_mesh_that_is_given_stays(monkeypatch):
    system = laid_out("mesh", monkeypatch=monkeypatch)
    assert dict(system.mesh.shape) == {"data": 1, "fsdp": 2, "expert": 4, "tensor": 1}
    one = helpers.make_system(helpers.tiny_config(sample__layout="copied"), jax.devices()[:1])
    assert layout.for_sampling(one) is one


def test_heads_stay_split(monkeypatch):
    system = laid_out("copied", monkeypatch=monkeypatch, mesh__fsdp=1, mesh__tensor=2)
    assert dict(system.mesh.shape) == {"data": 4, "fsdp": 1, "moe": 1, "tensor": 2}
    split = [jax.tree.leaves(tuple(leaf.sharding.spec)) for _, leaf in named_leaves(system.abstract_params())]
    assert ["tensor"] in split and {axis for axes in split for axis in axes} == {"tensor"}


def test_a_layout_that_no_mesh_has_is_refused(monkeypatch):
    monkeypatch.setattr(layout, "_candidates", lambda *_: iter(()))
    with pytest.raises(UserError, match=r"sample.layout=copied: no mesh of 8 devices fits this model; take mesh"):
        laid_out("copied")


@pytest.mark.slow
def test_nothing_travels_but_tokens(monkeypatch):
    """Where weights are copied, a network evaluation exchanges tokens twice in a sparse block, and gathers no weights."""
    monkeypatch.setattr(layout, "_seconds", lambda system, shapes, mesh: -mesh.shape["moe"])
    config = helpers.change(laid_out("copied").config, sample__batch_size=8)
    monkeypatch.setattr("ec_dit.planning.compile.make_system", helpers.make_system)
    program = hlo.parse(sample_step(config, jax.devices()).compile().program.as_text())
    kinds = [(each.kind, each.count) for each in collectives(program)]
    sparse = specs.dit_spec(config).num_sparse
    assert sum(count for kind, count in kinds if kind == "all-to-all") == 2 * sparse
    assert {kind for kind, _ in kinds} <= {"all-to-all", "all-reduce"}  # of the router's statistics
    gathering = helpers.change(config, sample__layout="mesh")
    program = hlo.parse(sample_step(gathering, jax.devices()).compile().program.as_text())
    assert "all-gather" in {each.kind for each in collectives(program)}


@pytest.mark.slow
@pytest.mark.parametrize("combine", ["scatter", "one_hot"])
def test_groups_that_travel_one_after_the_other_draw_the_same(combine, monkeypatch):
    """Four images of a device in as many parts: the same pictures, by twice as many exchanges as parts."""
    params, expected = of_one_device("paper")
    monkeypatch.setattr(layout, "_seconds", lambda system, shapes, mesh: -mesh.shape["moe"])
    monkeypatch.setattr("ec_dit.planning.compile.make_system", helpers.make_system)
    for rows, parts in ((8 * 4 * 8, 1), (8 * 4 * 4, 2), (8 * 4 * 2, 4)):  # of devices, images and slots
        monkeypatch.setattr(moe, "ROWS", rows)
        jax.clear_caches()
        system = laid_out("copied", sample__batch_size=32, sample__combine=combine)
        np.testing.assert_allclose(drawn(system, params), expected, atol=1e-4)
        program = hlo.parse(sample_step(system.config, jax.devices()).compile().program.as_text())
        assert sum(each.count for each in collectives(program) if each.kind == "all-to-all") == 2 * parts


def test_sampling_combines_as_training_does_but_on_tpus():
    config = helpers.tiny_config(moe__combine="one_hot")
    assert specs.sample_settings(config).routing.combine == "one_hot"
    assert specs.sample_settings(helpers.change(config, sample__combine="scatter")).routing.combine == "scatter"
    assert layout.for_sampling(helpers.make_system(config, jax.devices()[:1])).config.sample.combine == "auto"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "joint_kv", "mmdit"])
def test_a_cpu_takes_each_blocks_own_weights_and_draws_the_same(name):
    """Bit for bit what the stacked weights draw."""
    routing, changes = KINDS[name]
    config = helpers.tiny_config(routing, **changes | {"model__num_blocks": 8})
    system = helpers.make_system(config, jax.devices()[:1])
    params = random_params(system)
    taken = layout.as_computed(system)(params)
    whole, own = (jax.tree.leaves(tree) for tree in (params, taken))
    assert len(own) > len(whole) and sum(leaf.size for leaf in own) == sum(leaf.size for leaf in whole)

    batch, routed = helpers.batch(config), specs.sample_settings(config).routing

    @jax.jit
    def predict(params):
        model = nnx.merge(system.graphdef, params)
        pooled = jnp.ones((16, config.text.pooled)) if config.text.pooled else None
        text = model.read(model.encode(batch.text._replace(pooled_BM=pooled)), *specs.square(config))
        return model.predict(jnp.asarray(batch.image_BYXZ), jnp.full(16, 0.5), text, routed)

    jax.tree.map(np.testing.assert_array_equal, predict(taken), predict(params))


def test_other_models_stay_stacked():
    for changes, devices in (({"routing": "dense"}, 1), ({"model__num_blocks": 14}, 1), ({}, 8)):
        system = helpers.make_system(helpers.tiny_config(**changes), jax.devices()[:devices])
        params = object()
        assert layout.as_computed(system)(params) is params


def test_one_name_for_two_axes_of_experts():
    """`moe` splits a batch and experts as `expert` does, and no dense weight."""
    mesh = layout.make_mesh((2, 1, 4, 1), jax.devices(), layout.COPIED_AXES)
    assert sharding.batch_ways(mesh) == 8 and sharding.ways(mesh, "expert") == 4 and sharding.ways(mesh, "embed") == 1
    assert sharding.partition_spec(("expert", "expert_embed", "ffn"), (8, 4, 4), mesh) == PartitionSpec(
        ("moe",), None, None
    )
