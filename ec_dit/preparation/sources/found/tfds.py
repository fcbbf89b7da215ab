"""A prepared TensorFlow Datasets set of images and captions, read without TensorFlow: stored as ArrayRecord."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds

from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.core.terminal import printable
from ec_dit.data.reading import system_errors
from ec_dit.data.records import TRAIN, VALIDATION, Record
from ec_dit.preparation.finding import access, base, splits
from ec_dit.preparation.finding.access import Unusable
from ec_dit.preparation.finding.fields import at
from ec_dit.preparation.source import Kind, Shard, Skipped, ranges

_CONTAINERS = (tfds.features.FeaturesDict, tfds.features.Sequence, tfds.features.Dataset)


@dataclass(frozen=True)
class TfdsOptions(base.FoundOptions):
    """How a set becomes records.

    Attributes:
        dataset: name, as in 'coco_captions/2014:1.1.0'.
        path: TFDS's data_dir, where the set lies; None is TFDS's own default.
        image: the field of the images.
        captions: fields of a text or several; 'captions.text' is the text of each of the captions.
        id_field: field that names the examples, each differently; None numbers them.
        train: TFDS split to train on, such as 'train+test' or 'train[:90%]'.
        validation: TFDS split for validation, which shares no example with `train`; where the set has no 'validation', where
            some of it is trained on, or for None, the share is held out.
        validation_share: share of `train` that is held out, chosen by a hash of the id, where nothing else is.
    """

    dataset: str
    path: str | None = None
    image: str = "image"
    id_field: str | None = None


class TfdsSource(base.FoundSource):
    """Reads a TFDS set. Implements source.Source."""

    name = "tfds"

    def __init__(self, options: TfdsOptions):
        super().__init__(options)
        self.options = options
        builder = _builder(options)
        features = cast(Mapping[str, Any], builder.info.features)
        for field in (options.image, *self._weights, *filter(None, [options.id_field])):
            _check(field, features)
        names, read = {TRAIN: options.train}, _stretches(builder, options.train)
        if options.validation and (options.validation != VALIDATION or options.validation in builder.info.splits):
            held = _stretches(builder, options.validation)
            if not (both := _shared(read, held)):
                names[VALIDATION] = options.validation
                read += held
            elif options.validation != VALIDATION:  # The default asks for what is not trained on.
                raise UserError(
                    f"tfds: {both:,} examples that train={options.train} names are in validation={options.validation} too; "
                    f"name different ones, such as train[:90%] and train[90%:]; {splits.HOLD_OUT}"
                )
        self._names, self.holds_out = names, VALIDATION not in names
        self._became = {name: splits.kept_as(split, self.holds_out) for split, name in names.items()}
        for whole, split in builder.info.splits.items():
            own = [stretch for name, stretch in read if name == whole]
            if rest := split.num_examples - _length(own):
                self._became[f"rest of {whole}" if own else whole] = splits.NOT_READ
                self._unread[f"example of the split {whole}"] = rest
        self._data = {split: _open(builder, name, self._decoders(features)) for split, name in names.items()}
        self._shards = [shard for split, data in self._data.items() for shard in ranges(len(data), name=f"{split} ")]

    def shards(self) -> Sequence[Shard]:
        """Lists stretches of each split."""
        return self._shards

    def records(self, shard: int) -> Iterator[Record | Skipped]:
        """Yields the examples of one stretch in the order they are stored in."""
        split, _, stretch = self._shards[shard].name.partition(" ")
        start, stop = map(int, stretch.split("-"))
        times: Counter[str] = Counter()
        for index in range(start, stop):
            id_, published = f"{self._names[split]}-{index}", None if self.holds_out else split
            try:
                example = dict(self._read(split, index))
            except Unusable as problem:
                yield self._skipped(id_, str(problem), published)
                continue
            image = at(example, self.options.image)
            example.pop(self.options.image, None)
            fields = _plain(example)
            if self.options.id_field and (value := at(fields, self.options.id_field)) is not None:
                id_ = printable(str(value))
                times[id_] += 1
                id_ = base.numbered(id_, times[id_])
            yield self._record(id_, functools.partial(self._image, image), fields, published)

    def _image(self, value: Any) -> bytes:
        if not isinstance(value, bytes) or not value:
            raise Unusable(f"no image: field {self.options.image!r} holds nothing")
        access.check_size(len(value), access.MAX_IMAGE)
        return value

    def _read(self, split: str, index: int) -> Any:
        try:
            with system_errors(self._names[split]):
                return self._data[split][index]
        except OSError as error:
            raise UserError(f"tfds: cannot read split {self._names[split]!r}: {error}") from error
        except Exception as error:  # What the readers raise on damage is nowhere written.
            raise Unusable(f"unreadable entry: {str(error)[:200]}") from error

    def _decoders(self, features: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """Leaves images, and whatever else is large, as it is stored."""
        decoders: dict[str, Any] = {}
        for name, feature in features.items():
            path = f"{prefix}{name}"
            if isinstance(feature, tfds.features.FeaturesDict):
                decoders[name] = self._decoders(feature, f"{path}.")
            elif path == self.options.image or self._is_large(path, feature):
                decoders[name] = tfds.decode.SkipDecoding()
        return decoders

    def _is_large(self, path: str, feature: Any) -> bool:
        is_caption = any(f"{key}.".startswith(f"{path}.") for key in self._weights)
        return bool(not isinstance(feature, _CONTAINERS) and feature.shape and not is_caption)


SOURCE = Kind(TfdsSource, TfdsOptions)


def _builder(options: TfdsOptions) -> Any:
    """The set as it lies on the disk; nothing is downloaded, and no code of the set is run."""
    try:
        return tfds.core.read_only_builder.builder_from_files(options.dataset, data_dir=options.path)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, OSError) as error:
        where = options.path or tfds.core.constants.DATA_DIR
        raise UserError(
            f"tfds: there is no set {options.dataset!r} in {where}; build it with "
            f"`tfds build {options.dataset} --data_dir={where} --file_format=array_record`, or pass --path=DATA_DIR "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


def _open(builder: Any, name: str, decoders: dict[str, Any]) -> Any:
    try:
        data = builder.as_data_source(name, decoders=decoders)
    except NotImplementedError as error:
        raise UserError(
            f"tfds: {builder.data_dir} is stored as {builder.info.file_format.value}, which needs TensorFlow; convert it "
            "where that is installed: tfds build NAME --file_format=array_record, or "
            'tfds.builder(NAME, file_format="array_record").download_and_prepare()'
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(builder, name, error) from error
    for file in (file for split in _bases(name) for file in builder.info.splits[split].filepaths):
        if not file.exists():
            raise UserError(f"tfds: {file} is missing; build or copy the set again")
    return data


def _unreadable(builder: Any, name: str, error: Exception) -> UserError:
    return UserError(f"tfds: cannot read split {name!r} of {builder.data_dir}: {error}")


def _bases(name: str) -> list[str]:
    """The splits that are in one such as 'train[:90%]+test'."""
    return [part.partition("[")[0].strip() for part in name.split("+")]


def _stretches(builder: Any, name: str) -> list[tuple[str, range]]:
    """Which examples of which published splits one such as 'train[:90%]+test' means. UserError where there are none such."""
    known = builder.info.splits
    for split in _bases(name):
        if split not in known:
            raise UserError(
                f"tfds: the set has no split {split!r}{did_you_mean(split, known)}; it has {', '.join(known)}"
            )
    try:
        parts = tfds.core.ReadInstruction.from_spec(name).to_absolute(known)
    except ValueError as error:
        raise _unreadable(builder, name, error) from error
    whole = ((part, known[part.splitname].num_examples) for part in parts)
    return [(part.splitname, range(part.from_ or 0, end if part.to is None else part.to)) for part, end in whole]


def _shared(first: Sequence[tuple[str, range]], second: Sequence[tuple[str, range]]) -> int:
    """How many examples are in both."""
    return sum(
        _length([range(max(a.start, b.start), min(a.stop, b.stop)) for name, a in first if name == base])
        for base, b in second
    )


def _length(stretches: Sequence[range]) -> int:
    """How many examples they hold; one that is in several is counted once."""
    count = end = 0
    for stretch in sorted(stretches, key=lambda each: each.start):
        count += max(0, stretch.stop - max(stretch.start, end))
        end = max(end, stretch.stop)
    return count


def _check(field: str, features: Any) -> None:
    """UserError where the set has no such field."""
    names = list(features)
    here = features
    for part in [field] if field in features else field.split("."):
        here = getattr(here, "feature", here)  # What a sequence is of.
        if not hasattr(here, "keys") or part not in here:
            raise UserError(
                f"tfds: the set has no field {field!r}{did_you_mean(field, names)}; it has {', '.join(names)}"
            )
        here = here[part]


def _plain(value: Any) -> Any:
    """What TFDS gives as plain Python, where bytes that are UTF-8 are text."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value
