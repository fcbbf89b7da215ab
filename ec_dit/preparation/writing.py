"""A source becomes a data set on disk: unit by unit, in any number of processes, gone on with where it was interrupted.

The bytes are those of one process that was never interrupted.
"""

import collections
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any

from PIL import Image

from ec_dit.core import paths, processes
from ec_dit.core.errors import UserError
from ec_dit.data import images, layout, tokenizer
from ec_dit.data.layout import FORMAT
from ec_dit.data.records import Record
from ec_dit.data.report import Report, read_report
from ec_dit.preparation import filters, finishing, units, workplace
from ec_dit.preparation.counting import UnitCount
from ec_dit.preparation.filters import Filters
from ec_dit.preparation.finishing import Finish
from ec_dit.preparation.pace import Pace
from ec_dit.preparation.pipeline import Bar, ahead
from ec_dit.preparation.resolution import Shape
from ec_dit.preparation.source import Shard, Skipped, Source
from ec_dit.preparation.workplace import Workplace

_LIBRARIES = ("tensorflow-datasets", "array-record", "sentencepiece", "pillow", "numpy")
_LEAST = 1000  # examples of a unit, unless the source says that it has no more
_PATIENCE = 30 * 24 * 3600  # seconds that a process waits for the others' units
_NOTHING = Image.new("RGB", (1, 1))
_END = Skipped("", "end of a shard", asked=True, examples=0)  # goes through the threads in the order of the examples
_EARLY = 1000  # examples after which a hopeless preparation ends, instead of at the end


@dataclasses.dataclass(frozen=True)
class EncodingPlan:
    """How pictures and captions are to be encoded.

    Attributes:
        encoders: frozen.
        facts: as Encoding.facts has them.
        shapes: in pixels.
        batch_size: pictures encoded at a time.
        text_type: bfloat16 or int8.
        flip: keep a second latent, of the mirror image.
    """

    encoders: units.Encoders
    facts: Mapping[str, Any]
    shapes: Sequence[Shape]
    batch_size: int = 32
    text_type: str = "bfloat16"
    flip: bool = False


def write(
    source: Source,
    out: str | PurePath,
    *,
    encoding: EncodingPlan | None = None,
    chosen: Filters = filters.DEFAULT,
    image_size: int | None = None,
    num_shards: int | None = None,
    vocab_size: int = 4096,
    tokenizer_path: str | PurePath | None = None,
    max_skipped_share: float = 0.1,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Prepares `source` into the folder `out`, which may lie in a bucket; all processes of the run call it.

    Args:
        encoding: stores latents and embeddings; None: the pictures.
        chosen: which examples are kept.
        image_size: of pictures, shrinks those whose shorter side is longer.
        num_shards: files of a split, and pieces in which the work is done; by default one for each of the source's, of which
            small ones are taken together.
        vocab_size: pieces, at most, of the tokenizer trained on the captions of the split `train`; of pictures only.
        tokenizer_path: a sentencepiece model to copy instead of training one.
        max_skipped_share: fails if more than this share of the examples, from 0 to 1, cannot be used; those that `chosen`
            leaves out do not count.
        overwrite: replaces a finished data set at `out`; never anything else.
        progress: shows a progress bar on stderr.
        say: told who else makes this data set while this one waits for that, and how fast this process was.

    Raises:
        UserError: `out` is taken, too much cannot be used, nothing was kept for training, the tokenizer is unusable, or an
            argument makes no sense. What was finished stays, and the next call goes on from there.
        OSError: a file cannot be written; likewise.
    """
    if not 0 <= max_skipped_share <= 1:
        raise UserError(f"max_skipped_share is {max_skipped_share}; it must be from 0 to 1")
    given = tokenizer.Tokenizer.load(tokenizer_path) if tokenizer_path else None
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size is {image_size}; it must be at least 1")
    parts = _parts(source, num_shards)
    plan = {
        "format": FORMAT,
        "source": source.name,
        "options": _plain(source.options),
        "units": len(parts),
        "shards_sha256": hashlib.sha256(
            json.dumps([[[shard.name, *shard.entries] for shard in part] for part in parts]).encode()
        ).hexdigest(),
        "filters": _plain(chosen),
        "image_size": image_size,
        "encoding": None if encoding is None else dict(encoding.facts),
        "libraries": _versions((*_LIBRARIES, *source.libraries)),
    }
    pieces = [piece for part in parts for shard in part for piece in (shard.entries or (shard.name,))]
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    made_by = [digest, vocab_size, given and hashlib.sha256(given.model).hexdigest()]
    mark = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()
    processes.check_same(digest, "what is to be prepared (source, options, encoders, libraries)")
    with workplace.opened(out, plan, overwrite=overwrite, pieces=pieces, mark=mark, say=say) as place:
        if place is None:
            return read_report(paths.at(out))
        work = _Work(source, place, parts, chosen, encoding, image_size, max_skipped_share)
        line = work.run(progress)
        if line and say is not None:
            say(line)
        processes.wait("all units are made", seconds=_PATIENCE)
        paths.look_again(out)
        report = work.finish(plan | {"mark": mark}, given, vocab_size) if processes.is_first() else None
        processes.wait("the report is written")
        if report is None:
            paths.look_again(out)
            report = read_report(place.files)
    return report


class _Work:
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
            self._place.take_back(self._most)
        processes.wait("units are taken back")
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
        for item in ahead(pool, prepare, records, window):
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
        return units.EncodedUnit(
            out,
            plan.encoders,
            plan.shapes,
            batch_size=plan.batch_size,
            text_type=plan.text_type,
            flip=plan.flip,
            pace=self._pace,
        )

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
            self._refuse(f"{self._faults:,} of the first {total:,}", why)

    def _refuse(self, share: str, why: str) -> None:
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
            self._place.refuse(self._most, finish.faulty)
            about = "about " if finish.counts.guessed else ""
            self._refuse(f"{about}{faults:,} of {about}{total:,}", finish.explain(asked=False))
        if self._encoding is None:
            return finish.write(plan, given, vocab_size)
        text_BTM, mask_BT = self._encoding.encoders.texts([""])
        return finish.write_encoded(plan, self._encoding.facts, (text_BTM[0], mask_BT[0]))


def _parts(source: Source, num_shards: int | None) -> list[Sequence[Shard]]:
    """The source's shards in `num_shards` runs of nearly equal length; None: small ones together, `_LEAST` examples or more."""
    shards = source.shards()
    if num_shards is None:
        ends, size = [0], 0
        for end, shard in enumerate(shards, 1):
            size += _LEAST if shard.size is None else shard.size
            if size >= _LEAST or end == len(shards):
                ends.append(end)
                size = 0
    elif 1 <= num_shards <= len(shards):
        ends = [len(shards) * i // num_shards for i in range(num_shards + 1)]
    else:
        raise UserError(
            f"num_shards is {num_shards}; source {source.name} comes in {len(shards)} pieces: give 1 to {len(shards)}"
        )
    return [shards[start:end] for start, end in itertools.pairwise(ends)]


def _line(item: Skipped) -> str:
    """Of skipped.jsonl; it says how many examples are lost where that is not one."""
    reason = item.reason.encode(errors="replace").decode()  # what it quotes may hold anything
    facts = {"split": item.split, "id": item.id, "reason": reason, "asked": item.asked}
    return json.dumps(facts if item.examples == 1 else facts | {"examples": item.examples}, ensure_ascii=False)


def _plain(options: Any) -> dict[str, Any]:
    """A dataclass as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(options)))


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
