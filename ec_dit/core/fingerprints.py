"""Fingerprints of arrays: the same however they lie over devices and processes, and made where they lie.

The bits of an array are mixed with their positions and added up. Every process adds what its devices hold, small parts on the
host; then the sums of the processes are added. Nothing large is gathered, and no program talks between devices. They do not hold
against somebody who wants two arrays to have the same.
"""

import functools
import hashlib
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ec_dit.core import processes
from ec_dit.core.tree import is_key, named_leaves

# Elements of an array, or of what a device holds of it, that are added on the host, which saves compiling.
_SMALL = 2**16
_SALTS = (0, 0x9E3779B9, 0x3C6EF372, 0xDAA66D2B)
_WORDS = len(_SALTS)  # of a fingerprint


def fingerprint(tree: Any) -> str:
    """64 hexadecimal digits for the names, shapes, dtypes and every bit of the arrays of `tree`. Every process calls it."""
    leaves, sums = dict(named_leaves(tree)), _sums(tree)
    digest = hashlib.sha256()
    for name in sorted(leaves):
        digest.update(f"{name}:{leaves[name].dtype}:{leaves[name].shape};".encode())
        digest.update(next(iter(sums[name].values())).tobytes())
    return digest.hexdigest()


def leaf_fingerprints(tree: Any) -> dict[str, dict[str, str]]:
    """{name: {dtype: hexadecimal digits}} for every leaf of `tree`: as `fingerprint`, of each by itself. Every process calls it.

    Of float32 leaves also for the bfloat16 numbers that they round to: what was saved as the one and read as the other can be
    compared without holding both. Any change of one element alone is seen for certain.
    """
    return {
        name: {dtype: words.tobytes().hex() for dtype, words in of_leaf.items()}
        for name, of_leaf in _sums(tree).items()
    }


def _dtypes(array: Any) -> list[str]:
    """Of what `_array_sums` gives sums."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return [str(dtype), "bfloat16"] if dtype == np.float32 else [str(dtype)]


class _Part(NamedTuple):
    """What is added of an array at once: numbers that begin at `start` of it, or, where that is None, their sums."""

    data: Any
    start: tuple[int, ...] | None


def _sums(tree: Any) -> dict[str, dict[str, np.ndarray]]:
    """`_array_sums` of every leaf, by name and by the dtypes that they are of, its own first."""
    arrays = {name: jax.random.key_data(leaf) if is_key(leaf) else leaf for name, leaf in named_leaves(tree)}
    parts = {name: _parts(array) for name, array in arrays.items()}
    data = jax.device_get({name: [part.data for part in of_array] for name, of_array in parts.items()})
    sums = {name: np.zeros((len(_dtypes(array)), _WORDS), np.uint32) for name, array in arrays.items()}
    with np.errstate(over="ignore"):  # NumPy warns where single numbers wrap
        for name, array in arrays.items():
            for part, numbers in zip(parts[name], data[name], strict=True):
                if part.start is not None:
                    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
                    numbers = _array_sums(np.asarray(numbers, dtype), part.start, np)
                # A device's own sums have the array's dimensions too, of size 1.
                sums[name] += numbers.reshape(-1, _WORDS)
        # What lies over several processes is in none of them whole.
        spread = [name for name, array in arrays.items() if not getattr(array, "is_fully_addressable", True)]
        if spread:
            words = processes.add_words(np.concatenate([sums[name] for name in spread]))
            ends = np.cumsum([len(sums[name]) for name in spread])
            sums |= zip(spread, np.split(words, ends[:-1]), strict=True)
    return {name: dict(zip(_dtypes(array), sums[name], strict=True)) for name, array in arrays.items()}


def _parts(array: Any) -> list[_Part]:
    """The parts of an array that this process adds; work on devices begins."""
    whole = _Part(array, (0,) * array.ndim)
    if not isinstance(array, jax.Array):
        return [whole if array.size <= _SMALL else _Part(_compiled_sums(array, None), None)]
    if math.prod(array.sharding.shard_shape(array.shape)) > _SMALL:
        sharding = array.sharding if isinstance(array.sharding, jax.NamedSharding) else None
        return [_Part(shard.data, None) for shard in _own(_compiled_sums(array, sharding))]
    if array.is_fully_addressable and array.size <= _SMALL:
        return [whole]
    return [_Part(shard.data, tuple(index.start or 0 for index in shard.index)) for shard in _own(array)]


def _own(array: jax.Array) -> list[jax.Shard]:
    """The shards of an array that this process holds, without copies: all processes together have each once."""
    return [shard for shard in array.addressable_shards if shard.replica_id == 0]


@functools.partial(jax.jit, static_argnums=1)
def _compiled_sums(array: jax.Array, sharding: jax.NamedSharding | None) -> jax.Array:
    """`_array_sums` where the array lies: of what each device holds by itself, without a word between devices.

    Of many programs in flight that all talk between processes, CPUs may begin others on each, and wait for ever.
    """
    if sharding is None:
        return _array_sums(array, (0,) * array.ndim, jnp)
    axes = (*sharding.spec, *[None] * (array.ndim - len(sharding.spec)))

    def of_block(block: jax.Array) -> jax.Array:
        start = [
            0 if along is None else jax.lax.axis_index(along).astype(jnp.uint32) * np.uint32(size)
            for along, size in zip(axes, block.shape, strict=True)
        ]
        sums = _array_sums(block, start, jnp)
        return sums.reshape((1,) * block.ndim + sums.shape)

    spec = jax.P(*sharding.spec)
    return jax.shard_map(of_block, mesh=sharding.mesh, in_specs=spec, out_specs=jax.P(*axes, None, None))(array)


def _array_sums(array: Any, start: Sequence[Any], xp: ModuleType) -> Any:
    """`_WORDS` uint32 for each of `_dtypes` of an array of NumPy or JAX, whose module is `xp`; part of one, from `start` on."""
    words, position = _words(array, xp), _positions(array.shape, start, xp)
    rounded = [_rounded(words, xp)] if array.dtype == np.float32 else []
    return xp.stack([_word_sums(of_dtype, position, xp) for of_dtype in (words, *rounded)])


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


def _positions(shape: tuple[int, ...], start: Sequence[Any], xp: ModuleType) -> Any:
    """A word for the position of each element of a block of `shape` that begins at `start`; uint32."""
    position = xp.zeros(shape, np.uint32)
    for dimension, (size, first) in enumerate(zip(shape, start, strict=True)):
        along = xp.arange(size, dtype=np.uint32).reshape([-1 if d == dimension else 1 for d in range(len(shape))])
        position = _mixed(position + along + xp.uint32(first) + np.uint32(1))
    return position


def _word_sums(words: Any, position: Any, xp: ModuleType) -> Any:
    """Four sums of words mixed with their positions; uint32."""
    return xp.stack([_mixed(words ^ _mixed(position ^ np.uint32(salt))).sum(dtype=np.uint32) for salt in _SALTS])


def _mixed(word: Any) -> Any:
    """A bijection of 32-bit words in which every bit depends on every bit (the finaliser of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        word = (word ^ (word >> shift)) * np.uint32(factor)
    return word ^ (word >> 16)
