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


def fingerprint(tree: Any) -> str:
    """64 hexadecimal digits for the names, shapes, dtypes and every bit of the arrays of `tree`.

    The bits are mixed with their positions and added up where they lie: no array is gathered, and the outcome is the same for
    any layout over devices. Not cryptographic.
    """
    named = sorted(named_leaves(tree), key=lambda item: item[0])
    sums = jax.device_get(jax.jit(lambda leaves: [_bit_sums(leaf) for leaf in leaves])([leaf for _, leaf in named]))
    digest = hashlib.sha256()
    for (name, leaf), words in zip(named, sums, strict=True):
        digest.update(f"{name}:{leaf.dtype}:{leaf.shape};".encode())
        digest.update(words.tobytes())
    return digest.hexdigest()


def _bit_sums(array: jax.Array) -> jax.Array:
    """Four words, uint32, of an array whose elements have up to 32 bits."""
    whole = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    plain = array.astype(jnp.uint8) if array.dtype == jnp.bool_ else array
    bits = jax.lax.bitcast_convert_type(plain, whole).astype(jnp.uint32)
    position = jnp.zeros(array.shape, jnp.uint32)
    for dimension in range(array.ndim):
        position = _mixed(position + jax.lax.broadcasted_iota(jnp.uint32, array.shape, dimension) + np.uint32(1))
    lanes = [bits ^ _mixed(position ^ np.uint32(word)) for word in (0, 0x9E3779B9, 0x3C6EF372, 0xDAA66D2B)]
    return jnp.stack([_mixed(lane).sum(dtype=jnp.uint32) for lane in lanes])


def _mixed(word: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every bit depends on every bit (the finaliser of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        word = (word ^ (word >> shift)) * np.uint32(factor)
    return word ^ (word >> 16)
