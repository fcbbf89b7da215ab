"""Data sets on disk: any records.Source written as TFDS files in ArrayRecord (no TensorFlow), and read at random.

A finished folder holds the TFDS files, `tokenizer.model` and `report.json`. It is built beside its place and moved
there last, so that an interrupted run leaves nothing that looks finished. Preparing twice gives the same bytes.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from ec_dit.core import paths
from ec_dit.core.errors import UserError
from ec_dit.data import tfds_files, tokenizer
from ec_dit.data.records import Record, Source
from ec_dit.data.report import FORMAT, Report

REPORT, TOKENIZER = "report.json", "tokenizer.model"
_UPLOADING = ".uploading"  # in a bucket, as long as files are missing
_REPLACED = "replaced"  # where an old data set waits, in the working directory, until the new one has its place
_LIBRARIES = ("tensorflow-datasets", "array-record", "sentencepiece", "pillow", "numpy")


def write(
    source: Source,
    out: str | PurePath,
    *,
    vocab_size: int = 4096,
    tokenizer_path: str | PurePath | None = None,
    max_skipped_share: float = 0.1,
    overwrite: bool = False,
    progress: bool = True,
) -> Report:
    """Prepares `source` into the folder `out`, which may lie in a bucket.

    Args:
        vocab_size: pieces, at most, of the tokenizer trained on the captions of the split `train`.
        tokenizer_path: a sentencepiece model to copy instead of training one.
        max_skipped_share: fails if more than this share of the examples is skipped; from 0 to 1.
        overwrite: replaces a finished data set at `out`; never anything else.
        progress: shows a progress bar on stderr.

    Raises:
        UserError: `out` is taken, too much was skipped, nothing was kept for training, the tokenizer is unusable, or
            `max_skipped_share` is no share.
        OSError: a file cannot be written; what was at `out` is still there.
    """
    if not 0 <= max_skipped_share <= 1:
        raise UserError(f"max_skipped_share is {max_skipped_share}; it must be from 0 to 1")
    if paths.is_remote(out):
        refuse_taken(out, overwrite)
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder) / "set"
            report = write(
                source,
                files,
                vocab_size=vocab_size,
                tokenizer_path=tokenizer_path,
                max_skipped_share=max_skipped_share,
                progress=progress,
            )
            _upload(files, paths.at(out))
        return report
    place = Path(out).absolute()
    given = tokenizer.Tokenizer.load(tokenizer_path) if tokenizer_path else None
    with _workspace(place) as work:
        refuse_taken(place, overwrite)
        intake = tfds_files.Intake(source, progress)
        files = work / "set"
        with intake.bar:
            tfds_files.build(intake, work / "build").rename(files)
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
        if not _is_free(place):
            place.rename(work / _REPLACED)
        files.rename(place)
    return report


def _upload(files: Path, out: epath.Path) -> None:
    """Copies a finished data set to a bucket, its report last: without it nothing there looks finished."""
    (out / _UPLOADING).write_text("")
    (out / REPORT).unlink(missing_ok=True)
    for old in out.iterdir():
        if old.name != _UPLOADING:
            old.unlink(missing_ok=True)
    for path in sorted(files.iterdir(), key=lambda path: (path.name == REPORT, path.name)):
        epath.Path(path).copy(out / path.name)
    (out / _UPLOADING).unlink()


@contextlib.contextmanager
def _workspace(out: Path) -> Iterator[Path]:
    """A locked directory beside `out`, cleared of what an interrupted run left there, and removed at the end.

    An old data set that has not been replaced yet goes back to `out`, after a failure and after a kill.
    """
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
            _put_back(path / _REPLACED, out)
            for leftover in path.iterdir():
                shutil.rmtree(leftover)
            yield path
        finally:
            _put_back(path / _REPLACED, out)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(handle)


def _put_back(replaced: Path, out: Path) -> None:
    if replaced.exists() and _is_free(out):
        replaced.rename(out)


def _is_free(out: Path | epath.Path) -> bool:
    return not out.exists() or (out.is_dir() and not any(out.iterdir()))


def refuse_taken(out: str | PurePath, overwrite: bool) -> None:
    """Raises UserError if `out` holds anything, other than a data set that may be replaced."""
    place = paths.at(out)
    if _is_free(place):
        return
    if not place.is_dir():
        raise UserError(f"{place} is a file; name a folder for the data set")
    if (place / _UPLOADING).exists():  # an interrupted upload
        return
    if not (place / REPORT).exists():
        raise UserError(f"{place} holds other files and is not a data set; name another folder")
    if not overwrite:
        raise UserError(f"{place} already holds a data set; name another folder, or pass --overwrite to replace it")


def _refuse_skipped(intake: tfds_files.Intake, max_skipped_share: float) -> None:
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

    def __init__(self, path: epath.Path, name: str, examples: Any):
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
            if paths.is_remote(self.path):  # perhaps only the connection broke: no mistake of the user's
                raise
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

    path: epath.Path
    report: Report
    fingerprint: str

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the source's order."""
        return tuple(self.report.kept)

    @property
    def tokenizer_path(self) -> epath.Path:
        """The sentencepiece model of this data set."""
        return self.path / TOKENIZER

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise UserError(f"{self.path} has no split {split!r}; it has {', '.join(self.splits)}")
        builder = tfds.builder_from_directory(str(self.path))
        raw = {"image": tfds.decode.SkipDecoding()}
        return Split(self.path, split, builder.as_data_source(split=split, decoders=raw))


def is_there(path: str | PurePath) -> bool:
    """Whether a folder holds anything, other than an upload that was interrupted."""
    folder = paths.at(path)
    return folder.exists() and not (folder / _UPLOADING).exists()


def open(path: str | PurePath) -> Dataset:  # noqa: A001 - reads as dataset.open
    """Opens a folder that `write` finished; in a bucket, records are read from there one by one.

    Raises:
        UserError: there is none, it is unfinished or was not prepared here, or a file is missing or cut short.
    """
    folder = paths.at(path)
    how = f"prepare it with: python -m ec_dit.prepare --source=... --out={folder}"
    if not folder.exists():
        raise UserError(f"there is no data set at {folder}; {how}")
    if not (folder / REPORT).exists():
        raise UserError(f"{folder} is not a finished data set (no {REPORT}); {how}")
    try:
        report = Report.from_json((folder / REPORT).read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / REPORT} is damaged; {how} --overwrite") from error
    if report.format != FORMAT:
        raise UserError(f"{folder} has layout {report.format}, this version reads layout {FORMAT}; {how} --overwrite")
    for name, size in report.files.items():
        found = (folder / name).stat().length if (folder / name).exists() else None
        if found != size:
            state = "missing" if found is None else f"{found:,} bytes long instead of {size:,}"
            raise UserError(f"{folder} is damaged: {name} is {state}; {how} --overwrite")
    order = json.dumps(report.kept) + report.records_sha256
    fingerprint = hashlib.sha256(order.encode() + (folder / TOKENIZER).read_bytes()).hexdigest()
    return Dataset(folder, report, fingerprint)
