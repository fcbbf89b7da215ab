"""The sources by name: the modules of sources/drawn/ and sources/found/, each imported only when it is asked for."""

import ast
import dataclasses
import importlib
import json
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ec_dit.core import json_file
from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.preparation.finding.splits import HOLD_OUT
from ec_dit.preparation.source import Kind, Source

_HERE = Path(__file__).parent / "sources"


def _modules(folder: str) -> tuple[str, ...]:
    return tuple(module.name for module in pkgutil.iter_modules([str(_HERE / folder)]))


DRAWN = _modules("drawn")  # draw their pictures, at an image_size of their own
FOUND = _modules("found")  # read pictures that are there
KINDS = (*DRAWN, *FOUND)
_NAMED = "tfds"  # What follows its colon is the option `dataset`.
NAMES = tuple(f"{name}:NAME" if name == _NAMED else name for name in KINDS)


def make_source(name: str, options: Mapping[str, Any]) -> Source:
    """Builds the source `name`; `options` holds fields of its options class, the rest keep their defaults.

    'tfds:NAME' is the source tfds with the option `dataset` NAME.

    Raises:
        UserError: no such source or option, an option that is needed and missing, one that would change nothing, or a value
            the source refuses.
    """
    kind = _kind(name)
    name, colon, dataset = name.partition(":")
    if colon:
        if options.get("dataset", dataset) != dataset:
            raise UserError(f"source {name} is to read {dataset!r} and {options['dataset']!r}; name one of them")
        options = {**options, "dataset": dataset}
    for key in options:
        _field(name, key)
    for key in _missing(kind.options, options):
        raise UserError(f"source {name} needs the option {key!r}")
    source = kind.make(kind.options(**options))
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
                options[key] = json_file.fit(read(value), field.type)
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
            typed[key] = json_file.fit(value, field.type)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(_wrong_type(name, field, value)) from error
    kind = _kind(name)
    if not _missing(kind.options, typed):
        kind.options(**typed)


def _missing(options_class: Any, options: Mapping[str, Any]) -> list[str]:
    """Options that are needed and not there."""
    fields = dataclasses.fields(options_class)
    needed = [field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING]
    return [key for key in needed if key not in options]


def _wrong_type(name: str, field: dataclasses.Field[Any], value: Any) -> str:
    kind = field.type.__name__ if isinstance(field.type, type) else field.type
    return f"option {field.name}={value} of source {name} is no {kind}; write for example {field.default!r}"


def _kind(name: str) -> Kind[Any]:
    module, colon, _ = name.partition(":")
    if module not in KINDS or (colon and module != _NAMED):
        raise UserError(f"there is no source {name!r}{did_you_mean(name, NAMES)}; choose one of {', '.join(NAMES)}")
    folder = "drawn" if module in DRAWN else "found"
    kind: Kind[Any] = importlib.import_module(f"ec_dit.preparation.sources.{folder}.{module}").SOURCE
    return kind


def _field(name: str, key: str) -> dataclasses.Field[Any]:
    fields = {field.name: field for field in dataclasses.fields(_kind(name).options)}
    if key not in fields:
        raise UserError(f"source {name} has no option {key!r}{did_you_mean(key, fields)}; it has {', '.join(fields)}")
    return fields[key]
