"""What a source of pictures is: it comes in shards, of which each yields records, and says why an example is none."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ec_dit.data.records import TRAIN, Record

Options = TypeVar("Options")


@dataclass(frozen=True)
class Skipped:
    """An example left out.

    Attributes:
        id: its name, or where it stands if it has none.
        reason: what the report gives; what follows a first colon is detail, not counted.
        split: which one it would belong to.
        asked: whether a filter that the user set left it out, and no fault of its own.
        examples: how many examples are lost with it: None for a file of which nobody can tell; 0 for a remark on what was
            read all the same.
        meta: what is known of the example, as in Record: filters may leave it out for that, so that it is no fault.
    """

    id: str
    reason: str
    split: str = TRAIN
    asked: bool = False
    examples: int | None = 1
    meta: Mapping[str, Any] = field(default_factory=dict)


class Shard(NamedTuple):
    """A stretch of a source that is read in one go: a file, a part of one (FILE:NUMBER), or a range of entries.

    Attributes:
        name: for messages.
        size: examples in it, kept or skipped; None where only reading tells.
        entries: of a range, names of what is in it, by which a change of the source is noticed and told.
    """

    name: str
    size: int | None = None
    entries: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The file, or the range, that it is a part of."""
        file, colon, number = self.name.rpartition(":")
        return file if colon and number.isdecimal() else self.name


class Source(Protocol):
    """Where examples come from. Reading twice must give the same examples in the same order.

    Attributes:
        name: of the kind of source.
        options: a dataclass; data sets note it.
        holds_out: whether the validation examples are a share of the others, and not a split of their own.
        libraries: packages, beside the usual ones, that the bytes of its images depend on.
    """

    name: str
    options: Any
    holds_out: bool
    libraries: tuple[str, ...]

    def splits(self) -> tuple[str, ...]:
        """Lists the splits, 'train' first."""
        ...

    def published(self) -> Mapping[str, str]:
        """Tells what became of the splits it was published with, for the report: {'val': 'kept as validation'}."""
        ...

    def unread(self) -> Mapping[str, int]:
        """Counts what lies beside the examples and is not read, for the report, by kind, such as '.xyz' or 'link'."""
        ...

    def shards(self) -> Sequence[Shard]:
        """Lists the stretches it is read in: each by itself, by any process, in any order."""
        ...

    def records(self, shard: int) -> Iterator[Record | Skipped]:
        """Yields the examples of one stretch, of all splits. Images are as they were found: nobody has decoded them yet."""
        ...


@dataclass(frozen=True)
class Kind(Generic[Options]):
    """A kind of source; every module of preparation/sources/ has one, SOURCE.

    Attributes:
        make: opens a source.
        options: what it takes, a frozen dataclass whose fields are the options that a user may give.
    """

    make: Callable[[Options], Source]
    options: type[Options]


def ranges(size: int, length: int = 1000, name: str = "", entries: Sequence[str] = ()) -> list[Shard]:
    """Cuts `size` examples, of which a source reads any at once, into stretches of `length`; `entries` names each of them."""
    return [
        Shard(
            f"{name}{start}-{min(start + length, size)}",
            min(length, size - start),
            tuple(entries[start : start + length]),
        )
        for start in range(0, size, length)
    ]


def everything(source: Source) -> Iterator[Record | Skipped]:
    """Yields all examples, shard by shard."""
    for shard in range(len(source.shards())):
        yield from source.records(shard)
