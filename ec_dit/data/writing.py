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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any

from PIL import Image
from tqdm import tqdm

from ec_dit.core import processes
from ec_dit.core.errors import UserError
from ec_dit.data import files, filters, stored, tokenizer, units, workplace
from ec_dit.data.encoding import FILE as ENCODING
from ec_dit.data.encoding import Encoding
from ec_dit.data.filters import Filters
from ec_dit.data.records import TRAIN, Record, Shard, Skipped, Source
from ec_dit.data.report import FORMAT, Report
from ec_dit.data.resolution import Shape
from ec_dit.data.workplace import REPORT, Workplace

TOKENIZER, SKIPPED = "tokenizer.model", "skipped.jsonl"
_LIBRARIES = ("tensorflow-datasets", "array-record", "sentencepiece", "pillow", "numpy")
_NOTHING = Image.new("RGB", (1, 1))
_BYTES_AHEAD = 2**28  # of encoded pictures, read before they are needed
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
) -> Report:
    """Prepares `source` into the folder `out`, which may lie in a bucket; all processes of the run call it.

    Args:
        encoding: stores latents and embeddings; None: the pictures.
        chosen: which examples are kept.
        image_size: of pictures, shrinks those whose shorter side is longer.
        num_shards: files of a split, and pieces in which the work is done; by default one for each of the source's.
        vocab_size: pieces, at most, of the tokenizer trained on the captions of the split `train`; of pictures only.
        tokenizer_path: a sentencepiece model to copy instead of training one.
        max_skipped_share: fails if more than this share of the examples, from 0 to 1, cannot be used; those that `chosen`
            leaves out do not count.
        overwrite: replaces a finished data set at `out`; never anything else.
        progress: shows a progress bar on stderr.

    Raises:
        UserError: `out` is taken, too much cannot be used, nothing was kept for training, the tokenizer is unusable, or an
            argument makes no sense. What was finished stays, and the next call goes on from there.
        OSError: a file cannot be written; likewise.
    """
    if not 0 <= max_skipped_share <= 1:
        raise UserError(f"max_skipped_share is {max_skipped_share}; it must be from 0 to 1")
    given = tokenizer.Tokenizer.load(tokenizer_path) if tokenizer_path else None
    parts = _parts(source, num_shards)
    plan = {
        "format": FORMAT,
        "source": source.name,
        "options": _plain(source.options),
        "units": len(parts),
        "shards_sha256": hashlib.sha256(
            json.dumps([[shard.name for shard in part] for part in parts]).encode()
        ).hexdigest(),
        "filters": _plain(chosen),
        "image_size": image_size,
        "encoding": None if encoding is None else dict(encoding.facts),
        "libraries": _versions((*_LIBRARIES, *source.libraries)),
    }
    with workplace.opened(out, plan, overwrite=overwrite) as place:
        work = _Work(source, place, parts, chosen, encoding, image_size, max_skipped_share)
        work.run(progress)
        processes.wait("all units are made")
        report = work.finish(plan, given, vocab_size) if processes.is_first() else None
        processes.wait("the report is written")
        if report is None:
            report = Report.from_json((place.files / REPORT).read_text(encoding="utf-8"))
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
        self._source, self._place, self._filters = source, place, chosen
        self._encoding, self._image_size, self._most = encoding, image_size, max_skipped_share
        self._sizes = [[shard.size for shard in part] for part in parts]
        starts = itertools.accumulate((len(part) for part in parts), initial=0)
        self._shards = [range(start, start + len(part)) for start, part in zip(starts, parts, strict=False)]
        self._kept, self._faults, self._fault = 0, 0, ""

    def run(self, progress: bool) -> None:
        """Makes this process's share of the units that are not done yet."""
        mine = range(processes.index(), len(self._shards), processes.count())
        done = self._place.finished()
        waiting = [unit for unit in mine if unit not in done]
        bar = _Bar(self._source.name, [self._sizes[unit] for unit in waiting], len(mine), progress)
        with bar, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for unit in waiting:
                self._make(unit, pool, bar)
                bar.unit_done()

    def _make(self, number: int, pool: ThreadPoolExecutor, bar: "_Bar") -> None:
        unit, seen = self._unit(number), filters.Seen(self._filters)
        skipped: list[Skipped] = []
        ids: set[tuple[str, str]] = set()

        def prepare(item: Record | Skipped) -> tuple[filters.Picture, Any] | Skipped:
            found = item if isinstance(item, Skipped) else filters.look(item, self._filters)
            if isinstance(found, Skipped):
                return found
            ready = unit.ready(found)  # all that is left of the picture: many wait at a time
            return found._replace(image=_NOTHING, record=dataclasses.replace(found.record, image=b"")), ready

        records = itertools.chain.from_iterable(self._source.records(shard) for shard in self._shards[number])
        window = 3 * (self._encoding.batch_size if self._encoding else 8)
        for item in _ahead(pool, prepare, records, window):
            bar.update()
            found, ready = (item, None) if isinstance(item, Skipped) else (seen.first(item[0]), item[1])
            if isinstance(found, Skipped):
                skipped.append(found)
                self._count_fault(found)
                continue
            record = found.record
            if (record.split, record.id) in ids:
                raise UserError(
                    f"source {self._source.name}: two records of split {record.split} are called {record.id!r}"
                )
            ids.add((record.split, record.id))
            self._kept += 1
            unit.add(record, ready)
        facts = unit.close()
        facts["skipped"] = dict(collections.Counter(item.reason.split(":")[0] for item in skipped))
        facts["faults"] = sum(not item.asked for item in skipped)
        lines = [json.dumps(_line(item), ensure_ascii=False) for item in skipped]
        self._place.finish(number, facts, lines)

    def _unit(self, number: int) -> units.Unit:
        def name(split: str) -> str:
            return files.file_name(self._source.name, split, number, len(self._shards))

        out, plan = units.Files(self._place, name), self._encoding
        if plan is None:
            return units.PictureUnit(out, self._image_size)
        return units.EncodedUnit(
            out, plan.encoders, plan.shapes, batch_size=plan.batch_size, text_type=plan.text_type, flip=plan.flip
        )

    def _count_fault(self, item: Skipped) -> None:
        if item.asked:
            return
        self._faults += 1
        self._fault = self._fault or f"{item.id}: {item.reason}"
        seen = self._kept + self._faults
        if seen >= _EARLY:
            self._refuse_faults(self._faults, seen, self._fault)

    def _refuse_faults(self, faults: int, total: int, first: str) -> None:
        if faults > self._most * total:
            raise UserError(
                f"source {self._source.name}: {faults} of {total} examples cannot be used, more than "
                f"max_skipped_share={self._most:g} (such as {first}); mend them, or raise max_skipped_share"
            )

    def finish(self, plan: Mapping[str, Any], given: tokenizer.Tokenizer | None, vocab_size: int) -> Report:
        """Writes what stands beside the records, the report last."""
        facts = [self._place.facts(unit) for unit in range(len(self._shards))]
        skipped = sum((collections.Counter(fact["skipped"]) for fact in facts), collections.Counter())
        found = {unit: fact["files"] for unit, fact in enumerate(facts)}
        names = sorted({name for of in found.values() for name in of}, key=self._order)
        lengths = {name: [of.get(name, {"records": 0})["records"] for of in found.values()] for name in names}
        kept: dict[str, int] = {}
        for name in names:
            split = name if self._encoding is None else units.split_of(name)[0]
            kept[split] = kept.get(split, 0) + sum(lengths[name])
        self._refuse(kept, skipped, [fact["faults"] for fact in facts])

        written = {file["file"]: (file["bytes"], file["sha256"]) for of in found.values() for file in of.values()}
        shapes: dict[str, dict[str, int]] = {}
        if self._encoding is None:
            features, extra = stored.picture_features(), TOKENIZER
            captions = (caption for fact in facts for caption in fact["captions"])
            data = given.model if given else tokenizer.train(list(captions), vocab_size)
        else:
            features, extra = stored.encoded_features(), ENCODING
            shapes |= {split: {} for split in kept}
            for name in names:
                split, (rows, columns) = units.split_of(name)
                shapes[split][f"{rows}x{columns}"] = sum(lengths[name])
            data = self._describe(self._encoding, facts).to_bytes()
        files.write_metadata(self._place.files, features, lengths, sum(size for size, _ in written.values()))
        self._place.put_bytes(extra, data)
        self._place.put_bytes(SKIPPED, self._skipped_lines())
        report = Report(
            source=plan["source"],
            options=plan["options"],
            filters=plan["filters"] | {"image_size": self._image_size},
            kept=kept,
            shapes=shapes,
            skipped=dict(skipped.most_common()),
            vocab_size=tokenizer.Tokenizer(data).vocab_size if self._encoding is None else 0,
            libraries=plan["libraries"],
            files=written | self._small_files(set(written)),
        )
        self._place.put_bytes(REPORT, report.to_json().encode())
        return report

    def _order(self, name: str) -> tuple[int, str]:
        """Splits as the source has them."""
        split = name if self._encoding is None else units.split_of(name)[0]
        return self._source.splits().index(split), name

    def _refuse(self, kept: Mapping[str, int], skipped: Mapping[str, int], faults: Sequence[int]) -> None:
        if not kept.get(TRAIN):
            self._forget(range(len(faults)))
            why = "; ".join(f"{count} x {reason}" for reason, count in list(skipped.items())[:3])
            raise UserError(
                f"source {self._source.name}: no example is left to train on ({why or 'the source has none'})"
            )
        if total := sum(faults):
            lines = (json.loads(line) for unit in range(len(self._shards)) for line in self._place.lines(unit))
            first = next(line for line in lines if not line["asked"])
            try:
                self._refuse_faults(total, total + sum(kept.values()), f"{first['id']}: {first['reason']}")
            except UserError:
                self._forget(unit for unit, count in enumerate(faults) if count)
                raise

    def _forget(self, numbers: Iterable[int]) -> None:
        """Has units read again, when what is wrong with them is mended."""
        for unit in numbers:
            self._place.forget(unit)

    def _describe(self, plan: EncodingPlan, facts: Sequence[Mapping[str, Any]]) -> Encoding:
        text_BTM, mask_BT = plan.encoders.texts([""])
        mean_Z, std_Z = units.latent_moments([fact for fact in facts if fact["pixels"]])
        return Encoding(plan.facts, text_BTM[0], mask_BT[0], mean_Z, std_Z)

    def _skipped_lines(self) -> bytes:
        lines = (line for unit in range(len(self._shards)) for line in self._place.lines(unit))
        return "".join(f"{line}\n" for line in lines).encode()

    def _small_files(self, others: set[str]) -> dict[str, tuple[int, str]]:
        found = {}
        for path in sorted(self._place.files.iterdir()):
            if path.name not in others | {REPORT} and path.is_file():  # a run cut short at its very end left a report
                data = path.read_bytes()
                found[path.name] = (len(data), hashlib.sha256(data).hexdigest())
        return found


