"""Writes a source's records as TFDS files in ArrayRecord, byte for byte the same every time."""

import contextlib
import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from ec_dit.core.errors import UserError
from ec_dit.data.records import Record, Skipped, Source
from ec_dit.data.report import FORMAT


class Intake:
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


class _SteadyWriter(writer.ExampleWriter):
    """Orders the features of an example by name, where protocol buffers take an order that changes with the process."""

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
        parsed = ((key, tf_example_pb2.Example.FromString(example)) for key, example in examples)
        return super().write(path, ((key, example.SerializeToString(deterministic=True)) for key, example in parsed))


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The TFDS side. TFDS stores records in the order of a hash of their ids, so any stretch is a fair sample."""

    VERSION = tfds.core.Version(f"{FORMAT}.0.0")
    code_path = None  # Nothing to download, so no list of URLs to look for beside this module.

    def __init__(self, intake: Intake, **kwargs: Any):
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

    def _example_writer(self) -> writer.ExampleWriter:
        return _SteadyWriter(file_format=self.info.file_format)

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        raise NotImplementedError  # Abstract in TFDS; _split_generators gives the examples themselves.


def build(intake: Intake, folder: Path) -> Path:
    """Writes the TFDS files under `folder`; returns the directory that holds them."""
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download that there is not.
        builder = _Builder(intake, data_dir=str(folder), file_format="array_record")
        builder.download_and_prepare()
    return Path(builder.data_dir)
