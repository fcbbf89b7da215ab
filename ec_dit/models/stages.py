"""The blocks of a model in the order in which they run, parted into stages: a scan runs over the repeats of each pattern."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Kind(NamedTuple):
    """What sets a block apart from the others of its model.

    Attributes:
        sparse: it has experts.
        dual: its image tokens have attention among themselves beside the joint one (SD3.5's first blocks).
        last: it is the last of a model with a text stream, so that its text goes nowhere.
    """

    sparse: bool
    dual: bool = False
    last: bool = False


class Stage(NamedTuple):
    """Blocks that one scan runs through.

    Attributes:
        pattern: the blocks of one repeat.
        repeats: how often they follow each other.
        factor: capacity factor of the sparse ones; None where the routing says it.
    """

    pattern: tuple[Kind, ...]
    repeats: int
    factor: float | None = None

    @property
    def num_blocks(self) -> int:
        """Counts the blocks of all repeats."""
        return len(self.pattern) * self.repeats


def stages(kinds: Sequence[Kind], factors: Sequence[float], every: int) -> list[Stage]:
    """Parts the blocks of a model.

    At most three stages, so that what is compiled does not grow with depth; of blocks that differ otherwise, or have capacity
    factors of their own, three for every run of equal ones.

    Args:
        factors: of each sparse block, in their order; none: as the routing says.
        every: a sparse block every so many.
    """
    return [stage for run, factor in _runs(kinds, factors) for stage in _stages(run, every, factor)]


def _runs(kinds: Sequence[Kind], factors: Sequence[float]) -> list[tuple[list[Kind], float | None]]:
    """Blocks parted where they differ in more than their experts, or where the capacity factor changes; dense ones go with the
    next sparse one.
    """
    left = iter(factors)
    runs: list[tuple[list[Kind], float | None]] = []
    for _, alike in itertools.groupby(kinds, key=lambda kind: kind._replace(sparse=False)):
        runs += _by_factor(alike, left)
    return runs


def _by_factor(kinds: Iterator[Kind], factors: Iterator[float]) -> list[tuple[list[Kind], float | None]]:
    runs: list[tuple[list[Kind], float | None]] = []
    waiting: list[Kind] = []
    for kind in kinds:
        waiting.append(kind)
        if not kind.sparse:
            continue
        factor = next(factors, None)
        if runs and runs[-1][1] == factor:
            runs[-1][0].extend(waiting)
        else:
            runs.append((waiting, factor))
        waiting = []
    if not runs:
        return [(waiting, None)]
    runs[-1][0].extend(waiting)
    return runs


def _stages(kinds: list[Kind], every: int, factor: float | None) -> list[Stage]:
    """The stages of blocks with one capacity factor, of which every so many is sparse."""
    sparse = [kind.sparse for kind in kinds]
    if not any(sparse):
        return [Stage((kinds[0],), len(kinds), factor)]
    head = max(0, sparse.index(True) + 1 - every)  # dense blocks before the first whole period
    period = tuple(kinds[head : head + every])
    repeats = 1
    while tuple(kinds[head + repeats * every : head + (repeats + 1) * every]) == period:
        repeats += 1
    tail = kinds[head + repeats * every :]
    if len(tail) < every:
        end = Stage(tuple(tail), 1, factor)
    else:  # dense ones only, however many
        end = Stage((tail[0],), len(tail), factor)
    found = [Stage((kinds[0],), head, factor), Stage(period, repeats, factor), end]
    return [stage for stage in found if stage.pattern and stage.repeats]


def block_numbers(stages: Sequence[Stage]) -> dict[str, list[int]]:
    """Gives the numbers of the blocks that are stacked under each start of a parameter's name, 'stages/0/blocks/1/'."""
    found, first = {}, 0
    for number, stage in enumerate(stages):
        step = len(stage.pattern)
        for place in range(step):
            found[f"stages/{number}/blocks/{place}/"] = [first + place + step * r for r in range(stage.repeats)]
        first += stage.num_blocks
    return found
