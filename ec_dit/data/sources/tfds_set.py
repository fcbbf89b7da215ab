"""A prepared TensorFlow Datasets set of images and captions, read without TensorFlow: stored as ArrayRecord."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds

from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.core.terminal import printable
from ec_dit.data.records import TRAIN, VALIDATION, Record, Shard, Skipped, ranges
from ec_dit.data.sources import found

_CONTAINERS = (tfds.features.FeaturesDict, tfds.features.Sequence, tfds.features.Dataset)


@dataclass(frozen=True)
class TfdsOptions(found.FoundOptions):
    """How a set becomes records.

    Attributes:
        dataset: name, as in 'coco_captions/2014:1.1.0'.
        path: TFDS's data_dir, where the set lies; None is TFDS's own default.
        image: the field of the images.
        captions: fields of a text or several; 'captions.text' is the text of each of the captions.
        id_field: field that names the examples, each differently; None numbers them.
        train: TFDS split to train on.
        validation: TFDS split for validation; where the set has no 'validation', or for None, the share is held out.
        validation_share: share of `train` that is held out, chosen by a hash of the id, where nothing else is.
    """

    dataset: str
    path: str | None = None
    image: str = "image"
    id_field: str | None = None
    train: str = "train"
    validation: str | None = "validation"


class TfdsSource(found.FoundSource):
    """Reads a TFDS set. Implements records.Source."""

    name = "tfds"

    def __init__(self, options: TfdsOptions):
        super().__init__(options)
        self.options = options
        builder = _builder(options)
        features = cast(Mapping[str, Any], builder.info.features)
        for field in (options.image, *self._weights, *filter(None, [options.id_field])):
            _check(field, features)
        names = {TRAIN: options.train}
        if options.validation and (options.validation != "validation" or options.validation in builder.info.splits):
            names[VALIDATION] = options.validation
        self._names, self._holds_out = names, VALIDATION not in names
        self._data = {split: _open(builder, name, self._decoders(features)) for split, name in names.items()}
        self._shards = [shard for split, data in self._data.items() for shard in ranges(len(data), name=f"{split} ")]

    def shards(self) -> Sequence[Shard]:
        """Stretches of each split."""
        return self._shards

    def records(self, shard: int) -> Iterator[Record | Skipped]:
        """Yields the examples of one stretch in the order they are stored in."""
        split, _, stretch = self._shards[shard].name.partition(" ")
        start, stop = map(int, stretch.split("-"))
        times: Counter[str] = Counter()
        for index in range(start, stop):
            id_, fields = f"{self._names[split]}-{index}", {}
            try:
                fields = dict(self._read(split, index))
                image = fields.pop(self.options.image)
                fields = _plain(fields)
                if self.options.id_field and (value := _at(fields, self.options.id_field)) is not None:
                    id_ = printable(str(value))
                    times[id_] += 1
                    id_ = found.numbered(id_, times[id_])
                if not isinstance(image, bytes) or not image:
                    raise found.Unusable("no image")
                found.check_size(len(image), found.MAX_IMAGE)
                fields |= {key: _at(fields, key) for key in self._weights}
                yield self._record(id_, image, fields, None if self._holds_out else split)
            except found.Unusable as problem:
                yield self._skipped(id_, str(problem), None if self._holds_out else split, fields)

    def _read(self, split: str, index: int) -> Any:
        try:
            return self._data[split][index]
        except Exception as error:  # What the readers raise on damage is nowhere written.
            raise found.Unusable(f"unreadable entry: {str(error)[:200]}") from error

    def _decoders(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Leaves images, and whatever else is large, as it is stored."""
        skip = tfds.decode.SkipDecoding()
        captions = {key.partition(".")[0] for key in self._weights} | set(self._weights)
        large = {name for name, feature in features.items() if not isinstance(feature, _CONTAINERS) and feature.shape}
        return dict.fromkeys({self.options.image} | large - captions, skip)


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
    known, base = list(builder.info.splits), name.partition("[")[0]
    if base not in known:
        raise UserError(f"tfds: the set has no split {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}")
    try:
        data = builder.as_data_source(name, decoders=decoders)
    except NotImplementedError as error:
        raise UserError(
            f"tfds: {builder.data_dir} is stored as {builder.info.file_format.value}, which needs TensorFlow; convert it "
            "where that is installed: tfds build NAME --file_format=array_record, or "
            'tfds.builder(NAME, file_format="array_record").download_and_prepare()'
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"tfds: cannot read split {name!r} of {builder.data_dir}: {error}") from error
    for file in builder.info.splits[base].filepaths:
        if not file.exists():
            raise UserError(f"tfds: {file} is missing; build or copy the set again")
    return data


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


def _at(fields: Any, path: str) -> Any:
    """The value at a path such as 'captions.text'; of each, where there is a list on the way."""
    if isinstance(fields, list):
        return [_at(each, path) for each in fields]
    if not isinstance(fields, Mapping):
        return None
    part, _, rest = path.partition(".")
    return fields[path] if path in fields or not rest else _at(fields.get(part), rest)
