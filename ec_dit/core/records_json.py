"""JSON that the program wrote and reads again: where a file holds anything else, one message names it and the way out.

A file that is not there, or that one may not read, is no damage: the OSError that says so passes.
"""

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

from etils import epath

from ec_dit.core.errors import UserError

_Kind = TypeVar("_Kind")
# What the parser, and whoever takes what it found for what it should be, may raise.
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError)


def read(path: Path | epath.Path, kind: type[_Kind], mend: str) -> _Kind:
    """Reads a file of JSON.

    Args:
        kind: what it holds, as for `parse`.
        mend: what to do where it is damaged.

    Raises:
        UserError: it does not hold that.
        OSError: it cannot be read.
    """
    with whole(path, mend):
        return parse(path.read_bytes(), kind)


@contextlib.contextmanager
def whole(path: str | PurePath, mend: str) -> Iterator[None]:
    """Turns what damaged content makes readers raise into a UserError; for all that interprets a file, within the context.

    Args:
        path: of the file, for the message.
        mend: what to do where it is damaged.
    """
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged ({told(error)}); {mend}") from error


def told(error: Exception) -> str:
    """What an error of damaged content says, short and on one line."""
    text = "brackets within brackets without end" if isinstance(error, RecursionError) else str(error)
    text = f"there is no {text}" if isinstance(error, KeyError) else text
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200] or type(error).__name__


def parse(text: str | bytes, kind: type[_Kind]) -> _Kind:
    """Reads JSON of one kind: as an annotation, such as dict[str, int], tuple[str, ...] or int | None, or a dataclass.

    A dataclass is an object of its fields; those with a default may be missing, others may not stand there.

    Raises:
        ValueError: the text holds anything else. RecursionError: it is nested without end.
    """
    return _typed(json.loads(text if isinstance(text, str) else text.decode()), kind, "the whole")


def _typed(value: Any, kind: Any, where: str) -> Any:
    """`value` as the annotation has it: lists become tuples, whole numbers floats."""
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        for part in parts:
            with contextlib.suppress(ValueError):
                return _typed(value, part, where)
    elif dataclasses.is_dataclass(origin) and isinstance(value, dict):
        return _object(value, origin, where)
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        _, item = parts or (str, Any)
        return {key: _typed(each, item, f"{where}, {key!r}") for key, each in value.items()}
    elif origin is tuple and isinstance(value, list):
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(kinds) == len(value):
            return tuple(_typed(each, part, where) for each, part in zip(value, kinds, strict=True))
    elif origin in (list, Sequence) and isinstance(value, list):
        return [_typed(each, parts[0] if parts else Any, where) for each in value]
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind or (kind in (None, types.NoneType) and value is None):
        return value
    raise ValueError(f"{where} is {_shown(value)}, not {_name(kind)}")


def _object(value: dict[str, Any], kind: Any, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, field in fields.items():
        if name not in value and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where} has no {name!r}")
    if unknown := value.keys() - fields.keys():
        raise ValueError(f"{where} has a field {min(unknown)!r}, which is none")
    return kind(**{name: _typed(each, hints[name], repr(name)) for name, each in value.items()})


def _shown(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value)) or repr(value)


def _name(kind: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    origin = typing.get_origin(kind) or kind
    if isinstance(origin, type) and (dataclasses.is_dataclass(origin) or issubclass(origin, Mapping)):
        return "an object"
    return "a list" if origin in (list, tuple, Sequence) else names.get(kind, str(kind))
