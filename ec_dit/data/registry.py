"""The sources by name. Each lives in a module of its own, imported only when it is asked for."""

import ast
import contextlib
import dataclasses
import importlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.data.records import Source
from ec_dit.data.sources.splits import HOLD_OUT

_SOURCES = {
    "shapes": ("ec_dit.data.sources.shapes", "ShapesSource", "ShapesOptions"),
    "emoji": ("ec_dit.data.sources.emoji", "EmojiSource", "EmojiOptions"),
    "folder": ("ec_dit.data.sources.folder", "FolderSource", "FolderOptions"),
    "webdataset": ("ec_dit.data.sources.webdataset", "WebdatasetSource", "WebdatasetOptions"),
    "parquet": ("ec_dit.data.sources.parquet", "ParquetSource", "ParquetOptions"),
    "coco": ("ec_dit.data.sources.coco", "CocoSource", "CocoOptions"),
    "tfds": ("ec_dit.data.sources.tfds_set", "TfdsSource", "TfdsOptions"),
}
_NAMED = "tfds"  # What follows its colon is the option `dataset`.
_LARGEST = 2**63 - 1  # of whole numbers
KINDS = tuple(_SOURCES)
NAMES = tuple(f"{name}:NAME" if name == _NAMED else name for name in _SOURCES)


def make_source(name: str, options: Mapping[str, Any]) -> Source:
    """Builds the source `name`; `options` holds fields of its options class, the rest keep their defaults.

    'tfds:NAME' is the source tfds with the option `dataset` NAME.

    Raises:
        UserError: no such source or option, an option that is needed and missing, one that would change nothing, or a value
            the source refuses.
    """
    source_class, options_class = _classes(name)
    name, colon, dataset = name.partition(":")
    if colon:
        if options.get("dataset", dataset) != dataset:
            raise UserError(f"source {name} is to read {dataset!r} and {options['dataset']!r}; name one of them")
        options = {**options, "dataset": dataset}
    for key in options:
        _field(name, key)
    for key in _missing(options_class, options):
        raise UserError(f"source {name} needs the option {key!r}")
    source = source_class(options_class(**options))
    if (share := options.get("validation_share")) is not None and not source.holds_out:
        raise UserError(
            f"{name}: validation_share={share} would hold nothing out: validation has a split of its own; leave it out, or "
            f"{HOLD_OUT}"
        )
    return source


def parse_options(name: str, texts: Iterable[str]) -> dict[str, Any]:
    """Options of the source `name` from texts 'key=value', each value JSON, a Python literal or the text itself.

    Raises:
        UserError: no such source or option, an option without a value or given twice, or a value of another type.
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        field = _field(name, key)
        if not equals:
            raise UserError(f"option {key!r} has no value; write {key}=VALUE")
        if key in options:
            raise UserError(f"option {key!r} is given twice")
        for read in (json.loads, ast.literal_eval, str):
            try:
                options[key] = _typed(read(value), field.type)
                break
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # What literal_eval may raise.
                continue
        else:
            raise UserError(_wrong_type(name, field, value))
    return options


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Checks a source's options as far as that goes without its files.

    Raises:
        UserError: no such source or option, or a value of another type, or one that the options refuse.
    """
    typed = {}
    for key, value in options.items():
        field = _field(name, key)
        try:
            typed[key] = _typed(value, field.type)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(_wrong_type(name, field, value)) from error
    if not _missing(options_class := _classes(name)[1], typed):
        options_class(**typed)


def _missing(options_class: Any, options: Mapping[str, Any]) -> list[str]:
    """Options that are needed and not there."""
    fields = dataclasses.fields(options_class)
    needed = [field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING]
    return [key for key in needed if key not in options]


def _wrong_type(name: str, field: dataclasses.Field[Any], value: Any) -> str:
    kind = field.type.__name__ if isinstance(field.type, type) else field.type
    return f"option {field.name}={value} of source {name} is no {kind}; write for example {field.default!r}"


def _typed(value: Any, kind: Any) -> Any:
    """`value` as an annotation asks for it: lists become tuples, whole numbers floats. ValueError where it is not."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if type(value) is int and abs(value) > _LARGEST:
        raise ValueError(f"{value} has more than 64 bits")
    if origin is types.UnionType:
        for part in parts:
            with contextlib.suppress(ValueError):
                return _typed(value, part)
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_typed(item, part) for item, part in zip(value, kinds, strict=True))
    elif type(value) is kind:
        return value
    elif kind is float and type(value) is int:
        return float(value)
    raise ValueError(f"{value!r} is no {kind}")


def _classes(name: str) -> tuple[Any, Any]:
    kind, colon, _ = name.partition(":")
    if kind not in _SOURCES or (colon and kind != _NAMED):
        raise UserError(f"there is no source {name!r}{did_you_mean(name, NAMES)}; choose one of {', '.join(NAMES)}")
    module_name, *names = _SOURCES[kind]
    module = importlib.import_module(module_name)
    source_class, options_class = (getattr(module, each) for each in names)
    return source_class, options_class


def _field(name: str, key: str) -> dataclasses.Field[Any]:
    fields = {field.name: field for field in dataclasses.fields(_classes(name)[1])}
    if key not in fields:
        raise UserError(f"source {name} has no option {key!r}{did_you_mean(key, fields)}; it has {', '.join(fields)}")
    return fields[key]
