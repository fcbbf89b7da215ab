"""Settings as frozen dataclasses: a field is a key, with its type, default, bounds and meaning, which stand nowhere else.

A room declares the settings that it reads, `width: int = key(1152, "D", at_least=1)`; a config is a dataclass of such sections.
What a text, a decoded JSON value or a Python object must be to become a key's value is decided here, by the field's type:
choices are its Literal's.
"""

import ast
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ec_dit.core.errors import UserError, did_you_mean, shortened

T = TypeVar("T")
Params = Literal["", "shape", "meaning"]
SIZE, COUNT = 2**20, 2**31 - 1  # the largest width, length or number of parts; the largest number of anything
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a list",
    dict: "a section",
}
_YES, _NO = ("true", "t", "1", "yes"), ("false", "f", "0", "no")
_FACTS = "key"  # in a field's metadata


@dataclass(frozen=True)
class Bounds:
    """The numbers that a key may have: from `low` to `high`, which `open_low` and `open_high` exclude themselves."""

    low: float
    high: float
    open_low: bool
    open_high: bool

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.open_high:
            return f"must be {'greater than' if self.open_low else 'at least'} {self.low:g} and less than {self.high:g}"
        least = f"must be greater than {self.low:g}" if self.open_low else f"must be at least {self.low:g}"
        least = "must not be negative" if self.low == 0 and not self.open_low else least
        return least if math.isinf(self.high) else f"{least}, and at most {self.high:,}"


@dataclass(frozen=True)
class Use:
    """When a key does something: where another key has one of some values, or, `excluded`, none of them."""

    other: str
    values: tuple[Any, ...]
    excluded: bool = False


@dataclass(frozen=True)
class _Facts:
    """What a field's metadata say of a key."""

    meaning: str
    bounds: Bounds | None
    choices: Callable[[], tuple[str, ...]] | None
    check: Callable[[Any], str | None] | None
    use: Use | None
    resumable: bool
    because: str
    params: Params


def key(
    default: Any,
    meaning: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float = math.inf,
    below: float | None = None,
    choices: Callable[[], tuple[str, ...]] | None = None,
    check: Callable[[Any], str | None] | None = None,
    use: Use | None = None,
    resumable: bool = False,
    because: str = "",
    params: Params = "",
) -> Any:
    """Declares a key, as the default of a dataclass's field.

    Args:
        default: its value where nothing else is said.
        meaning: what it does, with its unit, for people.
        at_least, above, at_most, below: bounds of a number, the second and the last outside of it.
        choices: gives the words it may be, where they are names of a registry; those of a Literal need no list.
        check: gives what a value should be, or None for one that is good.
        use: when it does something; None: always.
        resumable: whether it may change between the runs of one workdir.
        because: why it may not, where it looks as if it could.
        params: whether shapes of parameters follow from it, or they are trained for it.
    """
    bounds = None
    if at_least is not None or above is not None:
        low = above if at_least is None else at_least
        bounds = Bounds(low or 0, at_most if below is None else below, above is not None, below is not None)
    facts = _Facts(meaning, bounds, choices, check, use, resumable, because, params)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata={_FACTS: facts})
    return dataclasses.field(default=default, metadata={_FACTS: facts})


def section(kind: type) -> Any:
    """Declares a section, a dataclass of keys, as the default of a dataclass's field."""
    return dataclasses.field(default_factory=kind)


def only(other: str, *values: Any) -> Use:
    """A key is for some values of another key alone."""
    return Use(other, values)


def unless(other: str, *values: Any) -> Use:
    """A key is for all values of another key but some."""
    return Use(other, values, excluded=True)


