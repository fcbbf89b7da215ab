"""Checkpoints: what is kept, what is refused."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ec_dit.core.errors import UserError
from ec_dit.train.checkpoint import Checkpointer
from ec_dit.train.state import TrainState


def state(value, width=2, **more):
    params = {"w": jnp.full((4, width), value, jnp.float32), **more}
    ema = {name: leaf + 100 for name, leaf in params.items()}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))  # its state has empty parts, and parts with names
    return TrainState(jnp.int32(value), jax.random.key(int(value)), params, ema, tx.init(params))


def shapes(tree):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), tree)


def test_round_trip_keeps_the_newest(tmp_path):
    checkpoints = Checkpointer(str(tmp_path / "c"), keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"name": f"x{step}"})
    checkpoints.close()
    again = Checkpointer(str(tmp_path / "c"), read_only=True)
    assert again.latest() == 3
    restored = again.restore(2, shapes(state(0)))
    for got, saved in zip(jax.tree.leaves(restored), jax.tree.leaves(state(2)), strict=True):
        assert got.dtype == saved.dtype
        got, saved = (
            jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a for a in (got, saved)
        )
        np.testing.assert_array_equal(got, saved)
    assert again.meta(2) == {"name": "x2"}
    with pytest.raises(UserError, match=r"no checkpoint .*; there are \[2, 3\]"):
        again.restore(1, shapes(state(0)))
    again.close()


def test_another_model_is_refused(tmp_path):
    checkpoints = Checkpointer(str(tmp_path / "c"))
    checkpoints.save(1, state(1), {})
    checkpoints.wait()
    with pytest.raises(UserError, match=r"4 arrays differ, first ema/w: \(4, 2\) saved, \(4, 3\) wanted"):
        checkpoints.restore(1, shapes(state(0, width=3)))
    with pytest.raises(UserError, match=r"first ema/extra: missing saved, \(4, 3\) wanted"):
        checkpoints.restore(1, shapes(state(0, extra=jnp.zeros((4, 3)))))
    checkpoints.close()


def test_no_folder_to_read_from(tmp_path):
    with pytest.raises(UserError, match="train there first"):
        Checkpointer(str(tmp_path / "nothing"), read_only=True)


def test_a_part_of_the_state_is_read_alone(tmp_path):
    """Sampling needs no optimizer: its arrays are not even looked for."""
    checkpoints = Checkpointer(str(tmp_path / "c"))
    checkpoints.save(1, state(1), {})
    checkpoints.close()
    again = Checkpointer(str(tmp_path / "c"), read_only=True)
    restored = again.restore(1, shapes(state(0)), only=("ema",))
    np.testing.assert_array_equal(restored.ema["w"], np.full((4, 2), 101))
    assert restored._replace(ema=None) == (None,) * 5
    again.close()


@pytest.mark.parametrize("damage", ["empty folder", "metadata cut", "metadata gone", "arrays gone"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    checkpoints = Checkpointer(str(tmp_path / "c"))
    checkpoints.save(1, state(1), {})
    checkpoints.close()
    folder = tmp_path / "c" / "1"
    metadata = folder / "state" / "_METADATA"
    if damage == "empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    elif damage == "metadata cut":
        metadata.write_bytes(metadata.read_bytes()[:40])
    elif damage == "metadata gone":
        metadata.unlink()
    else:
        shutil.rmtree(folder / "state")
    again = Checkpointer(str(tmp_path / "c"), read_only=True)
    with pytest.raises(UserError, match=r"checkpoint .*/c/1 cannot be restored: .*Remove that folder"):
        again.restore(1, shapes(state(0)))
    again.close()
