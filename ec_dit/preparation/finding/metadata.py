"""Files that say something of each picture beside them: captions.jsonl, or Hugging Face's metadata.jsonl and metadata.csv."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from ec_dit.core.errors import UserError
from ec_dit.preparation.finding import access, kinds

NAMES = ("captions.jsonl", "metadata.jsonl", "metadata.csv")  # the first that a folder has is read
_FILE = ("file_name", "file")


class Line(NamedTuple):
    """What a line says of a file, or why it cannot be used.

    Attributes:
        where: name and number of the line.
        file: as it stands there, relative to the folder of the file that lists it.
    """

    where: str
    file: str = ""
    fields: dict[str, Any] = {}  # noqa: RUF012 - never changed
    problem: str | None = None


def lines(root: epath.Path, name: str) -> Iterator[Line]:
    """Yields the lines of the file `name`, empty ones left out; no longer one is read whole than a text may be.

    Raises:
        UserError: it cannot be read.
    """
    path = root / name
    if access.no_file(path):
        yield Line(name, problem="not a regular file")
        return
    try:
        with io.BufferedReader(path.open("rb")) as file:  # Files in buckets know no limit for a line.
            if kind := kinds.no_text(file.peek(kinds.HEAD)):
                yield Line(name, problem=f"not a list of pictures: {kind}")
                return
            raw = iter(lambda: file.readline(access.MAX_TEXT), b"")
            yield from _rows(name, raw) if name.endswith(".csv") else _objects(name, raw)
    except OSError as error:
        raise UserError(f"folder: cannot read {path}: {error}") from error


def _objects(name: str, raw: Iterator[bytes]) -> Iterator[Line]:
    for number, line in enumerate(raw, start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            fields = json.loads(line.decode("utf-8" if number > 1 else "utf-8-sig"))
        except UnicodeDecodeError:
            yield Line(where, problem="line is not UTF-8 text")
        except (ValueError, RecursionError):
            yield Line(where, problem=f"line is no JSON: {line[:40]!r}")
        else:
            yield _line(where, fields)


def _rows(name: str, raw: Iterator[bytes]) -> Iterator[Line]:
    texts = (line.decode("utf-8-sig" if number == 0 else "utf-8", "surrogateescape") for number, line in enumerate(raw))
    rows = csv.DictReader(texts)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Line(f"{name}:{rows.line_num}", problem=f"line is no CSV: {error}")
            continue
        if row is None:
            return
        where = f"{name}:{rows.line_num}"
        fields = {key: value for key, value in row.items() if isinstance(key, str) and value}
        if any("\udc80" <= character <= "\udcff" for text in fields.values() for character in text):
            yield Line(where, problem="line is not UTF-8 text")
        else:
            yield _line(where, fields)


def _line(where: str, fields: Any) -> Line:
    if not isinstance(fields, dict):
        return Line(where, problem=f"line is no object: {str(fields)[:40]!r}")
    named = next((key for key in _FILE if isinstance(fields.get(key), str) and fields[key]), None)
    if named is None:
        return Line(where, problem=f'line without "file_name": it has {", ".join(map(str, fields))[:200]}')
    return Line(where, fields[named], {key: value for key, value in fields.items() if key != named})
