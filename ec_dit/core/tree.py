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


def leaf_fingerprints(tree: Any) -> dict[str, dict[str, str]]:
    """{name: {dtype: 16 hexadecimal digits}} for every leaf of `tree`: as `fingerprint`, of each by itself.

    Of float32 leaves also for the bfloat16 numbers that they round to: what was saved as the one and read as the other can be
    compared without holding both. Any change of one element alone is seen for certain. Compiled once for each kind of leaf.
    """
    sums = {name: _leaf_sums(jax.random.key_data(leaf) if is_key(leaf) else leaf) for name, leaf in named_leaves(tree)}
    return {
        name: {dtype: words.tobytes().hex() for dtype, words in of_leaf.items()}
        for name, of_leaf in jax.device_get(sums).items()
    }


def is_key(leaf: Any) -> bool:
    """Whether an array is one of typed random keys."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@jax.jit
def _leaf_sums(array: jax.Array) -> dict[str, jax.Array]:
    sums = {str(array.dtype): _word_sums(_words(array), 2)}
    if array.dtype == jnp.float32:
        sums["bfloat16"] = _word_sums(_rounded(_words(array)), 2)
    return sums


def _rounded(words: jax.Array) -> jax.Array:
    """The bits of float32 numbers as those of the bfloat16 nearest to them, ties to even.

    In whole numbers, since devices may flush what is denormal.
    """
    nan = (words & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    nearest = (words + np.uint32(0x7FFF) + ((words >> 16) & np.uint32(1))) >> 16
    return jnp.where(nan, np.uint32(0x7FC0) | ((words >> 16) & np.uint32(0x8000)), nearest)


def _bit_sums(array: jax.Array) -> jax.Array:
    """Four words, uint32, of an array whose elements have up to 32 bits."""
    return _word_sums(_words(array), 4)


def _words(array: jax.Array) -> jax.Array:
    whole = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    plain = array.astype(jnp.uint8) if array.dtype == jnp.bool_ else array
    return jax.lax.bitcast_convert_type(plain, whole).astype(jnp.uint32)


def _word_sums(bits: jax.Array, lanes: int) -> jax.Array:
    """`lanes` sums of an array's words, mixed with their positions; uint32."""
    position = jnp.zeros(bits.shape, jnp.uint32)
    for dimension in range(bits.ndim):
        position = _mixed(position + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dimension) + np.uint32(1))
    salts = (0, 0x9E3779B9, 0x3C6EF372, 0xDAA66D2B)[:lanes]
    return jnp.stack([_mixed(bits ^ _mixed(position ^ np.uint32(salt))).sum(dtype=jnp.uint32) for salt in salts])


def _mixed(word: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every bit depends on every bit (the finaliser of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        word = (word ^ (word >> shift)) * np.uint32(factor)
    return word ^ (word >> 16)
