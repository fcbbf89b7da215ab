"""The capacity factor by training step: every step is that of a run with this factor, from wherever the run goes on."""

import jax
import numpy as np
import pytest

from ec_dit.config import specs
from ec_dit.core.errors import UserError
from ec_dit.core.tree import named_leaves
from ec_dit.models import sizes
from ec_dit.system import step as training_step
from tests import helpers

pytestmark = pytest.mark.slow

SCHEDULE = (2, 8.0, 3, 4.0)  # 8, 8, 4, then the config's 2


def test_factors_in_their_time():
    c = helpers.tiny_config(moe__capacity_until=SCHEDULE)
    assert [specs.capacity_at(c, step) for step in range(5)] == [8, 8, 4, 2, 2]
    assert specs.largest(c).moe.capacity_factor == 8
    plain = helpers.tiny_config()
    assert specs.largest(plain) == plain and specs.capacity_at(plain, 7) == 2
    assert specs.sample_settings(c).routing.capacity_factor == 2


def test_steps_are_those_of_runs_with_each_factor():
    c = helpers.tiny_config(moe__capacity_until=SCHEDULE)
    system = helpers.make_system(c)
    tx, _, shardings = helpers.start(system)
    batches = [training_step.place(system, helpers.batch(c, i)) for i in range(5)]
    expected, state = [], training_step.init_state(system, tx, shardings)
    with jax.set_mesh(system.mesh):
        for batch, factor in zip(batches, (8.0, 8.0, 4.0, 2.0, 2.0), strict=True):
            alone = helpers.make_system(helpers.tiny_config(moe__capacity_factor=factor))
            state, metrics = training_step.make_train_step(alone, tx, shardings)(state, batch)
            expected.append((jax.device_get(state), float(metrics["loss"])))
        for first in (0, 2, 4):
            start = training_step.init_state(system, tx, shardings) if not first else expected[first - 1][0]
            step = training_step.ScheduledStep(system, tx, shardings, first, None)
            state = jax.device_put(start, shardings)
            for i in range(first, 5):
                state, metrics = step(state, batches[i])
                assert float(metrics["loss"]) == expected[i][1]
            for (name, ours), (_, theirs) in zip(
                named_leaves(jax.device_get(state.params)), named_leaves(expected[-1][0].params), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs, err_msg=name)
    spec = specs.dit_spec(c)
    assert sizes.train_flops_per_image(spec, 8, 8, 8.0) > 1.2 * sizes.train_flops_per_image(spec, 8, 8, 2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe__capacity_until": (2, 8.0, 3)}, "moe.capacity_until.* give rising steps, each with a factor"),
        ({"moe__capacity_until": (3, 8.0, 2, 4.0)}, "give rising steps"),
        ({"moe__capacity_until": (2.5, 8.0)}, "give rising steps"),
        ({"moe__capacity_until": (2, 0.0)}, "give rising steps"),
        ({"moe__capacity_until": (float("inf"), 2.0)}, "give rising steps"),
        ({"moe__capacity_until": (2, 3.3)}, "must be a whole number"),
        ({"moe__capacity_until": (2, 4.0), "moe__capacity_factors": (2.0,)}, "every sparse block has its own"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(UserError, match=message):
        specs.train_routing(helpers.tiny_config(**changes))
