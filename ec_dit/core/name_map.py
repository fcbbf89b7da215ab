"""Name maps: which tensor of a published file holds which of our parameters, as data that serves reading and writing alike.

A `Way` says how the dimensions of the two correspond. Theirs are groups of ours, in another order: torch's Linear keeps (out, in)
where we keep (in, heads, head_dim), say. That is enough to check shapes, to read only what a device holds, and to write back.
"""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ec_dit.core import processes, sharding
from ec_dit.core.errors import UserError
from ec_dit.core.hub import TensorFiles, flag_names
from ec_dit.core.tree import named_leaves

Shape = tuple[int, ...]
_DTYPES = ("F32", "F16", "BF16", "F64")  # names of safetensors


class Piece(NamedTuple):
    """Which of several equal pieces of a tensor of theirs, along one of its dimensions, a parameter of ours is."""

    dimension: int
    number: int
    pieces: int


@dataclass(frozen=True)
class Way:
    """How one tensor of theirs and one of ours correspond.

    Attributes:
        groups: from the number of our dimensions to one group of them for each of theirs.
        view: our shape with dimensions that we flatten apart; the groups count in it.
        piece: of theirs that is ours; None: all of it. What has pieces is written with all of them.
        mirrored: our dimension, never sharded, whose entries stand in the opposite order with them; None: none.
        sign: what multiplies, +1 or -1.
    """

    groups: Callable[[int], Sequence[Sequence[int]]]
    view: Callable[[Shape], Shape] = tuple
    piece: Piece | None = None
    mirrored: int | None = None
    sign: int = 1

    def cut(self, dimension: int, number: int, pieces: int = 2) -> "Way":
        """Gives this way for a piece of their tensor."""
        return replace(self, piece=Piece(dimension, number, pieces))

    def their_shape(self, shape: Shape) -> Shape:
        """Theirs for our `shape`, all pieces together."""
        sizes = self._piece_shape(shape)
        if self.piece is not None:
            sizes[self.piece.dimension] *= self.piece.pieces
        return tuple(sizes)

    def _piece_shape(self, shape: Shape) -> list[int]:
        view = self.view(shape)
        return [math.prod(view[d] for d in group) for group in self.groups(len(view))]

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        """Their array, or our piece of it, as ours of `shape`; of a part of theirs, our part."""
        view = self.view(shape)
        order = [d for group in self.groups(len(view)) for d in group]
        ours = theirs.reshape([view[d] for d in order]).transpose(np.argsort(order)).reshape(shape)
        return self._turned(ours)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """The inverse; of a piece, this piece alone."""
        view = self.view(ours.shape)
        order = [d for group in self.groups(len(view)) for d in group]
        return self._turned(ours).reshape(view).transpose(order).reshape(self._piece_shape(ours.shape))

    def _turned(self, ours: np.ndarray) -> np.ndarray:
        ours = ours if self.mirrored is None else np.flip(ours, self.mirrored)
        return ours if self.sign == 1 else -ours

    def part(self, shape: Shape, index: Sequence[slice]) -> tuple[tuple[slice, ...], Shape, tuple[slice, ...]]:
        """What of theirs holds our `index`: (index into theirs, our shape of what is read, index into that).

        A range of the first dimension of a group is a range of theirs; other ranges are cut out afterwards.
        """
        theirs, read, then = [], list(shape), list(index)
        if self.view(shape) != shape:
            theirs = [slice(0, n) for n in self._piece_shape(shape)]
        else:
            for group in self.groups(len(shape)):
                if not group:
                    theirs.append(slice(0, 1))
                    continue
                first, inner = group[0], math.prod(shape[d] for d in group[1:])
                low, high, _ = index[first].indices(shape[first])
                theirs.append(slice(low * inner, high * inner))
                read[first], then[first] = high - low, slice(None)
        if self.piece is not None:
            dimension, number, _ = self.piece
            before = number * self._piece_shape(shape)[dimension]
            theirs[dimension] = slice(theirs[dimension].start + before, theirs[dimension].stop + before)
        return tuple(theirs), tuple(read), tuple(then)


