"""Data sets on disk, read at random: pictures, or latents and embeddings, as TFDS files in ArrayRecord, without TensorFlow.

A finished folder holds the records, TFDS's description of them, `report.json`, `skipped.jsonl`, and `tokenizer.model` or
`encoding.safetensors`. `preparation.writing.write` makes one.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from etils import epath

from ec_dit.core import json_file, paths, terminal
from ec_dit.core.errors import UserError
from ec_dit.data import layout, stored
from ec_dit.data.encoding import Encoding
from ec_dit.data.layout import BLOCK, DESCRIPTION, ENCODING, INCOMPLETE, REPORT, SKIPPED, TOKENIZER
from ec_dit.data.reading import Examples, fields
from ec_dit.data.records import Record
from ec_dit.data.report import Report, read_report
from ec_dit.data.stored import EncodedRecord

_VERIFIED_BYTES = 2**30  # of files whose content `open` compares with the report: a second or two

AnyRecord = Record | EncodedRecord


@dataclasses.dataclass(frozen=True)
class Part:
    """Records of a split that have one shape.

    Attributes:
        shape: rows and columns of the latents; None of pictures.
        start, size: which records of the split: start, start + 1, ..., `size` of them.
        examples: their fields, by index.
        parse: of an example, the record.
    """

    shape: tuple[int, int] | None
    start: int
    size: int
    examples: Examples
    parse: Callable[[Mapping[str, Any]], AnyRecord]


class Split:
    """The records of one split, by index or in stored order."""

    def __init__(self, path: epath.Path, name: str, parts: list[Part]):
        self.path, self.name, self.parts = path, name, parts
        self._size = sum(part.size for part in parts)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Any:
        """Reads one record, a Record or an EncodedRecord; IndexError past the end, UserError where the file is damaged."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        part = next(part for part in self.parts if index < part.start + part.size)
        try:
            data = part.examples[index - part.start]
        except Exception as error:  # ArrayRecord raises many types on damaged bytes
            if paths.is_remote(self.path) or isinstance(error, OSError):
                raise  # perhaps only a connection broke, or too many files are open
            raise self._damaged(index, error) from error
        try:
            return part.parse(fields(data))
        except Exception as error:
            raise self._damaged(index, error) from error

    def _damaged(self, index: int, error: Exception) -> UserError:
        what = f"record {index} of split {self.name} cannot be read ({terminal.printable(str(error))[:200]})"
        return json_file.damaged(str(self.path), what, "Prepare the data set again.")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set: `dataset['train'][3]` is a record.

    Attributes:
        path: its folder.
        report: what its preparation kept and left out.
        fingerprint: hash of all its files; equal for equal content, wherever it lies.
        lengths: records in every file, of each kind of file.
        encoding: what encoded it; None of pictures.
    """

    path: epath.Path
    report: Report
    fingerprint: str
    lengths: Mapping[str, Sequence[int]]
    encoding: Encoding | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the source's order."""
        return tuple(self.report.kept)

    @property
    def tokenizer_path(self) -> epath.Path | None:
        """The sentencepiece model of this data set; None where captions are encoded."""
        return None if self.encoding else self.path / TOKENIZER

    def skipped(self) -> Iterator[dict[str, Any]]:
        """Yields every example left out: its split, id, reason, and whether a filter asked for that."""
        with (self.path / SKIPPED).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield json_file.parse(line, f"{self.path / SKIPPED}, line {number},", "Prepare the data set again.")

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise UserError(f"{self.path} has no split {split!r}; it has {', '.join(self.splits)}")
        if self.encoding is None:
            examples = self._examples(split)
            return Split(
                self.path,
                split,
                [Part(None, 0, len(examples), examples, lambda example: stored.picture_record(example, split))],
            )
        text, parts, start = self.encoding.facts["text"], [], 0
        for name, size in self.report.shapes[split].items():
            _, shape = layout.split_of(f"{split}_{name}")
            examples = self._examples(f"{split}_{name}")
            channels = len(self.encoding.mean_Z)
            codec = stored.Codec((*shape, channels), text["width"], text["length"], text["type"], text["pooled"])
            parts.append(Part(shape, start, size, examples, codec.record))
            start += size
        return Split(self.path, split, parts)

    def _examples(self, name: str) -> Examples:
        lengths = self.lengths[name]
        names = [layout.file_name(self.report.source, name, unit, len(lengths)) for unit in range(len(lengths))]
        return Examples([str(self.path / file) for file in names], lengths)

    def shapes(self) -> list[tuple[int, int]]:
        """Lists rows and columns of the latents of all splits; none of pictures."""
        names = [f"{split}_{name}" for split, counts in self.report.shapes.items() for name in counts]
        return sorted({layout.split_of(name)[1] for name in names})


