"""One device against eight: the same losses and the same training on every mesh."""

import re
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

from ec_dit.core import settings
from ec_dit.core.mesh import MESH_AXES
from ec_dit.core.tree import named_leaves
from ec_dit.system import step as training_step
from ec_dit.train.state import TrainState
from tests import helpers

pytestmark = pytest.mark.slow

STEPS = 2
ONE = (1, 1, 1, 1)


def make(routing, mesh, accumulate=1, combine="scatter", **model):
    """A tiny system on a mesh.

    eps is large against rounding: RMSProp divides a gradient by its own size, so that one of pure rounding noise would
    otherwise move a parameter as far as a real one.
    """
    c = helpers.tiny_config(
        routing,
        optimizer__eps=1e-3,
        train__accumulate=accumulate,
        train__batch_size=16 * accumulate,
        moe__combine=combine,
    )
    c = settings.changed(c, settings.prefixed("mesh", dict(zip(MESH_AXES, mesh, strict=True))))
    c = settings.changed(c, settings.prefixed("model", model))
    return helpers.make_system(c, jax.devices()[: int(np.prod(mesh))])


def train(system, start):
    """(losses, state) after STEPS steps from the state `start`, given as NumPy arrays."""
    tx, _, shardings = helpers.start(system)
    start = start._replace(key=jax.random.wrap_key_data(start.key))
    state, step = jax.device_put(start, shardings), training_step.make_train_step(system, tx, shardings)
    losses = []
    with jax.set_mesh(system.mesh):
        for i in range(STEPS):
            state, metrics = step(state, training_step.place(system, helpers.batch(system.config, i)))
            losses.append(float(metrics["loss"]))
    return losses, state


def start_state(system):
    tx, _, shardings = helpers.start(system)
    return training_step.init_state(system, tx, shardings)


def random_state(system):
    """A state of NumPy arrays with everything random: zero gates would hide attention, experts and text from the loss."""
    tx = training_step.optimizer(system)
    shapes, rng = system.shapes(), np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)
    key = jax.random.key_data(jax.random.key(1))
    return jax.device_get(TrainState(np.int32(0), key, params, params, tx.init(params)))


def movement(start, state):
    """Name -> how far each parameter went: a wrong gradient would drown in the parameter itself."""
    pairs = zip(named_leaves(start.params), named_leaves(state.params), strict=True)
    return {name: np.asarray(after) - before for (name, before), (_, after) in pairs}


def recommended(kind):
    """The layouts on eight devices that docs/scaling.md recommends for sparse or dense models."""
    page = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
    rows = re.findall(r"^\| `(\d),(\d),(\d),(\d)` \| (\w+)", page, re.MULTILINE)
    return [tuple(map(int, row[:4])) for row in rows if row[4] == kind]


def test_recommended_layouts_are_found_and_cover_eight_devices():
    assert len(recommended("sparse")) == 3 and len(recommended("dense")) == 2
    assert all(np.prod(mesh) == 8 for kind in ("sparse", "dense") for mesh in recommended(kind))


SHARED = {"bias": True, "modulation": "adaln_single"}
JOINT_KV = {
    "block": "joint_kv",
    "position": "rope",
    "position_fit": "centred",
    "time_embedding": "wide",
    "text_norm": True,
}
MMDIT = {"block": "mmdit", "dual_blocks": 1, "bias": True, "position_fit": "crop", "position_grid": 6}
FIRST = (1, 2, 2, 2)  # every axis but data, which only repeats what fsdp does to a batch


def cases():
    """Meshes for each kind of model; what the first shows, the others repeat under more layouts."""
    first = [("expert_choice", options, FIRST) for options in ({}, JOINT_KV, MMDIT)]
    sparse = dict.fromkeys([(8, 1, 1, 1), (2, 2, 2, 1), (1, 1, 8, 1), *recommended("sparse")])
    more = [("expert_choice", {}, mesh) for mesh in sparse if mesh != FIRST]
    more += [("expert_choice", {"combine": "one_hot"}, FIRST), ("expert_choice", {"accumulate": 2}, (2, 2, 2, 1))]
    more += [("token_choice", SHARED, mesh) for mesh in (FIRST, (2, 1, 2, 2))] + [("token_choice", {}, (1, 1, 8, 1))]
    more += [("expert_choice", options, mesh) for options in (JOINT_KV, MMDIT) for mesh in ((2, 2, 2, 1), (1, 1, 8, 1))]
    more += [("dense", {}, mesh) for mesh in dict.fromkeys([FIRST, *recommended("dense")])]

    def case(routing, options, mesh, *marks):
        named = [options["block"]] if "block" in options else list(map(str, options.values()))
        name = "-".join([routing, *named, ",".join(map(str, mesh))])
        group = pytest.mark.xdist_group(
            "-".join(["meshes", routing, *named])
        )  # one worker runs the one device that they share
        return pytest.param(routing, tuple(options.items()), mesh, marks=[group, *marks], id=name)

    return [case(*row) for row in first] + [case(*row, pytest.mark.exhaustive) for row in more]


@cache
def on_one_device(routing, options):
    """(start, losses, movement of each parameter)."""
    system = make(routing, ONE, **dict(options))
    start = random_state(system)
    losses, state = train(system, start)
    moved = movement(start, state)
    for name, distance in moved.items():
        assert np.abs(distance).max() > 2e-5, f"{name} took no part"  # ten times what is tolerated below
    return start, losses, moved


@pytest.mark.slow
@pytest.mark.parametrize(("routing", "options", "mesh"), cases())
def test_eight_devices_train_as_one(routing, options, mesh):
    start, losses_one, moved_one = on_one_device(routing, options)
    losses, state = train(make(routing, mesh, **dict(options)), start)
    np.testing.assert_allclose(losses, losses_one, rtol=1e-5)
    for name, moved in movement(start, state).items():
        np.testing.assert_allclose(moved, moved_one[name], rtol=1e-4, atol=2e-6, err_msg=name)


@pytest.mark.slow
def test_parameters_start_the_same_on_every_mesh_and_lie_where_the_table_says():
    eight = start_state(make("expert_choice", (1, 1, 8, 1)))
    one = start_state(make("expert_choice", ONE))
    for (name, a), (_, b) in zip(named_leaves(eight.params), named_leaves(one.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=name)
    sparse = [(name, leaf) for name, leaf in named_leaves(eight) if "/stages/0/blocks/1/" in name]
    assert {"params", "ema", "opt_state"} <= {name.split("/")[0] for name, _ in sparse}
    for name, leaf in sparse:  # no parameter of a sparse block is replicated over the expert axis
        assert leaf.addressable_shards[0].data.size * 8 == leaf.size, name