SAME = Way(lambda n: [(d,) for d in range(n)])
FLAT = Way(lambda n: [tuple(range(n))])  # a vector of theirs, of whatever shape with us
LINEAR = Way(lambda n: [tuple(range(1, n)), (0,)])  # (in, out ...) <- (out, in)
LINEAR_INTO = Way(lambda n: [(n - 1,), tuple(range(n - 1))])  # (in ..., out) <- (out, in)
# A head's numbers turn in pairs (RoPE): k and k + K / 2 with us, neighbours with them.
LINEAR_PAIRS = Way(lambda _: [(1, 3, 2), (0,)], lambda shape: (*shape[:2], 2, shape[2] // 2))
PAIRS = Way(lambda _: [(1, 0)], lambda shape: (2, shape[0] // 2))
CONV = Way(lambda _: [(3,), (2,), (0,), (1,)])  # (row, column, in, out) <- (out, in, row, column)


def patches(patch: int) -> Way:
    """A convolution over patches as a matrix: (row x column x in, out) <- (out, in, row, column)."""
    return Way(CONV.groups, lambda shape: (patch, patch, shape[0] // patch**2, shape[1]))


@dataclass(frozen=True)
class Entry:
    """Where a parameter comes from.

    Attributes:
        names: of their tensors: one, or of stacked layers one each.
        way: for one of them.
        stacked: whether our first dimension counts layers.
    """

    names: tuple[str, ...]
    way: Way
    stacked: bool

    def shape(self, ours: Shape) -> Shape:
        """Of one of our layers."""
        return ours[1:] if self.stacked else ours


Table = Mapping[str, Entry]  # by the slash-separated path of our parameter
Rules = Mapping[str, tuple[str, Way]]  # our name -> (theirs, with {i} for the number of a stacked layer; way)


def table(names: Iterable[str], plain: Rules, stacks: Mapping[str, tuple[Sequence[int], Rules]]) -> Table:
    """The entries of the parameters `names`.

    Args:
        plain: rules of parameters that are not stacked.
        stacks: start of our name -> (numbers of its layers in their order, rules of what follows it).
    """
    entries = {}
    for name in names:
        if name in plain:
            theirs, way = plain[name]
            entries[name] = Entry((theirs,), way, stacked=False)
            continue
        start, (numbers, rules) = next((start, stack) for start, stack in stacks.items() if name.startswith(start))
        theirs, way = rules[name.removeprefix(start)]
        entries[name] = Entry(tuple(theirs.format(i=number) for number in numbers), way, stacked=True)
    return entries


def load(files: TensorFiles, entries: Table, abstract: Any, ignored: Collection[str] = ()) -> Any:
    """The tree of `abstract` with values from files: every device gets its part, read for it alone.

    Args:
        entries: for every leaf.
        abstract: ShapeDtypeStructs with shardings; values are cast to their dtypes.
        ignored: starts of the names of tensors that other parts of a model use.

    Raises:
        UserError: naming missing, unknown and misshapen tensors, before anything is read.
    """
    check(files, entries, abstract, ignored)

    def leaf(path: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
        entry = entries[jax.tree_util.keystr(path, simple=True, separator="/")]

        def part(index: Sequence[slice]) -> np.ndarray:
            layers = entry.names[index[0]] if entry.stacked else entry.names
            rest = index[1:] if entry.stacked else index
            theirs, read, then = entry.way.part(entry.shape(like.shape), rest)
            values = np.empty((len(layers), *_size(entry.shape(like.shape), rest)), like.dtype)
            for number, name in enumerate(layers):
                values[number] = entry.way.to_ours(files.read(name, theirs), read)[then]
                if not np.isfinite(values[number]).all():
                    raise UserError(
                        f"{files.tensors[name].file}: tensor {name} holds numbers that are not finite in {like.dtype}; the file "
                        f"is damaged. Download it again."
                    )
            return values if entry.stacked else values[0]

        return _placed(part, like)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def _placed(part: Callable[[Sequence[slice]], np.ndarray], like: jax.ShapeDtypeStruct) -> jax.Array:
    """An array of which every device gets its part. One part at a time is on the host, where jax's own function holds all."""
    assert like.sharding is not None
    holders: dict[str, tuple[Sequence[slice], list[jax.Device]]] = {}
    for device, index in like.sharding.addressable_devices_indices_map(like.shape).items():
        assert index is not None
        holders.setdefault(str(index), (index, []))[1].append(device)
    shards = []
    for index, devices in holders.values():
        value = part(index)
        shards += jax.block_until_ready([jax.device_put(value, device) for device in devices])
    return jax.make_array_from_single_device_arrays(like.shape, like.sharding, shards)


def check(files: TensorFiles, entries: Table, abstract: Any, ignored: Collection[str] = ()) -> None:
    """Refuses files that are not exactly what the entries ask for; arguments as `load` has them."""
    wanted: dict[str, Shape] = {}
    for name, like in named_leaves(abstract):
        entry = entries[name]
        wanted |= dict.fromkeys(entry.names, entry.way.their_shape(entry.shape(like.shape)))
    found = {name: info for name, info in files.tensors.items() if not name.startswith(tuple(ignored))}
    tell = "Are these the weights of another model? Check config.json beside them, or download both again."
    if missing := sorted(wanted.keys() - found.keys()):
        raise UserError(
            f"{files.source}: {len(missing)} of {len(wanted)} tensors are missing: {flag_names(missing)}. {tell}"
        )
    if unknown := sorted(found.keys() - wanted.keys()):
        raise UserError(
            f"{found[unknown[0]].file}: {len(unknown)} tensors that nothing here uses: {flag_names(unknown)}. {tell}"
        )
    for name, shape in wanted.items():
        info = found[name]
        if info.shape != shape:
            raise UserError(f"{info.file}: tensor {name} has shape {info.shape}, but config.json says {shape}. {tell}")
        if info.dtype not in _DTYPES:
            raise UserError(
                f"{info.file}: tensor {name} is stored as {info.dtype}; supported are {', '.join(_DTYPES)}. Quantised weights "
                f"have to be published, or written again, in one of these."
            )


def tensors(tree: Any, entries: Table) -> Iterator[tuple[str, np.ndarray | None]]:
    """(their name, array) of every tensor, one layer on the host at a time; None but on the first process.

    All processes have to ask for all of them.
    """
    leaves = dict(named_leaves(tree))
    together: dict[tuple[str, ...], list[str]] = {}  # of theirs, ours that are pieces of it
    for name in leaves:
        together.setdefault(entries[name].names, []).append(name)
    for names, ours in together.items():
        ours = sorted(ours, key=lambda name: entries[name].way.piece or ())
        for number, theirs in enumerate(names):
            pieces = [_whole(leaves[name], number if entries[name].stacked else None) for name in ours]
            yield theirs, _joined(pieces, [entries[name].way for name in ours])


def _joined(pieces: Sequence[np.ndarray | None], ways: Sequence[Way]) -> np.ndarray | None:
    """Their tensor of all its pieces, None but on the first process."""
    found = [way.to_theirs(piece) for piece, way in zip(pieces, ways, strict=True) if piece is not None]
    if not found:
        return None
    piece = ways[0].piece
    return found[0] if piece is None else np.concatenate(found, axis=piece.dimension)


@functools.cache
def _gather(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda a: a, out_shardings=sharding.replicated(mesh))


def _whole(leaf: jax.Array, layer: int | None) -> np.ndarray | None:
    """A leaf, or one layer of it, on the host of the first process."""
    value = leaf if layer is None else leaf[layer]
    if processes.count() > 1:
        laid = leaf.sharding
        assert isinstance(laid, NamedSharding) and isinstance(laid.mesh, Mesh)
        value = _gather(laid.mesh)(value)
    return np.asarray(jax.device_get(value)) if processes.is_first() else None


def _size(shape: Shape, index: Sequence[slice]) -> Shape:
    return tuple(len(range(*cut.indices(n))) for cut, n in zip(index, shape, strict=True))
