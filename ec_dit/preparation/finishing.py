"""What one process adds when all units of a data set are made: report, description, tokenizer or encoding, skipped examples."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ec_dit.core import ahead, paths
from ec_dit.core.errors import UserError
from ec_dit.data import layout, stored, tokenizer
from ec_dit.data.batch import Text
from ec_dit.data.encoding import Encoding
from ec_dit.data.layout import ENCODING, REPORT, SKIPPED, TOKENIZER
from ec_dit.data.records import TRAIN
from ec_dit.data.report import Report, listed
from ec_dit.preparation import files, units, vocabulary
from ec_dit.preparation.counting import Counts
from ec_dit.preparation.source import Shard, Source
from ec_dit.preparation.workplace import Workplace

_REASONS = 5  # that a message shows
_CAPTIONS = 1_000_000  # as many as the tokenizer looks at
_AT_ONCE = 256  # facts of units asked for together: a bucket takes its time for each


class Finish:
    """Reads what the units left, and writes the rest.

    Args:
        shards: of each unit.
        encoded: whether they hold latents and embeddings.

    Attributes:
        kept: records by split.
        counts: of all that was left out.
        faulty: units with examples that cannot be used.
    """

    def __init__(self, source: Source, place: Workplace, shards: Sequence[Sequence[Shard]], encoded: bool):
        self._source, self._place, self._number, self._encoded = source, place, len(shards), encoded
        self._files: list[Mapping[str, Any]] = []  # of each unit, by split
        self._moments: list[Mapping[str, Any]] = []
        self._texts: list[Mapping[str, int]] = []
        counted = []
        for fact in self._each(self._place.units.facts):
            counted.append(fact["counts"])
            self._files.append(fact["files"])
            if fact.get("pixels"):
                self._moments.append({"moments": fact["moments"], "pixels": fact["pixels"]})
            if "texts" in fact:
                self._texts.append(fact["texts"])
        self.counts = Counts.of(counted, shards)
        self.faulty = [unit for unit, count in enumerate(counted) if count.faults or count.torn]
        names = {name for unit in self._files for name in unit}
        splits = source.splits()
        self._names = sorted(names, key=lambda name: (splits.index(self._split(name)), name))
        self._lengths = {
            name: [unit[name]["records"] if name in unit else 0 for unit in self._files] for name in self._names
        }
        self.kept: dict[str, int] = {}
        for name in self._names:
            self.kept[self._split(name)] = self.kept.get(self._split(name), 0) + sum(self._lengths[name])

    def _each(self, read: Callable[[int], Any]) -> Iterator[Any]:
        """What `read` gives of each unit, in their order."""
        with ThreadPoolExecutor(32) as pool:
            yield from ahead.results(pool, read, range(self._number), _AT_ONCE)

    def lines(self) -> Iterator[str]:
        """Yields a line of every example left out, in the source's order."""
        return itertools.chain.from_iterable(self._each(self._place.units.lines))

    def explain(self, *, asked: bool) -> str:
        """Writes lines on what was left out and what was there, for the message of a preparation that fails.

        Args:
            asked: also what filters left out, and remarks.
        """
        counts = self.counts.faults
        if asked:
            counts = dict(Counter(self.counts.skipped) + Counter(self.counts.remarks))
        return explain(self._place, self._source, self.lines, counts, asked=asked)

    def check(self) -> None:
        """Refuses a set without training records, or files that are not as they were written; those are made again.

        Raises:
            UserError: likewise.
        """
        if not self.kept.get(TRAIN):
            why = self.explain(asked=True)
            for unit in range(self._number):
                self._place.units.discard(unit)
            others = f" ({listed(self.kept)} are)" if self.kept else ""
            raise UserError(
                f"source {self._source.name}: no example is left to train on{others}"
                f"{':' + why if why else ' (the source has none)'}"
            )
        sizes = paths.sizes(self._place.files)
        torn = [
            number
            for number, unit in enumerate(self._files)
            if any(sizes.get(file["file"]) != file["bytes"] for file in unit.values())
        ]
        for unit in torn:
            self._place.units.discard(unit)
        if torn:
            raise UserError(
                f"{self._place.files}: files of {len(torn)} units are not as they were written; the same command makes "
                "them again"
            )
        claimed = {file["file"] for unit in self._files for file in unit.values()}
        self._place.clear_strays(claimed)  # of units that were made again, or of a run cut short at its very end

    def write(self, plan: Mapping[str, Any], given: tokenizer.Tokenizer | None, vocab_size: int) -> Report:
        """Ends a set of pictures.

        Args:
            given: a tokenizer to keep instead of training one.
        """
        model = given.model if given else vocabulary.train(list(self._captions()), vocab_size)
        vocab_size = tokenizer.Tokenizer(model).vocab_size
        return self._write(plan, stored.picture_features(), (TOKENIZER, model), vocab_size)

    def write_encoded(self, plan: Mapping[str, Any], facts: Mapping[str, Any], null_text: Text) -> Report:
        """Ends a set of latents and embeddings.

        Args:
            facts: of Encoding.
            null_text: the empty caption, without B.
        """
        embedded, mask_T, pooled_M = null_text
        encoding = Encoding(facts, embedded, mask_T, *units.latent_moments(self._moments), pooled_M)
        return self._write(plan, stored.encoded_features(), (ENCODING, encoding.to_bytes()), 0)

    def _write(self, plan: Mapping[str, Any], features: Any, extra: tuple[str, bytes], vocab_size: int) -> Report:
        written = {
            file["file"]: (file["bytes"], tuple(file["sha256"])) for unit in self._files for file in unit.values()
        }
        shapes: dict[str, dict[str, int]] = {}
        for name in self._names if self._encoded else ():
            split, shape = layout.split_of(name)
            shapes.setdefault(split, {})[layout.shape_name(shape)] = sum(self._lengths[name])
        described = files.write_metadata(
            self._place.files, features, self._lengths, sum(size for size, _ in written.values())
        )
        path = self._place.scratch(SKIPPED)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in self.lines())
        cut: dict[str, int] = {}
        if plan["encoding"] is not None:
            cut = {key: sum(texts[key] for texts in self._texts) for key in ("captions", "cut")}
            cut["length"] = plan["encoding"]["text"]["length"]
        self._place.put_bytes(*extra)
        small = {SKIPPED: files.identity(path)}
        self._place.put(path)
        for name in (*described, extra[0]):
            small[name] = files.identity(self._place.files / name)
        report = Report(
            source=plan["source"],
            options=plan["options"],
            filters=plan["filters"] | {"image_size": plan["image_size"]},
            kept=self.kept,
            shapes=shapes,
            skipped=self.counts.skipped,
            vocab_size=vocab_size,
            libraries=plan["libraries"],
            files=written | dict(sorted(small.items())),
            lost=self.counts.lost,
            guessed=self.counts.guessed,
            remarks=self.counts.remarks,
            published=dict(self._source.published()),
            unread=dict(sorted(self._source.unread().items())),
            cut=cut,
            mark=plan["mark"],
        )
        self._place.put_bytes(REPORT, report.to_json().encode())
        return report

    def _captions(self) -> Iterator[str]:
        """Of the split `train`, evenly spread if they are more than a tokenizer looks at."""
        every = max(1, self.kept[TRAIN] // _CAPTIONS)
        captions = (caption for fact in self._each(self._place.units.facts) for caption in fact["captions"])
        return (caption for i, caption in enumerate(captions) if i % every == 0)

    def _split(self, name: str) -> str:
        return layout.split_of(name)[0] if self._encoded else name


def explain(
    place: Workplace, source: Source, lines: Callable[[], Iterable[str]], counts: Mapping[str, int], *, asked: bool
) -> str:
    """Writes lines on what was left out, each beginning with a line break; the list of all goes to a file that stays.

    Args:
        lines: of skipped.jsonl.
        counts: by reason, the most frequent first.
        asked: whether filters are among the reasons.
    """
    found = _reasons(lines(), counts, asked)
    if unread := source.unread():
        found.append(f"not read: {listed(unread)}")
    if counts:
        found.append(f"all of them: {place.explain(lines())}")
    return "".join(f"\n  {line}" for line in found)


def _reasons(lines: Iterable[str], counts: Mapping[str, int], asked: bool) -> list[str]:
    """The most frequent reasons, each with how often it came up and the first example of it."""
    wanted = list(counts)[:_REASONS]
    first: dict[str, str] = {}
    for line in map(json.loads, lines):
        reason, _, detail = line["reason"].partition(":")
        if reason in wanted and (asked or not line["asked"]):
            first.setdefault(reason, f"{line['id']}:{detail}" if detail else line["id"])
        if len(first) == len(wanted):
            break
    found = [f"{counts[reason]:,} x {reason}, such as {first.get(reason, '?')}" for reason in wanted]
    rest = sum(counts.values()) - sum(counts[reason] for reason in wanted)
    return found + ([f"{rest:,} for other reasons"] if rest else [])
