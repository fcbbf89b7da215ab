"""Small tools on pytrees: names, sizes, fingerprints."""

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """(slash-separated path, leaf) of every leaf, in the tree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def num_params(tree: Any) -> int:
    """How many numbers the arrays (or ShapeDtypeStructs) of `tree` hold."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def global_norm(tree: Any) -> jax.Array:
    """The L2 norm over all leaves, in float32."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def sha256(tree: Any) -> str:
    """A fingerprint of names, shapes, dtypes and every bit of the arrays of `tree`."""
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree), key=lambda item: item[0]):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