def is_there(path: str | PurePath) -> bool:
    """Tells whether a folder holds anything, other than a preparation that was interrupted."""
    folder = paths.at(path)
    return folder.exists() and not (folder / INCOMPLETE).exists()


def open(path: str | PurePath) -> Dataset:  # noqa: A001 - reads as dataset.open
    """Opens a finished data set; in a bucket, records are read from there one by one.

    The sizes of all files are compared with the report, on a disk also the content of up to a gigabyte of them.

    Raises:
        UserError: there is none, it is unfinished or was not prepared here, or a file is missing, cut short or not the one that
            was prepared.
    """
    folder = paths.at(path)
    paths.check_is_text(folder, "a data set")
    how = f"Prepare it with: python -m ec_dit.prepare --source=... --out={folder}"
    if not folder.exists():
        raise UserError(f"there is no data set at {folder}. {how}")
    if not (folder / REPORT).exists() or (folder / INCOMPLETE).exists():
        raise UserError(f"{folder} is not a finished data set (no {REPORT}). {how}")
    report = read_report(folder)
    again = f"{how} --overwrite."
    _check_sizes(folder, report, again)
    if not paths.is_remote(folder):
        _check_content(folder, report, again)
    content = json.dumps([dict(report.kept), {n: digest for n, (_, digest) in report.files.items() if n != SKIPPED}])
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    encoding = None
    if ENCODING in report.files:
        encoding = Encoding.from_bytes((folder / ENCODING).read_bytes(), str(folder / ENCODING), again)
    lengths = _lengths(folder, again)
    _check_lengths(folder, report, lengths, again)
    return Dataset(folder, report, fingerprint, lengths, encoding)


def _check_sizes(folder: epath.Path, report: Report, again: str) -> None:
    sizes = paths.sizes(folder)
    for name, (wanted, _) in report.files.items():
        found = sizes.get(name)
        if found != wanted:
            state = "missing" if found is None else f"{found:,} bytes long instead of {wanted:,}"
            raise json_file.damaged(str(folder), f"{name} is {state}", again)


def _lengths(folder: epath.Path, advice: str) -> dict[str, list[int]]:
    """Reads how many records of each split are in every file.

    Raises:
        UserError: the file that says so is damaged; `advice` says what to do.
    """
    path = folder / DESCRIPTION
    with json_file.whole(str(path), advice):
        splits = json_file.read(path, advice)["splits"]
        return {str(split["name"]): [int(length) for length in split["shardLengths"]] for split in splits}


def _check_lengths(folder: epath.Path, report: Report, lengths: Mapping[str, Sequence[int]], again: str) -> None:
    """Compares what the two descriptions of the records say."""
    kept: dict[str, int] = {}
    for name, of_files in lengths.items():
        split = layout.split_of(name)[0] if report.shapes else name
        kept[split] = kept.get(split, 0) + sum(of_files)
    if kept != report.kept:
        raise json_file.damaged(str(folder), f"{DESCRIPTION} and {REPORT} count other records", again)


def _check_content(folder: epath.Path, report: Report, again: str) -> None:
    """Compares up to a gigabyte: what describes the records, and blocks of their files; of a larger set, others each time."""
    blocks = [(name, i, digest) for name, (_, digests) in report.files.items() for i, digest in enumerate(digests)]
    random.shuffle(blocks)
    left = _VERIFIED_BYTES
    for name, i, digest in sorted(blocks, key=lambda block: layout.is_record_file(block[0])):
        if left <= 0:
            return
        with (folder / name).open("rb") as file:
            file.seek(i * BLOCK)
            data = file.read(BLOCK)
        left -= len(data)
        if hashlib.sha256(data).hexdigest() != digest:
            raise json_file.damaged(str(folder), f"the content of {name} is not what was prepared", again)
