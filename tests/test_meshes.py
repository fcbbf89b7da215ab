"""One device against eight: the same losses, gradients and parameters on every mesh."""

import jax
import numpy as np
import pytest

from ec_dit.core.mesh import MESH_AXES
from ec_dit.core.tree import named_leaves
from tests import helpers

STEPS = 2
ONE = (1, 1, 1, 1)


def make(routing, mesh, accumulate=1):
    """A tiny system on a mesh.

    eps is large against rounding: RMSProp divides a gradient by its own size, so that one of pure rounding noise would
    otherwise move a parameter as far as a real one.
    """
    c = helpers.tiny_config(
        routing, optimizer__eps=1e-3, train__accumulate=accumulate, train__batch_size=16 * accumulate
    )
    c.mesh.update(dict(zip(MESH_AXES, mesh, strict=True)))
    return helpers.make_system(c, jax.devices()[: int(np.prod(mesh))])


def train(system, start):
    """(losses, state) after STEPS steps from the state `start`, given as NumPy arrays."""
    tx = system.optimizer()
    _, shardings = system.abstract_state(tx)
    start = start._replace(key=jax.random.wrap_key_data(start.key))
    state, step = jax.device_put(start, shardings), system.step(tx, shardings)
    losses = []
    with jax.set_mesh(system.mesh):
        for i in range(STEPS):
            state, metrics = step(state, system.batch(helpers.batch(system.config, i)))
            losses.append(float(metrics["loss"]))
    return losses, state


def start_state(system):
    tx = system.optimizer()
    return system.init_state(tx, system.abstract_state(tx)[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("routing", "accumulate", "meshes"),
    [
        ("expert_choice", 1, [(8, 1, 1, 1), (2, 2, 2, 1), (1, 1, 8, 1), (1, 2, 2, 2)]),
        ("expert_choice", 2, [(2, 2, 2, 1)]),
        ("token_choice", 1, [(1, 1, 8, 1)]),
        ("dense", 1, [(1, 2, 2, 2)]),
    ],
)
def test_eight_devices_train_as_one(routing, accumulate, meshes):
    one = make(routing, ONE, accumulate)
    start = start_state(one)
    start = jax.device_get(start._replace(key=jax.random.key_data(start.key)))
    losses_one, state_one = train(one, start)
    for mesh in meshes:
        losses, state = train(make(routing, mesh, accumulate), start)
        np.testing.assert_allclose(losses, losses_one, rtol=1e-5, err_msg=str(mesh))
        for (name, a), (_, b) in zip(named_leaves(state.params), named_leaves(state_one.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6, err_msg=f"{mesh} {name}")


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