@dataclass(frozen=True)
class Key:
    """A key of a config.

    Attributes:
        name: dotted, from the config's root.
        kind: bool, int, float, str, tuple, or dict for a section of which a config may hold any keys.
        default: its value.
        literals: the words of its type, where that is a Literal.
    """

    name: str
    kind: type
    default: Any
    literals: tuple[str, ...]
    facts: _Facts

    @property
    def words(self) -> tuple[str, ...]:
        """What it may be, where it is one of some words, which a registry may get more of; () elsewhere."""
        return self.facts.choices() if self.facts.choices else self.literals

    @property
    def wanted(self) -> str:
        """What kind of value it takes, for messages."""
        return f"must be {_KINDS[self.kind]}"

    @property
    def limits(self) -> list[str]:
        """Tells in words what it may be, when it does something, and whether it may change on resume."""
        facts, found = self.facts, list[str]()
        if self.words:
            found.append("one of " + ", ".join(word or "''" for word in self.words))
        if facts.bounds is not None:
            found.append(str(facts.bounds))
        if facts.use is not None:
            values = ", ".join(shown(value) for value in facts.use.values)
            found.append(f"used {'unless' if facts.use.excluded else 'only where'} {facts.use.other} is {values}")
        if facts.resumable:
            found.append("may change on resume")
        return found

    def fit(self, value: Any) -> Any:
        """A Python or decoded JSON value as this key has it: whole numbers become floats where it is one, and lists tuples.

        Raises:
            ValueError: naming the key, if it is of another kind.
        """
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise self._wrong(value) from None
        if self.kind is tuple and isinstance(value, list):
            return tuple(value)
        if self.kind is dict and isinstance(value, Mapping) and all(_is_plain(*item) for item in value.items()):
            return dict(value)
        if isinstance(value, bool) != (self.kind is bool) or not isinstance(value, self.kind) or self.kind is dict:
            raise self._wrong(value)
        return value

    def parse(self, text: str) -> Any:
        """What a text of a command line stands for.

        Raises:
            ValueError: naming the key, if it stands for nothing of its kind.
        """
        try:
            if self.kind is bool:
                return (text.lower() in _YES, text.lower() in _NO).index(True) == 0
            if self.kind is int:
                return int(text, 16 if text.lower().startswith("0x") else 10)
            if self.kind is float:
                return float(text)
            return _tuple(text) if self.kind is tuple else text
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # what literal_eval may raise
            raise ValueError(f"{self.name}={shortened(text)}: {self.wanted}") from None

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value of its kind, as far as that depends on no other key; None where nothing is."""
        if self.words and value not in self.words:
            hint = did_you_mean(shortened(value), self.words)
            return f"choose one of {', '.join(word or repr('') for word in self.words)}{hint}"
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        if isinstance(value, str) and "\0" in value:
            return "holds a character that no text has, \\0"
        if self.facts.bounds is not None and value not in self.facts.bounds:
            return str(self.facts.bounds)
        return self.facts.check(value) if self.facts.check else None

    def _wrong(self, value: Any) -> ValueError:
        return ValueError(f"{self.name} is {shown(value)}, but {self.wanted}{' of keys' if self.kind is dict else ''}")


def shown(value: Any) -> str:
    """A wrong value for a message."""
    return shortened(repr(value))


_known: dict[type, Mapping[str, Key]] = {}


def keys(config: type) -> Mapping[str, Key]:
    """Every key of a dataclass and of the sections in it, by dotted name, in the order of its fields."""
    if config not in _known:
        _known[config] = types.MappingProxyType({found.name: found for found in _keys(config, "")})
    return _known[config]


def _keys(config: type, prefix: str) -> Iterator[Key]:
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _keys(typing.cast(type, hint), f"{name}.")
        elif _FACTS in field.metadata:
            facts: _Facts = field.metadata[_FACTS]
            default = field.default if field.default is not dataclasses.MISSING else {}
            literals = tuple(typing.get_args(hint)) if typing.get_origin(hint) is Literal else ()
            yield Key(name, type(default), default, literals, facts)


def assemble(config: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Makes a dataclass of sections from the value of every key, by dotted name, each of its key's kind.

    A field that is neither key nor section keeps its default.
    """
    hints = typing.get_type_hints(config)
    parts = {
        field.name: assemble(hints[field.name], values, f"{prefix}{field.name}.")
        if dataclasses.is_dataclass(hints[field.name])
        else values[f"{prefix}{field.name}"]
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
        if dataclasses.is_dataclass(hints[field.name]) or _FACTS in field.metadata
    }
    return config(**parts)


def check(config: Any) -> None:
    """Checks every key of a config by itself.

    Raises:
        UserError: naming the key, its value and what it may be.
    """
    for name, value in flatten(config).items():
        if (problem := keys(type(config))[name].problem(value)) is not None:
            raise UserError(f"--config.{name}={shown(value)}: {problem}.")


def flatten(config: Any) -> dict[str, Any]:
    """Dotted name -> value of every key of a config."""
    return {name: get(config, name) for name in keys(type(config))}


def get(config: Any, name: str) -> Any:
    """The value of a dotted key."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def changed(config: T, changes: Mapping[str, Any]) -> T:
    """Makes a config with other values of some dotted keys."""
    return assemble(type(config), {**flatten(config), **changes})


def prefixed(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the dotted names of a section's keys."""
    return {f"{section}.{name}": value for name, value in values.items()}


def replaced(config: T, source: T, *names: str) -> T:
    """Makes a config with the keys, or sections, of some names as `source` has them."""
    taken = {
        name: value
        for name, value in flatten(source).items()
        if any(name == each or name.startswith(f"{each}.") for each in names)
    }
    return changed(config, taken)


def narrow(kind: type[T], *sources: Any, **more: Any) -> T:
    """A dataclass from the fields of the same names of other ones; `more` names the rest."""
    found: dict[str, Any] = {}
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for source in sources:
        found |= {
            field.name: getattr(source, field.name) for field in dataclasses.fields(source) if field.name in names
        }
    return kind(**(found | more))


def _is_plain(name: Any, value: Any) -> bool:
    """Whether a section of any keys may hold this one."""
    return isinstance(name, str) and "." not in name and not isinstance(value, Mapping)


def _tuple(text: str) -> tuple[Any, ...]:
    """A Python list or tuple; a single item, where there is neither comma nor bracket."""
    if not text.strip():
        return ()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if set(text) & set(",([{"):
            raise
        value = text
    if isinstance(value, dict | set):
        raise TypeError(text)
    return tuple(value) if isinstance(value, list | tuple) else (value,)
