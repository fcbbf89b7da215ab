"""The units of a data set in the making: a process makes its share of them, the first one ends the set."""

import collections
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from PIL import Image

from ec_dit.core import ahead, processes
from ec_dit.core.errors import UserError
from ec_dit.data import images, layout, tokenizer
from ec_dit.data.batch import Text
from ec_dit.data.records import Record
from ec_dit.data.report import Report
from ec_dit.preparation import filters, finishing, units
from ec_dit.preparation.counting import UnitCount
from ec_dit.preparation.filters import Filters
from ec_dit.preparation.finishing import Finish
from ec_dit.preparation.pace import Pace
from ec_dit.preparation.progress import Bar
from ec_dit.preparation.source import Shard, Skipped, Source
from ec_dit.preparation.units import EncodingPlan
from ec_dit.preparation.workplace import Workplace

_BYTES_AHEAD = 2**28  # of pictures as they were found, read before they are needed
_NOTHING = Image.new("RGB", (1, 1))
_END = Skipped("", "end of a shard", asked=True, examples=0)  # goes through the threads in the order of the examples
_EARLY = 1000  # examples after which a hopeless preparation ends, instead of at the end


class Work:
    """The units of one data set."""

    def __init__(
        self,
        source: Source,
        place: Workplace,
        parts: Sequence[Sequence[Shard]],
        chosen: Filters,
        encoding: EncodingPlan | None,
        image_size: int | None,
        max_skipped_share: float,
    ):
        self._source, self._place, self._filters, self._parts = source, place, chosen, parts
        self._encoding, self._image_size, self._most = encoding, image_size, max_skipped_share
        self._sizes = [[shard.size for shard in part] for part in parts]
        starts = itertools.accumulate((len(part) for part in parts), initial=0)
        self._shards = [range(start, start + len(part)) for start, part in zip(starts, parts, strict=False)]
        self._kept, self._faults = 0, 0
        self._pace = Pace()

    def run(self, progress: bool) -> str | None:
        """Makes this process's share of the units that are not done yet; how fast, where that can be told."""
        if processes.is_first():
            self._place.discard_refused(self._most)
        processes.wait("units that were refused are discarded")
        done = self._place.units.finished()
        processes.wait("all know what is done")
        left = [unit for unit in range(len(self._shards)) if unit not in done]
        mine = left[processes.index() :: processes.count()]
        bar = Bar(self._source.name, [self._sizes[unit] for unit in mine], len(self._shards) - len(left), progress)
        self._pace = Pace()
        with bar, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for unit in mine:
                self._make(unit, pool, bar)
                bar.unit_done()
        return self._pace.line(bar.count)

    def _make(self, number: int, pool: ThreadPoolExecutor, bar: Bar) -> None:
        unit, seen, count = self._unit(number), filters.Seen(self._filters), UnitCount()
        ids: set[tuple[str, str]] = set()

        def prepare(item: Record | Skipped) -> tuple[filters.Picture, Any] | Skipped:
            if isinstance(item, Skipped):
                return filters.look(item, self._filters)
            with images.room_for(item.image):
                found = filters.look(item, self._filters)
                if isinstance(found, Skipped):
                    return found
                ready = unit.ready(found)  # all that is left of the picture: many wait at a time
                return found._replace(image=_NOTHING, record=dataclasses.replace(found.record, image=b"")), ready

        shards = (itertools.chain(self._source.records(shard), [_END]) for shard in self._shards[number])
        records = itertools.chain.from_iterable(shards)
        window = 3 * (self._encoding.batch_size if self._encoding else 8)
        for item in ahead.results(pool, prepare, records, window, size=_size, most=_BYTES_AHEAD):
            if item is _END:
                count.end_shard()
                continue
            bar.update()
            found, ready = (item, None) if isinstance(item, Skipped) else (seen.first(item[0]), item[1])
            if not isinstance(found, Skipped) and (found.record.split, found.record.id) in ids:
                found = Skipped(found.record.id, "repeated id", found.record.split)
            if isinstance(found, Skipped):
                count.leave_out(found)
                self._count_fault(found, count)
                continue
            record = found.record
            ids.add((record.split, record.id))
            self._kept += 1
            count.keep()
            unit.add(record, ready)
        self._place.finish(number, unit.close(), count.facts(), list(map(_line, count.skipped)))

    def _unit(self, number: int) -> units.Unit:
        def name(split: str) -> str:
            return layout.file_name(self._source.name, split, number, len(self._shards))

        out, plan = units.Files(self._place, name), self._encoding
        if plan is None:
            return units.PictureUnit(out, self._image_size)
        return units.EncodedUnit(out, plan, self._pace)

    def _count_fault(self, item: Skipped, count: UnitCount) -> None:
        """Ends what is hopeless at once: where, of the first thousand, more than half cannot be used."""
        if item.asked or item.examples == 0:
            return
        self._faults += item.examples or 1
        total = self._kept + self._faults
        if total >= _EARLY and self._faults > max(self._most, 0.5) * total:
            units, counts = sorted(self._place.units.finished()), collections.Counter[str]()
            for facts in [*(self._place.units.facts(unit)["counts"] for unit in units), count.facts()]:
                counts.update(facts.faults)
                counts.update(facts.torn.values())

            def lines() -> Iterator[str]:
                yield from itertools.chain.from_iterable(map(self._place.units.lines, units))
                yield from map(_line, count.skipped)

            why = finishing.explain(self._place, self._source, lines, dict(counts.most_common()), asked=False)
            self._fail(f"{self._faults:,} of the first {total:,}", why)

    def _fail(self, share: str, why: str) -> NoReturn:
        raise UserError(
            f"source {self._source.name}: {share} examples cannot be used, more than "
            f"max_skipped_share={self._most:g}:{why}\nMend them, or raise max_skipped_share."
        )

    def finish(self, plan: Mapping[str, Any], given: tokenizer.Tokenizer | None, vocab_size: int) -> Report:
        """Writes what stands beside the records, the report last.

        Raises:
            UserError: too much cannot be used. When it is tried again, units with faults are read again, unless more of them
                are allowed then.
        """
        finish = Finish(self._source, self._place, self._parts, self._encoding is not None)
        finish.check()
        faults = sum(finish.counts.faults.values())
        total = faults + sum(finish.kept.values())
        if faults > self._most * total:
            self._place.note_refused(self._most, finish.faulty)
            about = "about " if finish.counts.guessed else ""
            self._fail(f"{about}{faults:,} of {about}{total:,}", finish.explain(asked=False))
        if self._encoding is None:
            return finish.write(plan, given, vocab_size)
        null_text = Text(*(None if part is None else part[0] for part in self._encoding.encoders.texts([""])))
        return finish.write_encoded(plan, self._encoding.facts, null_text)


def _size(item: Record | Skipped) -> int:
    return len(item.image) if isinstance(item, Record) else 0


def _line(item: Skipped) -> str:
    """Of skipped.jsonl; it says how many examples are lost where that is not one."""
    reason = item.reason.encode(errors="replace").decode()  # what it quotes may hold anything
    facts = {"split": item.split, "id": item.id, "reason": reason, "asked": item.asked}
    return json.dumps(facts if item.examples == 1 else facts | {"examples": item.examples}, ensure_ascii=False)