class _Bar(contextlib.AbstractContextManager):
    """Progress in pictures; where the source does not know its size, guessed from the units that are done."""

    def __init__(self, name: str, sizes: Sequence[Sequence[int | None]], units_of_mine: int, shown: bool):
        known = [sum(filter(None, of)) if None not in of else None for of in sizes]
        self._guess = None in known
        self._units, self._done = len(sizes), 0
        total = None if self._guess else sum(size or 0 for size in known)
        share = f", 1 of {processes.count()} parts" if processes.count() > 1 else ""
        gone_on = (
            f", going on after {units_of_mine - len(sizes)} of {units_of_mine}" if units_of_mine > len(sizes) else ""
        )
        shown = shown and processes.is_first()
        self._bar = tqdm(desc=f"{name}{share}{gone_on}", total=total, unit=" images", disable=not shown)

    def update(self) -> None:
        """One more example."""
        self._bar.update()

    def unit_done(self) -> None:
        """One more unit."""
        self._done += 1
        if self._guess:
            self._bar.total = self._bar.n * self._units // self._done
            self._bar.refresh()

    def __exit__(self, *exc: object) -> None:
        self._bar.close()


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any], window: int
) -> Iterator[Any]:
    """function(item) in the items' order, computed in `pool` up to `window` items, or `_BYTES_AHEAD`, ahead."""
    waiting: collections.deque[tuple[Any, int]] = collections.deque()
    ahead = 0
    try:
        for item in items:
            size = len(item.image) if isinstance(item, Record) else 0
            waiting.append((pool.submit(function, item), size))
            ahead += size
            while len(waiting) >= window or (ahead > _BYTES_AHEAD and waiting):
                future, size = waiting.popleft()
                ahead -= size
                yield future.result()
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        for future, _ in waiting:
            future.cancel()


def _parts(source: Source, num_shards: int | None) -> list[Sequence[Shard]]:
    """The source's shards in `num_shards` runs of nearly equal length."""
    shards = source.shards()
    count = len(shards) if num_shards is None else num_shards
    if num_shards is not None and not 1 <= count <= len(shards):
        raise UserError(
            f"num_shards is {num_shards}; source {source.name} comes in {len(shards)} pieces: give 1 to {len(shards)}"
        )
    ends = [len(shards) * i // count for i in range(count + 1)] if count else [0]
    return [shards[start:end] for start, end in itertools.pairwise(ends)]


def _line(item: Skipped) -> dict[str, Any]:
    reason = item.reason.encode(errors="replace").decode()  # what it quotes may hold anything
    return {"split": item.split, "id": item.id, "reason": reason, "asked": item.asked}


def _plain(options: Any) -> dict[str, Any]:
    """A dataclass as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(options)))


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
