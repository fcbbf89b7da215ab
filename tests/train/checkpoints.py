"""Small training states, checkpoints of them, and ways to damage a checkpoint's files."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ec_dit.core.tree import is_key
from ec_dit.train.state import TrainState


def state(value, width=2, **more):
    params = {"w": jnp.full((4, width), value, jnp.float32), **more}
    ema = {name: leaf + 100 for name, leaf in params.items()}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))  # its state has empty parts, and parts with names
    return TrainState(jnp.int32(value), jax.random.key(int(value)), params, ema, tx.init(params))


def shapes(tree):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), tree)


def words(tree):
    return [np.asarray(jax.random.key_data(a) if is_key(a) else a) for a in jax.tree.leaves(tree)]


def newest(checkpoints, say=print):
    return checkpoints.newest(lambda step: checkpoints.restore(step, shapes(state(0))), say)


FILES = {  # of a checkpoint; Orbax draws the names in d/
    "record": "meta/metadata",
    "list of arrays": "state/_METADATA",
    "shardings": "state/_sharding",
    "manifest": "state/manifest.ocdbt",
    "array metadata": "state/array_metadatas/process_0",
    "data": "state/d/*",
    "first data": "state/ocdbt.process_0/d/*",
    "first manifest": "state/ocdbt.process_0/manifest.ocdbt",
    "step metadata": "_CHECKPOINT_METADATA",
    "commit mark": "commit_success.txt",
    "list of files": "digests.json",
}
FAULTS = {
    "gone": None,
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "low bit": lambda data: flipped(data, 0),
    "middle bit": lambda data: flipped(data, 4 * len(data)),
    "last bit": lambda data: flipped(data, 8 * len(data) - 1),
    "foreign JSON": lambda data: b'{"a": [1, 2]}',
    "list": lambda data: b"[]",
    "deep": lambda data: b"[" * 100_000,
    "wrong types": lambda data: data.replace(b"{", b"[", 1).replace(b"1", b'"1"'),
}
HARMLESS = {("list of files", "gone")}  # checkpoints of older versions have none


def flipped(data, bit):
    data = bytearray(data)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)
