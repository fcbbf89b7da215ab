"""CSV files with a header: rows, the lines where they stand, and one message for whatever may be wrong with them."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from ec_dit.core import paths
from ec_dit.core.errors import UserError, shortened


def rows(path: str | PurePath, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the rows of a file, column -> text, each with the place where it begins, FILE:LINE.

    Args:
        columns: that it must have; others may stand beside them.

    Raises:
        UserError: the file is missing, no UTF-8 text or no CSV, lacks a column or has it twice, has no rows, or one that is
            longer or shorter than the header.
    """
    file = paths.at(path)
    if not file.is_file():
        raise UserError(f"there is no file {file}.")
    lines = csv.reader(io.StringIO(_text(file.read_bytes(), str(file)), newline=""), strict=True)
    header: list[str] = []
    read = 0
    while True:
        where = f"{file}:{lines.line_num + 1}"
        try:
            row = next(lines, None)
        except csv.Error as error:
            raise UserError(f"{where}: this is no CSV: {error}; mend the row, or download the file again.") from error
        if row is None:
            break
        if not row:  # an empty line
            continue
        if not header:
            if wrong := [column for column in columns if row.count(column) != 1]:
                raise UserError(
                    f"{where}: the header must name column {wrong[0]} once; it has {shortened(', '.join(row))}"
                )
            header = row
            continue
        if len(row) != len(header):
            raise UserError(f"{where}: the row has {len(row)} fields, the header {len(header)}; mend the row.")
        read += 1
        yield where, dict(zip(header, row, strict=True))
    if not read:
        raise UserError(f"{file} has no rows; download it again.")


def number(where: str, column: str, text: str) -> int:
    """Reads a whole number that is not negative.

    Raises:
        UserError: it is none; the message names `where` and the column.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise UserError(f"{where}: {column} is {shortened(text)!r}, not a whole number; mend the row.")
    return int(text)


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{where}:{line}: this is no UTF-8 text; save the file as UTF-8.") from error
