"""What is known of an example, as a mapping: which of it are captions, and which facts for filters."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from ec_dit.core.errors import UserError, did_you_mean
from ec_dit.preparation.finding import kinds
from ec_dit.preparation.finding.access import Unusable

MAX_CAPTIONS, MAX_CAPTION = 64, 10_000  # captions of an example, characters of one
_MAX_FACT = 1000  # characters
_DEPTH = 4  # mappings in mappings that are looked into
_SHOWN, _LONG = 20, 300  # names in a message, and its letters
_NO_FACTS = ("caption", "exif")  # A second copy of the text; a long list that no filter asks for.


def caption_weights(kind: str, specs: tuple[str, ...]) -> dict[str, float]:
    """Parses {key: weight} from texts 'KEY' and 'KEY=WEIGHT'. UserError where one is neither."""
    weights: dict[str, float] = {}
    for spec in specs:
        key, text = spec.rsplit("=", 1) if "=" in spec else (spec, "1")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not key or not 0 < weight < math.inf:
            raise UserError(f"{kind}: captions has {spec!r}; write KEY or KEY=WEIGHT with a weight above 0")
        if key in weights:
            raise UserError(f"{kind}: captions names {key!r} twice")
        weights[key] = weight
    if not weights:
        raise UserError(f"{kind}: captions is empty; name at least one key that captions come from")
    return weights


def choose_captions(
    keys: Mapping[str, float], fields: Mapping[str, Any], beside: Iterable[str] = ()
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Picks the different captions of an example and how often to take each, () for all alike.

    Args:
        beside: keys of what was not read and might have been, for the message.

    Raises:
        Unusable: it has none, too many, or one without end.
    """
    given = {key: _texts(at(fields, key)) for key in keys}
    if (count := sum(not _is_blank(text) for texts in given.values() for text in texts)) > MAX_CAPTIONS:
        raise Unusable(f"too many captions: {count}")
    found: dict[str, float] = {}
    problems = []
    for key, weight in keys.items():
        texts = []
        for text in given[key]:
            try:
                texts.append(clean(text))
            except Unusable as problem:
                problems.append(problem)
        for text in texts:
            if len(text) > MAX_CAPTION:
                raise Unusable(f"endless caption: {len(text)} characters")
            found[text] = found.get(text, 0) + weight / len(texts)
    if not found:
        raise problems[0] if problems else Unusable(f"no caption: {_lacks(keys, fields, beside)}")
    alike = len(set(found.values())) == 1
    return tuple(found), () if alike else tuple(found.values())


def at(fields: Any, path: str) -> Any:
    """Looks up the value at a path such as 'captions.text'; of each, where there is a list on the way. None where there is none.

    A key that holds dots itself goes before what they would lead to.
    """
    if isinstance(fields, list | tuple):
        values = (at(each, path) for each in fields if isinstance(each, Mapping))
        return [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    if not isinstance(fields, Mapping):
        return None
    if path in fields:
        return fields[path]
    ends = (index for index, character in enumerate(path) if character == ".")
    return next((at(fields[path[:end]], path[end + 1 :]) for end in ends if path[:end] in fields), None)


def names(fields: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the paths to all values that are there, those of nested mappings included."""
    for key, value in fields.items():
        items = value if isinstance(value, list | tuple) else [value]
        nested = next((each for each in items if isinstance(each, Mapping)), None)
        if nested is not None and prefix.count(".") < _DEPTH:
            yield from names(nested, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}"


def lacking(wanted: Iterable[str], known: Iterable[str]) -> str:
    """Says that none of the `wanted` names is there, what is instead, and the name that was meant, perhaps."""
    known, wanted = [name for name in dict.fromkeys(known) if len(name) < 100], list(wanted)
    guess = next(filter(None, (did_you_mean(name, known) for name in wanted)), "")
    shown = ", ".join(known[:_SHOWN])
    shown = shown[:_LONG] + (", ..." if len(known) > _SHOWN or len(shown) > _LONG else "")
    return f"no {' or '.join(map(repr, wanted))}{guess}" + (
        f"; there is {shown}" if known else "; there is nothing else"
    )


def _lacks(keys: Iterable[str], fields: Mapping[str, Any], beside: Iterable[str]) -> str:
    known = list(names(fields))
    empty = [key for key in keys if key in known]
    return f"{empty[0]!r} is there and holds none" if empty else lacking(keys, [*known, *beside])


def _texts(value: Any) -> list[Any]:
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if not (each is None or (isinstance(each, float) and math.isnan(each)))]


def _is_blank(text: Any) -> bool:
    return isinstance(text, str | bytes) and not text.strip()


def clean(text: Any) -> str:
    """Brings a caption on one line, spaces single. Unusable where it is no text or says nothing."""
    if isinstance(text, bytes):
        if kind := kinds.no_text(text):
            raise Unusable(f"not a caption: {kind}")
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Unusable("caption is not UTF-8 text") from None
    if not isinstance(text, str):
        raise Unusable("caption is not text")
    if cleaned := " ".join(_encodable(text).split()):
        return cleaned
    raise Unusable("empty caption")


def facts(fields: Mapping[str, Any], captions: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Gives the short texts and the numbers among `fields`, but the captions: what is sound JSON.

    What lies in a mapping within has the name 'outer.inner'.
    """
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        key = f"{prefix}{name}"
        if key in captions or key in _NO_FACTS or len(key) > _MAX_FACT:
            continue
        if isinstance(value, Mapping) and prefix.count(".") < _DEPTH:
            kept |= facts(value, captions, f"{key}.")
        elif isinstance(value, str) and len(value) <= _MAX_FACT:
            kept[_encodable(key)] = _encodable(value)
        elif (isinstance(value, int) and abs(value) < 2**64) or (isinstance(value, float) and math.isfinite(value)):
            kept[_encodable(key)] = value
    return kept


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()
