"""Checkpoints: what is kept, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ec_dit.core.errors import UserError
from ec_dit.train.checkpoint import Checkpointer


def state(value):
    return {"w": jnp.full((4, 2), value, jnp.float32), "key": jax.random.key(int(value))}


def shapes(tree):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), tree)


def test_round_trip_keeps_the_newest(tmp_path):
    checkpoints = Checkpointer(str(tmp_path / "c"), keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"name": "x"})
    checkpoints.close()
    again = Checkpointer(str(tmp_path / "c"), read_only=True)
    assert again.latest() == 3
    restored = again.restore(2, shapes(state(0)))
    np.testing.assert_array_equal(restored["w"], state(2)["w"])
    assert (jax.random.key_data(restored["key"]) == jax.random.key_data(jax.random.key(2))).all()
    with pytest.raises(UserError, match=r"no checkpoint .*; there are \[2, 3\]"):
        again.restore(1, shapes(state(0)))
    again.close()


def test_another_model_is_refused(tmp_path):
    checkpoints = Checkpointer(str(tmp_path / "c"))
    checkpoints.save(1, state(1), {})
    checkpoints.wait()
    wrong = state(0) | {"w": jnp.zeros((4, 3))}
    with pytest.raises(UserError, match=r"1 arrays differ, first w: \(4, 2\) saved, \(4, 3\) wanted"):
        checkpoints.restore(1, shapes(wrong))
    with pytest.raises(UserError, match=r"first extra: missing saved, \(4, 3\) wanted"):
        checkpoints.restore(1, shapes(state(0) | {"extra": jnp.zeros((4, 3))}))
    checkpoints.close()


def test_no_folder_to_read_from(tmp_path):
    with pytest.raises(UserError, match="train there first"):
        Checkpointer(str(tmp_path / "nothing"), read_only=True)
