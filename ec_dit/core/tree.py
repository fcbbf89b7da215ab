"""Small tools on pytrees: names, sizes, fingerprints."""

import hashlib
import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SMALL = 2**16  # elements of a leaf whose fingerprint is made on the host, which saves compiling


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """(slash-separated path, leaf) of every leaf, in the tree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def num_params(tree: Any) -> int:
    """How many numbers the arrays (or ShapeDtypeStructs) of `tree` hold."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def fingerprint(tree: Any) -> str:
    """64 hexadecimal digits for the names, shapes, dtypes and every bit of the arrays of `tree`.

    The bits are mixed with their positions and added up where they lie: no large array is gathered, and the outcome is the same
    for any layout over devices. Not cryptographic.
    """
    leaves, sums = dict(named_leaves(tree)), _sums(tree)
    digest = hashlib.sha256()
    for name in sorted(leaves):
        digest.update(f"{name}:{leaves[name].dtype}:{leaves[name].shape};".encode())
        digest.update(sums[name][str(jax.dtypes.canonicalize_dtype(leaves[name].dtype))].tobytes())
    return digest.hexdigest()


def leaf_fingerprints(tree: Any) -> dict[str, dict[str, str]]:
    """{name: {dtype: hexadecimal digits}} for every leaf of `tree`: as `fingerprint`, of each by itself.

    Of float32 leaves also for the bfloat16 numbers that they round to: what was saved as the one and read as the other can be
    compared without holding both. Any change of one element alone is seen for certain.
    """
    sums = _sums(tree)
    return {name: {dtype: words.tobytes().hex() for dtype, words in of_leaf.items()} for name, of_leaf in sums.items()}


def is_key(leaf: Any) -> bool:
    """Whether an array is one of typed random keys."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _sums(tree: Any) -> dict[str, dict[str, np.ndarray]]:
    """The words of `_leaf_sums` by name: of small leaves on the host; of others where they lie, compiled once for each kind."""
    plain = {name: jax.random.key_data(leaf) if is_key(leaf) else leaf for name, leaf in named_leaves(tree)}
    small = {name: leaf for name, leaf in plain.items() if leaf.size <= _SMALL and _is_here(leaf)}
    # One at a time: of many programs in flight that all talk between processes, CPUs may begin others on each, and wait for ever.
    large = {name: jax.device_get(_compiled_sums(leaf)) for name, leaf in plain.items() if name not in small}
    with np.errstate(over="ignore"):  # NumPy warns where single numbers wrap
        on_host = {
            name: np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))
            for name, leaf in jax.device_get(small).items()
        }
        sums = {name: _leaf_sums(array, np) for name, array in on_host.items()}
    return sums | large


def _is_here(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


def _leaf_sums(array: Any, xp: ModuleType) -> dict[str, Any]:
    """{dtype: uint32 words} of an array of NumPy or JAX, whose module is `xp`."""
    words = _words(array, xp)
    sums = {str(array.dtype): _word_sums(words, xp)}
    if array.dtype == np.float32:
        sums["bfloat16"] = _word_sums(_rounded(words, xp), xp)
    return sums


@jax.jit
def _compiled_sums(array: jax.Array) -> dict[str, jax.Array]:
    return _leaf_sums(array, jnp)


def _words(array: Any, xp: ModuleType) -> Any:
    """The bits of elements that have up to 32 of them, as uint32."""
    whole = {1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize]
    plain = array.astype(np.uint8) if array.dtype == np.bool_ else array
    bits = plain.view(whole) if xp is np else jax.lax.bitcast_convert_type(plain, whole)
    return bits.astype(np.uint32)


def _rounded(words: Any, xp: ModuleType) -> Any:
    """The bits of float32 numbers as those of the bfloat16 nearest to them, ties to even.

    In whole numbers, since devices may flush what is denormal.
    """
    nan = (words & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    nearest = (words + np.uint32(0x7FFF) + ((words >> 16) & np.uint32(1))) >> 16
    return xp.where(nan, np.uint32(0x7FC0) | ((words >> 16) & np.uint32(0x8000)), nearest)


def _word_sums(words: Any, xp: ModuleType) -> Any:
    """Four sums of an array's words, mixed with their positions; uint32."""
    position = xp.zeros(words.shape, np.uint32)
    for dimension, size in enumerate(words.shape):
        along = xp.arange(size, dtype=np.uint32).reshape([-1 if d == dimension else 1 for d in range(words.ndim)])
        position = _mixed(position + along + np.uint32(1))
    salts = (0, 0x9E3779B9, 0x3C6EF372, 0xDAA66D2B)
    return xp.stack([_mixed(words ^ _mixed(position ^ np.uint32(salt))).sum(dtype=np.uint32) for salt in salts])


def _mixed(word: Any) -> Any:
    """A bijection of 32-bit words in which every bit depends on every bit (the finaliser of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        word = (word ^ (word >> shift)) * np.uint32(factor)
    return word ^ (word >> 16)
