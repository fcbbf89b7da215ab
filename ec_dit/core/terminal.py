"""What reaches a terminal: text without control characters of others, whatever encoding the terminal has."""

import io
import sys
import unicodedata


def printable(name: str) -> str:
    """A name that prints on one line: bytes that are not UTF-8 and control characters are written as escapes."""
    return name if name.isprintable() else "".join(map(_escaped, name))


def printable_lines(text: str) -> str:
    """A text whose lines are printable; its own newlines and tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # How Python holds a byte that is not UTF-8.
        return f"\\x{ord(character) - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape").decode()
    return character


def accept_any_text() -> None:
    """Lets standard output and errors write what their encoding lacks as escapes, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
