"""What disks, networks and editors do to a file, one kind at a time."""

import itertools
import json

NESTED = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
_WRONG = (None, 3, -1, 0, "x", [], {}, True, 1e308, [[1]], {"content": 5})


def of(data, flips=6, values=0):
    """(kind, damaged content) of a file; None stands for one that is gone.

    Args:
        values: how many of the values of JSON are replaced, each by values of other types.
    """
    yield "deleted", None
    yield "cut short", data[: len(data) // 2]
    yield "emptied", b""
    yield "zeroed", bytes(len(data))
    for i in range(flips):
        place = (2 * i + 1) * len(data) // (2 * flips)
        yield (
            f"bit {i % 8} of byte {place} flipped",
            data[:place] + bytes([data[place] ^ 1 << i % 8]) + data[place + 1 :],
        )
    yield "foreign JSON", b'{"name": "another program\'s", "version": 3}'
    yield "a list", b"[1, 2, 3]"
    yield "nested deeply", NESTED
    yield "a web page", b"<!DOCTYPE html><html><body>404</body></html>"
    try:
        content = json.loads(data)
    except ValueError:
        return
    for path in itertools.islice(_paths(content), values):
        for wrong in _WRONG:
            yield f"{'/'.join(map(str, path))} = {wrong!r}", json.dumps(_with(content, path, wrong)).encode()


def _paths(content, path=()):
    """Of the values of objects, and of the first two of lists."""
    pairs = (
        content.items() if isinstance(content, dict) else enumerate(content[:2]) if isinstance(content, list) else ()
    )
    for key, value in list(pairs)[:40]:
        yield (*path, key)
        yield from _paths(value, (*path, key))


def _with(content, path, value):
    if not path:
        return value
    changed = dict(content) if isinstance(content, dict) else list(content)
    changed[path[0]] = _with(content[path[0]], path[1:], value)
    return changed
