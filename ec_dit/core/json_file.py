"""JSON files: one message for whatever may be wrong with them, and a digest by which a file shows that it is whole."""

import contextlib
import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from ec_dit.core.errors import DamageError, UserError

_Kind = TypeVar("_Kind")
# What readers raise that take damaged content for what it should be.
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError)
_LARGEST = 2**63 - 1
SEAL = "sha256"  # the key of a sealed object's digest


def read(path: epath.Path, advice: str = "") -> dict[str, Any]:
    """Reads a file that holds one JSON object; `advice` says what to do about a damaged one.

    Raises:
        DamageError: where it holds anything else.
        OSError: where it cannot be read.
    """
    return parse(path.read_bytes(), str(path), advice)


def read_sealed(path: epath.Path, advice: str = "") -> dict[str, Any]:
    """The JSON object of a file that `seal` gave a digest, which is compared.

    Raises:
        as `read` and `unseal` do.
    """
    return unseal(read(path, advice), str(path), advice)


def parse(data: bytes, where: str, advice: str = "") -> dict[str, Any]:
    """The JSON object in `data`, which come from `where`.

    Raises:
        DamageError: where they hold anything else.
    """
    try:
        content = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise damaged(where, f"byte {error.start} of {len(data)} is no text", advice) from error
    except ValueError as error:
        raise damaged(where, f"it is no JSON: {error}" if data.strip() else "it is empty", advice) from error
    except RecursionError as error:
        raise damaged(where, "its JSON is nested too deeply", advice) from error
    if not isinstance(content, dict):
        raise damaged(where, f"it holds a {type(content).__name__}, not an object", advice)
    return content


def damaged(where: str, reason: str, advice: str = "") -> DamageError:
    """The error that says so."""
    return DamageError(f"{where} is damaged: {reason}. {advice}".rstrip())


@contextlib.contextmanager
def whole(where: str, advice: str = "") -> Iterator[None]:
    """A context for all that interprets a file: what readers raise where its content is none of theirs is a DamageError.

    Errors that have a message of their own, and those of the disk, pass.
    """
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as error:
        text = f"there is no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        text = "".join(character if character.isprintable() else " " for character in text)
        raise damaged(where, " ".join(text.split())[:200], advice) from error


def typed(content: Any, kind: type[_Kind], where: str, advice: str = "") -> _Kind:
    """The content as an annotation has it, such as dict[str, int], tuple[str, ...] or int | None, or as a dataclass.

    A dataclass is an object of its fields; those with a default may be missing, others may not stand there.

    Raises:
        DamageError: where it is of another kind.
    """
    with whole(where, advice):
        return fit(content, kind, "the whole")


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with a digest of its other keys and values in it."""
    return {**content, SEAL: _digest(content)}


def unseal(sealed: Mapping[str, Any], where: str, advice: str = "") -> dict[str, Any]:
    """The object without its digest, which was compared; one that has none passes as it is.

    Raises:
        DamageError: where the digest is another.
    """
    content = {name: value for name, value in sealed.items() if name != SEAL}
    if SEAL in sealed and sealed[SEAL] != _digest(content):
        raise damaged(where, f"its content is not what its {SEAL} says", advice)
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def fit(value: Any, kind: Any, name: str = "the value") -> Any:
    """Gives a decoded JSON value as an annotation has it: lists become tuples, whole numbers floats.

    Args:
        name: of the value, for the message.

    Raises:
        ValueError: where it is of another kind, or a whole number of more than 64 bits.
    """
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Any:
        return value
    if type(value) is int and not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"{name} has more than 64 bits")
    if origin in (types.UnionType, typing.Union):
        for part in parts:
            with contextlib.suppress(ValueError):
                return fit(value, part, name)
    elif dataclasses.is_dataclass(origin) and isinstance(value, dict):
        return _object(value, origin, name)
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        _, item = parts or (str, Any)
        return {key: fit(each, item, f"{name}, {key!r}") for key, each in value.items()}
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(kinds) == len(value):
            return tuple(fit(each, part, name) for each, part in zip(value, kinds, strict=True))
    elif origin in (list, Sequence) and isinstance(value, list):
        return [fit(each, parts[0] if parts else Any, name) for each in value]
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind or (kind in (None, types.NoneType) and value is None):
        return value
    raise ValueError(f"{name} is {_shown(value)}, not {_name(kind)}")


def _object(value: dict[str, Any], kind: Any, name: str) -> Any:
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key, field in fields.items():
        if key not in value and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{name} has no {key!r}")
    if unknown := value.keys() - fields.keys():
        raise ValueError(f"{name} has a {min(unknown)!r}, which is none of its keys")
    return kind(**{key: fit(each, hints[key], repr(key)) for key, each in value.items()})


def _shown(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value)) or repr(value)


def _name(kind: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    origin = typing.get_origin(kind) or kind
    if isinstance(origin, type) and (dataclasses.is_dataclass(origin) or issubclass(origin, Mapping)):
        return "an object"
    return "a list" if origin in (list, tuple, Sequence) else names.get(kind, str(kind))
