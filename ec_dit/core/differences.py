"""What differs between two reports, plans, encodings or configs, key by key, for messages."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A dotted key with its two values; None where there is no such key."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {json.dumps(self.old)} -> {json.dumps(self.new)}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[Difference]:
    """Compares two JSON objects: yields each key whose values differ, sorted; of objects within, the keys within."""
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield Difference(f"{prefix}{key}", a, b)
