"""Data sets on disk: any records.Source written as TFDS files in ArrayRecord (no TensorFlow), and read at random.

A finished folder holds the TFDS files, `tokenizer.model` and `report.json`. It is built beside its place and moved
there last, so that an interrupted run leaves nothing that looks finished. Preparing twice gives the same bytes.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from ec_dit.core.errors import UserError
from ec_dit.data import tokenizer
from ec_dit.data.records import Record, Skipped, Source

REPORT, TOKENIZER = "report.json", "tokenizer.model"
_FORMAT = 1
_LIBRARIES = ("tensorflow-datasets", "array-record", "sentencepiece", "pillow", "numpy")


@dataclasses.dataclass(frozen=True)
class Report:
    """What a preparation kept and left out; stored as report.json.

    Attributes:
        source, options: what was prepared, and how.
        kept: records by split; a split that came out empty is left out.
        skipped: (split, id, reason) of every example left out.
        records_sha256: hash over every record's content, in the source's order.
        vocab_size: pieces of the tokenizer.
        libraries: versions that the bytes depend on.
        files: size in bytes of every other file of the folder.
        format: version of this layout.
    """

    source: str
    options: Mapping[str, Any]
    kept: Mapping[str, int]
    skipped: Sequence[tuple[str, str, str]]
    records_sha256: str
    vocab_size: int
    libraries: Mapping[str, str]
    files: Mapping[str, int]
    format: int = _FORMAT

    def reasons(self) -> dict[str, int]:
        """How many examples were skipped for each reason (its part before the first colon), most frequent first."""
        return dict(Counter(reason.split(":")[0] for _, _, reason in self.skipped).most_common())

    def to_json(self) -> str:
        """Readable JSON: the skipped examples counted by reason, then listed."""
        fields = dataclasses.asdict(self)
        fields["skipped"] = {"reasons": self.reasons(), "examples": self.skipped}
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The inverse of to_json. Raises ValueError, KeyError or TypeError on anything else."""
        fields = json.loads(text)
        fields["skipped"] = [tuple(example) for example in fields["skipped"]["examples"]]
        return cls(**fields)

    def table(self) -> str:
        """Lines for people: kept by split, then skipped by reason."""
        rows = [(f"kept, {split}", count) for split, count in self.kept.items()]
        rows += [(f"skipped, {reason}", count) for reason, count in self.reasons().items()]
        rows += [("tokenizer pieces", self.vocab_size)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {count:>9,}" for name, count in rows)


def write(
    source: Source,
    out: str | Path,
    *,
    vocab_size: int = 4096,
    tokenizer_path: str | Path | None = None,
    max_skipped_share: float = 0.1,
    overwrite: bool = False,
    progress: bool = True,
) -> Report:
    """Prepares `source` into the folder `out`.

    Args:
        vocab_size: pieces, at most, of the tokenizer trained on the captions of the split `train`.
        tokenizer_path: a sentencepiece model to copy instead of training one.
        max_skipped_share: fails if more than this share of the examples is skipped.
        overwrite: replaces a finished data set at `out`; never anything else.
        progress: shows a progress bar for each split on stderr.

    Raises:
        UserError: `out` is taken, too much was skipped, nothing was kept for training, or the tokenizer is unusable.
    """
    out = Path(out).absolute()
    given = tokenizer.Tokenizer.load(tokenizer_path) if tokenizer_path else None
    with _workspace(out) as work:
        _refuse_taken(out, overwrite)
        intake = _Intake(source, progress)
        files = work / "set"
        with intake.bar:
            _build(intake, work / "build").rename(files)
        _refuse_skipped(intake, max_skipped_share)
        model = given.model if given else tokenizer.train(intake.train_captions, vocab_size)
        (files / TOKENIZER).write_bytes(model)
        report = Report(
            source=source.name,
            options=_options(source),
            kept=intake.kept,
            skipped=intake.skipped,
            records_sha256=intake.digest.hexdigest(),
            vocab_size=tokenizer.Tokenizer(model).vocab_size,
            libraries=_versions((*_LIBRARIES, *getattr(source, "libraries", ()))),
            files={path.name: path.stat().st_size for path in sorted(files.iterdir())},
        )
        (files / REPORT).write_text(report.to_json(), encoding="utf-8")
        if out.exists() and any(out.iterdir()):
            out.rename(work / "replaced")
        files.rename(out)
    return report


@contextlib.contextmanager
def _workspace(out: Path) -> Iterator[Path]:
    """A locked directory beside `out`, cleared of what an interrupted run left there, and removed at the end."""
    path = out.parent / f".{out.name}.incomplete"
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot write beside {out}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is preparing {out} now; wait for it to finish") from error
        except OSError:
            pass  # A file system without locks.
        try:
            for leftover in path.iterdir():
                shutil.rmtree(leftover)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(handle)


def _refuse_taken(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the data set")
    if not any(out.iterdir()):
        return
    if not (out / REPORT).is_file():
        raise UserError(f"{out} holds other files and is not a data set; name another folder")
    if not overwrite:
        raise UserError(f"{out} already holds a data set; name another folder, or pass --overwrite to replace it")


class _Intake:
    """Passes a source's records on to the builder, counting and hashing on the way."""

    def __init__(self, source: Source, progress: bool):
        self.source = source
        self.kept: dict[str, int] = {}
        self.skipped: list[tuple[str, str, str]] = []
        self.train_captions: list[str] = []
        self.digest = hashlib.sha256()
        total = sum(map(source.size, source.splits())) if hasattr(source, "size") else None
        self.bar = tqdm(desc=source.name, total=total, unit=" images", disable=not progress)

    def split(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (key, TFDS example) for the kept records of `split`."""
        seen: set[str] = set()
        for item in self.source.records(split):
            self.bar.update()
            if isinstance(item, Record) and not item.caption.strip():
                item = Skipped(item.id, "empty caption")
            if isinstance(item, Skipped):
                self.skipped.append((split, item.id, item.reason))
                continue
            if item.id in seen:
                raise UserError(f"source {self.source.name}: two records of split {split} are called {item.id!r}")
            seen.add(item.id)
            self.kept[split] = self.kept.get(split, 0) + 1
            if split == "train":
                self.train_captions.append(item.caption)
            meta = json.dumps(dict(item.meta), sort_keys=True, ensure_ascii=False)
            facts = json.dumps([split, item.id, item.caption, item.flip, meta], ensure_ascii=False)
            self.digest.update(facts.encode() + hashlib.sha256(item.image).digest())
            yield (
                item.id,
                {"id": item.id, "image": item.image, "caption": item.caption, "flip": item.flip, "meta": meta},
            )


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The TFDS side. TFDS stores records in the order of a hash of their ids, so any stretch is a fair sample."""

    VERSION = tfds.core.Version(f"{_FORMAT}.0.0")
    code_path = None  # Nothing to download, so no list of URLs to look for beside this module.

    def __init__(self, intake: _Intake, **kwargs: Any):
        self.name = intake.source.name
        self._intake = intake
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = {
            "id": text(),
            "image": tfds.features.Image(),
            "caption": text(),
            "flip": tfds.features.Scalar(dtype=np.bool_),
            "meta": text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        generators: dict[str, Iterator[tuple[str, dict[str, Any]]]] = {}
        for split in self._intake.source.splits():
            examples = self._intake.split(split)
            first = next(examples, None)  # TFDS cannot write an empty split.
            if first is not None:
                generators[split] = itertools.chain([first], examples)
        if "train" not in generators:
            reasons = Counter(reason for _, _, reason in self._intake.skipped).most_common(3)
            why = "; ".join(f"{count} x {reason}" for reason, count in reasons) or "the source has none"
            raise UserError(f"source {self.name}: no example is left to train on ({why})")
        return generators

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        raise NotImplementedError  # Abstract in TFDS; _split_generators gives the examples themselves.


def _build(intake: _Intake, folder: Path) -> Path:
    """Writes the TFDS files under `folder`; returns the directory that holds them."""
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download that there is not.
        builder = _Builder(intake, data_dir=str(folder), file_format="array_record")
        builder.download_and_prepare()
    return Path(builder.data_dir)


def _refuse_skipped(intake: _Intake, max_skipped_share: float) -> None:
    skipped = len(intake.skipped)
    total = skipped + sum(intake.kept.values())
    if skipped > max_skipped_share * total:
        listed = "; ".join(f"{name}: {reason}" for _, name, reason in intake.skipped[:3])
        raise UserError(
            f"source {intake.source.name}: {skipped} of {total} examples cannot be used, more than "
            f"max_skipped_share={max_skipped_share:g} ({listed}{'; ...' if skipped > 3 else ''}); "
            "mend them, or raise max_skipped_share"
        )


def _options(source: Source) -> dict[str, Any]:
    options: Any = getattr(source, "options", None)
    return dataclasses.asdict(options) if options is not None else {}


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


class Split:
    """The records of one split, by index or in stored order."""

    def __init__(self, path: Path, name: str, examples: Any):
        self.path, self.name, self._examples = path, name, examples

    def __len__(self) -> int:
        return len(self._examples)

    def __iter__(self) -> Iterator[Record]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Record:
        """Reads one record; IndexError past the end, UserError where the file is damaged."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            example = self._examples[index % len(self)]
            return Record(
                id=example["id"].decode(),
                image=example["image"],
                caption=example["caption"].decode(),
                flip=bool(example["flip"]),
                meta=json.loads(example["meta"]),
            )
        except Exception as error:  # ArrayRecord and the example parser raise many types on damaged bytes.
            raise UserError(
                f"{self.path}: record {index} of split {self.name} is damaged; prepare the data set again ({error})"
            ) from error


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set: `dataset['train'][3]` is a Record.

    Attributes:
        path: its folder.
        report: what its preparation kept and left out.
        fingerprint: hash of records, order and tokenizer; equal for equal content, wherever it lies.
    """

    path: Path
    report: Report
    fingerprint: str

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the source's order."""
        return tuple(self.report.kept)

    @property
    def tokenizer_path(self) -> Path:
        """The sentencepiece model of this data set."""
        return self.path / TOKENIZER

    def __len__(self) -> int:
        """Records over all splits."""
        return sum(self.report.kept.values())

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise UserError(f"{self.path} has no split {split!r}; it has {', '.join(self.splits)}")
        builder = tfds.builder_from_directory(str(self.path))
        raw = {"image": tfds.decode.SkipDecoding()}
        return Split(self.path, split, builder.as_data_source(split=split, decoders=raw))


def open(path: str | Path) -> Dataset:  # noqa: A001 - reads as dataset.open
    """Opens a folder that `write` finished.

    Raises:
        UserError: there is none, it is unfinished or was not prepared here, or a file is missing or cut short.
    """
    path = Path(path).absolute()
    how = f"prepare it with: python -m ec_dit.prepare --source=... --out={path}"
    if not path.is_dir():
        raise UserError(f"there is no data set at {path}; {how}")
    if not (path / REPORT).is_file():
        raise UserError(f"{path} is not a finished data set (no {REPORT}); {how}")
    try:
        report = Report.from_json((path / REPORT).read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / REPORT} is damaged; {how} --overwrite") from error
    if report.format != _FORMAT:
        raise UserError(f"{path} has layout {report.format}, this version reads layout {_FORMAT}; {how} --overwrite")
    for name, size in report.files.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            state = "missing" if found is None else f"{found:,} bytes long instead of {size:,}"
            raise UserError(f"{path} is damaged: {name} is {state}; {how} --overwrite")
    order = json.dumps(report.kept) + report.records_sha256
    fingerprint = hashlib.sha256(order.encode() + (path / TOKENIZER).read_bytes()).hexdigest()
    return Dataset(path, report, fingerprint)
