"""What a preparation met, counted: of one unit as facts, and of all of them, where lost files weigh what they hold.

Of a file that cannot be read, or not to its end, often nobody knows how many examples are lost with it. Then it counts as many
as the other files of the source gave on average, filtered ones left out, as everywhere; where no file is whole, as many as the
one that gave the most.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from ec_dit.preparation.source import Shard, Skipped


@dataclasses.dataclass(frozen=True)
class UnitFacts:
    """What one unit met; all by reason, but for `examples`.

    Attributes:
        skipped: entries that were left out.
        remarks: likewise, on what was read all the same.
        faults: examples that could not be used, where their number is known.
        lost: those among them that are several of one entry.
        examples: of each shard, those left out as asked for not counted.
        torn: shards, by their number in the unit, of which nobody knows all examples, and why.
    """

    skipped: dict[str, int]
    remarks: dict[str, int]
    faults: dict[str, int]
    lost: dict[str, int]
    examples: list[int]
    torn: dict[str, str]


class UnitCount:
    """Counts the examples of one unit, in their order.

    Attributes:
        skipped: all that was left out, and remarks.
    """

    def __init__(self) -> None:
        self.skipped: list[Skipped] = []
        self._examples: list[int] = []  # of each shard, those left out as asked for not counted
        self._here = 0
        self._torn: dict[int, str] = {}  # shards that nobody knows the examples of, and why

    def keep(self) -> None:
        """Counts an example that is kept."""
        self._here += 1

    def leave_out(self, item: Skipped) -> None:
        """Counts one that is left out."""
        self.skipped.append(item)
        if item.asked:
            return
        if item.examples is None:
            self._torn.setdefault(len(self._examples), cause(item.reason))
        else:
            self._here += item.examples

    def end_shard(self) -> None:
        """Begins the next shard."""
        self._examples.append(self._here)
        self._here = 0

    def facts(self) -> UnitFacts:
        """Gives the sums."""
        faults: collections.Counter[str] = collections.Counter()
        lost: collections.Counter[str] = collections.Counter()
        for item in self.skipped:
            if not item.asked and item.examples:
                faults[cause(item.reason)] += item.examples
                lost[cause(item.reason)] += item.examples if item.examples > 1 else 0
        return UnitFacts(
            skipped=_lines(item for item in self.skipped if item.examples != 0),
            remarks=_lines(item for item in self.skipped if item.examples == 0),
            faults=dict(faults),
            lost=dict(+lost),
            examples=self._examples,
            torn={str(shard): reason for shard, reason in self._torn.items()},
        )


def cause(reason: str) -> str:
    """Gives what is counted of a reason: all before its first colon."""
    return reason.partition(":")[0]


def _lines(items: Iterable[Skipped]) -> dict[str, int]:
    return dict(collections.Counter(cause(item.reason) for item in items))


@dataclasses.dataclass(frozen=True)
class Counts:
    """What all units met; reasons stand in the order of their counts, the most frequent first.

    Attributes:
        skipped: entries that were left out, by reason: examples, and files that cannot be read.
        remarks: likewise, on what was read all the same.
        faults: by reason, the examples that could not be used, those of files that cannot be read included.
        lost: by reason, those of such files alone.
        guessed: whether some of these are a guess.
    """

    skipped: Mapping[str, int]
    remarks: Mapping[str, int]
    faults: Mapping[str, int]
    lost: Mapping[str, int]
    guessed: bool

    @classmethod
    def of(cls, facts: Iterable[UnitFacts], shards: Sequence[Sequence[Shard]]) -> "Counts":
        """Sums over units; `shards` are those of each."""
        sums = {name: collections.Counter[str]() for name in ("skipped", "remarks", "faults", "lost")}
        examples: collections.Counter[str] = collections.Counter()  # by file
        torn: dict[str, str] = {}
        for fact, of_unit in zip(facts, shards, strict=True):
            for name, counter in sums.items():
                counter.update(getattr(fact, name))
            for shard, count in zip(of_unit, fact.examples, strict=True):
                examples[shard.file] += count
            for number, reason in fact.torn.items():
                torn.setdefault(of_unit[int(number)].file, reason)
        whole = [count for file, count in examples.items() if file not in torn]
        typical = sum(whole) / len(whole) if whole else max(examples.values(), default=0)
        for file, reason in torn.items():
            guess = max(1, round(typical - examples[file]))
            sums["faults"][reason] += guess
            sums["lost"][reason] += guess
        return cls(**{name: dict(counter.most_common()) for name, counter in sums.items()}, guessed=bool(torn))
